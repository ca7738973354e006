"""Turns the events of runs into spans and metrics."""

from __future__ import annotations

import asyncio
import time
from contextvars import ContextVar, Token
from typing import Any, Final

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import Link, Span, SpanContext, Status, StatusCode, TracerProvider
from pydantic_core import to_json

from stroma.cost import NO_USAGE, Usage
from stroma.errors import StaleOwner
from stroma.events import (
    AttemptEnd,
    AttemptStart,
    BudgetDetails,
    RunInterrupted,
    RunOpening,
    RunStart,
    StepEnd,
    StepStart,
)
from stroma.result import ExecutionResult
from stroma.trace import TraceOptions
from stroma_otel import _spans
from stroma_otel._current import RUN_ID
from stroma_otel._metrics import Metrics
from stroma_otel._reserved import Reserved, reserve
from stroma_otel._spans import Spans

_explicit: ContextVar[str] = ContextVar("stroma_otel_explicit", default="")
"""The run that hooks which somebody has chosen look at, so that the installed ones need not."""

_NOT_OURS: Final = ("RunLocked", "NotWaiting")


class _Run:
    """One start of a run, from its opening to its end."""

    def __init__(self, opening: RunOpening, context: Context) -> None:
        self.opening = opening
        self.context = context
        self.opened_ns = time.time_ns()
        self.opened = time.perf_counter()
        self.name = _spans.run_name(opening)
        self.attributes = _spans.run_attributes(opening)
        self.span: Span | None = None
        self.reserved: Reserved | None = None
        self.usage: Usage = NO_USAGE
        self.resets: list[tuple[ContextVar[Any], Token[Any]]] = []
        self.attached: Token[Context] | None = None

    @property
    def span_context(self) -> SpanContext | None:
        """Where the run is in a trace, also before its span begins."""
        if self.span is not None:
            return self.span.get_span_context()
        return None if self.reserved is None else self.reserved.context


class _Step:
    """One step, and the attempt that is under way in it."""

    def __init__(self, span: Span, run: _Run) -> None:
        self.span = span
        self.run = run
        self.attempts = 0
        self.usage: Usage = NO_USAGE
        self.attempt: Span | None = None
        self.last = span.get_span_context()
        self.reset: Token[_Step | None] | None = None
        self.attached: Token[Context] | None = None
        self.attempt_attached: Token[Context] | None = None


