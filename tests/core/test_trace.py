"""What a run tells of what happened: bounded, comparable, without payloads unless asked."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
from pydantic import BaseModel

from stroma import (
    ConfigError,
    ExecutionTrace,
    PriceTable,
    TraceDifference,
    TraceEvent,
    TraceOptions,
    node,
    parallel,
)
from tests.core.helpers import Calls, FakeClock, Number, make_runner


def _event(path: str = "a", **fields: Any) -> TraceEvent:
    return TraceEvent("succeeded", path, path, 1, 0.0, **fields)


# -- what is in it ---------------------------------------------------------------------------


async def test_an_attempt_tells_when_how_long_and_at_what_cost(calls: Calls) -> None:
    clock = FakeClock(at=1000.0)

    a = calls.node("a", lambda state: (clock.advance(0.25), ({"value": 1}, 100, 10, "m"))[1])
    runner = make_runner(clock=clock, pricers=[PriceTable({"m": (1, 1)}, "t")])
    (event,) = (await runner.run([a], Number())).trace
    assert event.kind == "succeeded"
    assert (event.node_id, event.path, event.attempt, event.at) == ("a", "a", 1, 1000.25)
    assert event.duration_ms == 250
    assert (event.model, event.tokens, event.cost_usd) == ("m", 110, Decimal("0.00011"))
    assert len(event.digest) == 16
    assert event.preview == ""


async def test_each_kind_has_its_filter(store: Any, calls: Calls) -> None:
    runner = make_runner(store)
    nodes = [calls.node("a"), calls.node("b", RuntimeError("x"), TypeError("y"), {"value": 1})]
    first = (await runner.run(nodes, Number(), run_id="r")).trace
    assert [e.path for e in first.successes()] == ["a"]
    assert [e.failure_message for e in first.failures()] == ["x", "y"]
    assert [e.failure_message for e in first.retries()] == ["x"]
    assert first.for_node("b") == first.failures()
    assert first.where(lambda e: e.attempt == 2) == [first.failures()[1]]
    again = (await runner.run(nodes, Number(), run_id="r")).trace
    assert [e.path for e in again.skipped()] == ["a"]
    assert again.skipped()[0].digest == first.successes()[0].digest
    assert again.run_id == first.run_id == "r"
    assert (len(again), list(again)) == (2, list(again.events))


async def test_it_holds_no_payloads(calls: Calls) -> None:
    result = await make_runner().run([calls.node("a", {"value": 987654321})], Number())
    assert "987654321" not in result.trace.to_json()


async def test_to_json_is_json(calls: Calls) -> None:
    nodes = [calls.node("é", ({"value": 1}, 10, "gpt-4o"))]
    result = await make_runner().run(nodes, Number(), run_id="r")
    document = json.loads(result.trace.to_json(indent=2))
    assert (document["run_id"], document["dropped"]) == ("r", 0)
    (event,) = document["events"]
    assert (event["node_id"], event["tokens"]) == ("é", 10)
    assert Decimal(event["cost_usd"]) > 0
    assert event == result.trace.events[0].to_dict()


# -- previews --------------------------------------------------------------------------------


class _Person(BaseModel):
    name: str
    secret: str
    friends: list[dict[str, str]]


def _person() -> Any:
    @node(id="p", input=Number, output=_Person)
    async def p(state: Number) -> dict[str, Any]:
        return {"name": "Zoë", "secret": "s3", "friends": [{"name": "Al", "secret": "s4"}]}

    return p


async def test_previews_are_bounded(calls: Calls) -> None:
    result = await make_runner(trace=TraceOptions(preview_bytes=12)).run([_person()], Number())
    assert result.trace.events[0].preview == '{"name":"Zo�'


async def test_previews_leave_out_redacted_fields_at_any_depth() -> None:
    options = TraceOptions(preview_bytes=1000, redact=frozenset({"secret"}))
    result = await make_runner(trace=options).run([_person()], Number())
    preview = result.trace.events[0].preview
    assert "s3" not in preview
    assert "s4" not in preview
    assert json.loads(preview)["friends"] == [{"name": "Al", "secret": "[redacted]"}]


# -- bounds ----------------------------------------------------------------------------------


async def test_the_oldest_events_are_dropped_and_counted(calls: Calls) -> None:
    nodes = [calls.node(f"n{i}") for i in range(10)]
    result = await make_runner(trace={"max_events": 3}).run(nodes, Number())
    assert [event.path for event in result.trace] == ["n7", "n8", "n9"]
    assert result.trace.dropped == 7


def test_bytes_are_bounded_too() -> None:
    trace = ExecutionTrace("r", TraceOptions(max_bytes=10_000))
    for i in range(100):
        trace.add(_event(f"n{i}", failure_message="x" * 1000))
    assert 0 < len(trace) <= 10
    assert len(trace) + trace.dropped == 100
    assert trace.events[-1].path == "n99"


def test_a_trace_may_hold_nothing() -> None:
    trace = ExecutionTrace("r", TraceOptions(max_events=0))
    trace.add(_event())
    assert (len(trace), trace.dropped) == (0, 1)


@pytest.mark.parametrize("option", ["max_events", "max_bytes", "preview_bytes"])
def test_a_bound_that_makes_no_sense_is_refused(option: str) -> None:
    with pytest.raises(ConfigError, match=option):
        make_runner(trace={option: -1})


# -- diff ------------------------------------------------------------------------------------


async def test_two_runs_that_went_alike_do_not_differ(calls: Calls) -> None:
    def nodes() -> list[Any]:
        return [calls.node("a"), parallel(calls.node("b"), calls.node("c"))]

    first = await make_runner(clock=FakeClock(1.0)).run(nodes(), Number())
    second = await make_runner(clock=FakeClock(2.0)).run(nodes(), Number())
    assert first.run_id != second.run_id
    assert first.trace.diff(second.trace) == []


async def test_runs_cut_at_a_budget_do_not_differ_by_their_times() -> None:
    clock = FakeClock()
    traces = []
    for seconds in (2, 3):
        slow = Calls().node("a", lambda state, s=seconds: (clock.advance(s), {"value": 1})[1])
        runner = make_runner(clock=clock).with_budget(latency_ms=1000)
        result = await runner.run([slow, Calls().node("b")], Number())
        traces.append(result.trace)
    assert traces[0].diff(traces[1]) == []


async def test_differences_are_named_by_place(calls: Calls) -> None:
    runner = make_runner()
    first = await runner.run([calls.node("a"), calls.node("b"), calls.node("c")], Number())
    other = Calls()
    nodes = [
        other.node("a", RuntimeError("odd"), {"value": 1}),
        other.node("b", ({"value": 5}, 10, "m")),
        other.node("d"),
    ]
    second = await runner.run(nodes, Number())
    diffs = {d.path: d for d in first.trace.diff(second.trace)}
    assert set(diffs) == {"a", "b", "c", "d"}
    assert diffs["a"].after.startswith("succeeded after 2 attempts, output ")
    assert diffs["b"].after.endswith("model m, 10 tokens, $0")
    assert diffs["c"].after == "absent"
    assert diffs["d"].before == "absent"
    assert str(diffs["c"]) == f"c: {diffs['c'].before} -> absent"


async def test_a_resumed_run_shows_what_was_skipped_and_what_changed(calls: Calls) -> None:
    runner = make_runner()
    nodes = [calls.node("a"), calls.node("b", TypeError("bug"), {"value": 2})]
    first = await runner.run(nodes, Number(), run_id="r")
    second = await runner.run(nodes, Number(), run_id="r")
    a, b = first.trace.diff(second.trace)
    assert (a.path, a.before[:9], a.after[:7]) == ("a", "succeeded", "skipped")
    assert (b.before, b.after[:9]) == ("failed, bug", "succeeded")


def test_a_difference_reads_as_a_sentence() -> None:
    assert str(TraceDifference("a", "failed", "succeeded")) == "a: failed -> succeeded"
