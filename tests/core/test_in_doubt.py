"""A node that must not be called twice waits until somebody says what became of its call."""

from __future__ import annotations

import asyncio
import threading
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from stroma import (
    CallInDoubt,
    ConfigError,
    ContractViolation,
    Estimate,
    FailureClass,
    InMemoryStore,
    NodeHooks,
    OutcomeUnknown,
    Pipeline,
    PipelineChanged,
    PriceTable,
    ResumeError,
    RunLocked,
    RunNotFound,
    RunStatus,
    StoreUnavailable,
    StromaRunner,
    fan_out,
    node,
    parallel,
)
from tests.core.helpers import Calls, Done, FaultyStore, Number, make_runner, stored, stored_run

PRICES = PriceTable({"m": ("10", "20")}, "a test")


class Died(BaseException):
    """The process ends here."""


class Items(BaseModel):
    items: list[Number]


async def left_in_doubt(store: Any, calls: Calls, **options: Any) -> list[Any]:
    """Have a process die in the second of two nodes, and return the nodes."""
    pay = calls.node("pay", Died(), {"value": 7}, on_in_doubt="stop", **options)
    nodes = [calls.node("a"), pay, calls.node("b")]
    with pytest.raises(Died):
        await make_runner(store).run(nodes, Number(), run_id="r")
    return nodes


async def test_the_run_waits_and_does_not_call(calls: Calls, store: Any) -> None:
    nodes = await left_in_doubt(store, calls)
    runner = make_runner(store)
    for _ in range(2):
        result = await runner.run(nodes, run_id="r", resume=True)
        assert (result.status, calls["pay"]) == (RunStatus.WAITING, 1)
        assert (await stored_run(store, "r")).status is RunStatus.WAITING
    assert isinstance(result.error, CallInDoubt)
    assert result.error.path == "pay"
    assert "what became of call 1 of 'pay' (died)" in result.stop_reason
    assert "runner.resolve(nodes, 'r', 'pay', outcome=…)" in result.stop_reason
    assert "the command stroma resolve" in result.stop_reason
    assert [(d.path, d.attempt, d.reason) for d in result.in_doubt] == [("pay", 1, "died")]
    assert result.final_state == Number(value=1)


async def test_a_call_that_gave_an_answer_is_recorded_with_what_it_cost(
    calls: Calls, store: Any
) -> None:
    nodes = await left_in_doubt(store, calls)
    runner = make_runner(store, pricers=[PRICES])
    await runner.resolve(
        nodes, "r", "pay", outcome="answered", output={"value": 40}, input_tokens=100, model="m"
    )
    assert (await stored_run(store, "r")).spend.cost_usd == Decimal("0.001")
    result = await runner.run(nodes, run_id="r", resume=True)
    assert (result.status, result.final_state) == (RunStatus.RESUMED, Number(value=41))
    assert (result.tokens, result.cost_usd) == (100, Decimal("0.001"))
    assert (calls["pay"], result.in_doubt) == (1, ())


async def test_a_call_whose_answer_is_lost_is_charged_and_made_again(
    calls: Calls, store: Any
) -> None:
    nodes = await left_in_doubt(store, calls, estimate=Estimate(input_tokens=50, model="m"))
    runner = make_runner(store)
    assert (await runner.run(nodes, run_id="r", resume=True)).tokens == 50
    await runner.resolve(nodes, "r", "pay", outcome="lost", cost_usd="0.5")
    result = await runner.run(nodes, run_id="r", resume=True)
    assert (result.status, result.final_state) == (RunStatus.RESUMED, Number(value=8))
    assert (result.tokens, result.cost_usd) == (0, Decimal("0.5"))
    assert (calls["pay"], result.in_doubt) == (2, ())


async def test_a_call_that_was_never_made_costs_nothing_and_is_made(
    calls: Calls, store: Any
) -> None:
    nodes = await left_in_doubt(store, calls, estimate=Estimate(input_tokens=50))
    runner = make_runner(store)
    await runner.run(nodes, run_id="r", resume=True)
    assert (await stored_run(store, "r")).status is RunStatus.WAITING
    await runner.resolve(nodes, "r", "pay", outcome="never_made")
    assert (await stored_run(store, "r")).status is RunStatus.PENDING
    result = await runner.run(nodes, run_id="r", resume=True)
    assert (result.status, result.tokens, calls["pay"]) == (RunStatus.RESUMED, 0, 2)


