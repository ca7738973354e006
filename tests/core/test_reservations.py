"""What an attempt may use is set aside before it calls: then nothing overshoots the budget."""

from __future__ import annotations

import asyncio
import pickle
from decimal import Decimal
from typing import Any

import pytest
from pydantic import BaseModel

from stroma import (
    BudgetExceeded,
    ConfigError,
    Estimate,
    NodeHooks,
    PriceTable,
    RunConfig,
    RunStatus,
    StoreUnavailable,
    StromaRunner,
    UnknownPrice,
    current,
    fan_out,
    node,
    parallel,
    report_usage,
)
from stroma.scope import NodeScope
from tests.core.helpers import Calls, Done, FakeClock, FaultyStore, Number, make_runner, stored

PRICES = PriceTable({"m": ("10", "20")}, "a test")


class Died(BaseException):
    """The process ends here."""


class Items(BaseModel):
    items: list[Number]


def ten_tokens(state: BaseModel, scope: NodeScope) -> Estimate:
    return Estimate(input_tokens=10, model="m")


async def later(state: BaseModel, scope: NodeScope) -> Estimate:
    return Estimate(input_tokens=10)


async def kinds(store: Any, run_id: str) -> list[tuple[str, str, int, int]]:
    """Return kind, path, number and tokens of each record of a run."""
    found = await stored(store, run_id)
    return [(h.kind, h.path, h.attempt, h.usage.tokens) for h in found.headers]


# -- the budget ------------------------------------------------------------------------------


async def test_what_does_not_fit_is_not_called(calls: Calls, store: Any) -> None:
    cheap = calls.node("cheap", ({"value": 1}, 95))
    dear = calls.node("dear", estimate=Estimate(input_tokens=10))
    runner = make_runner(store).with_budget(tokens=100)

    result = await runner.run([cheap, dear], Number(), run_id="r")

    assert (result.status, calls["dear"]) == (RunStatus.PARTIAL, 0)
    assert isinstance(result.error, BudgetExceeded)
    assert "100 tokens does not hold 'dear': 95 spent, 0 set aside" in result.stop_reason
    more = await runner.with_budget(tokens=105).run([cheap, dear], run_id="r", resume=True)
    assert (more.status, calls["dear"]) == (RunStatus.RESUMED, 1)


async def test_a_budget_may_be_used_up_to_its_last_token(calls: Calls, store: Any) -> None:
    exact = calls.node("exact", ({"value": 1}, 100), estimate=Estimate(input_tokens=100))
    result = await make_runner(store).with_budget(tokens=100).run([exact], Number())
    assert (result.status, result.tokens) == (RunStatus.COMPLETED, 100)


async def test_dollars_are_set_aside_at_the_price_of_the_model(calls: Calls, store: Any) -> None:
    dear = calls.node("dear", estimate=Estimate(output_tokens=500_001, model="m"))
    runner = make_runner(store, pricers=[PRICES]).with_budget(cost_usd=10)
    result = await runner.run([dear], Number())
    assert calls["dear"] == 0
    assert "$10 does not hold 'dear'" in result.stop_reason
    assert "$10.00002 estimated" in result.stop_reason


async def test_an_estimate_that_nobody_can_price_is_an_error_before_the_call(
    calls: Calls, store: Any
) -> None:
    dear = calls.node("dear", estimate=Estimate(output_tokens=5, model="unheard-of"))
    result = await make_runner(store).with_budget(cost_usd=10).run([dear], Number())
    assert (result.status, calls["dear"]) == (RunStatus.FAILED, 0)
    assert isinstance(result.error, UnknownPrice)
    assert "'unheard-of'" in result.stop_reason


