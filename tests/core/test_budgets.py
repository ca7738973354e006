"""What a run may spend: checked before each attempt, settled after it, carried over restarts."""

from __future__ import annotations

import asyncio
import logging
from decimal import Decimal
from typing import Any

import pytest

from stroma import (
    BudgetDetails,
    BudgetExceeded,
    ConfigError,
    ExecutionBudget,
    FailurePolicy,
    Price,
    PriceTable,
    RunStatus,
    UnknownPrice,
    fan_out,
    node,
    parallel,
    report_usage,
)
from stroma.runner import NodeHooks
from tests.core.helpers import Calls, FakeClock, Number, make_runner, stored_run

PRICES = PriceTable({"m": ("1", "2"), "cheap": ("0.1", "0.2")}, "test")
MILLION = 1_000_000


def _priced(output: int = 1, tokens: int = MILLION, model: str = "m") -> tuple[Any, ...]:
    return {"value": output}, tokens, model


# -- tokens ----------------------------------------------------------------------------------


async def test_crossing_a_limit_keeps_the_output_and_stops_before_the_next_node(
    store: Any, calls: Calls
) -> None:
    nodes = [
        calls.node("a", ({"value": 1}, 60)),
        calls.node("b", ({"value": 2}, 60)),
        calls.node("c"),
    ]
    runner = make_runner(store).with_budget(tokens=100)
    result = await runner.run(nodes, Number(), run_id="r")
    assert result.status is RunStatus.PARTIAL
    assert result.final_state == Number(value=2)
    assert (calls["a"], calls["b"], calls["c"]) == (1, 1, 0)
    assert isinstance(result.error, BudgetExceeded)
    assert result.error.limit == "tokens"
    assert result.stop_reason == (
        "the budget of 100 tokens is reached: 120 tokens spent; "
        "start the run again with a higher budget to go on"
    )
    assert (await stored_run(store, "r")).status is RunStatus.PARTIAL


async def test_a_higher_budget_continues_without_buying_again(store: Any, calls: Calls) -> None:
    nodes = [
        calls.node("a", ({"value": 1}, 60)),
        calls.node("b", ({"value": 2}, 60)),
        calls.node("c"),
    ]
    runner = make_runner(store).with_budget(tokens=100)
    await runner.run(nodes, Number(), run_id="r")
    again = await runner.run(nodes, Number(), run_id="r")
    assert (again.status, again.spent_before.tokens, calls["c"]) == (RunStatus.PARTIAL, 120, 0)
    result = await runner.with_budget(tokens=200).run(nodes, Number(), run_id="r")
    assert result.status is RunStatus.RESUMED
    assert (calls["a"], calls["b"], calls["c"]) == (1, 1, 1)
    assert result.tokens == 120


async def test_a_limit_that_the_last_node_crosses_is_said_by_a_complete_run(
    store: Any, calls: Calls
) -> None:
    runner = make_runner(store).with_budget(tokens=100)
    result = await runner.run([calls.node("a", ({"value": 1}, 101))], Number(), run_id="r")
    assert result.status is RunStatus.COMPLETED
    assert result.stop_reason == "complete, and over budget: 101 tokens spent of 100 tokens"
    run = await stored_run(store, "r")
    assert (run.status, run.stop_reason) == (RunStatus.COMPLETED, result.stop_reason)


async def test_a_complete_run_that_met_its_limit_exactly_is_not_over_it(calls: Calls) -> None:
    runner = make_runner().with_budget(tokens=100)
    result = await runner.run([calls.node("a", ({"value": 1}, 100))], Number())
    assert (result.status, result.stop_reason) == (RunStatus.COMPLETED, "")


async def test_a_limit_met_exactly_stops_what_is_left(calls: Calls) -> None:
    runner = make_runner().with_budget(tokens=100)
    nodes = [calls.node("a", ({"value": 1}, 100)), calls.node("b")]
    assert (await runner.run(nodes, Number())).status is RunStatus.PARTIAL
    assert calls["b"] == 0


async def test_nothing_runs_on_a_budget_of_nothing(calls: Calls) -> None:
    result = await make_runner().with_budget(tokens=0).run([calls.node("a")], Number())
    assert (result.status, calls["a"]) == (RunStatus.PARTIAL, 0)


async def test_input_and_output_tokens_count_together(calls: Calls) -> None:
    runner = make_runner().with_budget(tokens=100)
    nodes = [calls.node("a", ({"value": 1}, 60, 60, "m")), calls.node("b")]
    assert (await runner.run(nodes, Number())).status is RunStatus.PARTIAL