async def test_consent_by_resume_from_buys_it_again_and_keeps_it_listed(
    calls: Calls, store: Any
) -> None:
    nodes = await left_in_doubt(store, calls, estimate=Estimate(input_tokens=50))
    result = await make_runner(store).run(nodes, run_id="r", resume_from="pay")
    assert (result.status, calls["pay"]) == (RunStatus.WAITING, 1)  # nothing was recorded to leave
    runner = make_runner(store)
    await runner.resolve(nodes, "r", "pay", outcome="lost", input_tokens=1)
    assert (await runner.run(nodes, run_id="r", resume=True)).tokens == 1


async def test_a_timeout_waits_at_once(store: Any) -> None:
    made = 0

    @node(id="pay", input=Number, output=Number, on_in_doubt="stop", timeout_ms=5)
    async def pay(state: Number) -> Number:
        nonlocal made
        made += 1
        if made == 1:
            await asyncio.sleep(60)
        return state

    runner = make_runner(store)
    result = await runner.run([pay], Number(), run_id="r")
    assert (result.status, made) == (RunStatus.WAITING, 1)
    assert [(d.path, d.attempt, d.reason) for d in result.in_doubt] == [("pay", 1, "timeout")]
    assert (await runner.run([pay], Number(), run_id="r")).status is RunStatus.WAITING
    await runner.resolve([pay], "r", "pay", outcome="never_made")
    assert (await runner.run([pay], Number(), run_id="r")).status is RunStatus.COMPLETED
    assert made == 2


async def test_a_cancelled_call_waits_at_the_next_start(store: Any) -> None:
    @node(id="pay", input=Number, output=Number, on_in_doubt="stop")
    async def pay(state: Number) -> Number:
        await asyncio.sleep(60)
        return state

    runner = make_runner(store)
    running = asyncio.create_task(runner.run([pay], Number(), run_id="r"))
    while await stored(store, "r") is None or not (await stored(store, "r")).headers:
        await asyncio.sleep(0.001)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    result = await runner.run([pay], Number(), run_id="r")
    assert (result.status, result.in_doubt[0].reason) == (RunStatus.WAITING, "cancelled")


@pytest.mark.parametrize("cut", ["timeout", "latency"])
async def test_a_node_that_hides_that_it_was_cut_is_in_doubt_all_the_same(
    store: Any, calls: Calls, cut: str
) -> None:
    @node(id="pay", input=Number, output=Number, on_in_doubt="stop")
    async def pay(state: Number) -> Number:
        calls.made["pay"] += 1
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError as exc:
            raise ConnectionError("closed") from exc
        return state

    runner = StromaRunner.quick(store=store)
    runner = (
        runner.with_node_timeouts({"pay": 5})
        if cut == "timeout"
        else runner.with_budget(latency_ms=100)
    )
    result = await runner.run([pay], Number(), run_id="r")
    assert (result.status, calls["pay"]) == (RunStatus.WAITING, 1)
    assert [(d.path, d.reason) for d in result.in_doubt] == [("pay", cut)]


async def test_a_call_that_waited_for_something_cancelled_is_in_doubt(
    store: Any, calls: Calls
) -> None:
    @node(id="pay", input=Number, output=Number, on_in_doubt="stop")
    async def pay(state: Number) -> Number:
        calls.made["pay"] += 1
        request = asyncio.ensure_future(asyncio.sleep(60))
        asyncio.get_running_loop().call_soon(request.cancel)
        await request
        return state

    result = await make_runner(store).run([pay], Number(), run_id="r")
    assert (result.status, calls["pay"]) == (RunStatus.WAITING, 1)
    assert [(d.path, d.reason) for d in result.in_doubt] == [("pay", "cancelled")]


async def test_a_node_can_say_that_nobody_answered(store: Any, calls: Calls) -> None:
    unanswered = CallInDoubt("the request was sent, and nobody answered")
    options: dict[str, Any] = {"estimate": Estimate(input_tokens=10)}
    again = calls.node("a", unanswered, {"value": 1}, **options)
    pay = calls.node("pay", unanswered, {"value": 2}, on_in_doubt="stop", **options)
    result = await make_runner(store).run([again, pay], Number(), run_id="r")
    assert (result.status, calls["a"], calls["pay"]) == (RunStatus.WAITING, 2, 1)
    assert [(d.path, d.reason) for d in result.in_doubt] == [
        ("a", "unanswered"),
        ("pay", "unanswered"),
    ]
    assert result.tokens == 20


