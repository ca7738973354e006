"""Log records of a run say where in it they come from, to whatever handles them."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from stroma import fan_out, node
from stroma_otel import LOG_FIELDS, LogContextFilter, add_log_context
from tests.core.helpers import Number, make_runner
from tests.core.test_fan_out import Batch
from tests.otel.support import Seen, attributes_of, id_of


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    made = logging.getLogger("tests.otel")
    made.setLevel(logging.INFO)
    made.propagate = False
    yield made
    made.propagate = True
    made.handlers.clear()


@pytest.fixture
def in_all_records() -> Iterator[None]:
    undo = add_log_context()
    yield
    undo()


class Kept(logging.Handler):
    """Keeps the records."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append({name: getattr(record, name) for name in LOG_FIELDS})


def logging_node(logger: logging.Logger, *, sync: bool = False) -> Any:
    def work(state: Number) -> Number:
        logger.info("working")
        return state

    async def awork(state: Number) -> Number:
        return work(state)

    return node(id="a", input=Number, output=Number)(work if sync else awork)


@pytest.mark.parametrize("sync", [False, True], ids=["async", "sync"])
async def test_a_filter_adds_run_node_attempt_and_span(
    seen: Seen, logger: logging.Logger, sync: bool
) -> None:
    kept = Kept()
    kept.addFilter(LogContextFilter())
    logger.addHandler(kept)
    made = logging_node(logger, sync=sync)
    await make_runner(hooks=seen.hooks()).run([made], Number(), run_id="r")
    span = seen.only("stroma.attempt a")
    assert span.context is not None
    assert kept.records == [
        {
            "stroma_run_id": "r",
            "stroma_node_id": "a",
            "stroma_path": "a",
            "stroma_attempt": 1,
            "trace_id": f"{span.context.trace_id:032x}",
            "span_id": f"{id_of(span):016x}",
        }
    ]


async def test_items_say_which_one_they_are(seen: Seen, logger: logging.Logger) -> None:
    kept = Kept()
    kept.addFilter(LogContextFilter())
    logger.addHandler(kept)
    each = fan_out(logging_node(logger), over="items", into="done")
    await make_runner(hooks=seen.hooks()).run([each], Batch(items=[Number()] * 2), run_id="r")
    spans = {attributes_of(s)["stroma.node.path"]: s for s in seen.named("stroma.attempt a")}
    assert {r["stroma_path"]: int(r["span_id"], 16) for r in kept.records} == {
        path: id_of(span) for path, span in spans.items()
    }


async def test_run_and_node_are_there_without_any_tracing(logger: logging.Logger) -> None:
    kept = Kept()
    kept.addFilter(LogContextFilter())
    logger.addHandler(kept)
    await make_runner().run([logging_node(logger)], Number(), run_id="r")
    (record,) = kept.records
    assert (record["stroma_run_id"], record["stroma_attempt"]) == ("r", 1)
    assert (record["trace_id"], record["span_id"]) == ("", "")


def test_outside_of_runs_the_fields_are_empty(logger: logging.Logger) -> None:
    kept = Kept()
    kept.addFilter(LogContextFilter())
    logger.addHandler(kept)
    logger.info("nothing runs")
    assert kept.records == [{**dict.fromkeys(LOG_FIELDS, ""), "stroma_attempt": 0}]


async def test_a_hooks_record_between_nodes_names_the_run(
    seen: Seen, logger: logging.Logger, in_all_records: None
) -> None:
    from stroma import NodeHooks

    kept = Kept()
    logger.addHandler(kept)
    noting = NodeHooks(on_step_end=lambda end: logger.info("a step has ended"))
    hooks = [seen.hooks(), noting]
    await make_runner(hooks=hooks).run([logging_node(logger)], Number(), run_id="r")
    assert [(r["stroma_run_id"], r["stroma_node_id"]) for r in kept.records] == [
        ("r", "a"),
        ("r", ""),
    ]


async def test_all_records_of_the_process_can_have_the_fields(
    logger: logging.Logger, in_all_records: None
) -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(stroma_run_id)s %(stroma_path)s %(message)s"))
    logger.addHandler(handler)
    await make_runner().run([logging_node(logger)], Number(), run_id="r")
    assert stream.getvalue() == "r a working\n"


def test_the_factory_can_be_taken_back() -> None:
    before = logging.getLogRecordFactory()
    undo = add_log_context()
    assert logging.getLogRecordFactory() is not before
    undo()
    assert logging.getLogRecordFactory() is before


async def test_structlog_picks_the_fields_up(
    seen: Seen, logger: logging.Logger, in_all_records: None
) -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[
                structlog.stdlib.ExtraAdder(allow=LOG_FIELDS),
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ]
        )
    )
    logger.addHandler(handler)
    bound = structlog.wrap_logger(
        logger,
        processors=[structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
    )

    @node(id="a", input=Number, output=Number)
    async def work(state: Number) -> Number:
        bound.info("by structlog", model="gpt-4o")
        logger.info("by the standard library")
        return state

    await make_runner(hooks=seen.hooks()).run([work], Number(), run_id="r")
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["event"] for line in lines] == ["by structlog", "by the standard library"]
    assert lines[0]["model"] == "gpt-4o"
    for line in lines:
        assert (line["stroma_run_id"], line["stroma_node_id"]) == ("r", "a")
        assert int(line["span_id"], 16) == id_of(seen.only("stroma.attempt a"))
