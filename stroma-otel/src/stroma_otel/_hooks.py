"""The hooks for those who choose the providers themselves."""

from __future__ import annotations

from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import TracerProvider

from stroma.hooks import NodeHooks
from stroma.trace import TraceOptions
from stroma_otel._installed import EVENTS
from stroma_otel._observer import Observer


def otel_hooks(
    *,
    tracer_provider: TracerProvider | None = None,
    meter_provider: MeterProvider | None = None,
    payloads: TraceOptions | None = None,
) -> NodeHooks:
    """Return hooks that make spans and metrics of runs, for `with_hooks`.

    In a run that has them, the installed ones stand back, so that nothing is counted twice.

    Args:
        tracer_provider: makes the spans; the global one if it is None.
        meter_provider: makes the metrics; the global one if it is None.
        payloads: have the beginning of each input and output on the attempts' spans: as many
            bytes of their JSON as ``preview_bytes``, without the fields in ``redact``. Without
            this, spans hold none.
    """
    observer = Observer(tracer_provider, meter_provider, payloads, is_explicit=True)
    hooks = NodeHooks(name="otel", trace_parent=observer.trace_parent)
    for event in EVENTS:
        setattr(hooks, event, getattr(observer, event))
    if payloads is not None and payloads.preview_bytes:
        hooks.on_node_start = observer.on_node_start
        hooks.on_node_success = observer.on_node_success
    return hooks
