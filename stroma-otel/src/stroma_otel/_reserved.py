"""The ids of a span that is not started yet.

The traceparent of a run is stored when the run is created, which is the moment at which it turns
out whether it is new. The span of a recorded run may have another parent. So the ids are drawn
first, and the span begins with them if the run is new.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple

from opentelemetry.context import Context
from opentelemetry.trace import (
    Span,
    SpanContext,
    SpanKind,
    TraceFlags,
    Tracer,
    get_current_span,
)


class Reserved(NamedTuple):
    """A span that can be started later.

    Attributes:
        context: its ids, and whether it is sampled.
        tracer: starts it, and nothing else.
    """

    context: SpanContext
    tracer: Tracer

    def start(self, name: str, context: Context, attributes: Mapping[str, Any], at_ns: int) -> Span:
        """Start the span.

        Args:
            name: as it was reserved.
            context: as it was reserved.
            attributes: of the span.
            at_ns: nanoseconds since the epoch.
        """
        return self.tracer.start_span(
            name,
            context,
            attributes=attributes,
            start_time=at_ns,
            record_exception=False,
            set_status_on_exception=False,
        )


def reserve(
    tracer: Any, name: str, context: Context, attributes: Mapping[str, Any]
) -> Reserved | None:
    """Draw the ids of a span, and ask the sampler about it.

    Returns:
        None if the tracer is not the SDK's, which alone says where its ids come from.
    """
    ids, sampler = getattr(tracer, "id_generator", None), getattr(tracer, "sampler", None)
    if ids is None or sampler is None:
        return None
    parent = get_current_span(context).get_span_context()
    trace_id = parent.trace_id if parent.is_valid else ids.generate_trace_id()
    decided = sampler.should_sample(context, trace_id, name, SpanKind.INTERNAL, attributes, ())
    flags = TraceFlags.SAMPLED if decided.decision.is_sampled() else TraceFlags.DEFAULT
    reserved = SpanContext(
        trace_id, ids.generate_span_id(), False, TraceFlags(flags), decided.trace_state
    )
    mine = copy.copy(tracer)
    mine.id_generator = _Drawn(reserved, ids)
    mine.sampler = _Decided(decided)
    return Reserved(reserved, mine)


class _Drawn:
    """A source of ids that gives those that were drawn."""

    def __init__(self, drawn: SpanContext, source: Any) -> None:
        self._drawn = drawn
        self._source = source

    def generate_trace_id(self) -> int:
        return self._drawn.trace_id

    def generate_span_id(self) -> int:
        return self._drawn.span_id

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)


class _Decided:
    """A sampler that says what was decided."""

    def __init__(self, decided: Any) -> None:
        self._decided = decided

    def should_sample(self, *args: object, **options: object) -> Any:
        return self._decided

    def get_description(self) -> str:
        return "decided before the span begins"
