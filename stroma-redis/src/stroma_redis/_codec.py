"""What a run's fields hold: columns, headers and payloads, to bytes and back."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from typing import Final, TypeAlias

from stroma.cost import NO_USAGE, Usage
from stroma.errors import RecordCorrupt, StoreUnusable
from stroma.record_codec import (
    header_from_json,
    header_to_json,
    storable,
    usage_from_row,
    usage_to_row,
)
from stroma.records import (
    CheckpointRecord,
    Epoch,
    RecordHeader,
    RunRecord,
    RunStatus,
    RunUpdate,
    epochs_from_text,
    epochs_to_text,
)
from stroma_redis._keys import field_of, rank_of
from stroma_redis._scripts import FORMAT

Values: TypeAlias = Sequence[bytes | None]

_NO_USAGE: Final = json.dumps(usage_to_row(NO_USAGE)).encode()


@functools.lru_cache(maxsize=256)
def text(value: str) -> bytes:
    """Return free text as it is stored; most is of the pipeline, and the same for all its runs."""
    return storable(value).encode()


def new_columns(run: RunRecord) -> list[bytes]:
    """Return names and values of what a new run is created with, besides what `OPEN` sets.

    Texts that are empty are left out: what is not there is read as that.
    """
    columns = {
        b"format": b"%d" % FORMAT,
        b"pipeline": text(run.pipeline),
        b"tags": json.dumps(run.tags).encode() if run.tags else b"[]",
        b"epochs": _epochs(run.epochs),
        b"input_payload": run.input_payload,
        b"input_fingerprint": text(run.input_fingerprint),
        b"plan": run.plan,
        b"spend": _usage(run.spend),
        b"active_ms": repr(run.active_ms).encode(),
    }
    texts = (
        (b"stop_reason", run.stop_reason),
        (b"version", run.version),
        (b"trace_parent", run.trace_parent),
    )
    columns |= {name: text(value) for name, value in texts if value}
    return [part for column in columns.items() for part in column]


def changed_columns(update: RunUpdate) -> list[bytes]:
    """Return names and values of what an update changes, besides what a release does."""
    columns: list[bytes] = []
    if update.status is not None:
        columns += (b"status", update.status.value.encode())
    if update.stop_reason is not None:
        columns += (b"stop_reason", text(update.stop_reason))
    if update.epochs is not None:
        columns += (b"epochs", _epochs(update.epochs))
    if update.version is not None:
        columns += (b"version", text(update.version))
    if update.plan is not None:
        columns += (b"plan", update.plan)
    if update.spend is not None:
        columns += (b"spend", _usage(update.spend))
    if update.active_ms is not None:
        columns += (b"active_ms", repr(update.active_ms).encode())
    return columns


def run_from(run_id: str, values: Values) -> RunRecord:
    """Return the run record in columns that a server gave, in the order of `COLUMNS`.

    Raises:
        RecordCorrupt: they hold something else.
        StoreUnusable: a later version of Stroma wrote them.
    """
    try:
        *columns, version = (None if value is None else bytes(value) for value in values)
        if version is not None and int(version) > FORMAT:
            raise StoreUnusable(
                f"run {run_id!r}: a later version of stroma-redis wrote it (format "
                f"{int(version)}, this one knows {FORMAT}): update this program"
            )
        return _run(run_id, [column or b"" for column in columns])
    except (ValueError, TypeError, ArithmeticError, AttributeError, RecordCorrupt) as exc:
        raise RecordCorrupt(f"run {run_id!r}: its record cannot be read: {exc}") from exc


def status_from(run_id: str, value: bytes) -> RunStatus:
    """Return a status.

    Raises:
        RecordCorrupt: it is none.
    """
    try:
        return RunStatus(value.decode())
    except ValueError as exc:
        raise RecordCorrupt(f"run {run_id!r}: its record cannot be read: {exc}") from exc


def _run(run_id: str, columns: Sequence[bytes]) -> RunRecord:
    status, reason, pipeline, version, tags, owner, holder, lease, epochs, *rest = columns
    payload, fingerprint, plan, spend, active_ms, trace_parent, created_at, updated_at = rest
    return RunRecord(
        run_id,
        RunStatus(status.decode()),
        reason.decode(),
        pipeline.decode(),
        version.decode(),
        tuple(map(str, json.loads(tags))),
        owner.decode(),
        holder.decode(),
        float(lease),
        epochs_from_text(epochs.decode()),
        payload,
        fingerprint.decode(),
        plan,
        usage_from_row(json.loads(spend)),
        float(active_ms),
        trace_parent.decode(),
        float(created_at),
        float(updated_at),
    )


def record_args(header: RecordHeader, payload: bytes) -> tuple[bytes, bytes, bytes]:
    """Return what `ADD` and `COMMIT` take of a record: name, header without its order, payload."""
    commit_id = header.commit_id.encode()
    stored = b"%b %d %b%b" % (rank_of(header), len(commit_id), commit_id, header_to_json(header))
    return (field_of(header), stored, payload)


def headers_from(values: Sequence[bytes]) -> list[RecordHeader]:
    """Return the headers in fields that a server gave in any order, oldest first."""
    return [_header(value) for value in sorted(values, key=_order)]


def record_from(header: bytes | None, payload: bytes | None) -> CheckpointRecord | None:
    """Return the record in two fields, or None if it is not there.

    Raises:
        RecordCorrupt: they hold something else.
    """
    if header is None or payload is None:
        return None
    return CheckpointRecord(_header(header), bytes(payload))


def _order(value: bytes) -> int:
    try:
        return int(value.partition(b" ")[0])
    except ValueError as exc:
        raise RecordCorrupt(f"a record's header cannot be read: {exc}") from exc


def _header(value: bytes) -> RecordHeader:
    try:
        _, _, length, rest = value.split(b" ", 3)
        return header_from_json(rest[int(length) :])
    except ValueError as exc:
        raise RecordCorrupt(f"a record's header cannot be read: {exc}") from exc


@functools.lru_cache(maxsize=64)
def _epochs(epochs: tuple[Epoch, ...]) -> bytes:
    return epochs_to_text(epochs).encode()


def _usage(usage: Usage) -> bytes:
    return _NO_USAGE if usage is NO_USAGE else json.dumps(usage_to_row(usage)).encode()