async def test_what_a_thread_raises_after_a_cancellation_is_known(store: Any) -> None:
    inside, go_on = threading.Event(), threading.Event()

    @node(id="pay", input=Number, output=Number, on_in_doubt="stop")
    def pay(state: Number) -> Number:
        inside.set()
        go_on.wait(10)
        raise ConnectionError("refused")

    running = asyncio.create_task(make_runner(store).run([pay], Number(), run_id="r"))
    while not inside.is_set():
        await asyncio.sleep(0.001)
    running.cancel()
    await asyncio.sleep(0.01)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await running
    answered = node(id="pay", input=Number, output=Number, on_in_doubt="stop")(lambda state: state)
    result = await make_runner(store).run([answered], Number(), run_id="r")
    assert (result.status, result.in_doubt) == (RunStatus.COMPLETED, ())


async def test_the_reason_names_the_call_that_holds_the_run_up(store: Any) -> None:
    @node(id="pay", input=Number, output=Number, on_in_doubt="stop", timeout_ms=5)
    async def pay(state: Number) -> Number:
        await asyncio.sleep(60)
        return state

    async def slow(run_id: str, path: str, exc: BaseException, failure_class: FailureClass) -> None:
        await asyncio.sleep(0.1 if path == "pay[0]" else 0.2)

    each = fan_out(pay, over="items", into="paid", input=Items)
    runner = make_runner(store, hooks=NodeHooks(on_node_failure=slow))
    result = await runner.run([each], Items(items=[Number(value=i) for i in range(2)]))
    assert [d.path for d in result.in_doubt] == ["pay[0]", "pay[1]"]
    assert "'pay[0]'" in result.stop_reason
    assert "'pay[1]'" not in result.stop_reason


async def test_a_call_is_listed_with_its_number_though_the_store_does_not_take_it() -> None:
    @node(id="slow", input=Number, output=Number, timeout_ms=5)
    async def slow(state: Number) -> Number:
        await asyncio.sleep(60)
        return state

    store = FaultyStore()
    runner = make_runner(store, policy_map={})
    first = await runner.run([slow], Number(), run_id="r")
    store.fail("commit_many", *[StoreUnavailable("down")] * 20)
    second = await runner.run([slow], Number(), run_id="r")
    numbers = [d.attempt for d in second.in_doubt]
    assert numbers == list(range(1, len(first.in_doubt) + 2))


async def test_a_failure_that_the_provider_told_is_not_in_doubt(calls: Calls, store: Any) -> None:
    pay = calls.node("pay", ConnectionError("refused"), {"value": 1}, on_in_doubt="stop")
    result = await make_runner(store).run([pay], Number(), run_id="r")
    assert (result.status, calls["pay"], result.in_doubt) == (RunStatus.COMPLETED, 2, ())


async def test_siblings_of_a_call_in_doubt_end_first(calls: Calls, store: Any) -> None:
    finished: list[str] = []

    @node(id="pay", input=Number, output=Number, on_in_doubt="stop", timeout_ms=5)
    async def pay(state: Number) -> Number:
        await asyncio.sleep(60)
        return state

    @node(id="long", input=Number, output=Number)
    async def long(state: Number) -> Number:
        await asyncio.sleep(0.05)
        finished.append("long")
        return state

    result = await make_runner(store).run([parallel(pay, long)], Number(), run_id="r")
    assert (result.status, finished) == (RunStatus.WAITING, ["long"])
    assert [d.path for d in result.in_doubt] == ["pay"]


async def test_an_item_is_resolved_by_its_path(store: Any) -> None:
    is_dying = True

    @node(id="pay", input=Number, output=Number, on_in_doubt="stop")
    async def pay(state: Number) -> Number:
        if is_dying and state.value == 1:
            raise Died
        return state

    each = fan_out(pay, over="items", into="paid", max_concurrency=1, input=Items)
    runner = make_runner(store)
    with pytest.raises(BaseException):  # noqa: B017, PT011  (in a group, as it came)
        await runner.run([each], Items(items=[Number(value=i) for i in range(3)]), run_id="r")
    is_dying = False
    assert (await runner.run([each], run_id="r", resume=True)).status is RunStatus.WAITING
    await runner.resolve([each], "r", "pay[1]", outcome="answered", output=Number(value=100))
    result = await runner.run([each], run_id="r", resume=True)
    assert result.status is RunStatus.RESUMED
    assert [paid.value for paid in result.final_state.paid] == [0, 100, 2]  # type: ignore[union-attr]


