"""What a node gets besides its state: the shared context, and its own attempt."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from decimal import Decimal
from typing import Any

import pytest

from stroma import ConfigError, RunStatus, current, fan_out, node, parallel, report_usage
from stroma.scope import SharedContext
from tests.core.helpers import Calls, FakeClock, Number, make_runner
from tests.core.test_fan_out import Batch

Context = MutableMapping[str, object]


# -- the shared context ----------------------------------------------------------------------


async def test_nodes_with_a_second_argument_share_the_callers_dict() -> None:
    resource = object()
    context: dict[str, object] = {"http": resource}

    @node
    async def a(state: Number, ctx: Context) -> Number:
        assert ctx["http"] is resource
        ctx["found"] = [1]
        return state

    @node
    async def b(state: Number, ctx: Context) -> Number:
        assert ctx["found"] == [1]
        del ctx["found"]
        return state

    result = await make_runner().with_context(context).run([a, b], Number())
    assert result.status is RunStatus.COMPLETED, result.stop_reason
    assert context == {"http": resource}


async def test_nodes_with_one_argument_get_none(calls: Calls) -> None:
    runner = make_runner().with_context({"x": 1})
    assert (await runner.run([calls.node("a")], Number())).status is RunStatus.COMPLETED


async def test_without_a_context_there_is_an_empty_one() -> None:
    @node
    async def a(state: Number, ctx: Context) -> Number:
        assert dict(ctx) == {}
        return state

    result = await make_runner().run([a], Number())
    assert result.status is RunStatus.COMPLETED, result.stop_reason


def test_only_the_model_is_laid_over_the_dict() -> None:
    shared: dict[str, object] = {"a": 1}
    ctx = SharedContext(shared, "small")
    assert (ctx["_stroma_model"], ctx.get("_stroma_model"), "_stroma_model" in ctx) == (
        "small",
        "small",
        True,
    )
    assert dict(ctx) == {"a": 1, "_stroma_model": "small"}
    assert len(ctx) == 2
    ctx["b"] = 2
    assert shared == {"a": 1, "b": 2}
    assert dict(SharedContext(shared, "")) == shared
    assert len(SharedContext({"_stroma_model": "x"}, "small")) == 1
    with pytest.raises(KeyError):
        ctx["c"]


def test_values_are_not_shown() -> None:
    assert "hunter2" not in repr(SharedContext({"password": "hunter2"}, ""))


@pytest.mark.parametrize("context", [None, [], "x"], ids=repr)
def test_a_context_that_is_no_dict_is_refused(context: Any) -> None:
    with pytest.raises(ConfigError, match="the context must be a dict"):
        make_runner().with_context(context)


# -- current() -------------------------------------------------------------------------------


async def test_a_node_knows_its_run_place_and_attempt(calls: Calls) -> None:
    scopes: list[tuple[Any, ...]] = []

    def look(state: Number) -> Any:
        scope = current()
        scopes.append((scope.run_id, scope.epoch, scope.node_id, scope.path, scope.attempt))
        assert scope.item is None
        if scope.attempt < 2:
            raise TimeoutError
        return {"value": 1}

    runner = make_runner()
    await runner.run([calls.node("a", look)], Number(), run_id="r")
    await runner.run([calls.node("a", look)], Number(), run_id="r", restart=True)
    assert scopes == [
        ("r", 0, "a", "a", 1),
        ("r", 0, "a", "a", 2),
        ("r", 1, "a", "a", 1),
        ("r", 1, "a", "a", 2),
    ]


async def test_a_node_knows_what_is_left(calls: Calls, clock: FakeClock) -> None:
    seen: list[Any] = []

    def look(state: Number) -> Any:
        clock.advance(1)
        left = current().budget_left
        seen.append((left.tokens, left.cost_usd, left.latency_ms))
        report_usage(input_tokens=40, cost_usd="0.3")
        return {"value": 1}

    runner = make_runner(clock=clock).with_budget(tokens=100, cost_usd=1, latency_ms=10_000)
    await runner.run([calls.node("a", look), calls.node("b", look)], Number())
    assert seen == [(100, Decimal(1), 9000), (60, Decimal("0.7"), 8000)]


async def test_without_a_budget_nothing_is_left_to_tell(calls: Calls) -> None:
    def look(state: Number) -> Any:
        left = current().budget_left
        assert (left.tokens, left.cost_usd, left.latency_ms) == (None, None, None)
        assert current().deadline is None
        return {"value": 1}

    result = await make_runner().run([calls.node("a", look)], Number())
    assert result.status is RunStatus.COMPLETED, result.stop_reason


async def test_a_node_knows_its_deadline(calls: Calls, clock: FakeClock) -> None:
    deadlines: list[float | None] = []

    def look(state: Number) -> Any:
        deadlines.append(current().deadline)
        return {"value": 1}

    runner = make_runner(clock=clock).with_node_timeouts({"a": 2000})
    await runner.run([calls.node("a", look)], Number())
    await runner.with_budget(latency_ms=500).run([calls.node("a", look)], Number())
    assert deadlines == [clock.at + 2, clock.at + 0.5]


async def test_outside_a_node_there_is_no_run() -> None:
    with pytest.raises(ConfigError, match="outside a node"):
        current()
    with pytest.raises(ConfigError, match="outside a node"):
        report_usage(input_tokens=1)


async def test_after_a_node_there_is_no_run(calls: Calls) -> None:
    await make_runner().run([calls.node("a")], Number())
    with pytest.raises(ConfigError, match="outside a node"):
        current()


async def test_tasks_of_a_node_know_it_too() -> None:
    @node
    async def a(state: Number) -> Number:
        async def help_out() -> None:
            report_usage(input_tokens=3)

        await asyncio.gather(help_out(), asyncio.create_task(help_out()))
        return state

    assert (await make_runner().run([a], Number())).tokens == 6


async def test_a_run_inside_a_node_has_a_scope_of_its_own(calls: Calls) -> None:
    runner = make_runner()

    @node(id="outer", input=Number, output=Number)
    async def outer(state: Number) -> Number:
        inner = await runner.run([calls.node("inner", ({"value": 5}, 7))], state)
        assert current().node_id == "outer"
        report_usage(input_tokens=inner.tokens)
        return inner.final_state  # type: ignore[return-value]

    result = await make_runner().run([outer], Number())
    assert (result.status, result.tokens) == (RunStatus.COMPLETED, 7)


# -- idempotency keys ------------------------------------------------------------------------


async def test_a_key_is_equal_across_attempts_and_continuations(store: Any, calls: Calls) -> None:
    keys: list[str] = []

    def pay(state: Number) -> Any:
        keys.append(current().idempotency_key)
        if len(keys) < 4:
            raise RuntimeError("odd")
        return {"value": 1}

    runner = make_runner(store)
    await runner.run([calls.node("a", pay)], Number(), run_id="r")
    await runner.run([calls.node("a", pay)], Number(), run_id="r")
    assert len(keys) == 4
    assert len(set(keys)) == 1
    await runner.run([calls.node("a", pay)], Number(), run_id="r", restart=True)
    assert len(set(keys)) == 2  # consent to buy again is another side effect


async def test_every_place_has_its_own_key() -> None:
    keys: list[str] = []

    def child(node_id: str) -> Any:
        @node(id=node_id, input=Number, output=Number)
        async def a(state: Number) -> Number:
            keys.append(current().idempotency_key)
            return state

        return a

    runner = make_runner()
    both = parallel(child("a"), child("b"))
    each = fan_out(child("w"), over="items", into="done")
    await runner.run([both], Number(), run_id="r")
    await runner.run([both], Number(), run_id="s")
    await runner.run([each], Batch(items=[Number()] * 3), run_id="t")
    assert len(set(keys)) == len(keys) == 7


# -- report_usage ----------------------------------------------------------------------------


async def test_usage_counts_even_when_the_node_then_fails(store: Any) -> None:
    @node
    async def a(state: Number) -> Number:
        report_usage(input_tokens=5, output_tokens=2, model="m", cost_usd="0.5")
        raise TypeError("bug")

    runner = make_runner(store)
    first = await runner.run([a], Number(), run_id="r")
    assert (first.spent.input_tokens, first.spent.output_tokens, first.cost_usd) == (
        5,
        2,
        Decimal("0.5"),
    )
    second = await runner.run([a], run_id="r")
    assert (second.tokens, second.cost_usd) == (14, Decimal(1))


async def test_usage_adds_up_with_what_the_node_returns(calls: Calls) -> None:
    def work(state: Number) -> Any:
        report_usage(input_tokens=1)
        report_usage(output_tokens=2)
        return {"value": 1}, 4

    result = await make_runner().run([calls.node("a", work)], Number())
    assert (result.spent.input_tokens, result.spent.output_tokens) == (5, 2)


@pytest.mark.parametrize(
    "usage",
    [
        {"input_tokens": -1},
        {"output_tokens": 1.5},
        {"input_tokens": True},
        {"model": None},
        {"cost_usd": -1},
        {"cost_usd": "many"},
        {"cost_usd": float("nan")},
        {"input_tokens": 2**63},
        {"cost_usd": "9e999999"},
    ],
    ids=repr,
)
async def test_usage_that_makes_no_sense_is_refused(calls: Calls, usage: dict[str, Any]) -> None:
    def work(state: Number) -> Any:
        report_usage(**usage)
        return {"value": 1}

    result = await make_runner().run([calls.node("a", work)], Number())
    assert result.status is RunStatus.FAILED
    assert isinstance(result.error, ConfigError)
    assert next(iter(usage)) in result.stop_reason
