"""What hooks are told beyond the seeds' callbacks: pairs of events, and where a trace goes on."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import fields
from decimal import Decimal
from typing import Any

import pytest

from stroma import (
    AttemptEnd,
    AttemptStart,
    BudgetExceeded,
    ContractViolation,
    FailureClass,
    FailurePolicy,
    InMemoryStore,
    NodeHooks,
    NodeTimeout,
    RunInterrupted,
    RunLocked,
    RunOpening,
    RunStart,
    RunStatus,
    StepEnd,
    StepStart,
    StoreUnavailable,
    current,
    fan_out,
    node,
    parallel,
    report_usage,
)
from stroma.hooks import EVENTS
from tests.core.helpers import Calls, Number, make_runner, stored

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
OTHER = "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01"


class Told:
    """Hooks that write down what they are told, in order."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []
        self.hooks = NodeHooks(**{e: self.note(e) for e in EVENTS}, name="told")  # type: ignore[arg-type]

    def note(self, event: str) -> Any:
        return lambda *args: self.events.append((event, args[0]))

    @property
    def names(self) -> list[str]:
        return [event.removeprefix("on_") for event, _ in self.events]

    def of(self, event: str) -> list[Any]:
        return [told for name, told in self.events if name == event]


class Waiting:
    """A node that says when it is reached, and waits to be told to go on."""

    def __init__(self, node_id: str) -> None:
        self.reached = asyncio.Event()
        self.go_on = asyncio.Event()

        @node(id=node_id, input=Number, output=Number)
        async def wait(state: Number) -> Number:
            self.reached.set()
            await self.go_on.wait()
            return state

        self.node = wait


@pytest.fixture
def told() -> Told:
    return Told()


async def test_steps_are_told_around_their_attempts(told: Told, calls: Calls) -> None:
    runner = make_runner(hooks=told.hooks)
    await runner.run([calls.node("a", TimeoutError(), {"value": 1})], Number(), run_id="r")
    assert told.names == [
        "run_open",
        "run_start",
        "step_start",
        "attempt_start",
        "node_start",
        "node_failure",
        "retry",
        "attempt_end",
        "attempt_start",
        "node_start",
        "node_success",
        "attempt_end",
        "step_end",
        "run_end",
    ]
    assert told.of("on_run_open") == [RunOpening("r", "", "", ("a",), is_new=False)]
    assert told.of("on_step_start") == [StepStart("r", "a", "a", "node")]
    assert told.of("on_step_end") == [StepEnd("r", "a", "a", "node", "succeeded")]


async def test_an_attempt_is_told_with_what_it_used_and_failed_with(
    told: Told, calls: Calls
) -> None:
    slow = TimeoutError("slow")
    node = calls.node("a", slow, ({"value": 1}, 100, 10, "gpt-4o"))
    await make_runner(hooks=told.hooks).run([node], Number(), run_id="r")
    starts, (failed, succeeded) = told.of("on_attempt_start"), told.of("on_attempt_end")
    assert [start.attempt for start in starts] == [1, 2]
    assert failed[:5] == ("r", "a", "a", 1, "failed")
    assert failed.error is slow
    assert failed.failure_class is FailureClass.RECOVERABLE
    assert failed.retry_delay_seconds > 0
    assert succeeded[:5] == ("r", "a", "a", 2, "succeeded")
    assert (succeeded.usage.tokens, succeeded.usage.cost_usd) == (110, Decimal("0.00035"))
    assert (succeeded.error, succeeded.retry_delay_seconds) == (None, None)


async def test_an_attempt_that_is_cut_by_its_timeout_is_told(told: Told) -> None:
    @node(id="a", input=Number, output=Number, timeout_ms=1, policy=FailurePolicy(max_retries=0))
    async def slow(state: Number) -> Number:
        await asyncio.sleep(60)
        return state

    await make_runner(hooks=told.hooks).run([slow], Number())
    (end,) = told.of("on_attempt_end")
    assert isinstance(end.error, NodeTimeout)
    assert told.of("on_step_end")[0].error is end.error


async def test_an_output_that_does_not_fit_ends_attempt_and_step(told: Told, calls: Calls) -> None:
    await make_runner(hooks=told.hooks).run([calls.node("a", {"value": "x"})], Number())
    (attempt,), (step,) = told.of("on_attempt_end"), told.of("on_step_end")
    assert (attempt.outcome, step.outcome) == ("failed", "failed")
    assert isinstance(step.error, ContractViolation)


