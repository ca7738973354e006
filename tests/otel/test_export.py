"""End to end: a program with a configured SDK, the real OTLP exporter, and what arrives."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.otel.receiver import Receiver, attributes_in, receiving

PROGRAM = Path(__file__).with_name("program.py")
ERROR = 2


@pytest.fixture(scope="module")
def arrived() -> Iterator[Receiver]:
    with receiving() as receiver:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("OTEL_", "STROMA_"))}
        done = subprocess.run(
            [sys.executable, "-W", "error", str(PROGRAM)],
            env={**kept, "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        yield receiver


def test_the_spans_of_both_starts_arrive_as_one_trace(arrived: Receiver) -> None:
    spans = sorted(arrived.spans, key=lambda span: span.start_time_unix_nano)
    names = {span.span_id: span.name for span in spans}
    assert [(span.name, names.get(span.parent_span_id)) for span in spans] == [
        ("invoke_workflow digest", None),
        ("stroma.node ask", "invoke_workflow digest"),
        ("stroma.attempt ask", "stroma.node ask"),
        ("stroma.attempt ask", "stroma.node ask"),
        ("stroma.node publish", "invoke_workflow digest"),
        ("stroma.attempt publish", "stroma.node publish"),
        ("invoke_workflow digest", "invoke_workflow digest"),
        ("stroma.node publish", "invoke_workflow digest"),
        ("stroma.attempt publish", "stroma.node publish"),
    ]
    assert len({span.trace_id for span in spans}) == 1
    first, second = (span for span in spans if span.name == "invoke_workflow digest")
    assert [link.span_id for link in second.links] == [first.span_id]
    assert attributes_in(second)["stroma.run.recorded_nodes"] == ("ask",)
    assert first.status.code == ERROR
    failed = next(span for span in spans if span.name == "stroma.attempt ask")
    assert failed.status.code == ERROR
    assert attributes_in(failed)["error.type"] == "TimeoutError"


def test_the_metrics_arrive(arrived: Receiver) -> None:
    tokens = sum(point.as_int for point in arrived.metrics["stroma.usage.tokens"].sum.data_points)
    assert tokens == 110
    assert arrived.metrics["stroma.usage.cost"].unit == "USD"
    (retries,) = arrived.metrics["stroma.retries"].sum.data_points
    assert retries.as_int == 1
    duration = arrived.metrics["gen_ai.invoke_workflow.duration"]
    assert sum(point.count for point in duration.histogram.data_points) == 2


def test_log_records_arrive_with_their_place_in_the_run(arrived: Receiver) -> None:
    attempts = {
        attributes_in(span)["stroma.attempt.number"]: span.span_id
        for span in arrived.spans
        if span.name == "stroma.attempt ask"
    }
    assert len(arrived.logs) == 2
    for record in arrived.logs:
        told = attributes_in(record)
        assert (told["stroma_run_id"], told["stroma_node_id"]) == ("r1", "ask")
        assert record.span_id == attempts[told["stroma_attempt"]]
        assert told["span_id"] == record.span_id.hex()
