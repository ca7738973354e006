"""Where in a run a log record comes from, as fields of the record.

They are plain attributes of the standard library's records, so that formatters, structlog and
OpenTelemetry's handler find them without knowing of Stroma.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final

from opentelemetry import trace

import stroma
from stroma.errors import ConfigError
from stroma_otel._current import RUN_ID

LOG_FIELDS: Final = (
    "stroma_run_id",
    "stroma_node_id",
    "stroma_path",
    "stroma_attempt",
    "trace_id",
    "span_id",
)
"""The fields that a record gets. Outside of a run, a node or a span they are "", or 0."""


def _put_context(record: logging.LogRecord) -> None:
    fields: dict[str, Any] = dict.fromkeys(LOG_FIELDS, "")
    fields["stroma_run_id"] = RUN_ID.get()
    fields["stroma_attempt"] = 0
    try:
        scope = stroma.current()
    except ConfigError:
        pass
    else:
        fields["stroma_run_id"] = scope.run_id
        fields["stroma_node_id"] = scope.node_id
        fields["stroma_path"] = scope.path
        fields["stroma_attempt"] = scope.attempt
    span = trace.get_current_span().get_span_context()
    if span.is_valid:
        fields["trace_id"] = trace.format_trace_id(span.trace_id)
        fields["span_id"] = trace.format_span_id(span.span_id)
    record.__dict__.update(fields)


class LogContextFilter(logging.Filter):
    """Adds the fields to the records of the logger or handler that it is put on; drops none."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the fields."""
        _put_context(record)
        return True


def add_log_context() -> Callable[[], None]:
    """Add the fields to all records of this process, whatever logger they come from.

    Returns:
        What takes it back.
    """
    before = logging.getLogRecordFactory()

    def make(*args: Any, **options: Any) -> logging.LogRecord:
        record = before(*args, **options)
        _put_context(record)
        return record

    logging.setLogRecordFactory(make)

    def undo() -> None:
        if logging.getLogRecordFactory() is make:
            logging.setLogRecordFactory(before)

    return undo
