"""What an object holds: a line that says how long its head is, the head in JSON, the payloads.

The head says everything but the payloads, so that the headers of a run are read without them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from stroma.errors import RecordCorrupt, StoreUnusable
from stroma.record_codec import header_from_json, header_to_json, run_from_json, run_to_json
from stroma.records import CheckpointRecord, RecordHeader, RunRecord

FORMAT: Final = 1
_LINE: Final = re.compile(rb"stroma-s3 (\d{1,4}) (\d{1,12})\n")
_LINE_BYTES: Final = 32
"""More than the first line has."""


class NewerFormat(StoreUnusable):
    """A newer version wrote an object: others may be readable all the same."""


class Located(NamedTuple):
    """A record, and where its payload is.

    Attributes:
        header: the record's header.
        slot: the object's place in the run's log.
        offset: of the payload's first byte within the object.
        size: of the payload, in bytes.
    """

    header: RecordHeader
    slot: int
    offset: int
    size: int


class Entry(NamedTuple):
    """One step of a run: an object, which is written once.

    Attributes:
        id: random; tells whose write it was when the answer was lost.
        run_id: the run.
        log: id of the log: a run that is deleted and created again has another one.
        slot: place in the log; 0 is the head.
        lease_expires_at: seconds since the epoch on the server's clock, 0 when nobody owns it.
        state: the newest place, this one or an earlier one, that has ``run``.
        run: the run as this step leaves it; None if it changes the lease at most.
        records: what it adds.
        base: the newest place, this one or an earlier one, that has an index of all records
            before it; 0 if none has.
        lead_at: where the lead is, its first byte and its size. It comes before the payloads:
            in the head, the input of the run; in a step that is its own base, the index.
        lead: what is there, if it was read.
        is_end: the run was deleted; nothing comes after this.
        mark: the newest place, this one or an earlier one, that a marker was written for.
    """

    id: str
    run_id: str
    log: str
    slot: int
    lease_expires_at: float = 0.0
    state: int = 0
    run: RunRecord | None = None
    records: tuple[Located, ...] = ()
    base: int = 0
    lead_at: tuple[int, int] = (0, 0)
    lead: bytes | None = None
    is_end: bool = False
    mark: int = 0

    @property
    def is_marked(self) -> bool:
        """A marker is written for this step."""
        return self.mark == self.slot


def encode(entry: Entry, payloads: Sequence[bytes] = (), lead: bytes = b"") -> bytes:
    """Return the object of a step.

    Args:
        entry: the step; where its payloads and its lead are to be is not looked at.
        payloads: of its records.
        lead: see `Entry.lead_at`.
    """
    members: dict[str, Any] = {
        "id": entry.id,
        "run_id": entry.run_id,
        "log": entry.log,
        "slot": entry.slot,
        "lease_expires_at": entry.lease_expires_at,
        "state": entry.state,
        "base": entry.base,
        "mark": entry.mark,
        "lead": len(lead),
    }
    if entry.run is not None:
        members["run"] = json.loads(run_to_json(entry.run._replace(input_payload=b"")))
    if entry.records:
        members["headers"] = [json.loads(header_to_json(each.header)) for each in entry.records]
        members["sizes"] = [len(payload) for payload in payloads]
    if entry.is_end:
        members["is_end"] = True
    return _framed(members, (lead, *payloads))


def encode_index(records: Iterable[Located]) -> bytes:
    """Return what a step says about all records before it."""
    rows = [(json.loads(header_to_json(each.header)), *each[1:]) for each in records]
    return json.dumps(rows, separators=(",", ":")).encode()


def decode_index(data: bytes, key: str) -> list[Located]:
    """Return the records that `encode_index` was given.

    Raises:
        RecordCorrupt: it is no index.
    """
    try:
        return [
            Located(header_from_json(json.dumps(header)), int(slot), int(offset), int(size))
            for header, slot, offset, size in json.loads(data)
        ]
    except (ValueError, TypeError) as exc:
        raise RecordCorrupt(f"the index in object {key!r} cannot be read: {exc!r}") from exc


def _framed(members: Mapping[str, Any], payloads: Sequence[bytes]) -> bytes:
    head = json.dumps(members, separators=(",", ":")).encode()
    return b"".join((b"stroma-s3 %d %d\n" % (FORMAT, len(head)), head, *payloads))


def head_size(data: bytes, key: str) -> int:
    """Return how many bytes of an object come before the payloads.

    Args:
        data: the first bytes of the object.
        key: its key, for the message.

    Raises:
        RecordCorrupt: it is no object of this store.
        StoreUnusable: a newer version wrote it.
    """
    line = _LINE.match(data[:_LINE_BYTES])
    if line is None:
        raise RecordCorrupt(f"object {key!r} was not written by stroma-s3: remove it")
    if int(line[1]) > FORMAT:
        raise NewerFormat(
            f"object {key!r} has format {int(line[1])}, and this version reads {FORMAT}: "
            "install a newer stroma-s3"
        )
    return line.end() + int(line[2])


def decode(data: bytes, run_id: str | None, slot: int, key: str) -> Entry:
    """Return the step in an object.

    Args:
        data: the object, its payloads or not.
        run_id: the run that it must be of; None for any.
        slot: the place that it must have.
        key: its key, for messages.

    Raises:
        RecordCorrupt: it is something else.
        StoreUnusable: a newer version wrote it.
    """
    size = head_size(data, key)
    try:
        members = json.loads(data[data.index(b"\n") + 1 : size])
        lead = int(members["lead"])
        found = Entry(
            str(members["id"]),
            str(members["run_id"]),
            str(members["log"]),
            int(members["slot"]),
            float(members["lease_expires_at"]),
            int(members["state"]),
            run_from_json(json.dumps(members["run"])) if "run" in members else None,
            _records(members, size + lead),
            int(members["base"]),
            (size, lead),
            data[size : size + lead] if len(data) >= size + lead else None,
            bool(members.get("is_end", False)),
            int(members["mark"]),
        )
    except (ValueError, KeyError, TypeError, RecordCorrupt) as exc:
        raise RecordCorrupt(f"object {key!r} of a run cannot be read: {exc!r}") from exc
    if run_id not in {None, found.run_id} or found.slot != slot:
        raise RecordCorrupt(
            f"run {run_id!r}: object {key!r} is step {found.slot} of run {found.run_id!r}"
        )
    return found


def _records(members: Mapping[str, Any], offset: int) -> tuple[Located, ...]:
    records: list[Located] = []
    headers, sizes = members.get("headers", ()), members.get("sizes", ())
    for header, size in zip(headers, sizes, strict=True):
        read = header_from_json(json.dumps(header))
        records.append(Located(read, int(members["slot"]), offset, int(size)))
        offset += int(size)
    return tuple(records)


def encode_plain(record: CheckpointRecord) -> bytes:
    """Return the object of a record that `save` wrote."""
    header, payload = record
    return _framed({"header": json.loads(header_to_json(header))}, (payload,))


def decode_plain(data: bytes, key: str) -> CheckpointRecord:
    """Return the record in an object that `encode_plain` made.

    Raises:
        RecordCorrupt: it is something else.
        StoreUnusable: a newer version wrote it.
    """
    size = head_size(data, key)
    try:
        header = json.loads(data[data.index(b"\n") + 1 : size])["header"]
    except (ValueError, KeyError, TypeError) as exc:
        raise RecordCorrupt(f"object {key!r} cannot be read: {exc!r}") from exc
    return CheckpointRecord(header_from_json(json.dumps(header)), data[size:])
