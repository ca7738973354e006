"""The page of the runner's API: builders, decorators, hooks and parallel nodes."""

import asyncio
import dataclasses
import inspect
import uuid
from typing import Any

import pytest
from pydantic import BaseModel

from stroma import (
    CheckpointManager,
    ContractRegistry,
    ExecutionBudget,
    ExecutionResult,
    FailureClass,
    FailurePolicy,
    InMemoryStore,
    NodeContract,
    RunConfig,
    StromaRunner,
    default_policy_map,
    parallel,
    stroma_node,
)
from stroma.runner import NodeHooks
from tests.servers.redis import REDIS, shared_server


class InputState(BaseModel):
    value: int


class OutputState(BaseModel):
    result: int


class Left(BaseModel):
    left: int
    shared: str


class Right(BaseModel):
    right: int
    shared: str


class Both(BaseModel):
    left: int
    right: int
    shared: str


NO_WAIT = {
    FailureClass.RECOVERABLE: FailurePolicy(max_retries=3, base_delay_seconds=0),
    FailureClass.AMBIGUOUS: FailurePolicy(max_retries=0),
}


def doubling(runner: StromaRunner) -> Any:
    @runner.node("double", input=InputState, output=OutputState)
    async def double(state: InputState) -> dict[str, int]:
        return {"result": state.value * 2}

    return double


# -- StromaRunner ------------------------------------------------------------------------------


async def test_quick_runs_a_node() -> None:
    runner = StromaRunner.quick()

    result = await runner.run([doubling(runner)], InputState(value=5))

    assert isinstance(result, ExecutionResult)
    assert (str(result.status), result.final_state) == ("COMPLETED", OutputState(result=10))
    assert [event.node_id for event in result.trace] == ["double"]
    assert (result.tokens, result.cost_usd) == (0, 0)


async def test_quick_takes_everything_there_is_to_set() -> None:
    store = InMemoryStore()

    runner = StromaRunner.quick(
        store=store,
        budget=ExecutionBudget(tokens=10),
        policy_map=default_policy_map(),
        classifiers=[],
        hooks=NodeHooks(),
        run_id="given",
    )
    result = await runner.run([doubling(runner)], InputState(value=5))

    assert result.run_id == "given"
    assert store.load("given", "double") == OutputState(result=10)
    assert runner.config.budget == ExecutionBudget(tokens=10)


async def test_a_runner_of_its_parts() -> None:
    registry = ContractRegistry()
    contract = NodeContract(node_id="n", input_schema=InputState, output_schema=OutputState)
    registry.register(contract)

    @stroma_node("n", contract)
    async def node(state: InputState) -> dict[str, int]:
        return {"result": state.value}

    runner = StromaRunner(registry, CheckpointManager(InMemoryStore()), RunConfig())
    result = await runner.run([node], InputState(value=1))

    assert result.final_state == OutputState(result=1)
    assert result.run_id, "an id is made where none is given"


async def test_every_builder_returns_the_runner() -> None:
    runner = StromaRunner.quick()

    same = (
        runner.with_budget(tokens=1000, cost_usd=1.0, latency_ms=60_000)
        .with_model_fallback("gpt-4o", to="gpt-4o-mini", at_budget_pct=0.8)
        .with_classifiers([lambda exc, ctx: None])
        .with_hooks(NodeHooks())
        .with_context({"key": "value"})
        .with_policy_map(default_policy_map())
        .with_node_policies({"double": FailurePolicy(max_retries=1)})
        .with_node_timeouts({"double": 1000})
    )

    assert same is runner
    result = await runner.run([doubling(runner)], InputState(value=2))
    assert result.final_state == OutputState(result=4)


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("quick", "store budget policy_map classifiers hooks config_kwargs"),
        ("with_redis", "redis_url ttl_seconds"),
        ("with_budget", "tokens cost_usd latency_ms"),
        ("with_model_fallback", "model to at_budget_pct"),
        ("with_classifiers", "classifiers"),
        ("with_hooks", "hooks"),
        ("with_context", "context"),
        ("with_policy_map", "policy_map"),
        ("with_node_policies", "node_policies"),
        ("with_node_timeouts", "node_timeouts"),
        ("node", "node_id input output"),
    ],
)
def test_a_method_takes_what_the_page_says(method: str, parameters: str) -> None:
    found = inspect.signature(getattr(StromaRunner, method)).parameters

    wanted = parameters.split()
    assert [name for name in found if name in wanted] == wanted


def test_defaults_are_those_of_the_page() -> None:
    redis = inspect.signature(StromaRunner.with_redis).parameters
    fallback = inspect.signature(StromaRunner.with_model_fallback).parameters

    assert redis["ttl_seconds"].default == 3600
    assert fallback["at_budget_pct"].default == 0.8


