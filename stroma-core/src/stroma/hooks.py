"""Callbacks at the boundaries of runs, nodes and attempts. They never change a run."""

from __future__ import annotations

import asyncio
import inspect
import logging
import re
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, fields
from typing import Any, Final, TypeAlias

from stroma.errors import ConfigError
from stroma.events import (
    AttemptEnd,
    AttemptStart,
    BudgetDetails,
    RetryDetails,
    RunInterrupted,
    RunOpening,
    RunStart,
    StepEnd,
    StepStart,
)
from stroma.failures import FailureClass
from stroma.result import ExecutionResult  # not only for checkers: pydantic 2.11 resolves it

logger = logging.getLogger("stroma")

State: TypeAlias = dict[str, Any]
_TRACE_PARENT: Final = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
"""What a W3C traceparent looks like."""


Callback: TypeAlias = Callable[..., Awaitable[None] | None]


@dataclass
class NodeHooks:
    """Callbacks, sync or async, all optional. What they raise is logged once and dropped.

    They are given as arguments, or are methods of a subclass.

    They run in the node's own task, so that a context variable set in `on_node_start` is
    seen inside the node. Events come in pairs, and the second one comes in the task of the first,
    also when the run is cancelled: a step's start and end, an attempt's, and the opening of a run
    with its end or its interruption.

    Attributes:
        on_node_start: called before each attempt with (run_id, node_id, input_state).
        on_node_success: called after the result is recorded, with
            (run_id, node_id, output_state, tokens_used).
        on_node_failure: called after each failed attempt, with
            (run_id, node_id, exception, failure_class).
        on_run_open: called with a `RunOpening` before the run is claimed.
        on_run_start: called with a `RunStart` when the run is claimed.
        on_run_end: called with the `ExecutionResult`, whatever its status.
        on_run_interrupted: called with a `RunInterrupted` when an exception leaves `run()`.
        on_step_start: called with a `StepStart` before the first attempt of a node, and before
            a `parallel` or `fan_out`.
        on_step_end: called with a `StepEnd` when its result is recorded, or there is none.
        on_attempt_start: called with an `AttemptStart` before each attempt.
        on_attempt_end: called with an `AttemptEnd` after each attempt.
        on_retry: called with `RetryDetails` before the wait.
        on_budget: called with `BudgetDetails`.
        name: what logs call these hooks.
        is_active: asked at each start of a run; False leaves these hooks out of it. None is
            always.
        trace_parent: asked with a run id for the W3C traceparent of what happens now, or "".
            What the first hooks say that say anything is kept in the run's record when it is
            created, and in the record of each attempt.
    """

    on_node_start: Callable[[str, str, State], Awaitable[None] | None] | None = None
    on_node_success: Callable[[str, str, State, int], Awaitable[None] | None] | None = None
    on_node_failure: (
        Callable[[str, str, Exception, FailureClass], Awaitable[None] | None] | None
    ) = None
    on_run_open: Callable[[RunOpening], Awaitable[None] | None] | None = None
    on_run_start: Callable[[RunStart], Awaitable[None] | None] | None = None
    on_run_end: Callable[[ExecutionResult], Awaitable[None] | None] | None = None
    on_run_interrupted: Callable[[RunInterrupted], Awaitable[None] | None] | None = None
    on_step_start: Callable[[StepStart], Awaitable[None] | None] | None = None
    on_step_end: Callable[[StepEnd], Awaitable[None] | None] | None = None
    on_attempt_start: Callable[[AttemptStart], Awaitable[None] | None] | None = None
    on_attempt_end: Callable[[AttemptEnd], Awaitable[None] | None] | None = None
    on_retry: Callable[[RetryDetails], Awaitable[None] | None] | None = None
    on_budget: Callable[[BudgetDetails], Awaitable[None] | None] | None = None
    name: str = ""
    is_active: Callable[[], bool] | None = None
    trace_parent: Callable[[str], str] | None = None

    def __post_init__(self) -> None:
        for event in (*EVENTS, "is_active", "trace_parent"):
            callback = getattr(self, event)
            method = getattr(type(self), event)
            if callback is None and method is not None:  # a subclass's, which the field hides
                setattr(self, event, method.__get__(self))
            elif callback is not None and not callable(callback):
                raise ConfigError(f"{event} must be a function, not {type(callback).__name__}")


