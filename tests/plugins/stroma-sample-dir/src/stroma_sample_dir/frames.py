"""How a checkpoint record stands in a file, and where it stands."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

from stroma.errors import StoreUnusable
from stroma.record_codec import header_from_json, header_to_json
from stroma.records import CheckpointRecord, RecordHeader, RecordKey

# What reading a file ends with that is not what was written. One that is missing is, too.
_DAMAGE = (AttributeError, FileNotFoundError, LookupError, TypeError, ValueError, struct.error)
_SIZES = struct.Struct(">QQ")  # of the header and of the payload, which follow


class Slot(NamedTuple):
    """A record's header, and where its payload is."""

    header: RecordHeader
    payload_at: int
    payload_size: int

    def read(self, file: BinaryIO) -> CheckpointRecord:
        """Return the record."""
        file.seek(self.payload_at)
        return CheckpointRecord(self.header, _exactly(file, self.payload_size))


class Index:
    """What is in a log, as far as it was read: only headers, since payloads may be large."""

    def __init__(self) -> None:
        self.size = 0
        self.slots: dict[RecordKey, Slot] = {}  # oldest first
        self._newest: dict[tuple[str, str, int], Slot] = {}

    def grow(self, file: BinaryIO, size: int) -> None:
        """Read what was added."""
        while self.size < size:
            file.seek(self.size)
            header_size, payload_size = _SIZES.unpack(_exactly(file, _SIZES.size))
            payload_at = self.size + _SIZES.size + header_size
            if header_size:  # the run's input has none
                header = header_from_json(_exactly(file, header_size))
                self._add(Slot(header, payload_at, payload_size))
            self.size = payload_at + payload_size

    def find(self, key: RecordKey) -> Slot | None:
        """Return the slot of a key, or the newest epoch's if the key has no epoch."""
        if key.epoch is None:
            return self._newest.get(place(key))
        return self.slots.get(key)

    def _add(self, slot: Slot) -> None:
        key = slot.header.key
        self.slots[key] = slot
        newest = self._newest.get(place(key))
        if newest is None or newest.header.epoch <= slot.header.epoch:
            self._newest[place(key)] = slot


def place(key: RecordKey) -> tuple[str, str, int]:
    """Return a key without its run and its epoch."""
    return key.path, key.kind, key.attempt


def record_frame(record: CheckpointRecord) -> bytes:
    """Return a record as it stands in a file."""
    return frame(header_to_json(record.header), record.payload)


def frame(header: bytes, payload: bytes) -> bytes:
    """Return bytes with their sizes before them."""
    return _SIZES.pack(len(header), len(payload)) + header + payload


def only_slot(file: BinaryIO) -> Slot:
    """Return the slot of a file that holds one record."""
    header_size, payload_size = _SIZES.unpack(_exactly(file, _SIZES.size))
    header = header_from_json(_exactly(file, header_size))
    return Slot(header, _SIZES.size + header_size, payload_size)


def input_at(file: BinaryIO, offset: int) -> bytes:
    """Return the run's input, which stands in a frame without a header."""
    file.seek(offset)
    _, size = _SIZES.unpack(_exactly(file, _SIZES.size))
    return _exactly(file, size)


@contextmanager
def understood(path: Path) -> Iterator[None]:
    """Say which file is to blame for what cannot be read."""
    try:
        yield
    except _DAMAGE as exc:
        raise StoreUnusable(f"{path} is damaged, or of another program: {exc!r}") from exc


def _exactly(file: BinaryIO, size: int) -> bytes:
    found = file.read(size)
    if len(found) != size:
        raise ValueError(f"{size} bytes were to be read, and there are {len(found)}")
    return found
