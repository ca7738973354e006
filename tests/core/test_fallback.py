"""A cheaper model once a share of the budget is spent: what nodes are told, and what it costs."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from decimal import Decimal
from typing import Any

import pytest

from stroma import (
    BudgetDetails,
    ConfigError,
    PriceTable,
    RunStatus,
    current,
    node,
    parallel,
    report_usage,
)
from stroma.runner import NodeHooks
from tests.core.helpers import Number, make_runner

PRICES = PriceTable({"big": (10, 10), "small": (1, 1), "tiny": ("0.1", "0.1")}, "test")
Context = MutableMapping[str, object]
MILLION = 1_000_000


def _asking(node_id: str, seen: list[object], model: str = "") -> Any:
    @node(id=node_id, input=Number, output=Number, model=model)
    async def asking(state: Number, ctx: Context) -> object:
        told = ctx.get("_stroma_model")
        seen.append(told)
        return {"value": 1}, MILLION, told or "big"

    return asking


async def test_nodes_are_told_the_model_until_the_share_is_spent_and_the_other_after_it() -> None:
    seen: list[object] = []
    runner = make_runner(pricers=[PRICES]).with_budget(cost_usd=20)
    runner.with_model_fallback("big", to="small", at_budget_pct=0.5)
    result = await runner.run([_asking(name, seen) for name in "abc"], Number())
    assert seen == ["big", "small", "small"]
    assert result.cost_usd == Decimal(12)
    assert [usage.model for usage in result.usage.values()] == ["big", "small", "small"]


async def test_tokens_of_the_model_are_priced_by_the_one_in_force() -> None:
    @node(id="a", input=Number, output=Number)
    async def a(state: Number) -> object:
        return {"value": 1}, MILLION, "big"

    @node(id="b", input=Number, output=Number)
    async def b(state: Number) -> Number:
        report_usage(input_tokens=MILLION, model="big")
        return state

    runner = make_runner(pricers=[PRICES]).with_budget(cost_usd=100)
    runner.with_model_fallback("big", to="small", at_budget_pct=0)
    result = await runner.run([a, b], Number())
    assert result.cost_usd == Decimal(2)
    assert result.spent.model == "small"


async def test_without_a_usd_budget_the_share_is_of_the_tokens() -> None:
    seen: list[object] = []
    runner = make_runner().with_budget(tokens=4 * MILLION)
    runner.with_model_fallback("big", to="small", at_budget_pct=0.5)
    await runner.run([_asking(name, seen) for name in "abc"], Number())
    assert seen == ["big", "big", "small"]


async def test_rules_apply_one_after_the_other() -> None:
    seen: list[object] = []
    runner = make_runner(pricers=[PRICES]).with_budget(cost_usd=12)
    runner.with_model_fallback("big", to="small", at_budget_pct=0.5)
    runner.with_model_fallback("small", to="tiny", at_budget_pct=0.9)
    await runner.run([_asking(name, seen) for name in "abcd"], Number())
    assert seen == ["big", "small", "tiny", "tiny"]


async def test_what_earlier_starts_spent_counts(store: Any) -> None:
    seen: list[object] = []
    runner = make_runner(store, pricers=[PRICES]).with_budget(cost_usd=10)
    runner.with_model_fallback("big", to="small", at_budget_pct=0.5)
    nodes = [_asking(name, seen) for name in "ab"]
    assert (await runner.run(nodes, Number(), run_id="r")).status is RunStatus.PARTIAL
    await runner.with_budget(cost_usd=15).run(nodes, Number(), run_id="r")
    assert seen == ["big", "small"]


async def test_the_callers_context_names_the_model_and_is_not_changed() -> None:
    seen: list[object] = []
    context: dict[str, object] = {"model": "big"}
    runner = make_runner(pricers=[PRICES]).with_context(context).with_budget(cost_usd=15)
    runner.with_model_fallback("big", to="small", at_budget_pct=0.5)
    await runner.run([_asking(name, seen) for name in "ab"], Number())
    assert seen == ["big", "small"]
    assert context == {"model": "big"}


async def test_children_side_by_side_have_their_own_models() -> None:
    both = asyncio.Barrier(2)
    seen: dict[str, object] = {}

    def child(node_id: str, model: str) -> Any:
        @node(id=node_id, input=Number, output=Number, model=model)
        async def ask(state: Number, ctx: Context) -> Number:
            await both.wait()
            seen[node_id] = (ctx["_stroma_model"], current().model)
            await both.wait()
            return state

        return ask

    runner = make_runner().with_context({}).with_budget(tokens=100)
    runner.with_model_fallback("big", to="small", at_budget_pct=0)
    await runner.run([parallel(child("a", "big"), child("b", "other"))], Number())
    assert seen == {"a": ("small", "small"), "b": ("other", "other")}


async def test_an_attempt_keeps_the_model_that_it_began_with() -> None:
    began, spent = asyncio.Event(), asyncio.Event()

    @node(id="spender", input=Number, output=Number)
    async def spender(state: Number) -> object:
        await began.wait()
        return {"value": 1}, 10 * MILLION, "tiny"

    @node(id="caller", input=Number, output=Number)
    async def caller(state: Number, ctx: Context) -> object:
        began.set()
        await spent.wait()
        return {"value": 1}, MILLION, ctx["_stroma_model"]

    async def after(run_id: str, node_id: str, state: Any, tokens: int) -> None:
        spent.set()

    runner = make_runner(pricers=[PRICES], hooks=NodeHooks(on_node_success=after))
    runner.with_budget(cost_usd=2).with_model_fallback("big", to="small", at_budget_pct=0.5)
    result = await runner.run([parallel(spender, caller)], Number())
    assert result.usage["caller"].model == "big"
    assert result.usage["caller"].cost_usd == Decimal(10)


async def test_hooks_and_trace_say_when_a_rule_comes_into_force() -> None:
    told: list[BudgetDetails] = []
    seen: list[object] = []
    runner = make_runner(pricers=[PRICES], hooks=NodeHooks(on_budget=told.append))
    runner.with_budget(cost_usd=15).with_model_fallback("big", to="small", at_budget_pct=0.5)
    result = await runner.run([_asking(name, seen) for name in "abc"], Number(), run_id="r")
    (details,) = told
    assert (details.event, details.path, details.model) == ("fallback", "b", "small")
    assert details.message == "small instead of big"
    assert [event.kind for event in result.trace] == [
        "succeeded",
        "fallback",
        "succeeded",
        "succeeded",
    ]


async def test_a_fallback_without_a_budget_is_refused_before_anything_runs() -> None:
    seen: list[object] = []
    runner = make_runner().with_model_fallback("big", to="small")
    with pytest.raises(ConfigError, match="share of the budget, and there is none"):
        await runner.run([_asking("a", seen)], Number())
    assert seen == []


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan"), "much"])
def test_a_share_that_makes_no_sense_is_refused(share: Any) -> None:
    with pytest.raises(ConfigError, match="at_budget_pct"):
        make_runner().with_model_fallback("big", to="small", at_budget_pct=share)