@pytest.mark.parametrize("concurrency", [1, 7, 50])
async def test_items_side_by_side_never_overshoot(concurrency: int, store: Any) -> None:
    under_way, spent = 0, 0

    @node(id="item", input=Number, output=Number, estimate=Estimate(input_tokens=10))
    async def item(state: Number) -> tuple[Number, int]:
        nonlocal under_way, spent
        under_way += 10
        assert spent + under_way <= 100, "the provider could bill more than the budget"
        await asyncio.sleep(0.001)
        under_way, spent = under_way - 10, spent + 10
        return state, 10

    each = fan_out(item, over="items", into="done", max_concurrency=concurrency, input=Items)
    runner = make_runner(store).with_budget(tokens=100)
    result = await runner.run([each], Items(items=[Number(value=i) for i in range(50)]))
    assert (result.status, result.tokens, spent) == (RunStatus.PARTIAL, 100, 100)


async def test_items_wait_for_others_that_may_leave_enough(store: Any) -> None:
    @node(id="item", input=Number, output=Number, estimate=Estimate(input_tokens=60))
    async def item(state: Number) -> tuple[Number, int]:
        await asyncio.sleep(0.001)
        return state, 5

    each = fan_out(item, over="items", into="done", max_concurrency=8, input=Items)
    runner = make_runner(store).with_budget(tokens=100)
    result = await runner.run([each], Items(items=[Number(value=i) for i in range(8)]))
    assert (result.status, result.tokens) == (RunStatus.COMPLETED, 40)


async def test_a_rest_of_rounding_keeps_nobody_waiting(store: Any) -> None:
    third = Decimal(1) / 3  # of 28 digits: sums with it are rounded

    def estimator(state: BaseModel, scope: NodeScope) -> Estimate:
        return Estimate(cost_usd=Decimal("55.1") if state == Number(value=-1) else third)

    @node(id="item", input=Number, output=Number, estimate=estimator)
    async def item(state: Number) -> Number:
        await asyncio.sleep(0.001)
        return state

    each = fan_out(item, over="items", into="done", max_concurrency=8, input=Items)
    given = Items(items=[Number(value=i) for i in (1, 2, 3, 4, -1, 5)])
    running = make_runner(store).with_budget(cost_usd=50).run([each], given)
    result = await asyncio.wait_for(running, timeout=10)
    assert "$0 set aside for calls under way, $55.1 estimated" in result.stop_reason


async def test_an_item_that_waited_past_the_latency_limit_is_not_called(
    calls: Calls, store: Any
) -> None:
    clock = FakeClock()

    @node(id="item", input=Number, output=Number, estimate=Estimate(input_tokens=60))
    async def item(state: Number) -> Number:
        calls.made["item"] += 1
        await asyncio.sleep(0.001)
        clock.advance(1.0)
        return state

    each = fan_out(item, over="items", into="done", max_concurrency=4, input=Items)
    runner = make_runner(store, clock=clock).with_budget(tokens=100, latency_ms=900)
    result = await runner.run([each], Items(items=[Number(value=i) for i in range(4)]))
    assert (result.status, calls["item"], result.in_doubt) == (RunStatus.PARTIAL, 1, ())
    assert "900 ms is reached" in result.stop_reason


async def test_what_a_slow_hook_left_no_time_for_is_not_called(calls: Calls, store: Any) -> None:
    clock = FakeClock()
    slow = NodeHooks(on_node_start=lambda run_id, path, state: clock.advance(5))
    a = calls.node("a", estimate=Estimate(input_tokens=5))
    runner = make_runner(store, clock=clock, hooks=slow).with_budget(latency_ms=1000)
    result = await runner.run([a], Number(), run_id="r")
    assert (result.status, calls["a"], result.in_doubt) == (RunStatus.PARTIAL, 0, ())
    assert "1000 ms is reached" in result.stop_reason
    again = await runner.with_budget(latency_ms=60_000).run([a], Number(), run_id="r")
    assert (again.status, again.in_doubt) == (RunStatus.COMPLETED, ())


