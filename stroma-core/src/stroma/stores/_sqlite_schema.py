"""The tables of a SQLite store, and the rows that records become."""

from __future__ import annotations

import functools
import json
from typing import Any, Final

from stroma.errors import RecordCorrupt
from stroma.record_codec import storable, usage_from_row, usage_to_row
from stroma.records import (
    CLAIMABLE,
    CheckpointRecord,
    RecordHeader,
    RunRecord,
    RunStatus,
    epochs_from_text,
    epochs_to_text,
)
from stroma.stores.rules import listed_time, queued_time

APPLICATION_ID: Final = 0x5374726D
""""Strm": marks a SQLite file as a Stroma store."""

FORMAT: Final = 1
"""Kept as ``user_version``. A later format that this one cannot read has a higher number."""

# What a commit costs is the number of pages that it writes. Records are clustered by their key,
# so that adding one touches one page, and not an index besides. A run's row changes often: what
# is large and never changes lies in a table of its own. `seq` orders records by the time they
# were added. `cost_usd` is the text of a decimal, "" when nobody knows the price.
CREATE: Final = (
    """
    CREATE TABLE runs (
        run_id TEXT NOT NULL PRIMARY KEY,
        status TEXT NOT NULL,
        stop_reason TEXT NOT NULL,
        pipeline TEXT NOT NULL,
        version TEXT NOT NULL,
        tags TEXT NOT NULL,
        owner TEXT NOT NULL,
        holder TEXT NOT NULL,
        lock TEXT NOT NULL,
        lease_expires_at REAL NOT NULL,
        epochs TEXT NOT NULL,
        input_fingerprint TEXT NOT NULL,
        input_tokens INTEGER NOT NULL,
        output_tokens INTEGER NOT NULL,
        cost_usd TEXT NOT NULL,
        model TEXT NOT NULL,
        price_source TEXT NOT NULL,
        active_ms REAL NOT NULL,
        trace_parent TEXT NOT NULL,
        created_at REAL NOT NULL,
        updated_at REAL NOT NULL
    ) WITHOUT ROWID
    """,
    "CREATE INDEX runs_by_time ON runs (updated_at DESC, run_id)",
    "CREATE INDEX runs_by_status ON runs (status, updated_at DESC, run_id)",
    """
    CREATE TABLE run_documents (
        run_id TEXT NOT NULL PRIMARY KEY,
        input_payload BLOB NOT NULL,
        plan BLOB NOT NULL
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE records (
        run_id TEXT NOT NULL,
        epoch INTEGER NOT NULL,
        path TEXT NOT NULL,
        kind TEXT NOT NULL,
        attempt INTEGER NOT NULL,
        position INTEGER NOT NULL,
        commit_id TEXT NOT NULL,
        contract_id TEXT NOT NULL,
        schema_ref TEXT NOT NULL,
        fingerprint TEXT NOT NULL,
        digest TEXT NOT NULL,
        input_tokens INTEGER NOT NULL,
        output_tokens INTEGER NOT NULL,
        cost_usd TEXT NOT NULL,
        model TEXT NOT NULL,
        price_source TEXT NOT NULL,
        active_ms REAL NOT NULL,
        trace_parent TEXT NOT NULL,
        created_at REAL NOT NULL,
        seq INTEGER NOT NULL,
        payload BLOB NOT NULL,
        PRIMARY KEY (run_id, path, kind, attempt, epoch)
    ) WITHOUT ROWID
    """,
)

UNFINISHED: Final = "status IN (" + ", ".join(f"'{status.value}'" for status in CLAIMABLE) + ")"
"""What the index of that name has; a query that says so in these words is answered from it."""

CREATE_LATER: Final = (
    f"CREATE INDEX IF NOT EXISTS runs_unfinished ON runs (created_at, run_id) WHERE {UNFINISHED}",
)
"""What an existing file gets when it is opened, if it lacks it."""
HAS_ALL: Final = "SELECT count(*) FROM sqlite_master WHERE name = 'runs_unfinished'"

RUN_COLUMNS: Final = (
    "run_id, status, stop_reason, pipeline, version, tags, owner, holder, lock, "
    "lease_expires_at, epochs, input_fingerprint, input_tokens, output_tokens, cost_usd, model, "
    "price_source, active_ms, trace_parent, created_at, updated_at"
)
HEADER_COLUMNS: Final = (
    "run_id, epoch, path, kind, attempt, position, commit_id, contract_id, schema_ref, "
    "fingerprint, digest, input_tokens, output_tokens, cost_usd, model, price_source, "
    "active_ms, trace_parent, created_at, seq"
)

Row = tuple[Any, ...]
epochs_text: Final = functools.lru_cache(maxsize=64)(epochs_to_text)


def run_row(run: RunRecord, lock: str) -> Row:
    """Return the row of ``runs``, in the order of `RUN_COLUMNS`."""
    return (
        run.run_id,
        run.status.value,
        storable(run.stop_reason),
        run.pipeline,
        run.version,
        json.dumps(run.tags) if run.tags else "[]",
        run.owner,
        storable(run.holder),
        lock,
        run.lease_expires_at,
        epochs_text(run.epochs),
        run.input_fingerprint,
        *usage_to_row(run.spend),
        run.active_ms,
        run.trace_parent,
        run.created_at,
        run.updated_at,
    )


def run_of(row: Row) -> RunRecord:
    """Return the run of a row of `RUN_COLUMNS`, the input payload and the plan.

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
            tags=tuple(json.loads(row[5])),
            owner=row[6],
            holder=row[7],
            lease_expires_at=float(row[9]),
            epochs=epochs_from_text(row[10]),
            input_fingerprint=row[11],
            spend=usage_from_row(row[12:17]),
            active_ms=float(row[17]),
            trace_parent=row[18],
            created_at=float(row[19]),
            updated_at=float(row[20]),
            input_payload=row[21],
            plan=row[22],
        )
    except (ValueError, TypeError, ArithmeticError, RecordCorrupt) as exc:
        raise RecordCorrupt(f"run {row[0]!r}: its row cannot be read: {exc}") from exc


def place_of(row: Row) -> tuple[float, str]:
    """Return when the run of such a row was created, and its id."""
    return queued_time(row[19]), row[0]


def updated_place_of(row: Row) -> tuple[float, str]:
    """Return when the run of such a row was updated, and its id."""
    return listed_time(row[20]), row[0]


def record_row(record: CheckpointRecord, seq: int) -> Row:
    """Return the row of ``records``: `HEADER_COLUMNS` and the payload."""
    header, payload = record
    return (*header[:11], *usage_to_row(header.usage), *header[12:], seq, payload)


def header_of(row: Row) -> RecordHeader:
    """Return the header of a row that begins with `HEADER_COLUMNS`.

    Raises:
        RecordCorrupt: a column holds what was never written to it.
    """
    try:
        return RecordHeader._make((*row[:11], usage_from_row(row[11:16]), *row[16:19]))
    except (ValueError, TypeError, ArithmeticError) as exc:
        raise RecordCorrupt(
            f"run {row[0]!r}, {row[2]!r}: its record cannot be read: {exc}"
        ) from exc