@pytest.mark.server
async def test_with_redis_records_in_redis() -> None:
    run_id = f"runner-api-{uuid.uuid4()}"
    for status in ("COMPLETED", "RESUMED"):
        async with StromaRunner.quick().with_redis(shared_server(REDIS).url) as runner:
            result = await runner.run([doubling(runner)], InputState(value=2), run_id=run_id)
            assert str(result.status) == status


async def test_a_budget_stops_a_run_and_keeps_what_is_paid_for() -> None:
    runner = StromaRunner.quick().with_budget(tokens=100)

    @runner.node("pay", input=InputState, output=InputState)
    async def pay(state: InputState) -> tuple[dict[str, int], int]:
        return {"value": state.value + 1}, 100

    double = doubling(runner)
    result = await runner.run([pay, double], InputState(value=1))

    assert str(result.status) == "PARTIAL"
    assert result.final_state == InputState(value=2)
    assert "tokens" in result.stop_reason


async def test_a_cheaper_model_is_used_when_a_share_of_the_budget_is_spent() -> None:
    told = []
    runner = (
        StromaRunner.quick()
        .with_budget(cost_usd=0.01)
        .with_model_fallback("gpt-4o", to="gpt-4o-mini", at_budget_pct=0.8)
    )

    def spending(node_id: str) -> Any:
        @runner.node(node_id, input=InputState, output=InputState)
        async def spend(state: InputState, ctx: dict[str, Any]) -> tuple[InputState, int, int, str]:
            told.append(ctx["_stroma_model"])
            return state, 3600, 0, "gpt-4o"  # 0.009 USD at gpt-4o's price

        return spend

    result = await runner.run([spending("first"), spending("second")], InputState(value=1))

    assert told == ["gpt-4o", "gpt-4o-mini"]
    assert result.usage["first"].model == "gpt-4o"
    assert result.usage["second"].model == "gpt-4o-mini", "it is priced by the model in force"


async def test_the_context_is_shared_between_nodes() -> None:
    context: dict[str, object] = {"seen": []}
    runner = StromaRunner.quick().with_context(context)

    @runner.node("first", input=InputState, output=InputState)
    async def first(state: InputState, ctx: dict[str, Any]) -> InputState:
        ctx["seen"].append("first")
        ctx["new"] = 1
        return state

    @runner.node("second", input=InputState, output=InputState)
    async def second(state: InputState, ctx: dict[str, Any]) -> InputState:
        ctx["seen"].append(ctx["new"])
        return state

    await runner.run([first, second], InputState(value=1))

    assert context == {"seen": ["first", 1], "new": 1}


async def test_a_node_that_takes_too_long_times_out_and_is_retried() -> None:
    runner = StromaRunner.quick(policy_map=NO_WAIT).with_node_timeouts({"slow": 20})
    calls = []

    @runner.node("slow", input=InputState, output=OutputState)
    async def slow(state: InputState) -> dict[str, int]:
        calls.append(state)
        if len(calls) == 1:
            await asyncio.sleep(10)
        return {"result": state.value}

    result = await runner.run([slow], InputState(value=1))

    (failure,) = result.trace.failures()
    assert str(result.status) == "COMPLETED"
    assert failure.failure_class == FailureClass.RECOVERABLE
    assert len(calls) == 2


async def test_policies_of_a_node_come_before_those_of_the_run() -> None:
    runner = StromaRunner.quick(policy_map=NO_WAIT).with_node_policies(
        {"flaky": FailurePolicy(max_retries=1, base_delay_seconds=0)}
    )
    calls = []

    @runner.node("flaky", input=InputState, output=OutputState)
    async def flaky(state: InputState) -> dict[str, int]:
        calls.append(state)
        raise TimeoutError

    result = await runner.run([flaky], InputState(value=1))

    assert str(result.status) == "PARTIAL"
    assert len(calls) == 2


# -- RunConfig and NodeHooks -------------------------------------------------------------------


def test_the_configuration_is_a_model() -> None:
    config = RunConfig(
        run_id="r", budget=ExecutionBudget(), policy_map=default_policy_map(), classifiers=[]
    )

    assert isinstance(config, BaseModel)
    assert (config.run_id, config.resume_from) == ("r", None)


