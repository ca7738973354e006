"""The hooks keep every clause of the kit: above all, they never change a run."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult

from stroma import RunStatus, TraceOptions
from stroma.testing.hooks import HookConformance, Hooks
from tests.core.helpers import Calls, Number, make_runner
from tests.otel.support import Seen


class TestOtelHooks(HookConformance):
    @pytest.fixture
    def hooks(self) -> Hooks:
        return Seen().hooks()


class TestOtelHooksWithPayloads(HookConformance):
    @pytest.fixture
    def hooks(self) -> Hooks:
        options = TraceOptions(preview_bytes=100, redact=frozenset({"seen"}))
        return Seen().hooks(payloads=options)


class RaisingExporter(SpanExporter):
    """An exporter whose collector is gone."""

    def export(self, spans: Any) -> SpanExportResult:
        raise ConnectionError("the collector is gone")


class RaisingProcessor(SpanProcessor):
    """A processor that is broken at both ends of a span."""

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        raise ValueError("broken at the start")

    def on_end(self, span: Any) -> None:
        raise ValueError("broken at the end")


@pytest.mark.parametrize(
    "processor",
    [SimpleSpanProcessor(RaisingExporter()), RaisingProcessor()],
    ids=["exporter", "processor"],
)
async def test_what_fails_in_exporters_and_processors_never_touches_a_run(
    calls: Calls, processor: Any, caplog: pytest.LogCaptureFixture
) -> None:
    seen = Seen()
    seen.tracer_provider.add_span_processor(processor)
    nodes = [calls.node("a", TimeoutError(), {"value": 1}), calls.node("b")]
    with caplog.at_level(logging.CRITICAL):
        result = await make_runner(hooks=seen.hooks()).run(nodes, Number())
    assert (result.status, result.final_state) == (RunStatus.COMPLETED, Number(value=2))
    assert (calls["a"], calls["b"]) == (2, 1)
