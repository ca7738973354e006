"""The clauses that all hooks keep. Subclass `HookConformance`, and run pytest."""

from __future__ import annotations

import asyncio
import copy
import inspect
import re
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextvars import copy_context
from dataclasses import fields
from functools import partial
from typing import Any, ClassVar, Final, TypeAlias, cast

import pytest
from pydantic import BaseModel

from stroma.hooks import EVENTS, NodeHooks
from stroma.plugins import did_you_mean
from stroma.result import ExecutionResult
from stroma.testing._hook_runs import SCENARIOS, Scenario, Stage, differences, in_a_loop, observed
from stroma.testing._watch import stroma_warnings
from stroma.trace import ExecutionTrace

Hooks: TypeAlias = NodeHooks | Callable[[], NodeHooks]
"""Hooks, or what makes them anew for each clause."""

ARGUMENTS: Final[Mapping[str, tuple[str, ...]]] = {
    "on_node_start": ("run_id", "node_id", "input_state"),
    "on_node_success": ("run_id", "node_id", "output_state", "tokens_used"),
    "on_node_failure": ("run_id", "node_id", "exception", "failure_class"),
    "on_run_open": ("opening",),
    "on_run_start": ("start",),
    "on_run_end": ("result",),
    "on_run_interrupted": ("interrupted",),
    "on_step_start": ("start",),
    "on_step_end": ("end",),
    "on_attempt_start": ("start",),
    "on_attempt_end": ("end",),
    "on_retry": ("details",),
    "on_budget": ("details",),
}
"""What each callback is called with, in order."""

_RUNS_SIDE_BY_SIDE: Final = ("success", "retry", "failure", "parallel", "fan out", "resume")
_RUNS_FOR_THREADS: Final = 5
_SETTLING_SECONDS: Final = 1.0
_SETTLING_STEPS: Final = 100

each_scenario = pytest.mark.parametrize("scenario", list(SCENARIOS))