async def test_an_item_that_waited_uses_and_estimates_the_cheaper_model_of_by_then(
    store: Any,
) -> None:
    models: list[str] = []

    @node(
        id="item",
        input=Number,
        output=Number,
        estimate=Estimate(input_tokens=1_000_000, model="big"),
    )
    async def item(state: Number) -> tuple[Number, int, str]:
        models.append(current().model)
        await asyncio.sleep(0.001)
        return state, 900_000, "big"

    prices = PriceTable({"big": (10, 10), "small": (1, 1)}, "a test")
    runner = make_runner(store, pricers=[prices]).with_budget(cost_usd=12)
    runner = runner.with_model_fallback("big", to="small", at_budget_pct=0.5)
    each = fan_out(item, over="items", into="done", max_concurrency=3, input=Items)
    result = await runner.run([each], Items(items=[Number(value=i) for i in range(3)]))
    assert (result.status, models) == (RunStatus.COMPLETED, ["big", "small", "small"])
    assert result.cost_usd == Decimal("10.8")


async def test_a_failed_attempt_gives_back_what_it_did_not_use(calls: Calls, store: Any) -> None:
    flaky = calls.node(
        "flaky", TimeoutError(), TimeoutError(), {"value": 1}, estimate=Estimate(input_tokens=90)
    )
    result = await make_runner(store).with_budget(tokens=100).run([flaky], Number())
    assert (result.status, calls["flaky"], result.tokens) == (RunStatus.COMPLETED, 3, 0)


async def test_the_run_s_estimator_holds_where_a_node_has_none(calls: Calls, store: Any) -> None:
    asked: list[tuple[str, object]] = []

    def estimator(state: BaseModel, scope: NodeScope) -> Estimate | None:
        asked.append((scope.path, state))
        return None if scope.node_id == "free" else Estimate(input_tokens=50)

    own = calls.node("own", estimate=Estimate(input_tokens=1))
    runner = make_runner(store).with_estimator(estimator).with_budget(tokens=40)
    result = await runner.run([calls.node("free"), own, calls.node("dear")], Number())
    assert [path for path, _ in asked] == ["free", "dear"]
    assert asked[1][1] == Number(value=2)
    assert (result.status, calls.order) == (RunStatus.PARTIAL, ["free", "own"])