async def test_an_output_that_is_repaired_ends_its_attempt_well_with_what_the_repair_used(
    told: Told,
) -> None:
    def repair(raw: Any, exc: ContractViolation) -> Number:
        report_usage(input_tokens=5)
        return Number(value=1)

    @node(id="a", input=Number, output=Number, repair=repair)
    async def odd(state: Number) -> Any:
        return {"value": "one"}, 7

    await make_runner(hooks=told.hooks).run([odd], Number())
    (attempt,) = told.of("on_attempt_end")
    assert (attempt.outcome, attempt.error, attempt.usage.tokens) == ("succeeded", None, 12)


@pytest.mark.parametrize(
    ("repaired", "outcome"), [({"value": 1}, "succeeded"), ({"value": "two"}, "failed")]
)
async def test_a_paid_repair_of_a_recorded_output_is_told_as_attempt_0(
    told: Told, repaired: object, outcome: str
) -> None:
    def repair(raw: Any, exc: ContractViolation) -> Any:
        report_usage(input_tokens=5)
        return repaired

    def odd(**options: Any) -> Any:
        @node(id="a", input=Number, output=Number, **options)
        async def work(state: Number) -> Any:
            return {"value": "one"}, 7

        return work

    store = InMemoryStore()
    await make_runner(store).run([odd()], Number(), run_id="r")
    await make_runner(store, hooks=told.hooks).run([odd(repair=repair)], Number(), run_id="r")
    (attempt,) = told.of("on_attempt_end")
    assert (attempt.attempt, attempt.outcome, attempt.usage.tokens) == (0, outcome, 5)


async def test_the_budget_stops_a_step_without_an_attempt(told: Told, calls: Calls) -> None:
    runner = make_runner(hooks=told.hooks).with_budget(tokens=5)
    await runner.run([calls.node("a", ({"value": 1}, 10)), calls.node("b")], Number())
    assert [start.node_id for start in told.of("on_attempt_start")] == ["a"]
    end = told.of("on_step_end")[-1]
    assert (end.node_id, end.outcome) == ("b", "failed")
    assert isinstance(end.error, BudgetExceeded)


async def test_containers_and_what_they_hold_are_steps(told: Told, calls: Calls) -> None:
    from tests.core.test_fan_out import Batch

    each = fan_out(calls.node("w"), over="items", into="done", max_concurrency=1)
    await make_runner(hooks=told.hooks).run([each], Batch(items=[Number()] * 2))
    both = parallel(calls.node("a"), calls.node("b"), id="both")
    await make_runner(hooks=told.hooks).run([both], Number())
    assert [(s.path, s.kind) for s in told.of("on_step_start")] == [
        (each.id, "fan_out"),
        ("w[0]", "node"),
        ("w[1]", "node"),
        ("both", "parallel"),
        ("a", "node"),
        ("b", "node"),
    ]
    assert [end.outcome for end in told.of("on_step_end")] == ["succeeded"] * 6


async def test_a_cancelled_run_closes_every_pair_in_the_task_that_opened_it() -> None:
    opened: list[tuple[str, object]] = []
    closed: list[tuple[str, object]] = []
    outcomes: list[str] = []

    def opens(told: Any) -> None:
        opened.append((getattr(told, "path", "run"), asyncio.current_task()))

    def closes(told: Any) -> None:
        closed.append((getattr(told, "path", "run"), asyncio.current_task()))
        outcomes.append(getattr(told, "outcome", type(getattr(told, "error", None)).__name__))

    hooks = NodeHooks(
        on_run_open=opens,
        on_run_interrupted=closes,
        on_step_start=opens,
        on_step_end=closes,
        on_attempt_start=opens,
        on_attempt_end=closes,
    )
    a, b = Waiting("a"), Waiting("b")
    both = parallel(a.node, b.node, id="both")
    task = asyncio.create_task(make_runner(hooks=hooks).run([both], Number()))
    await asyncio.gather(a.reached.wait(), b.reached.wait())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sorted(map(str, opened)) == sorted(map(str, closed))
    assert set(outcomes) == {"cancelled", "CancelledError"}


async def test_a_run_that_another_worker_owns_is_interrupted(told: Told, calls: Calls) -> None:
    store, a = InMemoryStore(), Waiting("a")
    task = asyncio.create_task(make_runner(store).run([a.node], Number(), run_id="r"))
    await a.reached.wait()
    with pytest.raises(RunLocked) as locked:
        await make_runner(store, hooks=told.hooks).run([calls.node("a")], Number(), run_id="r")
    a.go_on.set()
    await task
    assert told.names == ["run_open", "run_interrupted"]
    assert told.of("on_run_interrupted") == [RunInterrupted("r", locked.value)]