class HookConformance:
    """What must hold for hooks, as tests.

    A subclass has one fixture, `hooks`: a `NodeHooks`, or a function that returns new ones::

        class TestMetrics(HookConformance):
            @pytest.fixture
            def hooks(self):
                return metrics_hooks()

    The runs are real ones, on a store in memory, each in an event loop of its own in a thread.

    Attributes:
        timeout_seconds: how long the runs of a clause may take.
    """

    timeout_seconds: ClassVar[float] = 30.0

    def test_its_callbacks_are_ones_that_runs_call(self, hooks: Hooks) -> None:
        made = _made(hooks)
        unknown = [name for name in _on_names(made) if name not in EVENTS]
        assert not unknown, (
            f"no run ever calls {unknown[0]}{did_you_mean(unknown[0], EVENTS)}; "
            f"callbacks are {', '.join(EVENTS)}"
        )
        assert any(getattr(made, event) for event in EVENTS), "there is no callback at all"

    def test_its_callbacks_take_what_runs_hand_them(self, hooks: Hooks) -> None:
        for event, names in ARGUMENTS.items():
            callback = getattr(_made(hooks), event)
            problem = None if callback is None else _signature_problem(callback, names)
            assert problem is None, f"{event}: {problem}"

    @each_scenario
    def test_a_run_is_the_same_with_them_and_without(self, hooks: Hooks, scenario: str) -> None:
        without = observed(SCENARIOS[scenario], (), self.timeout_seconds)
        stage = observed(SCENARIOS[scenario], (_made(hooks),), self.timeout_seconds)
        found = differences(stage, without)
        assert not found, f"with the hooks, a run is another: {'; '.join(found)}"

    @each_scenario
    def test_they_raise_nothing(self, hooks: Hooks, scenario: str) -> None:
        with stroma_warnings() as log:
            observed(SCENARIOS[scenario], (_made(hooks),), self.timeout_seconds)
        assert not _raised(log), _told(log)

    @each_scenario
    def test_they_leave_what_they_are_given_as_it_was(self, hooks: Hooks, scenario: str) -> None:
        around = _Around()
        observed(
            SCENARIOS[scenario], (around.before, _made(hooks), around.after), self.timeout_seconds
        )
        assert not around.changed, "; ".join(dict.fromkeys(around.changed))

    @each_scenario
    def test_a_run_goes_on_when_they_raise(self, hooks: Hooks, scenario: str) -> None:
        without = observed(SCENARIOS[scenario], (), self.timeout_seconds)
        with stroma_warnings() as log:
            stage = observed(SCENARIOS[scenario], (_raising(_made(hooks)),), self.timeout_seconds)
        found = differences(stage, without)
        assert not found, f"with hooks that raise, a run is another: {'; '.join(found)}"
        starts = len(stage.outcomes)
        for event in EVENTS:
            said = [line for line in _raised(log) if f" raised in {event};" in line]
            assert len(said) <= starts, f"{event}: said {len(said)} times in {starts} starts"

    def test_a_cancelled_run_ends(self, hooks: Hooks) -> None:
        for number in range(1, 20):
            cancelling = partial(_cancel_inside, _made(hooks), number)
            if not in_a_loop(cancelling, self.timeout_seconds):
                break

    def test_runs_side_by_side_are_as_they_are_alone(self, hooks: Hooks) -> None:
        stages = {name: Stage((), f"run {name}") for name in _RUNS_SIDE_BY_SIDE}
        in_a_loop(lambda: _together(stages), self.timeout_seconds)
        made = _made(hooks)
        with_them = {name: Stage((made,), f"run {name}") for name in _RUNS_SIDE_BY_SIDE}
        with stroma_warnings() as log:
            in_a_loop(lambda: _together(with_them), self.timeout_seconds)
        for name, stage in with_them.items():
            found = differences(stage, stages[name])
            assert not found, f"{stage.run_id}, beside others, is another: {'; '.join(found)}"
        assert not _raised(log), f"with runs side by side: {_told(log)}"

    def test_they_serve_one_event_loop_after_another(self, hooks: Hooks) -> None:
        made = _made(hooks)
        with stroma_warnings() as log:
            for number in range(3):
                in_a_loop(partial(_several, made, number), self.timeout_seconds)
        assert not _raised(log), f"in a second event loop: {_told(log)}"

    def test_they_serve_several_event_loops_at_once(self, hooks: Hooks) -> None:
        made = _made(hooks)
        problems: list[str] = []

        def body(number: int) -> None:
            try:
                in_a_loop(partial(_several, made, number), self.timeout_seconds)
            except AssertionError as exc:
                problems.append(str(exc))

        with stroma_warnings() as log:
            threads = [
                threading.Thread(target=copy_context().run, args=(body, number))
                for number in range(3)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert not problems, problems[0]
        assert not _raised(log), f"with several event loops: {_told(log)}"

    @each_scenario
    def test_they_leave_no_task_behind(self, hooks: Hooks, scenario: str) -> None:
        made = _made(hooks)
        left = in_a_loop(lambda: _tasks_left(SCENARIOS[scenario], made), self.timeout_seconds)
        assert not left, f"the run has ended, and these tasks have not: {', '.join(left)}"

    def test_they_leave_no_thread_behind(self, hooks: Hooks) -> None:
        made = _made(hooks)
        left = in_a_loop(lambda: _threads_left(made), self.timeout_seconds)
        assert len(left) < _RUNS_FOR_THREADS, (
            f"{_RUNS_FOR_THREADS} runs have ended, and left the threads {', '.join(left)}"
        )


# -- callbacks -----------------------------------------------------------------------------


def _made(hooks: object) -> NodeHooks:
    """Return the hooks that the fixture gave, or makes."""
    made = hooks
    if callable(hooks) and not isinstance(hooks, NodeHooks):
        try:
            made = hooks()
        except TypeError as exc:
            wrong = re.search(r"unexpected keyword argument '(\w+)'", str(exc))
            if wrong is None:
                raise
            hint = did_you_mean(wrong[1], EVENTS)
            raise AssertionError(f"no run ever calls {wrong[1]}{hint}") from exc
    assert isinstance(made, NodeHooks), (
        "the fixture `hooks` must return a stroma.NodeHooks, or a function that returns one, "
        f"and gave {type(made).__name__}"
    )
    return made


def _on_names(hooks: NodeHooks) -> list[str]:
    names = (*vars(hooks), *(name for cls in type(hooks).__mro__ for name in vars(cls)))
    return sorted({name for name in names if name.startswith("on_")})


def _signature_problem(callback: Callable[..., object], names: tuple[str, ...]) -> str | None:
    target = inspect.unwrap(callback)
    if inspect.isgeneratorfunction(target) or inspect.isasyncgenfunction(target):
        return "the function yields, so that nothing of it ever runs"
    try:
        signature = inspect.signature(callback)
    except (TypeError, ValueError):  # it says none
        return None
    try:
        signature.bind(*names)
    except TypeError as exc:
        return f"it is called with ({', '.join(names)}), and takes {signature}: {exc}"
    return None


def _raising(hooks: NodeHooks) -> NodeHooks:
    """Return hooks that do the same, and raise then."""

    def after(callback: Callable[..., object]) -> Callable[..., Awaitable[None]]:
        async def raising(*args: object) -> None:
            outcome = callback(*args)
            if inspect.isawaitable(outcome):
                await outcome
            raise RuntimeError("raised by the conformance kit")

        return raising

    present = {event: getattr(hooks, event) for event in EVENTS if getattr(hooks, event)}
    return _hooks_of({event: after(callback) for event, callback in present.items()})


def _hooks_of(callbacks: Mapping[str, Callable[..., object]]) -> NodeHooks:
    hooks = NodeHooks(name="the kit's")
    for event, callback in callbacks.items():
        setattr(hooks, event, callback)
    return hooks


def _raised(log: Iterable[str]) -> list[str]:
    return [line for line in log if line.startswith("hook ")]


def _told(log: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(_raised(log)))


# -- what callbacks are given --------------------------------------------------------------


class _Around:
    """Hooks before and after those that are looked at, which compare what was given to them.

    Attributes:
        changed: what was changed in between, as sentences.
        inside: the callback that is under way, of the run's own task.
        passed: how many callbacks of each event have returned.
    """

    def __init__(self) -> None:
        self.changed: list[str] = []
        self.inside = ""
        self.passed: Counter[str] = Counter()
        self._given: dict[tuple[str, object], object] = {}
        self.before = _hooks_of({event: self._before(event) for event in EVENTS})
        self.after = _hooks_of({event: self._after(event) for event in EVENTS})

    def _before(self, event: str) -> Callable[..., None]:
        def remember(*args: object) -> None:
            self.inside = event
            self._given[event, asyncio.current_task()] = _snapshot(args)

        return remember

    def _after(self, event: str) -> Callable[..., None]:
        def compare(*args: object) -> None:
            self.inside = ""
            self.passed[event] += 1
            given = cast("list[object]", self._given.pop((event, asyncio.current_task())))
            for name, was, is_now in zip(
                ARGUMENTS[event], given, cast("list[object]", _snapshot(args)), strict=True
            ):
                if was != is_now:
                    self.changed.append(f"{event} changed its {name}: {was!r} is now {is_now!r}")

        return compare


def _snapshot(value: object) -> object:
    """Return a copy of what a callback is given, that can be compared."""
    if isinstance(value, BaseException):
        attributes = {name: id(each) for name, each in vars(value).items() if name != "__notes__"}
        chained = (id(value.__cause__), id(value.__context__))
        notes = list(getattr(value, "__notes__", ()))
        return (type(value).__name__, [repr(arg) for arg in value.args], attributes, notes, chained)
    if isinstance(value, ExecutionResult):
        return {each.name: _snapshot(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, ExecutionTrace):
        return value.events
    if isinstance(value, BaseModel):
        return value.model_dump()
    if isinstance(value, tuple):
        return [_snapshot(each) for each in cast("tuple[object, ...]", value)]
    return copy.deepcopy(value)


# -- runs ----------------------------------------------------------------------------------


async def _together(stages: Mapping[str, Stage]) -> None:
    await asyncio.gather(*(SCENARIOS[name](stage) for name, stage in stages.items()))


async def _several(hooks: NodeHooks, number: int) -> None:
    stages = {name: Stage((hooks,), f"run {name} {number}") for name in _RUNS_SIDE_BY_SIDE}
    await _together(stages)


async def _cancel_inside(hooks: NodeHooks, number: int) -> bool:
    """Cancel a run while it waits inside its callback of this number, and check that it ends.

    Returns:
        Whether so many callbacks wait at all.
    """
    around = _Around()
    stage = Stage((around.before, hooks, around.after))
    nodes = [stage.node("a"), stage.node("b", TimeoutError("slow"), None)]
    task = stage.start(*nodes)
    waiting = await _until_inside(around, task, number)
    if not waiting:
        await stage.end()
        return False
    passed = around.passed[waiting]
    task.cancel()
    await stage.end()
    is_through = around.passed[waiting] > passed
    assert not is_through, f"{waiting} was cancelled in its wait, and hid that from the run"
    left = stage.outcomes[-1].facts["what left run()"]
    assert left == "CancelledError", f"cancelled in {waiting}, and what left run() is {left}"
    await stage.run(*nodes)
    end = stage.outcomes[-1].facts
    assert end.get("final state") == {"value": 2, "seen": ["a", "b"]}, (
        f"cancelled in {waiting}, and not to be continued: {end}"
    )
    return True


async def _until_inside(around: _Around, task: asyncio.Task[Any], number: int) -> str:
    """Return the name of the callback that the run waits in, when that is so."""
    waited = -1
    while not task.done():
        if around.inside and around.passed.total() > waited:
            waited = around.passed.total()
            number -= 1
            if not number:
                return around.inside
        await asyncio.sleep(0)
    return ""


async def _tasks_left(scenario: Scenario, hooks: NodeHooks) -> list[str]:
    before = asyncio.all_tasks()
    await scenario(Stage((hooks,)))
    left = asyncio.all_tasks() - before
    if left:
        _, left = await asyncio.wait(left, timeout=_SETTLING_SECONDS)
    return [f"{task.get_name()} ({_name_of(task)})" for task in left]


def _name_of(task: asyncio.Task[Any]) -> str:
    return getattr(task.get_coro(), "__qualname__", "?")


async def _threads_left(hooks: NodeHooks) -> list[str]:
    await SCENARIOS["success"](Stage((hooks,)))  # which may start what serves all runs
    before = set(threading.enumerate())
    for number in range(_RUNS_FOR_THREADS):
        await SCENARIOS["success"](Stage((hooks,), f"run {number}"))
    for _ in range(_SETTLING_STEPS):
        left = set(threading.enumerate()) - before
        if not left:
            break
        await asyncio.sleep(_SETTLING_SECONDS / _SETTLING_STEPS)
    return [thread.name for thread in set(threading.enumerate()) - before]
