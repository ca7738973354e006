"""Which object holds what: ids as parts of object keys, and back to what a listing needs.

Below the prefix there are

- ``runs/<run>``: the head of a run, written once when the run is created;
- ``logs/<run>/<log>/<slot>``: what happened to it since, an object for each step;
- ``open/<created>/<run>/<log>/<slot>``: a marker of a run that is PENDING or RUNNING, so that those
  are found among all the others, the first created first;
- ``plain/<run>/<path>/<kind>.<attempt>``: what `save` kept outside runs;
- ``probe/<random>``: what `setup` and `health` write and remove again;
- ``stroma-s3.json``: what `setup` found out about the server.

Every id is encoded by itself, so that none of them holds a "/": what does not have exactly these
parts is somebody else's, and is left alone.
"""

from __future__ import annotations

import hashlib
import re
from typing import Final, NamedTuple
from urllib.parse import quote, unquote

from stroma.errors import ConfigError
from stroma.records import RecordKey, RunRecord

MAX_KEY_BYTES: Final = 1024
"""The longest key, in bytes of UTF-8: Amazon S3 User Guide, "Naming Amazon S3 objects"."""

MAX_PREFIX_BYTES: Final = 400
"""Leaves room for the longest key that is put behind it, which has less than 500 bytes."""

SLOT_DIGITS: Final = 10
TIME_DIGITS: Final = 17
"""Microseconds since the epoch, until long after the year 5000."""

MAX_PART_BYTES: Final = 192
"""An encoded id that is longer is replaced by its SHA-256; the object has the whole id."""

HEADS: Final = "runs/"
LOGS: Final = "logs/"
OPEN: Final = "open/"
PLAIN: Final = "plain/"
PROBE: Final = "probe/"
MARKER: Final = "stroma-s3.json"

_PART = re.compile(r"[\w%-]+|~[0-9a-f]{64}", re.ASCII)
_KIND = re.compile(r"[a-z]+\.-?\d+")
_SLOT = re.compile(rf"\d{{{SLOT_DIGITS}}}")
_TIME = re.compile(rf"\d{{{TIME_DIGITS}}}")


class LogKey(NamedTuple):
    """The parts of the key of an object of a log.

    Attributes:
        run: the encoded run id.
        log: the log's own id.
        slot: the object's place in the log, from 1.
    """

    run: str
    log: str
    slot: int


class MarkKey(NamedTuple):
    """The parts of the key of a marker.

    Attributes:
        time: when the run was created, as `time_part` writes it.
        run: the encoded run id.
        log: id of the run's log.
        slot: the place in the log that the marker was written for.
    """

    time: str
    run: str
    log: str
    slot: int


def time_part(seconds: float) -> str:
    """Return a time as one part of a key, so that keys are in the order of their times.

    Times that differ by less than a microsecond may give the same.
    """
    micros = min(max(seconds * 1e6, 0.0), 10.0**TIME_DIGITS)
    return f"{min(round(micros), 10**TIME_DIGITS - 1):0{TIME_DIGITS}d}"


def part_of(id_: str) -> str:
    """Return an id as one part of a key; no two ids give the same.

    Letters, digits, "-" and "_" stand for themselves and every other byte is percent-encoded,
    "." and "~" too: no part is "." or "..", and none but a hash begins with "~".
    """
    encoded = quote(id_, safe="").replace(".", "%2E").replace("~", "%7E")
    if encoded and len(encoded) <= MAX_PART_BYTES:
        return encoded
    return "~" + hashlib.sha256(id_.encode()).hexdigest()