class Observer:
    """Makes spans and metrics of what hooks are told. Serves any number of runs at once.

    Args:
        tracer_provider: makes the spans; the global one if it is None.
        meter_provider: makes the metrics; the global one if it is None.
        payloads: what attempts' spans hold of inputs and outputs.
        is_explicit: somebody has chosen these hooks, and they are not just installed.
    """

    def __init__(
        self,
        tracer_provider: TracerProvider | None,
        meter_provider: MeterProvider | None,
        payloads: TraceOptions | None,
        *,
        is_explicit: bool,
    ) -> None:
        self._spans = Spans(tracer_provider)
        self._metrics = Metrics(meter_provider)
        self._payloads = payloads
        self._is_explicit = is_explicit
        self._run: ContextVar[_Run | None] = ContextVar("stroma_otel_run", default=None)
        self._step: ContextVar[_Step | None] = ContextVar("stroma_otel_step", default=None)

    # -- runs ------------------------------------------------------------------------------

    def on_run_open(self, opening: RunOpening) -> None:
        """Remember where the run begins, and draw the ids of its span."""
        if not self._is_explicit and _explicit.get() == opening.run_id:
            return
        run = _Run(opening, otel_context.get_current())
        run.resets = [
            (self._run, self._run.set(run)),
            (self._step, self._step.set(None)),
            (RUN_ID, RUN_ID.set(opening.run_id)),
        ]
        if self._is_explicit:
            run.resets.append((_explicit, _explicit.set(opening.run_id)))
        tracer = self._spans.tracer
        run.reserved = reserve(tracer, run.name, run.context, run.attributes)
        if run.reserved is None:
            run.span = self._spans.start(run.name, run.attributes, run.context)

    def _run_of(self, run_id: str) -> _Run | None:
        run = self._run.get()
        return run if run is not None and run.opening.run_id == run_id else None

    def trace_parent(self, run_id: str) -> str:
        """Return the W3C traceparent of the attempt, of the run, or of what submits the run."""
        run, step = self._run_of(run_id), self._step.get()
        if run is None:
            return _spans.to_trace_parent(trace.get_current_span().get_span_context())
        if step is not None and step.run is run:
            return _spans.to_trace_parent(step.last)
        found = run.span_context
        return "" if found is None else _spans.to_trace_parent(found)

    def on_run_start(self, start: RunStart) -> None:
        """Begin the run's span where it belongs: a recorded run goes on in its own trace."""
        run = self._run_of(start.run_id)
        if run is None:
            return
        run.attributes["stroma.run.epoch"] = start.epoch
        if start.recorded:
            run.attributes["stroma.run.recorded_nodes"] = start.recorded
        self._begin(run, _spans.from_trace_parent(start.trace_parent))
        assert run.span is not None
        run.attached = otel_context.attach(trace.set_span_in_context(run.span))

    def _begin(self, run: _Run, stored: SpanContext | None) -> None:
        own = run.span_context
        is_first = stored is None or (own is not None and _is_same(stored, own))
        if run.span is not None:
            run.span.set_attributes(run.attributes)
            if not is_first and stored is not None:
                run.span.add_link(stored)
        elif is_first and run.reserved is not None:
            run.span = run.reserved.start(run.name, run.context, run.attributes, run.opened_ns)
        else:
            assert stored is not None
            context = run.context
            if not trace.get_current_span(context).get_span_context().is_valid:
                context = _spans.below(stored, context)
            run.span = self._spans.start(
                run.name, run.attributes, context, [Link(stored)], run.opened_ns
            )

    def on_run_end(self, result: ExecutionResult) -> None:
        """End the run's span with how it stands, and what this start of it used."""
        run = self._run_of(result.run_id)
        if run is None:
            return
        span = self._close(run)
        span.set_attributes(_spans.usage_attributes(run.usage))
        span.set_attribute("stroma.run.status", str(result.status))
        if result.in_doubt:
            span.set_attribute("stroma.run.calls_in_doubt", len(result.in_doubt))
        if result.is_complete:
            span.set_status(Status(StatusCode.OK))
        elif result.error is not None:
            _spans.set_error(span, result.error, result.stop_reason)
        seconds = time.perf_counter() - run.opened
        self._metrics.run_ended(
            run.opening.pipeline, str(result.status), _spans.error_type(result.error), seconds
        )
        span.end()

    def on_run_interrupted(self, interrupted: RunInterrupted) -> None:
        """End the run's span with why there is no result.

        A run that another worker owns is that worker's: there is no span of it here.
        """
        run, error = self._run_of(interrupted.run_id), interrupted.error
        if run is None:
            return
        if run.span is None and type(error).__name__ in _NOT_OURS:
            _leave(run)
            return
        span = self._close(run)
        span.set_attributes(_spans.usage_attributes(run.usage))
        status = _status_of(error)
        if status:
            span.set_attribute("stroma.run.status", status)
        _spans.set_error(span, error)
        seconds = time.perf_counter() - run.opened
        self._metrics.run_ended(
            run.opening.pipeline, status or "ERROR", _spans.error_type(error), seconds
        )
        span.end()

    def _close(self, run: _Run) -> Span:
        """Leave the run's context, and return its span, begun now if it was never claimed."""
        _leave(run)
        if run.span is None:
            self._begin(run, None)
        assert run.span is not None
        return run.span

    # -- steps and attempts ----------------------------------------------------------------

    def on_step_start(self, start: StepStart) -> None:
        """Begin the span of a step below that of the run or of the step around it."""
        run = self._run_of(start.run_id)
        if run is None:
            return
        span = self._spans.start_step(start)
        step = _Step(span, run)
        step.reset = self._step.set(step)
        step.attached = otel_context.attach(trace.set_span_in_context(span))

    def on_step_end(self, end: StepEnd) -> None:
        """End the span of a step."""
        step = self._current(end.run_id)
        if step is None or step.reset is None or step.attached is None:
            return
        self._step.reset(step.reset)
        otel_context.detach(step.attached)
        _spans.end_step(step.span, end, step.attempts, step.usage)

    def _current(self, run_id: str) -> _Step | None:
        step = self._step.get()
        return step if step is not None and step.run.opening.run_id == run_id else None

    def on_attempt_start(self, start: AttemptStart) -> None:
        """Begin the span of an attempt, and make it the current one inside the node."""
        step = self._current(start.run_id)
        if step is None:
            return
        step.attempts += 1
        step.attempt = self._spans.start_attempt(start)
        step.last = step.attempt.get_span_context()
        step.attempt_attached = otel_context.attach(trace.set_span_in_context(step.attempt))

    def on_attempt_end(self, end: AttemptEnd) -> None:
        """End the span of an attempt, and count what it took and used."""
        step = self._current(end.run_id)
        if step is None or step.attempt is None or step.attempt_attached is None:
            return
        span, step.attempt = step.attempt, None
        step.usage = step.usage.plus(end.usage)
        step.run.usage = step.run.usage.plus(end.usage)
        error = _spans.error_type(end.error)
        self._metrics.attempt_ended(step.run.opening.pipeline, end, error)
        otel_context.detach(step.attempt_attached)
        _spans.end_attempt(span, end)

    def on_budget(self, details: BudgetDetails) -> None:
        """Note a reached limit or a cheaper model where it happens."""
        run = self._run_of(details.run_id)
        if run is None:
            return
        attributes = _spans.usage_attributes(details.spent)
        name = "stroma.budget.reached"
        if details.event == "fallback":
            name = "stroma.model.fallback"
            attributes["stroma.model"] = details.model
        trace.get_current_span().add_event(name, attributes)
        self._metrics.budget(run.opening.pipeline, details)

    # -- payloads --------------------------------------------------------------------------

    def on_node_start(self, run_id: str, node_id: str, state: dict[str, Any]) -> None:
        """Have the beginning of the input on the attempt's span."""
        self._show(run_id, "stroma.input", state)

    def on_node_success(
        self, run_id: str, node_id: str, state: dict[str, Any], tokens: int
    ) -> None:
        """Have the beginning of the output on the attempt's span."""
        self._show(run_id, "stroma.output", state)

    def _show(self, run_id: str, name: str, state: dict[str, Any]) -> None:
        step = self._current(run_id)
        if step is not None and step.attempt is not None and self._payloads is not None:
            text = self._payloads.preview(
                to_json(state, fallback=lambda value: type(value).__name__)
            )
            step.attempt.set_attribute(name, text)


def _leave(run: _Run) -> None:
    """Make current what was current before the run."""
    if run.attached is not None:
        otel_context.detach(run.attached)
    for variable, token in reversed(run.resets):
        variable.reset(token)


def _is_same(one: SpanContext, other: SpanContext) -> bool:
    return (one.trace_id, one.span_id) == (other.trace_id, other.span_id)


def _status_of(error: BaseException) -> str:
    """Return how a run stands that left no result, as far as that is known here."""
    if isinstance(error, asyncio.CancelledError):
        return "CANCELLED"
    return "LOST" if isinstance(error, StaleOwner) else ""
