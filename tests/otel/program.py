"""A program as users have it: a configured SDK, a pipeline, and not a line about the two.

Started with nothing but the SDK's own variables, among them the address of the receiver.
"""

from __future__ import annotations

import asyncio
import logging

from opentelemetry import _logs, metrics, trace
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.logging.handler import LoggingHandler
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from pydantic import BaseModel

import stroma
from stroma import FailurePolicy, Pipeline, StromaRunner
from stroma_otel import LogContextFilter


class Text(BaseModel):
    text: str


calls = 0


@stroma.node(policy=FailurePolicy(max_retries=2, base_delay_seconds=0.001))
async def ask(state: Text) -> tuple[Text, int, int, str]:
    global calls
    calls += 1
    logging.getLogger("program").info("asking")
    if calls == 1:
        raise TimeoutError("slow")
    return Text(text="42"), 100, 10, "gpt-4o"


@stroma.node
async def publish(state: Text) -> Text:
    if calls < 10:
        raise TypeError("the site is not built yet")
    return state


async def main() -> None:
    global calls
    pipeline = Pipeline("digest", [ask, publish])
    runner = StromaRunner.quick()
    await runner.run(pipeline, Text(text="?"), run_id="r1")
    calls = 10
    await runner.run(pipeline, Text(text="?"), run_id="r1")


if __name__ == "__main__":
    tracer_provider = TracerProvider()
    tracer_provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(tracer_provider)
    meter_provider = MeterProvider([PeriodicExportingMetricReader(OTLPMetricExporter())])
    metrics.set_meter_provider(meter_provider)
    logger_provider = LoggerProvider()
    logger_provider.add_log_record_processor(BatchLogRecordProcessor(OTLPLogExporter()))
    _logs.set_logger_provider(logger_provider)
    handler = LoggingHandler(logger_provider=logger_provider)
    handler.addFilter(LogContextFilter())
    logging.getLogger("program").addHandler(handler)
    logging.getLogger("program").setLevel(logging.INFO)
    asyncio.run(main())
    for provider in (tracer_provider, meter_provider, logger_provider):
        provider.shutdown()
