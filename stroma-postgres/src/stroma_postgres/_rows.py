"""Rows and arguments of statements, and the records that they are."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

from stroma.cost import NO_USAGE, Usage
from stroma.errors import RecordCorrupt
from stroma.record_codec import storable
from stroma.records import (
    CheckpointRecord,
    OpenedRun,
    OpenRequest,
    RecordHeader,
    RecordKey,
    RunRecord,
    RunStatus,
    RunUpdate,
    epochs_from_text,
    epochs_to_text,
)
from stroma.stores.rules import listed_time, queued_time
from stroma_postgres._columns import RECORD, RUN

if TYPE_CHECKING:
    from asyncpg import Record

Row = tuple[Any, ...]

_epochs_text: Final = functools.lru_cache(maxsize=64)(epochs_to_text)
_FREE: Final = Decimal(0)
_NO_SPEND: Final = (0, 0, _FREE, "", "")
_RUN_AT: Final = 3  # after outcome, status before and server time
_RECORD_AT: Final = _RUN_AT + len(RUN)


def usage_row(usage: Usage) -> Row:
    """Return the columns of a usage."""
    if usage is NO_USAGE:
        return _NO_SPEND
    input_tokens, output_tokens, cost_usd, model, price_source = usage
    return input_tokens, output_tokens, cost_usd, storable(model), storable(price_source)


def usage_of(row: Sequence[Any]) -> Usage:
    """Return the usage of its columns."""
    if tuple(row) == _NO_SPEND:
        return NO_USAGE
    return Usage(*row)


def record_row(record: CheckpointRecord) -> Row:
    """Return the columns of a record, without the run's id."""
    return (*header_row(record.header), record.payload)


def header_row(header: RecordHeader) -> Row:
    """Return the columns of a header, without the run's id."""
    return (*header[1:11], *usage_row(header.usage), *header[12:])


def record_of(row: Sequence[Any]) -> CheckpointRecord:
    """Return the record of its columns; the payload is empty where it was not asked for.

    Raises:
        RecordCorrupt: a column holds what was never written to it.
    """
    try:
        header = RecordHeader._make((*row[:11], usage_of(row[11:16]), *row[16:19]))
        return CheckpointRecord(header, row[19] or b"")
    except (ValueError, TypeError, ArithmeticError) as exc:
        raise RecordCorrupt(
            f"run {row[0]!r}, {row[2]!r}: its record cannot be read: {exc}"
        ) from exc


def run_of(row: Sequence[Any]) -> RunRecord:
    """Return the run of its columns.

    Raises:
        RecordCorrupt: a column holds what was never written to it.
    """
    try:
        return RunRecord(
            run_id=row[0],
            status=RunStatus(row[1]),
            stop_reason=row[2],
            pipeline=row[3],
            version=row[4],
            tags=tuple(row[5]),
            owner=row[6],
            holder=row[7],
            lease_expires_at=row[8],
            epochs=epochs_from_text(row[9]),
            input_payload=row[10],
            input_fingerprint=row[11],
            plan=row[12],
            spend=usage_of(row[13:18]),
            active_ms=row[18],
            trace_parent=row[19],
            created_at=row[20],
            updated_at=row[21],
        )
    except (ValueError, TypeError, ArithmeticError, RecordCorrupt) as exc:
        raise RecordCorrupt(f"run {row[0]!r}: its row cannot be read: {exc}") from exc


def place_of(row: Sequence[Any]) -> tuple[float, str]:
    """Return when the run of such a row was created, and its id."""
    return queued_time(row[20]), row[0]


def updated_place_of(row: Sequence[Any]) -> tuple[float, str]:
    """Return when the run of such a row was updated, and its id."""
    return listed_time(row[21]), row[0]


def open_arguments(request: OpenRequest) -> Row:
    """Return the values of `_functions.CLAIM`."""
    new = request.new
    run = new or RunRecord(request.run_id, RunStatus.RUNNING)
    return (
        request.run_id,
        request.token,
        storable(request.holder),
        request.lease_ms,
        request.reopen,
        new is not None,
        storable(run.stop_reason),
        storable(run.pipeline),
        storable(run.version),
        [storable(tag) for tag in run.tags],
        _epochs_text(run.epochs),
        run.input_payload,
        run.input_fingerprint,
        run.plan,
        *usage_row(run.spend),
        run.active_ms,
        run.trace_parent,
        run.created_at,
    )


def created_of(given: Row, now: float) -> OpenedRun:
    """Return the run that a claim has created.

    Args:
        given: what `open_arguments` returned.
        now: the server's time.
    """
    run_id, token, holder, lease_ms, _, _, reason, pipeline, version, tags, *rest, created_at = (
        given
    )
    row = (run_id, RunStatus.RUNNING.value, reason, pipeline, version, tags, token, holder)
    times = (created_at or now, now)
    return OpenedRun(run_of((*row, now + lease_ms / 1000, *rest, *times)), is_new=True)


def opened_of(rows: Sequence[Record], *, is_claimed: bool | None = None) -> OpenedRun | None:
    """Return the run of the rows that a claim of an older run returned; None if there is no run.

    Args:
        rows: of the run, and then of its records.
        is_claimed: what is known besides; None takes the outcome in the first row.
    """
    if not rows or rows[0][0] == "record":
        return None
    outcome, before = rows[0][0], rows[0][1]
    run = run_of(rows[0][_RUN_AT:_RECORD_AT])
    records = [record_of(row[_RECORD_AT:-1]) for row in rows[1:]]
    last = next(
        (r for r, row in zip(records, rows[1:], strict=True) if row[_PAYLOAD_AT] is not None), None
    )
    return OpenedRun(
        run,
        [record.header for record in records],
        last,
        is_claimed=outcome != "closed" if is_claimed is None else is_claimed,
        status_before=None if before is None else _status_of(run.run_id, before),
    )


def _status_of(run_id: str, value: str) -> RunStatus:
    try:
        return RunStatus(value)
    except ValueError as exc:
        raise RecordCorrupt(f"run {run_id!r}: its row cannot be read: {exc}") from exc


_PAYLOAD_AT: Final = _RECORD_AT + len(RECORD) - 1


def update_row(commit_no: int, update: RunUpdate) -> Row:
    """Return the columns of `_columns.UPDATE`."""
    spend = update.spend
    return (
        commit_no,
        None if update.status is None else update.status.value,
        None if update.stop_reason is None else storable(update.stop_reason),
        None if update.epochs is None else _epochs_text(update.epochs),
        None if update.version is None else storable(update.version),
        update.plan,
        spend is not None,
        *((None,) * 5 if spend is None else usage_row(spend)),
        update.active_ms,
        update.release,
    )


def fetch_arguments(run_id: str, keys: Sequence[RecordKey]) -> Row:
    """Return the arguments of `Statements.fetch`."""
    return (
        run_id,
        [None if key.epoch is None else str(key.epoch) for key in keys],
        [key.path for key in keys],
        [key.kind for key in keys],
        [str(key.attempt) for key in keys],
    )


def text_arrays(rows: Sequence[Row], width: int) -> list[list[str | None]]:
    """Return rows as one list for each column, in PostgreSQL's text format."""
    if not rows:
        return [[] for _ in range(width)]
    return [[_text(value) for value in column] for column in zip(*rows, strict=True)]


def _text(value: object) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return "\\x" + value.hex()
    return str(value)  # numbers come back as they were, and True is a boolean in SQL, too
