"""What the tests of stroma-otel share: exporters in memory, and a tree of spans as text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from stroma import NodeHooks, TraceOptions
from stroma_otel import otel_hooks

Tree = list[Any]
"""Name of a span, and the trees of its children: ["a", ["b"], ["c"]]."""


class Seen:
    """Providers of their own, and what they were given."""

    def __init__(self, **options: Any) -> None:
        self.exporter = InMemorySpanExporter()
        self.tracer_provider = TracerProvider(**options)
        self.tracer_provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.reader = InMemoryMetricReader()
        self.meter_provider = MeterProvider([self.reader])
        self.tracer = self.tracer_provider.get_tracer("tests")

    def hooks(self, payloads: TraceOptions | None = None) -> NodeHooks:
        return otel_hooks(
            tracer_provider=self.tracer_provider,
            meter_provider=self.meter_provider,
            payloads=payloads,
        )

    @property
    def spans(self) -> list[ReadableSpan]:
        return list(self.exporter.get_finished_spans())

    def named(self, name: str) -> list[ReadableSpan]:
        """Return the spans of a name, in the order in which they began."""
        found = [span for span in self.spans if span.name == name]
        return sorted(found, key=lambda span: span.start_time or 0)

    def only(self, name: str) -> ReadableSpan:
        (span,) = self.named(name)
        return span

    def trees(self) -> list[Tree]:
        return trees_of(self.spans)

    def points(self, metric: str) -> list[tuple[dict[str, Any], Any]]:
        """Return what a metric holds: attributes, and a sum or the point of a histogram."""
        found = self.metrics().get(metric)
        if found is None:
            return []
        return [(dict(p.attributes), getattr(p, "value", p)) for p in found.data.data_points]

    def metrics(self) -> Mapping[str, Any]:
        data = self.reader.get_metrics_data()
        if data is None:
            return {}
        return {
            metric.name: metric
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }


def id_of(span: ReadableSpan) -> int:
    assert span.context is not None
    return int(span.context.span_id)


def parent_of(span: ReadableSpan) -> int | None:
    return None if span.parent is None else span.parent.span_id


def attributes_of(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def in_order(spans: Iterable[ReadableSpan]) -> list[ReadableSpan]:
    """Return spans as they began; the clock may give several the same time."""
    return sorted(spans, key=lambda span: (span.start_time or 0, -(span.end_time or 0)))


def trees_of(spans: Iterable[ReadableSpan]) -> list[Tree]:
    """Return the names of spans below each other; children are in the order of their begin."""
    ordered = in_order(spans)
    known = {id_of(span) for span in ordered}

    def below(parent: int | None) -> list[Tree]:
        return [
            [span.name, *below(id_of(span))]
            for span in ordered
            if (parent_of(span) if parent_of(span) in known else None) == parent
        ]

    return below(None)