async def test_an_end_is_told_when_the_store_cannot_be_reached(told: Told, calls: Calls) -> None:
    class Down(InMemoryStore):
        def open_run(self, request: Any) -> Any:
            raise StoreUnavailable("down")

    result = await make_runner(Down(), hooks=told.hooks).run([calls.node("a")], Number())
    assert result.status is RunStatus.PARTIAL
    assert told.names == ["run_open", "run_end"]


async def test_what_a_store_does_not_take_was_an_attempt_all_the_same(
    told: Told, calls: Calls
) -> None:
    class Full(InMemoryStore):
        def commit_many(self, commits: Any) -> Any:
            return [StoreUnavailable("full") for _ in commits]

    runner = make_runner(Full(), hooks=told.hooks)
    await runner.run([calls.node("a", ({"value": 1}, 7))], Number())
    (attempt,), (step,) = told.of("on_attempt_end"), told.of("on_step_end")
    assert (attempt.outcome, attempt.usage.tokens) == ("succeeded", 7)
    assert isinstance(step.error, StoreUnavailable)


async def test_current_answers_in_the_events_of_an_attempt(calls: Calls) -> None:
    seen: list[tuple[str, int]] = []

    def look(told: AttemptStart | AttemptEnd) -> None:
        seen.append((current().path, current().attempt))

    hooks = NodeHooks(on_attempt_start=look, on_attempt_end=look)
    await make_runner(hooks=hooks).run([calls.node("a")], Number())
    assert seen == [("a", 1), ("a", 1)]


# -- hooks that do not take part -----------------------------------------------------------


async def test_hooks_that_are_not_active_are_told_nothing_of_a_run(
    told: Told, calls: Calls
) -> None:
    is_active = False
    told.hooks.is_active = lambda: is_active
    runner = make_runner(hooks=[told.hooks])
    nodes = [calls.node("a")]
    await runner.run(nodes, Number())
    assert told.events == []
    is_active = True
    await runner.run(nodes, Number())
    assert told.names[0] == "run_open"


async def test_hooks_that_cannot_say_whether_they_are_active_are_not(
    told: Told, calls: Calls, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> bool:
        raise ValueError("hook is broken")

    told.hooks.is_active = broken
    runner, nodes = make_runner(hooks=told.hooks), [calls.node("a")]
    for _ in range(2):
        result = await runner.run(nodes, Number())
        assert result.status is RunStatus.COMPLETED
    assert told.events == []
    assert caplog.text.count("hook told raised in is_active") == 1


# -- distributed traces --------------------------------------------------------------------


async def test_the_place_in_a_trace_is_kept_with_the_run_and_each_record(
    store: Any, calls: Calls
) -> None:
    now = [PARENT]
    starts: list[RunStart] = []
    hooks = NodeHooks(
        trace_parent=lambda run_id: now[0],
        on_attempt_start=lambda start: now.insert(0, OTHER),
        on_run_start=starts.append,
    )
    runner = make_runner(store, hooks=hooks)
    nodes = [calls.node("a"), calls.node("b", TypeError(), {"value": 1})]
    await runner.run(nodes, Number(), run_id="r")
    await runner.run(nodes, Number(), run_id="r")
    found = await stored(store, "r")
    assert found.run.trace_parent == PARENT
    assert {header.trace_parent for header in found.headers} == {OTHER}
    assert [start.trace_parent for start in starts] == [PARENT, PARENT]


@pytest.mark.parametrize("answer", ["", None, "nonsense", PARENT + "\n", 7])
async def test_what_is_no_place_in_a_trace_is_not_kept(calls: Calls, answer: Any) -> None:
    store = InMemoryStore()
    hooks = [NodeHooks(trace_parent=lambda run_id: answer)]
    await make_runner(store, hooks=hooks).run([calls.node("a")], Number(), run_id="r")
    assert (await stored(store, "r")).run.trace_parent == ""


async def test_the_first_hooks_that_know_the_place_say_it(
    calls: Calls, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(run_id: str) -> str:
        raise ValueError("hook is broken")

    store = InMemoryStore()
    answers = [broken, lambda run_id: "", lambda run_id: OTHER, lambda run_id: PARENT]
    hooks = [NodeHooks(trace_parent=answer, name="told") for answer in answers]
    with caplog.at_level(logging.WARNING, "stroma"):
        await make_runner(store, hooks=hooks).run([calls.node("a")], Number(), run_id="r")
    assert (await stored(store, "r")).run.trace_parent == OTHER
    assert caplog.text.count("hook told raised in trace_parent") == 1


def test_all_callbacks_are_events() -> None:
    names = {field.name for field in fields(NodeHooks)}
    assert names - set(EVENTS) == {"name", "is_active", "trace_parent"}