async def test_the_model_in_force_is_estimated(calls: Calls, store: Any) -> None:
    dear = calls.node("dear", estimate=Estimate(output_tokens=1_000_000), model="m")
    runner = make_runner(store, pricers=[PRICES]).with_budget(cost_usd=19)
    assert "$20 estimated" in (await runner.run([dear], Number())).stop_reason


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"input_tokens": -1}, "input_tokens must be an int of 0 or more, not -1"),
        ({"output_tokens": 1.5}, "output_tokens must be an int of 0 or more, not 1.5"),
        ({"output_tokens": 10**16}, f"output_tokens must be {10**15} or less, not {10**16}"),
        ({"model": None}, "model must be a str, not None"),
        ({"cost_usd": "-0.1"}, "cost_usd must be a number of 0 or more, not str"),
    ],
)
def test_an_estimate_of_wrong_numbers_is_refused_where_it_is_made(
    wrong: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        Estimate(**wrong)
    assert str(caught.value) == f"Estimate: {told}"


def test_an_estimate_goes_to_another_process() -> None:
    estimate = Estimate(3, 4, "m", "0.5")
    assert pickle.loads(pickle.dumps(estimate)) == estimate


@pytest.mark.parametrize("answer", [ValueError("no idea"), 7])
async def test_an_estimator_that_fails_stops_the_run_before_the_call(
    calls: Calls, store: Any, answer: object
) -> None:
    def estimator(state: BaseModel, scope: NodeScope) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    result = await make_runner(store, estimator=estimator).run([calls.node("a")], Number())
    assert (result.status, calls["a"]) == (RunStatus.FAILED, 0)
    assert "the estimator failed for 'a'" in result.stop_reason
    assert ("ValueError: no idea" in result.stop_reason) == isinstance(answer, Exception)
    assert isinstance(result.error, ConfigError)


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ({"estimate": 7}, "'a': estimate must be a stroma.Estimate, or a function"),
        ({"estimate": later}, "'a': estimate must be a stroma.Estimate, or a function"),
        ({"on_in_doubt": "ask"}, "'a': on_in_doubt must be \"rerun\" or \"stop\", not 'ask'"),
        ({"repair": 7}, "'a': repair must be a function"),
        ({"on_violation": "again"}, '\'a\': on_violation must be "fail" or "resample"'),
        ({"on_violation": "resample", "max_resamples": 0}, "'a': max_resamples must be 1 or more"),
        ({"max_resamples": True}, "'a': max_resamples must be 1 or more"),
    ],
)
def test_wrong_options_are_named_where_the_node_is_written(
    calls: Calls, option: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        calls.node("a", **option)
    assert told in str(caught.value)


def test_a_wrong_estimator_of_the_run_is_named() -> None:
    for wrong in (7, later):
        with pytest.raises(ConfigError, match="estimator: must be a function"):
            StromaRunner.quick(estimator=wrong)
    assert RunConfig().estimator is None


# -- the store -------------------------------------------------------------------------------


async def test_a_reservation_is_recorded_before_the_call(store: Any) -> None:
    seen: list[Any] = []

    @node(id="a", input=Number, output=Number, estimate=ten_tokens)
    async def a(state: Number) -> tuple[Number, int]:
        seen.extend(await kinds(store, "r"))
        return state, 3

    result = await make_runner(store, pricers=[PRICES]).run([a], Number(), run_id="r")
    assert seen == [("reserved", "a", 1, 10)]
    assert await kinds(store, "r") == [("reserved", "a", 1, 10), ("result", "a", 0, 3)]
    assert (result.tokens, result.in_doubt) == (3, ())


async def test_a_process_that_dies_leaves_a_call_that_is_charged_and_listed(store: Any) -> None:
    alive = False

    @node(id="a", input=Number, output=Number, estimate=ten_tokens)
    async def a(state: Number) -> tuple[Number, int, str]:
        if not alive:
            raise Died
        return state, 3, "m"

    runner = make_runner(store, pricers=[PRICES])
    for _ in range(2):
        with pytest.raises(Died):
            await runner.run([a], Number(), run_id="r")
    alive = True
    result = await runner.run([a], Number(), run_id="r")
    assert [(d.path, d.attempt, d.reason, d.charged.tokens) for d in result.in_doubt] == [
        ("a", 1, "died", 10),
        ("a", 2, "died", 10),
    ]
    assert (result.status, result.tokens) == (RunStatus.COMPLETED, 23)
    assert result.cost_usd == Decimal("0.00023")
    assert result.usage["a"].tokens == 23
    again = await runner.run([a], Number(), run_id="r")
    assert (again.tokens, again.in_doubt) == (23, result.in_doubt)
    assert (await stored(store, "r")).run.spend.tokens == 23


async def test_what_is_in_doubt_counts_for_the_budget_of_the_next_start(
    calls: Calls, store: Any
) -> None:
    dying = calls.node("a", Died(), {"value": 1}, estimate=Estimate(input_tokens=60))
    runner = make_runner(store).with_budget(tokens=100)
    with pytest.raises(Died):
        await runner.run([dying], Number(), run_id="r")
    result = await runner.run([dying], Number(), run_id="r")
    assert (result.status, calls["a"]) == (RunStatus.PARTIAL, 1)
    assert "60 tokens spent" in result.stop_reason or "60 spent" in result.stop_reason


async def test_items_of_a_dead_process_are_listed_each(store: Any) -> None:
    def item(*, is_dying: bool) -> Any:
        @node(id="item", input=Number, output=Number, estimate=Estimate(input_tokens=10))
        async def item(state: Number) -> tuple[Number, int]:
            if is_dying and state.value == 3:
                await asyncio.sleep(0.01)
                raise Died
            if is_dying and state.value > 1:
                await asyncio.sleep(60)
            return state, 1

        return fan_out(item, over="items", into="done", max_concurrency=4, input=Items)

    given = Items(items=[Number(value=i) for i in range(4)])
    with pytest.raises(BaseException):  # noqa: B017, PT011  (in a group, as it came)
        await make_runner(store).run([item(is_dying=True)], given, run_id="r")
    result = await make_runner(store).run([item(is_dying=False)], given, run_id="r")
    reasons = {(d.path, d.reason): d.charged.tokens for d in result.in_doubt}
    assert reasons == {("item[3]", "died"): 10, ("item[2]", "cancelled"): 10}
    assert (result.status, result.tokens) == (RunStatus.RESUMED, 24)


async def test_a_call_that_is_cut_is_charged_what_was_reserved(store: Any) -> None:
    @node(id="slow", input=Number, output=Number, estimate=ten_tokens, timeout_ms=5)
    async def slow(state: Number) -> Number:
        report_usage(input_tokens=4, model="m")
        await asyncio.sleep(60)
        return state

    runner = make_runner(store, pricers=[PRICES]).with_options(policy_map={})
    result = await runner.run([slow], Number(), run_id="r")
    number = len(result.in_doubt)
    assert {(d.reason, d.charged.tokens) for d in result.in_doubt} == {("timeout", 10)}
    assert result.tokens == 10 * number
    again = await runner.with_node_timeouts({"slow": 5}).run([slow], Number(), run_id="r")
    assert again.tokens == 10 * len(again.in_doubt) > result.tokens


async def test_a_call_without_an_estimate_that_is_cut_is_listed_in_later_starts(
    calls: Calls, store: Any
) -> None:
    is_slow = True

    @node(id="slow", input=Number, output=Number, timeout_ms=5)
    async def slow(state: Number) -> Number:
        if is_slow:
            report_usage(input_tokens=4)
            await asyncio.sleep(60)
        return state

    runner = make_runner(store)
    first = await runner.run([slow], Number(), run_id="r")
    is_slow = False
    result = await runner.run([slow], Number(), run_id="r")
    assert result.in_doubt == first.in_doubt
    assert {(d.reason, d.charged.tokens) for d in result.in_doubt} == {("timeout", 4)}


async def test_a_call_that_was_not_made_for_want_of_its_reservation_is_not_in_doubt(
    calls: Calls,
) -> None:
    store = FaultyStore()
    down = StoreUnavailable("down")
    store.fail("commit_many", *[Done(down)] * 6)  # each time it is stored, and said to be not
    a = calls.node("a", estimate=Estimate(input_tokens=10))
    runner = make_runner(store)
    result = await runner.run([a], Number(), run_id="r")
    assert (result.status, calls["a"]) == (RunStatus.PARTIAL, 0)
    again = await runner.run([a], Number(), run_id="r")
    assert (again.status, calls["a"], again.in_doubt) == (RunStatus.COMPLETED, 1, ())
    assert again.tokens == 0


async def test_a_reservation_costs_one_trip_more(calls: Calls) -> None:
    store = FaultyStore()
    nodes = [calls.node(f"n{i}", estimate=Estimate(input_tokens=1)) for i in range(4)]
    await make_runner(store).run(nodes, Number())
    assert store.calls["open_run"] + store.calls["commit_many"] == 1 + 4 * 2


async def test_children_side_by_side_share_the_budget(calls: Calls, store: Any) -> None:
    pair = parallel(
        calls.node("a", ({"value": 1}, 60), estimate=Estimate(input_tokens=60)),
        calls.node("b", ({"value": 2}, 60), estimate=Estimate(input_tokens=60)),
    )
    result = await make_runner(store).with_budget(tokens=100).run([pair], Number())
    assert (result.status, result.tokens) == (RunStatus.PARTIAL, 60)
    assert sum(calls.made.values()) == 1