async def test_hooks_are_told_what_happens_at_the_boundaries() -> None:
    told: list[tuple[object, ...]] = []

    async def start(run_id: str, node_id: str, input_state: dict[str, Any]) -> None:
        told.append(("start", run_id, node_id, input_state))

    async def success(
        run_id: str, node_id: str, output_state: dict[str, Any], tokens_used: int
    ) -> None:
        told.append(("success", run_id, node_id, output_state, tokens_used))

    async def failure(
        run_id: str, node_id: str, exc: Exception, failure_class: FailureClass
    ) -> None:
        told.append(("failure", run_id, node_id, str(exc), failure_class))

    hooks = NodeHooks(on_node_start=start, on_node_success=success, on_node_failure=failure)
    runner = StromaRunner.quick(policy_map=NO_WAIT, run_id="r").with_hooks(hooks)

    @runner.node("flaky", input=InputState, output=OutputState)
    async def flaky(state: InputState) -> tuple[dict[str, int], int]:
        if len(told) == 1:
            raise TimeoutError("later")
        return {"result": state.value}, 7

    await runner.run([flaky], InputState(value=3))

    assert dataclasses.is_dataclass(NodeHooks)
    assert told == [
        ("start", "r", "flaky", {"value": 3}),
        ("failure", "r", "flaky", "later", FailureClass.RECOVERABLE),
        ("start", "r", "flaky", {"value": 3}),
        ("success", "r", "flaky", {"result": 3}, 7),
    ]


# -- decorators --------------------------------------------------------------------------------


def test_both_decorators_attach_the_same_metadata() -> None:
    runner = StromaRunner.quick()
    double = doubling(runner)
    contract = NodeContract(node_id="double", input_schema=InputState, output_schema=OutputState)

    @stroma_node("double", contract)
    async def other(state: InputState) -> dict[str, int]:
        return {"result": 0}

    assert double._stroma_node_id == other._stroma_node_id == "double"
    assert double._stroma_contract == other._stroma_contract == contract
    assert runner.registry.get("double") == contract


# -- parallel ----------------------------------------------------------------------------------


def sides(runner: StromaRunner) -> list[Any]:
    @runner.node("a", input=InputState, output=Left)
    async def a(state: InputState) -> tuple[dict[str, object], int, int, str]:
        return {"left": state.value, "shared": "a"}, 10, 1, "gpt-4o"

    @runner.node("b", input=InputState, output=Right)
    async def b(state: InputState) -> tuple[dict[str, object], int]:
        return {"right": -state.value, "shared": "b"}, 5

    return [a, b]


async def test_parallel_merges_and_the_last_write_wins() -> None:
    runner = StromaRunner.quick()
    node_b, node_c = sides(runner)

    @runner.node("node_a", input=InputState, output=InputState)
    async def node_a(state: InputState) -> InputState:
        return InputState(value=state.value + 1)

    @runner.node("node_d", input=Both, output=Both)
    async def node_d(state: Both) -> Both:
        return state

    sequence = [node_a, parallel(node_b, node_c), node_d]
    result = await runner.run(sequence, InputState(value=1))

    assert result.final_state == Both(left=2, right=-2, shared="b")
    assert result.tokens == 16
    assert (result.usage["a"].tokens, result.usage["b"].tokens) == (11, 5)


async def test_children_run_at_the_same_time() -> None:
    runner = StromaRunner.quick()
    both_are_here = asyncio.Barrier(2)

    @runner.node("a", input=InputState, output=Left)
    async def a(state: InputState) -> dict[str, object]:
        await both_are_here.wait()
        return {"left": 1, "shared": "a"}

    @runner.node("b", input=InputState, output=Right)
    async def b(state: InputState) -> dict[str, object]:
        await both_are_here.wait()
        return {"right": 2, "shared": "b"}

    result = await runner.run([parallel(a, b)], InputState(value=1))

    assert result.is_complete


async def test_a_violation_of_a_child_cancels_the_others_and_fails_the_run() -> None:
    runner = StromaRunner.quick()
    cancelled = []

    @runner.node("bad", input=InputState, output=Left)
    async def bad(state: InputState) -> dict[str, object]:
        return {"wrong": 1}

    @runner.node("slow", input=InputState, output=Right)
    async def slow(state: InputState) -> dict[str, object]:
        try:
            await asyncio.sleep(10)
        except asyncio.CancelledError:
            cancelled.append("slow")
            raise
        return {}

    result = await runner.run([parallel(bad, slow)], InputState(value=1))

    assert str(result.status) == "FAILED"
    assert "bad (output): left: Field required" in result.stop_reason
    assert cancelled == ["slow"]


async def test_children_must_take_the_same_input() -> None:
    runner = StromaRunner.quick()
    node_a, _ = sides(runner)

    @runner.node("other", input=OutputState, output=OutputState)
    async def other(state: OutputState) -> OutputState:
        return state

    with pytest.raises(ValueError, match="must take the same input"):
        await runner.run([parallel(node_a, other)], InputState(value=1))