EVENTS = tuple(field.name for field in fields(NodeHooks) if field.name.startswith("on_"))


class HookSet:
    """The hooks of one run, by event, in the order in which they are called.

    Attributes:
        any_attempt_hook: something is called at the boundaries of attempts.
        any_step_hook: something is called at the boundaries of steps.
        has_trace_parents: something says where in a distributed trace the run is.
    """

    __slots__ = (
        "_callbacks",
        "_chosen",
        "_gates",
        "_groups",
        "_reported",
        "_trace_parents",
        "any_attempt_hook",
        "any_step_hook",
        "has_trace_parents",
    )

    def __init__(self, hooks: Iterable[NodeHooks]) -> None:
        self._groups = tuple(hooks)
        self._reported: set[tuple[str, str]] = set()
        self._gates = [
            (1 << number, group.name, group.is_active)
            for number, group in enumerate(self._groups)
            if group.is_active is not None
        ]
        self._chosen: dict[int, HookSet] = {}
        self._collect(self._groups)

    def _collect(self, groups: Iterable[NodeHooks]) -> None:
        self._callbacks: dict[str, list[tuple[str, Callback]]] = {}
        self._trace_parents: list[tuple[str, Callable[[str], str]]] = []
        for group in groups:
            for event in EVENTS:
                callback = getattr(group, event)
                if callback is not None:
                    name = group.name or getattr(callback, "__qualname__", repr(callback))
                    self._callbacks.setdefault(event, []).append((name, callback))
            if group.trace_parent is not None:
                self._trace_parents.append((group.name, group.trace_parent))
        heard = tuple(self._callbacks)
        self.any_attempt_hook = any(e.startswith(("on_node", "on_attempt")) for e in heard)
        self.any_step_hook = any(event.startswith("on_step") for event in heard)
        self.has_trace_parents = bool(self._trace_parents)

    def active(self) -> HookSet:
        """Return those that take part in a run that starts now."""
        if not self._gates:
            return self
        answers = 0  # a bit for each; runs that nobody watches pay for this, and for no more
        for bit, name, ask in self._gates:
            try:
                if ask():
                    answers |= bit
            except Exception as exc:
                self._report(name, "is_active", exc)
        chosen = self._chosen.get(answers)
        if chosen is None:
            chosen = self._chosen[answers] = self._choose(answers)
        return chosen

    def _choose(self, answers: int) -> HookSet:
        chosen = HookSet(())
        chosen._reported = self._reported
        chosen._collect(
            [
                group
                for number, group in enumerate(self._groups)
                if group.is_active is None or answers & 1 << number
            ]
        )
        return chosen

    def listens(self, event: str) -> bool:
        """Whether anything is called for an event, so that its arguments are worth making."""
        return event in self._callbacks

    def trace_parent(self, run_id: str) -> str:
        """Return the W3C traceparent of what happens now in a run, or ""."""
        for name, ask in self._trace_parents:
            try:
                found = ask(run_id)
                if found and _TRACE_PARENT.fullmatch(found):
                    return found
            except Exception as exc:
                self._report(name, "trace_parent", exc)
        return ""

    async def fire(self, event: str, *args: object) -> None:
        """Call every callback of an event, in order; exceptions are logged once each."""
        for name, callback in self._callbacks.get(event, ()):
            try:
                outcome = callback(*args)
                if inspect.isawaitable(outcome):
                    await outcome
            except (Exception, asyncio.CancelledError) as exc:
                task = asyncio.current_task()
                if isinstance(exc, asyncio.CancelledError) and task and task.cancelling():
                    raise  # the run is cancelled, and not just something that the hook awaited
                self._report(name, event, exc)

    def _report(self, name: str, event: str, exc: BaseException) -> None:
        if (name, event) not in self._reported:
            self._reported.add((name, event))
            logger.warning(
                "hook %s raised in %s; the run goes on, and this is said once",
                name,
                event,
                exc_info=exc,
            )
