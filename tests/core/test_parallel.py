"""Nodes side by side on one state: merged, recorded one by one, cut and awaited together."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, Field

from stroma import (
    ConfigError,
    ContractRegistry,
    ContractViolation,
    FailurePolicy,
    NodeContract,
    RunStatus,
    StromaRunner,
    node,
    parallel,
    report_usage,
    stroma_node,
)
from stroma.runner import NodeHooks
from tests.core.helpers import Calls, Number, Text, make_runner, stored


class Left(BaseModel):
    left: int
    both: str = "left"


class Right(BaseModel):
    right: int
    both: str = "right"


class Joined(BaseModel):
    left: int
    right: int
    both: str


def _left(calls: Calls, *script: Any) -> Any:
    return _child(calls, "l", Left, *script or ({"left": 1},))


def _right(calls: Calls, *script: Any) -> Any:
    return _child(calls, "r", Right, *script or ({"right": 2},))


def _child(calls: Calls, node_id: str, output: type[BaseModel], *script: Any) -> Any:
    @node(id=node_id, input=Number, output=output)
    async def child(state: Number) -> Any:
        calls.made[node_id] += 1
        await asyncio.sleep(0)
        entry = script[min(calls[node_id], len(script)) - 1]
        if isinstance(entry, BaseException):
            raise entry
        return entry

    return child


# -- outputs ---------------------------------------------------------------------------------


async def test_outputs_are_merged_and_the_later_one_holds(store: Any, calls: Calls) -> None:
    @node
    async def last(state: Joined) -> Joined:
        return state

    runner = make_runner(store)
    result = await runner.run([parallel(_left(calls), _right(calls)), last], Number())
    assert result.final_state == Joined(left=1, right=2, both="right")
    result = await runner.run([parallel(_right(calls), _left(calls)), last], Number())
    assert result.final_state == Joined(left=1, right=2, both="left")


async def test_the_order_of_the_merge_is_declared_and_not_that_of_finishing(calls: Calls) -> None:
    @node(id="slow", input=Number, output=Left)
    async def slow(state: Number) -> dict[str, int]:
        for _ in range(20):
            await asyncio.sleep(0)
        return {"left": 1}

    result = await make_runner().run([parallel(slow, _right(calls))], Number())
    assert result.final_state.both == "right"  # type: ignore[union-attr]


async def test_a_trailing_parallel_gives_a_model_of_the_merged_fields(
    store: Any, calls: Calls
) -> None:
    result = await make_runner(store).run([parallel(_left(calls), _right(calls))], Number())
    assert isinstance(result.final_state, BaseModel)
    assert result.final_state.model_dump() == {"left": 1, "both": "right", "right": 2}
    assert set(type(result.final_state).model_fields) == {"left", "right", "both"}


async def test_what_is_merged_comes_back_from_the_store(store: Any, calls: Calls) -> None:
    runner, nodes = make_runner(store), [parallel(_left(calls), _right(calls))]
    first = await runner.run(nodes, Number(), run_id="r")
    again = await runner.run(nodes, Number(), run_id="r")
    assert again.final_state == first.final_state
    assert again.skipped == ("parallel(l, r)",)


async def test_aliases_nested_models_and_extra_fields_are_merged() -> None:
    class Inner(BaseModel):
        n: int

    class Aliased(BaseModel):
        inner: Inner = Field(alias="theInner")
        model_name: str = "m"
        model_config = ConfigDict(protected_namespaces=())

    class Open(BaseModel):
        model_config = ConfigDict(extra="allow")

    @node(id="a", input=Number, output=Aliased)
    async def a(state: Number) -> dict[str, Any]:
        return {"theInner": {"n": 1}}

    @node(id="b", input=Number, output=Open)
    async def b(state: Number) -> dict[str, Any]:
        return {"more": [1]}

    result = await make_runner().run([parallel(a, b)], Number())
    dumped = result.final_state.model_dump()  # type: ignore[union-attr]
    assert dumped == {"inner": {"n": 1}, "model_name": "m", "more": [1]}


async def test_all_children_get_the_state_before() -> None:
    seen: list[tuple[str, int]] = []

    def child(node_id: str) -> Any:
        @node(id=node_id, input=Number, output=Number)
        async def look(state: Number) -> Number:
            seen.append((node_id, state.value))
            return Number(value=0)

        return look

    await make_runner().run([parallel(child("a"), child("b"))], Number(value=7))
    assert sorted(seen) == [("a", 7), ("b", 7)]


async def test_children_run_at_the_same_time() -> None:
    both = asyncio.Barrier(2)

    def child(node_id: str) -> Any:
        @node(id=node_id, input=Number, output=Number)
        async def meet(state: Number) -> Number:
            await both.wait()
            return state

        return meet

    result = await make_runner().run([parallel(child("a"), child("b"))], Number())
    assert result.status is RunStatus.COMPLETED


async def test_children_inside_children(store: Any, calls: Calls) -> None:
    inner = parallel(calls.node("b"), _right(calls))
    runner, nodes = make_runner(store), [parallel(_left(calls), inner)]
    result = await runner.run(nodes, Number(), run_id="r")
    assert nodes[0].id == "parallel(l, parallel(b, r))"
    assert result.final_state.model_dump() == {  # type: ignore[union-attr]
        "left": 1,
        "both": "right",
        "value": 1,
        "right": 2,
    }
    again = await runner.run(nodes, Number(), run_id="r")
    assert again.final_state == result.final_state
    assert (calls["l"], calls["b"], calls["r"]) == (1, 1, 1)


# -- contracts, policies, records, usage, hooks ----------------------------------------------


async def test_each_child_has_its_own_contract(calls: Calls) -> None:
    result = await make_runner().run([parallel(_left(calls), _right(calls, {"bad": 1}))], Number())
    assert result.status is RunStatus.FAILED
    assert result.stop_reason == "r (output): right: Field required"
    assert isinstance(result.error, ContractViolation)


async def test_each_child_has_its_own_policy(calls: Calls) -> None:
    @node(id="p", input=Number, output=Number, policy=FailurePolicy(max_retries=6))
    async def patient(state: Number) -> Number:
        calls.made["p"] += 1
        if calls["p"] < 7:
            raise RuntimeError("odd")
        return state

    result = await make_runner().run([parallel(patient, _left(calls))], Number())
    assert (result.status, calls["p"]) == (RunStatus.COMPLETED, 7)


async def test_each_child_has_its_own_record_usage_and_trace(store: Any, calls: Calls) -> None:
    nodes = [parallel(_left(calls, ({"left": 1}, 5)), _right(calls, ({"right": 2}, 7, "m")))]
    result = await make_runner(store).run(nodes, Number(), run_id="r")
    assert {name: usage.tokens for name, usage in result.usage.items()} == {"l": 5, "r": 7}
    assert result.tokens == 12
    assert [event.node_id for event in result.trace.successes()] == ["l", "r", "parallel(l, r)"]
    headers = (await stored(store, "r")).headers
    assert {h.path: (h.position, h.usage.tokens) for h in headers} == {
        "l": (-1, 5),
        "r": (-1, 7),
        "parallel(l, r)": (0, 0),
    }


async def test_hooks_are_called_for_children_and_not_for_the_group(calls: Calls) -> None:
    told: list[tuple[str, ...]] = []
    hooks = NodeHooks(
        on_node_start=lambda run, node_id, state: told.append(("start", node_id)),
        on_node_success=lambda run, node_id, state, tokens: told.append(("success", node_id)),
    )
    await make_runner(hooks=hooks).run([parallel(_left(calls), _right(calls))], Number())
    assert sorted(told) == [("start", "l"), ("start", "r"), ("success", "l"), ("success", "r")]


# -- failures --------------------------------------------------------------------------------


async def test_a_finished_child_is_never_run_again_because_another_failed(
    store: Any, calls: Calls
) -> None:
    bad = _right(calls, TypeError("bug"), {"right": 2})
    runner, nodes = make_runner(store), [parallel(_left(calls, ({"left": 1}, 5)), bad)]
    first = await runner.run(nodes, Number(), run_id="r")
    assert (first.status, first.tokens, first.final_state) == (RunStatus.FAILED, 5, None)
    again = await runner.run(nodes, Number(), run_id="r")
    assert (again.status, again.skipped) == (RunStatus.RESUMED, ("l",))
    assert again.final_state.model_dump() == {"left": 1, "both": "right", "right": 2}  # type: ignore[union-attr]
    assert (calls["l"], calls["r"], again.tokens) == (1, 2, 5)


async def test_siblings_are_cut_and_awaited_when_one_fails(store: Any) -> None:
    log: list[str] = []
    began = asyncio.Event()

    @node(id="slow", input=Number, output=Number)
    async def slow(state: Number) -> Number:
        report_usage(input_tokens=3)
        began.set()
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0)
            log.append("cleaned up")
        return state

    @node(id="bad", input=Number, output=Number)
    async def bad(state: Number) -> Number:
        await began.wait()
        raise TypeError("bug")

    before = asyncio.all_tasks()
    result = await make_runner(store).run([parallel(slow, bad)], Number(), run_id="r")
    assert log == ["cleaned up"]
    assert asyncio.all_tasks() == before
    assert (result.status, str(result.error)) == (RunStatus.FAILED, "bug")
    assert [(d.path, d.attempt, d.reason) for d in result.in_doubt] == [("slow", 1, "cancelled")]
    assert [event.kind for event in result.trace] == ["failed", "cancelled"]
    assert result.tokens == 3
    again = await make_runner(store).run([parallel(slow, bad)], run_id="r", resume=True)
    assert again.spent_before.tokens == 3


async def test_the_first_failure_is_the_one_that_is_told(calls: Calls) -> None:
    @node(id="late", input=Number, output=Number)
    async def late(state: Number) -> Number:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            raise ValueError("while being cut") from None
        return state

    bad = _right(calls, TypeError("first"))
    result = await make_runner(policy_map={}).run([parallel(late, bad)], Number())
    assert str(result.error) == "first"


async def test_a_child_that_waits_for_something_cancelled_has_failed(
    store: Any, calls: Calls
) -> None:
    @node(id="stray", input=Number, output=Number)
    async def stray(state: Number) -> Number:
        calls.made["stray"] += 1
        if calls["stray"] > 2:
            return state
        inner = asyncio.ensure_future(asyncio.sleep(60))
        asyncio.get_running_loop().call_soon(inner.cancel)
        await inner
        return state

    runner, nodes = make_runner(store), [parallel(stray, _left(calls))]
    result = await runner.run(nodes, Number(), run_id="r")
    assert (result.status, calls["stray"]) == (RunStatus.FAILED, 2)
    assert "waited for something that was cancelled" in result.stop_reason
    assert (await runner.run(nodes, run_id="r")).status is RunStatus.RESUMED


# -- wrong use -------------------------------------------------------------------------------


def test_nothing_side_by_side_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least one node"):
        parallel()


def test_what_is_no_node_is_refused() -> None:
    async def plain(state: Number) -> Number:
        return state

    with pytest.raises(ConfigError, match="plain is no node: decorate it"):
        parallel(plain)


async def test_children_must_take_the_same_input(calls: Calls) -> None:
    @node
    async def other(state: Text) -> Text:
        return state

    with pytest.raises(ConfigError, match="l takes Number, other takes Text"):
        await make_runner().run([parallel(_left(calls), other)], Number())


async def test_a_child_needs_its_contract_in_the_registry(calls: Calls) -> None:
    contract = NodeContract(node_id="s", input_schema=Number, output_schema=Text)

    @stroma_node("s", contract)
    async def s(state: Number) -> dict[str, str]:
        return {"text": "s"}

    with pytest.raises(ConfigError, match="contract of node 's' is not registered"):
        await make_runner().run([parallel(_left(calls), s)], Number())
    registry = ContractRegistry()
    registry.register(contract)
    result = await StromaRunner(registry).run([parallel(_left(calls), s)], Number())
    assert result.final_state.text == "s"  # type: ignore[union-attr]


async def test_two_nodes_with_one_id_are_refused_wherever_they_are(calls: Calls) -> None:
    twice = [calls.node("a"), parallel(_left(calls), parallel(calls.node("a")))]
    with pytest.raises(ConfigError, match="two nodes have the id 'a'"):
        await make_runner().run(twice, Number())
    assert not calls.made


async def test_an_input_that_does_not_fit_names_the_group(calls: Calls) -> None:
    @node
    async def words(state: Number) -> Text:
        return Text(text="x")

    @node(id="w", input=Text, output=Text)
    async def w(state: Text) -> Text:
        return state

    @node(id="n", input=Joined, output=Number)
    async def n(state: Joined) -> Number:
        raise AssertionError("never called")

    result = await make_runner().run([words, parallel(w), n], Number())
    assert result.stop_reason.startswith("n (input): left: Field required")
    result = await make_runner().run([words, parallel(_left(calls))], Number())
    assert result.status is RunStatus.COMPLETED  # every field of Number is optional


def test_an_id_made_of_many_children_that_no_store_keeps_is_refused_and_can_be_given() -> None:
    children = [
        node(id=f"child-{'x' * 60}-{n}", input=Number, output=Number)(_same) for n in range(9)
    ]
    with pytest.raises(ConfigError, match=r"parallel\(…, id=…\)"):
        parallel(*children)
    assert parallel(*children, id="many").id == "many"


async def _same(state: Number) -> Number:
    return state


class Split(Number):
    """Its field names a model that comes later."""

    parts: list[Part] = Field(default_factory=list)


class Part(BaseModel):
    value: int


class SplitLeft(Split):
    left: int = 1


async def test_children_may_inherit_fields_that_name_a_later_model(store: Any) -> None:
    @node(id="left", input=Split, output=SplitLeft)
    async def left(state: Split) -> SplitLeft:
        return SplitLeft(**dict(state))

    result = await make_runner(store).run([parallel(left)], Split(parts=[Part(value=1)]))
    assert result.final_state.parts == [Part(value=1)]  # type: ignore[union-attr]
