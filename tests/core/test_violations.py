"""An output that does not fit is paid for: it is repaired, or bought anew."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pydantic import BaseModel

from stroma import (
    ContractViolation,
    Estimate,
    NodeHooks,
    RecordTooLarge,
    RunStatus,
    current,
    fan_out,
    node,
    report_usage,
)
from tests.core.helpers import Calls, FaultyStore, Number, Text, make_runner, stored

BAD = ({"value": "seven"}, 10)


class Died(BaseException):
    """The process ends here."""


class Items(BaseModel):
    items: list[Number]


def to_number(raw: Any, violation: ContractViolation) -> Any:
    return {"value": 7} if raw == {"value": "seven"} else raw


async def kinds(store: Any) -> list[tuple[str, str]]:
    return [(h.kind, h.schema_ref) for h in (await stored(store, "r")).headers]


# -- repair ----------------------------------------------------------------------------------


async def test_a_repair_mends_what_was_paid_for(calls: Calls, store: Any) -> None:
    a = calls.node("a", BAD, repair=to_number)
    result = await make_runner(store).run([a], Number(), run_id="r")
    assert (result.status, result.final_state) == (RunStatus.COMPLETED, Number(value=7))
    assert (calls["a"], result.tokens) == (1, 10)
    assert [kind for kind, _ in await kinds(store)] == ["attempt", "result"]
    assert (await make_runner(store).run([a], Number(), run_id="r")).tokens == 10


async def test_a_repair_is_told_what_is_wrong(calls: Calls) -> None:
    told: list[tuple[object, ContractViolation]] = []

    async def repair(raw: Any, violation: ContractViolation) -> Number:
        told.append((raw, violation))
        assert current().path == "a"
        report_usage(input_tokens=5)
        return Number(value=1)

    result = await make_runner().run([calls.node("a", BAD, repair=repair)], Number())
    assert result.tokens == 15
    ((raw, violation),) = told
    assert raw == {"value": "seven"}
    assert violation.problems[0].startswith("value: ")


@pytest.mark.parametrize("answer", [{"value": "eight"}, ValueError("no idea")])
async def test_a_repair_that_fails_ends_the_run_and_loses_nothing(
    calls: Calls, store: Any, answer: Any
) -> None:
    def repair(raw: Any, violation: ContractViolation) -> Any:
        report_usage(input_tokens=5)
        if isinstance(answer, Exception):
            raise answer
        return answer

    a = calls.node("a", BAD, repair=repair)
    result = await make_runner(store).run([a], Number(), run_id="r")
    assert (result.status, result.tokens) == (RunStatus.FAILED, 15)
    assert isinstance(result.error, ContractViolation)
    if isinstance(answer, Exception):
        assert "its repair raised ValueError: no idea" in result.stop_reason
    again = await make_runner(store).run([a], Number(), run_id="r")
    assert (again.status, again.tokens, calls["a"]) == (RunStatus.FAILED, 20, 1)


async def test_a_repair_that_came_later_mends_the_recorded_output(calls: Calls, store: Any) -> None:
    runner = make_runner(store)
    await runner.run([calls.node("a", BAD)], Number(), run_id="r")
    repaired = calls.node("a", BAD, repair=to_number)
    result = await runner.run([repaired, calls.node("b")], Number(), run_id="r")
    assert (result.status, result.final_state) == (RunStatus.RESUMED, Number(value=8))
    assert (calls["a"], result.tokens) == (1, 10)


async def test_a_repair_is_tried_again_after_a_crash(calls: Calls, store: Any) -> None:
    is_dying = True

    def repair(raw: Any, violation: ContractViolation) -> Any:
        if is_dying:
            raise Died
        return to_number(raw, violation)

    a = calls.node("a", BAD, repair=repair)
    with pytest.raises(Died):
        await make_runner(store).run([a], Number(), run_id="r")
    is_dying = False
    result = await make_runner(store).run([a], Number(), run_id="r")
    assert (result.status, result.tokens, calls["a"]) == (RunStatus.RESUMED, 10, 1)


@pytest.mark.parametrize("is_hidden", [False, True])
async def test_a_repair_that_is_cut_is_charged_what_it_used_and_buys_nothing(
    calls: Calls, store: Any, *, is_hidden: bool
) -> None:
    inside = asyncio.Event()

    async def repair(raw: Any, violation: ContractViolation) -> Any:
        report_usage(input_tokens=5)
        inside.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            if is_hidden:
                raise ValueError("closed") from None
            raise

    a = calls.node("a", BAD, repair=repair, on_violation="resample")
    running = asyncio.create_task(make_runner(store).run([a], Number(), run_id="r"))
    await inside.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    run = (await stored(store, "r")).run
    assert (run.status, run.spend.tokens, calls["a"]) == (RunStatus.CANCELLED, 15, 1)
    mending = calls.node("a", BAD, repair=to_number)
    assert (await make_runner(store).run([mending], run_id="r", resume=True)).tokens == 15


async def test_a_repair_that_waits_for_something_cancelled_has_failed(
    calls: Calls, store: Any
) -> None:
    async def repair(raw: Any, violation: ContractViolation) -> Any:
        inner = asyncio.ensure_future(asyncio.sleep(60))
        asyncio.get_running_loop().call_soon(inner.cancel)
        await inner

    result = await make_runner(store).run([calls.node("a", BAD, repair=repair)], Number())
    assert result.status is RunStatus.FAILED
    assert "its repair raised CancelledError" in result.stop_reason


async def test_a_mended_output_that_is_too_large_is_recorded_as_paid_for(calls: Calls) -> None:
    store = FaultyStore()
    options: dict[str, Any] = {"repair": to_number, "estimate": Estimate(input_tokens=10)}
    store.fail("commit_many", None, None, RecordTooLarge("too large"))
    runner = make_runner(store)
    result = await runner.run([calls.node("a", BAD, **options)], Number(), run_id="r")
    assert (result.status, result.tokens) == (RunStatus.FAILED, 10)
    assert isinstance(result.error, RecordTooLarge)
    assert [kind for kind, _ in await kinds(store)] == ["reserved", "attempt", "attempt"]


async def test_hooks_are_told_of_the_violation_and_then_of_the_result(calls: Calls) -> None:
    told: list[str] = []
    hooks = NodeHooks(
        on_node_failure=lambda run_id, path, exc, failure_class: told.append(type(exc).__name__),
        on_node_success=lambda run_id, path, state, tokens: told.append(str(state)),
    )
    await make_runner(hooks=hooks).run([calls.node("a", BAD, repair=to_number)], Number())
    assert told == ["ContractViolation", "{'value': 7}"]


# -- bought anew -----------------------------------------------------------------------------


async def test_an_output_is_bought_anew_where_the_node_says_so(calls: Calls, store: Any) -> None:
    retries: list[float] = []
    a = calls.node("a", BAD, BAD, ({"value": 3}, 10), on_violation="resample", max_resamples=2)
    hooks = NodeHooks(on_retry=lambda details: retries.append(details.delay_seconds))
    result = await make_runner(store, hooks=hooks).run([a], Number(), run_id="r")
    assert (result.status, result.final_state) == (RunStatus.COMPLETED, Number(value=3))
    assert (calls["a"], result.tokens, retries) == (3, 30, [0.0, 0.0])


async def test_it_is_bought_as_often_as_was_said(calls: Calls, store: Any) -> None:
    a = calls.node("a", BAD, on_violation="resample", max_resamples=2)
    for _ in range(2):
        result = await make_runner(store).run([a], Number(), run_id="r")
        assert (result.status, calls["a"], result.tokens) == (RunStatus.FAILED, 3, 30)
    assert "resume_from='a'" in result.stop_reason


async def test_what_was_bought_before_a_crash_counts(calls: Calls, store: Any) -> None:
    script = [BAD, Died(), BAD, BAD]
    a = calls.node("a", *script, on_violation="resample", max_resamples=2)
    with pytest.raises(Died):
        await make_runner(store).run([a], Number(), run_id="r")
    result = await make_runner(store).run([a], Number(), run_id="r")
    assert (result.status, calls["a"]) == (RunStatus.FAILED, 4)  # one of them has no output


async def test_it_is_bought_anew_within_the_budget_only(calls: Calls, store: Any) -> None:
    a = calls.node("a", BAD, on_violation="resample", max_resamples=9)
    result = await make_runner(store).with_budget(tokens=25).run([a], Number())
    assert (result.status, calls["a"], result.tokens) == (RunStatus.PARTIAL, 3, 30)


async def test_a_repair_comes_before_buying_anew(calls: Calls, store: Any) -> None:
    tried: list[object] = []

    def repair(raw: Any, violation: ContractViolation) -> Any:
        tried.append(raw)
        return to_number(raw, violation)

    script = [({"value": "six"}, 1), BAD]
    a = calls.node("a", *script, repair=repair, on_violation="resample")
    result = await make_runner(store).run([a], Number(), run_id="r")
    assert (result.status, result.final_state) == (RunStatus.COMPLETED, Number(value=7))
    assert (calls["a"], tried) == (2, [{"value": "six"}, {"value": "seven"}])


async def test_each_item_has_resamples_of_its_own(calls: Calls, store: Any) -> None:
    seen: dict[int, int] = {}

    @node(id="item", input=Number, output=Number, on_violation="resample")
    async def item(state: Number) -> Any:
        seen[state.value] = seen.get(state.value, 0) + 1
        return {"value": "no"} if seen[state.value] == 1 else state

    each = fan_out(item, over="items", into="done", input=Items)
    result = await make_runner(store).run([each], Items(items=[Number(value=i) for i in range(5)]))
    assert result.status is RunStatus.COMPLETED
    assert seen == dict.fromkeys(range(5), 2)


async def test_an_input_that_does_not_fit_is_not_bought_anew(calls: Calls) -> None:
    @node(id="text", input=Text, output=Text, on_violation="resample")
    async def text(state: Text) -> Text:
        raise AssertionError("it cannot begin")

    result = await make_runner().run([calls.node("a"), text], Number())
    assert result.status is RunStatus.FAILED