async def test_failed_attempts_are_charged_and_the_next_one_is_checked(
    store: Any, calls: Calls
) -> None:
    @node
    async def a(state: Number) -> Number:
        calls.made["a"] += 1
        report_usage(input_tokens=60)
        raise TimeoutError("slow")

    runner = make_runner(store, budget=ExecutionBudget(tokens=100))
    result = await runner.run([a], Number(), run_id="r")
    assert calls["a"] == 2  # spent is at most the limit and one call
    assert result.status is RunStatus.PARTIAL
    assert isinstance(result.error, BudgetExceeded)
    assert result.tokens == 120
    again = await runner.run([a], Number(), run_id="r")
    assert (again.tokens, calls["a"]) == (120, 2)


async def test_usage_is_by_node_over_all_starts(store: Any, calls: Calls) -> None:
    nodes = [calls.node("a", ({"value": 1}, 5)), calls.node("b", TimeoutError(), ({"value": 2}, 7))]
    runner = make_runner(store, policy_map={})
    runner.with_node_policies({"b": FailurePolicy(max_retries=0)})
    await runner.run(nodes, Number(), run_id="r")
    result = await runner.run(nodes, Number(), run_id="r")
    assert {name: usage.tokens for name, usage in result.usage.items()} == {"a": 5, "b": 7}
    assert result.spent_before.tokens == 5


# -- money -----------------------------------------------------------------------------------


async def test_money_is_decimal_and_priced_by_input_and_output(store: Any, calls: Calls) -> None:
    nodes = [
        calls.node("a", ({"value": 1}, 100, 10, "m")),
        calls.node("b", ({"value": 2}, 3, "cheap")),
    ]
    result = await make_runner(store, pricers=[PRICES]).run(nodes, Number())
    assert result.cost_usd == Decimal("0.0001203")
    assert result.usage["a"].cost_usd == Decimal("0.00012")
    assert result.usage["a"].price_source == "test"
    assert result.spent.model == "m+cheap"


async def test_a_usd_budget_stops_before_the_next_node(store: Any, calls: Calls) -> None:
    nodes = [calls.node("a", _priced()), calls.node("b", _priced()), calls.node("c")]
    runner = make_runner(store, pricers=[PRICES]).with_budget(cost_usd=1.5)
    result = await runner.run(nodes, Number(), run_id="r")
    assert (result.status, result.cost_usd, calls["c"]) == (RunStatus.PARTIAL, Decimal(2), 0)
    assert "the budget of $1.5 is reached: $2 spent" in result.stop_reason
    runner.with_budget(cost_usd=Decimal("2.5"))
    assert (await runner.run(nodes, Number(), run_id="r")).status is RunStatus.RESUMED


async def test_every_call_of_an_attempt_has_its_own_models_price() -> None:
    @node(output=Number)
    async def a(state: Number) -> object:
        report_usage(input_tokens=MILLION, model="m")
        report_usage(input_tokens=MILLION, model="cheap")
        report_usage(cost_usd="0.5")
        return {"value": 1}, MILLION, "m"

    result = await make_runner(pricers=[PRICES]).with_budget(cost_usd=10).run([a], Number())
    assert result.status is RunStatus.COMPLETED
    assert result.cost_usd == Decimal("2.6")


async def test_a_cost_that_the_provider_reports_needs_no_price() -> None:
    @node
    async def a(state: Number) -> Number:
        report_usage(input_tokens=100, model="nobody-knows", cost_usd=0.25)
        return state

    result = await make_runner().with_budget(cost_usd=1).run([a], Number())
    assert (result.status, result.cost_usd) == (RunStatus.COMPLETED, Decimal("0.25"))


async def test_a_model_that_nobody_can_price_is_an_error_under_a_usd_budget(
    store: Any, calls: Calls
) -> None:
    nodes = [calls.node("a", _priced(model="new")), calls.node("b")]
    runner = make_runner(store).with_budget(cost_usd=1)
    result = await runner.run(nodes, Number(), run_id="r")
    assert result.status is RunStatus.FAILED
    assert isinstance(result.error, UnknownPrice)
    assert "nobody can price model 'new'" in result.stop_reason
    assert result.final_state == Number(value=1)
    assert calls["b"] == 0


@pytest.mark.parametrize("last", [True, False])
async def test_after_a_pricer_was_added_the_recorded_result_is_not_bought_again(
    store: Any, calls: Calls, last: bool
) -> None:
    nodes = [calls.node("a", _priced(model="new"))] + ([] if last else [calls.node("b")])
    runner = make_runner(store).with_budget(cost_usd=10)
    first = await runner.run(nodes, Number(), run_id="r")
    assert first.status is RunStatus.FAILED
    runner.with_pricers([PriceTable({"new": (3, 3)}, "added")])
    result = await runner.run(nodes, Number(), run_id="r")
    assert result.status is RunStatus.RESUMED
    assert (calls["a"], result.cost_usd) == (1, Decimal(3))
    assert (await stored_run(store, "r")).status is RunStatus.COMPLETED


