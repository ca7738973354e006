"""Callbacks at the boundaries of runs, nodes and attempts. They never change a run."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, TypeAlias

from stroma.cost import Usage
from stroma.errors import ConfigError
from stroma.failures import FailureClass
from stroma.result import ExecutionResult  # not only for checkers: pydantic 2.11 resolves it

logger = logging.getLogger("stroma")

State: TypeAlias = dict[str, Any]


class RunStart(NamedTuple):
    """A run begins or is continued.

    Attributes:
        run_id: the run.
        pipeline: the pipeline's name, or "".
        version: the pipeline's version, or "".
        node_ids: the nodes, in order.
        epoch: 0, or the number of times the run was deliberately started over.
        recorded: the nodes whose recorded results are used.
        trace_parent: the W3C traceparent that was stored with the run, or "".
    """

    run_id: str
    pipeline: str
    version: str
    node_ids: tuple[str, ...]
    epoch: int
    recorded: tuple[str, ...]
    trace_parent: str


class RetryDetails(NamedTuple):
    """A failed attempt is about to be repeated.

    Attributes:
        run_id: the run.
        node_id: the node.
        path: its place, such as "extract[17]".
        attempt: the attempt that failed, 1 for the first of this start.
        delay_seconds: how long until the next one.
        failure_class: the class of the failure.
        reason: the classifier's word for it.
        error: the exception.
    """

    run_id: str
    node_id: str
    path: str
    attempt: int
    delay_seconds: float
    failure_class: FailureClass
    reason: str
    error: Exception


class BudgetDetails(NamedTuple):
    """A budget's limit was reached, or a rule of model fallback came into force.

    Attributes:
        run_id: the run.
        path: the place that was about to run.
        event: "reached" or "fallback".
        message: what happened, as a sentence.
        spent: what the run has spent.
        model: the model in force after a fallback, or "".
    """

    run_id: str
    path: str
    event: str
    message: str
    spent: Usage
    model: str = ""


Callback: TypeAlias = Callable[..., Awaitable[None] | None]


@dataclass
class NodeHooks:
    """Callbacks, sync or async, all optional. What they raise is logged once and dropped.

    They are given as arguments, or are methods of a subclass.

    They run in the node's own task, so that a context variable set in `on_node_start` is
    seen inside the node.

    Attributes:
        on_node_start: called before each attempt with (run_id, node_id, input_state).
        on_node_success: called after the result is recorded, with
            (run_id, node_id, output_state, tokens_used).
        on_node_failure: called after each failed attempt, with
            (run_id, node_id, exception, failure_class).
        on_run_start: called with a `RunStart` when the run is claimed.
        on_run_end: called with the `ExecutionResult`, whatever its status.
        on_retry: called with `RetryDetails` before the wait.
        on_budget: called with `BudgetDetails`.
        name: what logs call these hooks.
    """

    on_node_start: Callable[[str, str, State], Awaitable[None] | None] | None = None
    on_node_success: Callable[[str, str, State, int], Awaitable[None] | None] | None = None
    on_node_failure: (
        Callable[[str, str, Exception, FailureClass], Awaitable[None] | None] | None
    ) = None
    on_run_start: Callable[[RunStart], Awaitable[None] | None] | None = None
    on_run_end: Callable[[ExecutionResult], Awaitable[None] | None] | None = None
    on_retry: Callable[[RetryDetails], Awaitable[None] | None] | None = None
    on_budget: Callable[[BudgetDetails], Awaitable[None] | None] | None = None
    name: str = ""

    def __post_init__(self) -> None:
        for event in EVENTS:
            callback = getattr(self, event)
            method = getattr(type(self), event)
            if callback is None and method is not None:  # a subclass's, which the field hides
                setattr(self, event, method.__get__(self))
            elif callback is not None and not callable(callback):
                raise ConfigError(f"{event} must be a function, not {type(callback).__name__}")


EVENTS = tuple(field.name for field in fields(NodeHooks) if field.name != "name")


class HookSet:
    """The hooks of one run, by event, in the order in which they are called."""

    __slots__ = ("_callbacks", "_reported", "any_node_hook")

    def __init__(self, hooks: Iterable[NodeHooks]) -> None:
        self._callbacks: dict[str, list[tuple[str, Callback]]] = {}
        for group in hooks:
            for event in EVENTS:
                callback = getattr(group, event)
                if callback is not None:
                    name = group.name or getattr(callback, "__qualname__", repr(callback))
                    self._callbacks.setdefault(event, []).append((name, callback))
        self._reported: set[tuple[str, str]] = set()
        self.any_node_hook = any(event.startswith("on_node") for event in self._callbacks)

    def listens(self, event: str) -> bool:
        """Whether anything is called for an event, so that its arguments are worth making."""
        return event in self._callbacks

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
                if (name, event) not in self._reported:
                    self._reported.add((name, event))
                    logger.warning(
                        "hook %s raised in %s; the run goes on, and this is said once",
                        name,
                        event,
                        exc_info=True,
                    )