async def test_what_is_not_in_doubt_cannot_be_resolved(calls: Calls, store: Any) -> None:
    nodes = await left_in_doubt(store, calls)
    runner = make_runner(store)
    with pytest.raises(ResumeError, match=r"'b' is not in doubt; in doubt are: 'pay' \(call 1\)"):
        await runner.resolve(nodes, "r", "b", outcome="lost")
    with pytest.raises(ResumeError, match="'pay, call 2' is not in doubt"):
        await runner.resolve(nodes, "r", "pay", outcome="lost", attempt=2)
    with pytest.raises(RunNotFound, match="'other' does not exist"):
        await runner.resolve(nodes, "other", "pay", outcome="lost")
    await runner.resolve(nodes, "r", "pay", outcome="lost")
    with pytest.raises(ResumeError, match="no call of this run is"):
        await runner.resolve(nodes, "r", "pay", outcome="lost")


async def test_a_run_of_another_pipeline_is_not_resolved(calls: Calls, store: Any) -> None:
    pay = calls.node("pay", Died(), on_in_doubt="stop")
    with pytest.raises(Died):
        await make_runner(store).run(Pipeline("orders", [pay]), Number(), run_id="r")
    runner = make_runner(store)
    with pytest.raises(PipelineChanged, match="run 'r' is of pipeline 'orders', and not of"):
        await runner.resolve(Pipeline("refunds", [pay]), "r", "pay", outcome="lost")
    await runner.resolve([pay], "r", "pay", outcome="lost")  # nodes alone claim no name


async def test_a_wrong_answer_is_refused_and_the_run_stays_as_it_was(
    calls: Calls, store: Any
) -> None:
    nodes = await left_in_doubt(store, calls)
    runner = make_runner(store)
    await runner.run(nodes, run_id="r", resume=True)
    with pytest.raises(ContractViolation, match="value"):
        await runner.resolve(nodes, "r", "pay", outcome="answered", output={"value": "x"})
    with pytest.raises(ConfigError, match="needs the output"):
        await runner.resolve(nodes, "r", "pay", outcome="answered")
    with pytest.raises(ConfigError, match="an output goes with"):
        await runner.resolve(nodes, "r", "pay", outcome="lost", output={"value": 1})
    with pytest.raises(ConfigError, match="a call that was billed was made"):
        await runner.resolve(nodes, "r", "pay", outcome="never_made", input_tokens=1)
    with pytest.raises(ConfigError, match="outcome must be one of 'answered', 'lost'"):
        await runner.resolve(nodes, "r", "pay", outcome="dunno")  # type: ignore[arg-type]
    run = await stored_run(store, "r")
    assert (run.status, run.owner) == (RunStatus.WAITING, "")


async def test_one_of_several_calls_in_doubt_has_to_be_named(calls: Calls, store: Any) -> None:
    again = calls.node("a", Died(), Died(), {"value": 1}, estimate=Estimate(input_tokens=10))
    runner = make_runner(store)
    for _ in range(2):
        with pytest.raises(Died):
            await runner.run([again], Number(), run_id="r")
    assert (await runner.run([again], Number(), run_id="r")).tokens == 20
    with pytest.raises(ConfigError, match="say which with attempt=, one of 1, 2"):
        await runner.resolve([again], "r", "a", outcome="lost")
    with pytest.raises(ConfigError, match="that call's result counts"):
        await runner.resolve([again], "r", "a", attempt=1, outcome="answered", output=Number())
    await runner.resolve([again], "r", "a", attempt=1, outcome="lost", input_tokens=3)
    result = await runner.run([again], Number(), run_id="r")
    assert (result.status, result.tokens) == (RunStatus.RESUMED, 13)
    assert [d.attempt for d in result.in_doubt] == [2]
    assert (await stored_run(store, "r")).status is RunStatus.COMPLETED