async def test_tokens_without_a_model_have_no_price_either(calls: Calls) -> None:
    runner = make_runner().with_budget(cost_usd=1)
    result = await runner.run([calls.node("a", ({"value": 1}, 10)), calls.node("b")], Number())
    assert "tokens without a model name" in result.stop_reason


async def test_an_unknown_price_matters_only_under_a_usd_budget(calls: Calls) -> None:
    nodes = [calls.node("a", _priced(model="new")), calls.node("b")]
    result = await make_runner().with_budget(tokens=2 * MILLION).run(nodes, Number())
    assert result.status is RunStatus.COMPLETED
    assert result.usage["a"].cost_usd is None
    assert result.cost_usd == 0


async def test_unknown_prices_may_be_left_out_of_the_account(calls: Calls) -> None:
    nodes = [calls.node("a", _priced(model="new")), calls.node("b", _priced()), calls.node("c")]
    runner = make_runner(pricers=[PRICES], on_unknown_price="tokens_only").with_budget(cost_usd=2)
    result = await runner.run(nodes, Number())
    assert (result.status, result.cost_usd) == (RunStatus.COMPLETED, Decimal(1))


async def test_unknown_prices_may_be_given_one(calls: Calls) -> None:
    nodes = [calls.node("a", _priced(model="new")), calls.node("b", ({"value": 1}, MILLION))]
    fallback = Price(Decimal(4), Decimal(4), "guess")
    runner = make_runner(on_unknown_price=fallback).with_budget(cost_usd=20)
    result = await runner.run(nodes, Number())
    assert (result.status, result.cost_usd) == (RunStatus.COMPLETED, Decimal(8))
    assert result.usage["a"].price_source == "guess"


async def test_the_first_pricer_with_an_answer_decides(calls: Calls) -> None:
    dear = PriceTable({"m": (9, 9)}, "dear")
    runner = make_runner().with_pricers([lambda model, i, o: None, dear, PRICES])
    result = await runner.run([calls.node("a", _priced())], Number())
    assert result.cost_usd == 9


async def test_prices_in_floats_are_exact_dollars(calls: Calls) -> None:
    answer = Price(0.1, 0.2, "x")  # type: ignore[arg-type]
    runner = make_runner(pricers=[lambda model, i, o: answer]).with_budget(cost_usd=5)
    nodes = [calls.node("a", _priced()), calls.node("b", _priced())]
    result = await runner.run(nodes, Number())
    assert (result.status, result.cost_usd) == (RunStatus.COMPLETED, Decimal("0.2"))


@pytest.mark.parametrize(
    "answer",
    [
        KeyError("m"),
        5,
        (1, 2, "x"),
        Price(Decimal("NaN"), Decimal(1), "x"),
        Price(Decimal(-1), Decimal(1), "x"),
        Price("dear", Decimal(1), "x"),  # type: ignore[arg-type]
        Price(Decimal(1), Decimal(1), None),  # type: ignore[arg-type]
    ],
)
async def test_a_pricer_that_fails_is_passed_over_and_the_output_kept(
    store: Any, calls: Calls, caplog: pytest.LogCaptureFixture, answer: object
) -> None:
    def broken(model: str, input_tokens: int, output_tokens: int) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    runner = make_runner(store, pricers=[broken, PRICES])
    with caplog.at_level(logging.WARNING, "stroma"):
        result = await runner.run([calls.node("a", _priced())], Number())
    assert (result.status, result.cost_usd, calls["a"]) == (RunStatus.COMPLETED, Decimal(1), 1)
    assert "broken" in caplog.text
    assert "passed over" in caplog.text


async def test_a_model_of_any_name_does_not_cost_the_answer(store: Any, calls: Calls) -> None:
    odd = _priced(model="gpt-4o\ud800\0")
    for status in (RunStatus.COMPLETED, RunStatus.RESUMED):
        result = await make_runner(store).run([calls.node("a", odd)], Number(), run_id="r")
        assert (result.status, calls["a"]) == (status, 1)


async def test_common_models_are_priced_without_a_pricer(calls: Calls) -> None:
    result = await make_runner().run([calls.node("a", _priced(model="gpt-4o"))], Number())
    assert result.cost_usd > 0


# -- time ------------------------------------------------------------------------------------