def checked_prefix(prefix: str) -> str:
    """Return a prefix as keys begin with it: "", or ending in "/".

    Raises:
        ConfigError: no key can begin with it.
    """
    prefix = prefix.strip("/")
    parts = prefix.split("/") if prefix else []
    if "\0" in prefix or any(part in {"", ".", ".."} for part in parts):
        raise ConfigError(
            f"prefix {prefix!r} cannot be used: its parts must not be empty, '.' or '..', and it "
            "must not hold NUL"
        )
    if len(prefix.encode("utf-8", "replace")) > MAX_PREFIX_BYTES:
        raise ConfigError(
            f"prefix {prefix[:60]!r}… has more than {MAX_PREFIX_BYTES} bytes; a key of S3 has "
            f"{MAX_KEY_BYTES} at most: choose a shorter one"
        )
    return f"{prefix}/" if prefix else ""


class Keys:
    """The keys of one store.

    Args:
        prefix: what all of them begin with; see `checked_prefix`.
    """

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.heads = prefix + HEADS
        self.logs = prefix + LOGS
        self.open = prefix + OPEN
        self.marker = prefix + MARKER

    def head(self, run_id: str) -> str:
        """Return the key of the head of a run."""
        return self.heads + part_of(run_id)

    def log(self, run_id: str, log: str) -> str:
        """Return what the keys of a run's log begin with."""
        return f"{self.logs_of(run_id)}{log}/"

    def slot(self, run_id: str, log: str, slot: int) -> str:
        """Return the key of a place in a run's log; the head is place 0."""
        return f"{self.log(run_id, log)}{slot:0{SLOT_DIGITS}d}" if slot else self.head(run_id)

    def logs_of(self, run_id: str) -> str:
        """Return what the keys of all logs of a run begin with."""
        return f"{self.logs}{part_of(run_id)}/"

    def mark(self, run: RunRecord, log: str, slot: int) -> str:
        """Return the key of the marker of a run that is for a place in its log."""
        return f"{self.marks_of(run)}{log}/{slot:0{SLOT_DIGITS}d}"

    def marks_of(self, run: RunRecord) -> str:
        """Return what the keys of all markers of a run begin with."""
        return f"{self.open}{time_part(run.created_at)}/{part_of(run.run_id)}/"

    def plain(self, key: RecordKey) -> str:
        """Return the key of a record that `save` wrote."""
        return f"{self.plain_of(key.run_id)}{part_of(key.path)}/{key.kind}.{key.attempt}"

    def plain_of(self, run_id: str) -> str:
        """Return what the keys of a run's plain records begin with."""
        return f"{self.prefix}{PLAIN}{part_of(run_id)}/"

    def probe(self, name: str) -> str:
        """Return the key of an object that is written to see whether that works."""
        return f"{self.prefix}{PROBE}{name}"

    def run_of_head(self, key: str) -> str | None:
        """Return the encoded run id in the key of a head; None if it is none."""
        run = key[len(self.heads) :]
        return run if _PART.fullmatch(run) else None

    def run_id_of_head(self, key: str) -> str:
        """Return the run id in the key of a head; of a long id, its hash is all that is there."""
        return unquote(key[len(self.heads) :])

    def parse_log(self, key: str) -> LogKey | None:
        """Return the parts of the key of an object of a log; None if it is none."""
        parts = key[len(self.logs) :].split("/")
        if len(parts) != 3 or not _SLOT.fullmatch(parts[2]):
            return None
        if not all(_PART.fullmatch(part) for part in parts[:2]):
            return None
        return LogKey(parts[0], parts[1], int(parts[2]))

    def parse_mark(self, key: str) -> MarkKey | None:
        """Return the parts of the key of a marker; None if it is none."""
        parts = key[len(self.open) :].split("/")
        if len(parts) != 4 or not _TIME.fullmatch(parts[0]) or not _SLOT.fullmatch(parts[3]):
            return None
        if not all(_PART.fullmatch(part) for part in parts[1:3]):
            return None
        return MarkKey(parts[0], parts[1], parts[2], int(parts[3]))

    def is_plain_of(self, run_id: str, key: str) -> bool:
        """Say whether a key is that of a plain record of a run."""
        parts = key[len(self.plain_of(run_id)) :].split("/")
        return len(parts) == 2 and bool(_PART.fullmatch(parts[0]) and _KIND.fullmatch(parts[1]))
