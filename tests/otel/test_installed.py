"""Installed hooks: no OpenTelemetry until somebody configures it, and then without a line."""

from __future__ import annotations

import os
import subprocess
import sys

PRELUDE = """
import sys
import pydantic
import stroma

class Number(pydantic.BaseModel):
    value: int = 0

@stroma.node
async def a(state: Number) -> Number:
    return state

def run(runner=None, run_id="r"):
    runner = runner or stroma.StromaRunner.quick()
    assert runner.run_sync([a], Number(), run_id=run_id).is_complete

def loaded():
    return [name for name in sys.modules if name.startswith("opentelemetry")]

def configured():
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return exporter
"""
NAMES = ["stroma.attempt a", "stroma.node a", "invoke_workflow"]


def run(program: str, **variables: str) -> str:
    """Run a program in a process of its own, and return what it prints."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("OTEL_", "STROMA_"))}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PRELUDE + program],
        env=kept | variables,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_neither_the_import_nor_a_run_loads_opentelemetry() -> None:
    assert run("print(loaded()); run(); print(loaded())") == "[]\n[]"


def test_the_plugin_is_found_and_listed() -> None:
    program = (
        "print([(p.name, p.provides) for p in stroma.plugins.list_plugins() if p.name == 'otel'])"
    )
    assert run(program) == "[('otel', ('hooks otel',))]"


def test_a_provider_that_is_set_later_is_used_by_the_next_run_of_the_same_runner() -> None:
    program = """
runner = stroma.StromaRunner.quick()
run(runner, "r1")
exporter = configured()
run(runner, "r2")
print([span.name for span in exporter.get_finished_spans()])
"""
    assert run(program) == str(NAMES)


def test_a_provider_of_meters_alone_is_enough() -> None:
    program = """
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
reader = InMemoryMetricReader()
metrics.set_meter_provider(MeterProvider([reader]))
run()
found = reader.get_metrics_data().resource_metrics[0].scope_metrics[0].metrics
print(sorted(metric.name for metric in found))
"""
    assert run(program) == "['gen_ai.invoke_workflow.duration', 'stroma.attempt.duration']"


def test_a_provider_that_the_environment_names_is_used() -> None:
    program = """
run()
from opentelemetry import trace
print(type(trace.get_tracer_provider()).__module__)
"""
    variables = {"OTEL_PYTHON_TRACER_PROVIDER": "sdk_tracer_provider"}
    assert run(program, **variables) == "opentelemetry.sdk.trace"


def test_explicit_hooks_take_the_place_of_the_installed_ones() -> None:
    program = """
from stroma_otel import otel_hooks
exporter = configured()
run(stroma.StromaRunner.quick().with_hooks(otel_hooks()))
print([span.name for span in exporter.get_finished_spans()])
"""
    assert run(program) == str(NAMES)


def test_it_can_be_switched_off_by_name() -> None:
    program = """
exporter = configured()
run(stroma.StromaRunner.quick(disabled_plugins={"otel"}))
print([span.name for span in exporter.get_finished_spans()])
"""
    assert run(program) == "[]"
    switched_off = "exporter = configured()\nrun()\nprint(exporter.get_finished_spans())"
    assert run(switched_off, STROMA_DISABLE_PLUGINS="otel") == "()"


def test_the_sdk_can_be_switched_off_by_its_own_variable() -> None:
    program = "exporter = configured()\nrun()\nprint(exporter.get_finished_spans())"
    assert run(program, OTEL_SDK_DISABLED="true") == "()"
