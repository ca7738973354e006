"""One node alone: everything that holds for it in a pipeline holds here."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from pydantic import BaseModel

from stroma import (
    BudgetExceeded,
    ConfigError,
    ContractRegistry,
    ContractViolation,
    ExecutionBudget,
    FailurePolicy,
    NodeContract,
    NodeHooks,
    Pipeline,
    RunStatus,
    StromaRunner,
    fan_out,
    node,
    parallel,
    stroma_node,
)
from stroma.testing import FakeClock, run_node, run_node_sync


class Text(BaseModel):
    text: str


class Texts(BaseModel):
    texts: list[Text]


@node
async def shout(state: Text) -> tuple[Text, int, int, str]:
    return Text(text=state.text.upper()), 100, 10, "gpt-4o"


async def test_a_node_gives_its_output_and_what_it_used() -> None:
    result = await run_node(shout, Text(text="hello"))
    assert result.status is RunStatus.COMPLETED
    assert result.final_state == Text(text="HELLO")
    assert (result.tokens, result.cost_usd) == (110, Decimal("0.00035"))


def test_the_same_without_an_event_loop() -> None:
    assert run_node_sync(shout, {"text": "hello"}).final_state == Text(text="HELLO")


async def test_retries_take_no_time_and_are_the_real_ones() -> None:
    attempts: list[int] = []

    @node(policy=FailurePolicy(max_retries=2, base_delay_seconds=3600, max_delay_seconds=3600))
    async def flaky(state: Text) -> Text:
        attempts.append(len(attempts))
        raise TimeoutError("slow")

    result = await run_node(flaky, Text(text=""), random=lambda: 1.0)
    assert (result.status, len(attempts)) == (RunStatus.PARTIAL, 3)
    assert result.trace.retries()[0].retry_delay_seconds == 3600
    assert result.active_ms > 7_200_000


async def test_a_clock_may_be_given() -> None:
    clock = FakeClock(auto_advance=True)

    @node(policy=FailurePolicy(max_retries=1))
    async def flaky(state: Text) -> Text:
        raise TimeoutError("slow")

    await run_node(flaky, Text(text=""), clock=clock, random=lambda: 1.0)
    assert clock.slept == [0.5]


async def test_contracts_hold() -> None:
    @node(input=Text, output=Text)
    async def misfit(state: Text) -> dict[str, Any]:
        return {"wrong": 1}

    refused = await run_node(shout, {"wrong": 1})
    spoilt = await run_node(misfit, Text(text=""))
    assert isinstance(refused.error, ContractViolation)
    assert isinstance(spoilt.error, ContractViolation)
    assert (refused.error.direction, spoilt.error.direction) == ("input", "output")


async def test_the_context_and_options_are_those_of_a_run() -> None:
    told: list[str] = []

    @node
    async def look(state: Text, ctx: dict[str, Any]) -> Text:
        ctx["seen"] = True
        return Text(text=ctx["name"])

    context: dict[str, object] = {"name": "from the context"}
    hooks = NodeHooks(on_node_start=lambda run, node_id, state: told.append(run))
    result = await run_node(look, Text(text=""), context=context, hooks=hooks, run_id="r")
    assert result.final_state == Text(text="from the context")
    assert (told, context["seen"]) == (["r"], True)


async def test_a_budget_stops_the_retries() -> None:
    @node(policy=FailurePolicy(max_retries=5))
    async def costly(state: Text) -> Text:
        from stroma import report_usage

        report_usage(input_tokens=10)
        raise TimeoutError("slow")

    result = await run_node(costly, Text(text=""), budget=ExecutionBudget(tokens=15))
    assert isinstance(result.error, BudgetExceeded)
    assert result.tokens == 20


async def test_nodes_of_runners_and_registries_need_no_registry_here() -> None:
    runner = StromaRunner(ContractRegistry())

    @runner.node("of a runner", input=Text, output=Text)
    async def first(state: Text) -> Text:
        return state

    contract = NodeContract(node_id="by hand", input_schema=Text, output_schema=Text)

    @stroma_node("by hand", contract)
    async def second(state: Text) -> Text:
        return state

    for each in (first, second):
        assert (await run_node(each, Text(text=""))).is_complete


async def test_parallel_and_fan_out_are_nodes() -> None:
    @node
    async def quiet(state: Text) -> Text:
        return Text(text=state.text.lower())

    both = await run_node(parallel(shout, quiet), Text(text="Hi"))
    each = await run_node(fan_out(quiet, over="texts", into="said"), Texts(texts=[Text(text="A")]))
    assert both.final_state is not None
    assert both.final_state.model_dump() == {"text": "hi"}
    assert each.final_state is not None
    assert each.final_state.model_dump()["said"] == [{"text": "a"}]


@pytest.mark.parametrize(
    ("bad", "state", "message"),
    [
        ([shout], Text(text=""), "takes one node"),
        (Pipeline("p", [shout]), Text(text=""), "takes one node"),
        (print, Text(text=""), "print is no node: decorate it"),
        ("shout", Text(text=""), "'shout' is no node"),
        (shout, None, "the state for node 'shout' must be a pydantic model or a dict"),
        (shout, 3, "not int"),
    ],
)
async def test_what_is_no_node_or_no_state_is_said(bad: Any, state: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        await run_node(bad, state)


async def test_an_unknown_option_is_said() -> None:
    with pytest.raises(ConfigError, match="did you mean 'budget'"):
        await run_node(shout, Text(text=""), buget=3)


async def test_the_sync_one_does_not_block_a_loop() -> None:
    with pytest.raises(ConfigError, match="use await run_node"):
        run_node_sync(shout, Text(text=""))


async def test_no_store_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STROMA_STORE", "redis://nowhere:1")
    assert (await run_node(shout, Text(text=""))).is_complete