async def test_calls_of_a_place_are_counted_on_when_they_are_bought_again(
    calls: Calls, store: Any
) -> None:
    a = calls.node("a")
    again = calls.node("b", Died(), Died(), {"value": 1}, estimate=Estimate(input_tokens=10))
    runner = make_runner(store)
    with pytest.raises(Died):
        await runner.run([a, again], Number(), run_id="r")
    with pytest.raises(Died):
        await runner.run([a, again], run_id="r", resume_from="a")
    result = await runner.run([a, again], run_id="r", resume=True)
    assert [(d.path, d.attempt) for d in result.in_doubt] == [("b", 1), ("b", 2)]
    await runner.resolve([a, again], "r", "b", attempt=1, outcome="lost", input_tokens=3)
    result = await runner.run([a, again], run_id="r", resume=True)
    assert (result.tokens, [d.attempt for d in result.in_doubt]) == (13, [2])


async def test_a_run_that_a_worker_has_cannot_be_resolved(calls: Calls, store: Any) -> None:
    refused: list[str] = []
    runner = make_runner(store)

    @node(id="busy", input=Number, output=Number)
    async def busy(state: Number) -> Number:
        try:
            await runner.resolve([busy], "r", "busy", outcome="lost")
        except RunLocked as exc:
            refused.append(exc.holder)
        return state

    await runner.run([busy], Number(), run_id="r")
    assert len(refused) == 1


async def test_a_resolution_is_saved_again_when_the_store_fails(calls: Calls) -> None:
    store = FaultyStore()
    nodes = await left_in_doubt(store, calls)
    store.fail("commit_many", StoreUnavailable("down"), StoreUnavailable("down"))
    runner = make_runner(store)
    await runner.resolve(nodes, "r", "pay", outcome="never_made")
    assert (await runner.run(nodes, run_id="r", resume=True)).status is RunStatus.RESUMED


async def test_a_resolution_that_is_stored_and_not_answered_is_done(calls: Calls) -> None:
    store = FaultyStore()
    nodes = await left_in_doubt(store, calls)
    runner = make_runner(store)
    await runner.run(nodes, run_id="r", resume=True)
    store.fail("commit_many", Done(OutcomeUnknown("the connection is lost")))
    await runner.resolve(nodes, "r", "pay", outcome="answered", output=Number(value=40))
    assert (await stored_run(store, "r")).status is RunStatus.PENDING
    result = await runner.run(nodes, run_id="r", resume=True)
    assert (result.final_state, calls["pay"]) == (Number(value=41), 1)


async def test_a_run_that_waits_no_more_says_no_more_that_it_waits(
    calls: Calls, store: Any
) -> None:
    nodes = await left_in_doubt(store, calls)
    await make_runner(store).run(nodes, run_id="r", resume=True)
    await make_runner(store).resolve(nodes, "r", "pay", outcome="never_made")
    run = await stored_run(store, "r")
    assert (run.status, run.stop_reason) == (RunStatus.PENDING, "")


async def test_an_answer_of_a_node_that_is_gone_is_refused(calls: Calls, store: Any) -> None:
    nodes = await left_in_doubt(store, calls)
    renamed = [nodes[0], calls.node("charge"), nodes[2]]
    runner = make_runner(store)
    with pytest.raises(PipelineChanged, match="'pay' was called, and this pipeline has no such"):
        await runner.resolve(renamed, "r", "pay", outcome="answered", output=Number())
    await runner.resolve(renamed, "r", "pay", outcome="lost", input_tokens=5)
    result = await runner.run(renamed, run_id="r", resume=True)
    assert (result.status, result.tokens, result.in_doubt) == (RunStatus.RESUMED, 5, ())


async def test_a_store_of_states_cannot_promise_it(calls: Calls) -> None:
    class Plain:
        def save(self, run_id: str, node_id: str, state: BaseModel) -> None: ...
        def load(self, run_id: str, node_id: str) -> BaseModel | None: ...
        def delete(self, run_id: str) -> None: ...

    pay = calls.node("pay", on_in_doubt="stop")
    runner = make_runner(Plain())
    with pytest.raises(ConfigError, match='pay: on_in_doubt="stop" needs a store that keeps'):
        await runner.run([pay], Number())
    with pytest.raises(ConfigError, match="Plain keeps states only"):
        await runner.resolve([pay], "r", "pay", outcome="lost")


async def test_a_reservation_is_there_even_without_an_estimate(tmp_path: Path) -> None:
    store = InMemoryStore()
    kinds: list[str] = []

    @node(id="pay", input=Number, output=Number, on_in_doubt="stop")
    async def pay(state: Number) -> Number:
        kinds.extend(h.kind for h in store.inspect("r").headers)  # type: ignore[union-attr]
        return state

    await make_runner(store).run([pay], Number(), run_id="r")
    assert kinds == ["reserved"]
