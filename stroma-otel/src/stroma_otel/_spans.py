"""The spans: run, node, attempt. Their names and attributes, and how they end."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    Span,
    SpanContext,
    Status,
    StatusCode,
    TraceFlags,
    Tracer,
    TracerProvider,
)

from stroma.cost import Usage
from stroma.errors import StopRequested
from stroma.events import AttemptEnd, AttemptStart, RunOpening, StepEnd, StepStart
from stroma.failures import error_text
from stroma_otel._version import __version__

_MAX_DESCRIPTION = 500


class Spans:
    """Starts the spans of runs.

    Args:
        provider: makes the tracer; the global one if it is None.
    """

    def __init__(self, provider: TracerProvider | None) -> None:
        self._provider = provider
        self._used: TracerProvider | None = None
        self._tracer: Tracer | None = None

    @property
    def tracer(self) -> Tracer:
        """The tracer, made anew if the global provider has changed."""
        provider = trace.get_tracer_provider() if self._provider is None else self._provider
        if provider is not self._used or self._tracer is None:
            self._tracer = provider.get_tracer("stroma", __version__)
            self._used = provider
        return self._tracer

    def start(
        self,
        name: str,
        attributes: Mapping[str, Any],
        context: Context | None = None,
        links: Sequence[Link] = (),
        at_ns: int | None = None,
    ) -> Span:
        """Start a span whose status nobody sets but us."""
        return self.tracer.start_span(
            name,
            context,
            attributes=attributes,
            links=links,
            start_time=at_ns,
            record_exception=False,
            set_status_on_exception=False,
        )

    def start_step(self, start: StepStart) -> Span:
        """Start the span of a node, a `parallel` or a `fan_out`."""
        attributes = {**_place(start), "stroma.node.kind": start.kind}
        return self.start(f"stroma.{start.kind} {start.node_id}", attributes)

    def start_attempt(self, start: AttemptStart) -> Span:
        """Start the span of an attempt."""
        attributes = {**_place(start), "stroma.attempt.number": start.attempt}
        if start.model:
            attributes["stroma.model"] = start.model
        return self.start(f"stroma.attempt {start.node_id}", attributes)


def _place(start: StepStart | AttemptStart) -> dict[str, Any]:
    return {
        "stroma.run.id": start.run_id,
        "stroma.node.id": start.node_id,
        "stroma.node.path": start.path,
    }


def run_name(opening: RunOpening) -> str:
    """Return the name of the span of a run."""
    return f"invoke_workflow {opening.pipeline}".rstrip()


def run_attributes(opening: RunOpening) -> dict[str, Any]:
    """Return what is known of a run before it is claimed."""
    attributes: dict[str, Any] = {
        "gen_ai.operation.name": "invoke_workflow",
        "stroma.run.id": opening.run_id,
    }
    if opening.pipeline:
        attributes["gen_ai.workflow.name"] = opening.pipeline
    if opening.version:
        attributes["stroma.pipeline.version"] = opening.version
    return attributes


def usage_attributes(usage: Usage) -> dict[str, Any]:
    """Return what was used. Not as ``gen_ai.usage``: the spans of calls inside count that."""
    attributes: dict[str, Any] = {}
    if usage.tokens:
        attributes["stroma.usage.input_tokens"] = usage.input_tokens
        attributes["stroma.usage.output_tokens"] = usage.output_tokens
    if usage.cost_usd is not None and (usage.cost_usd or usage.tokens):
        attributes["stroma.cost.usd"] = float(usage.cost_usd)
    return attributes


def end_attempt(span: Span, end: AttemptEnd) -> None:
    """End the span of an attempt with what it used and failed with."""
    span.set_attributes(usage_attributes(end.usage))
    if end.usage.model:
        span.set_attribute("stroma.usage.model", end.usage.model)
    if end.failure_class is not None:
        span.set_attribute("stroma.failure.class", end.failure_class.value)
    if end.reason:
        span.set_attribute("stroma.failure.reason", end.reason)
    if end.retry_delay_seconds is not None:
        span.set_attribute("stroma.retry.delay", end.retry_delay_seconds)
    if end.outcome == "cancelled":
        set_error(span, end.error or asyncio.CancelledError())
    elif end.error is not None:
        set_error(span, end.error)
    span.end()


def end_step(span: Span, end: StepEnd, attempts: int, usage: Usage) -> None:
    """End the span of a step: what failed and was retried is no error of it."""
    if end.kind == "node":
        span.set_attribute("stroma.node.attempts", attempts)
        span.set_attributes(usage_attributes(usage))
    if end.error is not None:
        set_error(span, end.error)
    else:
        span.set_status(Status(StatusCode.OK))
    span.end()


def set_error(span: Span, error: BaseException, description: str = "") -> None:
    """Mark a span with an error; one that somebody has asked for is no error.

    Args:
        span: the span.
        error: gives the type.
        description: what happened, if it is not what the error says.
    """
    if isinstance(error, StopRequested):
        return
    span.set_attribute("error.type", error_type(error))
    if isinstance(error, asyncio.CancelledError):
        description = "cancelled"
    text = (description or error_text(error))[:_MAX_DESCRIPTION]
    span.set_status(Status(StatusCode.ERROR, text))


def error_type(error: BaseException | None) -> str:
    """Return the name of an error's class, or "" if there is none, or it was asked for."""
    is_error = error is not None and not isinstance(error, StopRequested)
    return type(error).__qualname__ if is_error else ""


def to_trace_parent(context: SpanContext) -> str:
    """Return the W3C traceparent of a span, or "" if there is none."""
    if not context.is_valid:
        return ""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def from_trace_parent(text: str) -> SpanContext | None:
    """Return the span that a stored W3C traceparent names, or None."""
    parts = text.split("-")
    if len(parts) != _PARTS:
        return None
    try:
        trace_id, span_id, flags = (int(part, 16) for part in parts[1:])
    except ValueError:
        return None
    context = SpanContext(trace_id, span_id, True, TraceFlags(flags))
    return context if context.is_valid else None


_PARTS: Final = 4


def below(parent: SpanContext, context: Context) -> Context:
    """Return a context in which a stored span is the current one."""
    return trace.set_span_in_context(NonRecordingSpan(parent), context)