def _slow(clock: FakeClock, node_id: str, seconds: float) -> Any:
    @node(id=node_id, input=Number, output=Number)
    async def slow(state: Number) -> Number:
        clock.advance(seconds)
        return Number(value=state.value + 1)

    return slow


async def test_a_latency_budget_stops_before_the_next_node(store: Any, clock: FakeClock) -> None:
    nodes = [_slow(clock, name, 0.6) for name in "abc"]
    runner = make_runner(store, clock=clock).with_budget(latency_ms=1000)
    result = await runner.run(nodes, Number(), run_id="r")
    assert (result.status, result.final_state) == (RunStatus.PARTIAL, Number(value=2))
    assert "the budget of 1000 ms is reached: 1200 ms spent" in result.stop_reason


async def test_downtime_between_two_starts_does_not_count(store: Any, clock: FakeClock) -> None:
    nodes = [_slow(clock, name, 0.6) for name in "abc"]
    runner = make_runner(store, clock=clock).with_budget(latency_ms=1000)
    await runner.run(nodes, Number(), run_id="r")
    clock.advance(3600)
    runner.with_budget(latency_ms=2000)
    result = await runner.run(nodes, Number(), run_id="r")
    assert result.status is RunStatus.RESUMED
    assert result.active_ms == pytest.approx(1800)


async def test_work_in_flight_is_cut_at_the_latency_limit(clock: FakeClock) -> None:
    runner = make_runner(clock=clock).with_budget(latency_ms=30)

    @node
    async def a(state: Number) -> Number:
        report_usage(input_tokens=3)
        clock.advance(0.03)  # asyncio cuts by its own clock, as long after the call has begun
        await asyncio.sleep(60)
        return state

    result = await runner.run([a], Number())
    assert result.status is RunStatus.PARTIAL
    assert isinstance(result.error, BudgetExceeded)
    assert result.error.limit == "latency_ms"
    assert result.tokens == 3
    assert [(d.path, d.reason) for d in result.in_doubt] == [("a", "latency")]


async def test_an_own_timeout_error_is_not_taken_for_the_limit(calls: Calls) -> None:
    runner = make_runner().with_budget(latency_ms=60_000)
    result = await runner.run([calls.node("a", TimeoutError("its own"))], Number())
    assert (calls["a"], str(result.error)) == (4, "its own")
    assert result.in_doubt == ()


# -- shared ----------------------------------------------------------------------------------


async def test_children_and_items_share_the_budget(calls: Calls) -> None:
    from pydantic import BaseModel

    class Batch(BaseModel):
        items: list[Number]

    item = calls.node("item", lambda state: ({"value": state.value}, 10))
    runner = make_runner().with_budget(tokens=50)
    each = fan_out(item, over="items", into="done", max_concurrency=2)
    result = await runner.run([each], Batch(items=[Number()] * 20))
    assert result.status is RunStatus.PARTIAL
    assert 50 <= result.tokens <= 60  # the limit and what was in flight
    pair = parallel(calls.node("a", ({"value": 1}, 30)), calls.node("b", ({"value": 1}, 30)))
    result = await runner.run([pair, calls.node("c")], Number())
    assert (result.status, result.tokens, calls["c"]) == (RunStatus.PARTIAL, 60, 0)


async def test_hooks_are_told_once_that_a_limit_is_reached(calls: Calls) -> None:
    told: list[BudgetDetails] = []
    runner = make_runner(hooks=NodeHooks(on_budget=told.append)).with_budget(tokens=10)
    nodes = [calls.node("a", ({"value": 1}, 11)), parallel(calls.node("b"), calls.node("c"))]
    result = await runner.run(nodes, Number(), run_id="r")
    (details,) = told
    assert (details.run_id, details.path, details.event) == ("r", "b", "reached")
    assert details.message == result.stop_reason
    assert details.spent.tokens == 11
    assert [event.kind for event in result.trace] == ["succeeded", "budget"]


# -- options ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "limits",
    [{"tokens": -1}, {"cost_usd": float("nan")}, {"latency_ms": -0.1}, {"tokens": 1.5}],
    ids=repr,
)
def test_a_limit_that_makes_no_sense_is_refused(limits: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(limits))):
        make_runner().with_budget(**limits)


@pytest.mark.parametrize("price", ["-1", "many", float("nan"), None])
def test_a_price_that_makes_no_sense_is_refused(price: Any) -> None:
    with pytest.raises(ConfigError, match="price of model 'm'"):
        PriceTable({"m": (1, price)}, "test")


def test_an_unknown_way_with_unknown_prices_is_refused() -> None:
    with pytest.raises(ConfigError, match="on_unknown_price"):
        make_runner(on_unknown_price="ignore")
