"""The files of one run: its record, and the log of its checkpoint records.

``run.json`` is replaced as a whole by every change. It holds the run record, and says how much of
the log counts, so that one replaced name makes records and record of the run visible together. What
stands in the log beyond that was never committed, and is overwritten.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from stroma.errors import StoreUnusable
from stroma.record_codec import run_from_json, run_to_json
from stroma.records import CheckpointRecord, RecordHeader, RecordKey, RunRecord
from stroma_sample_dir import frames
from stroma_sample_dir.files import replace_file, sync_folder, write_file

_FORMAT = 1
_HEAD = "run.json"
_LOG = "log"


class Head(NamedTuple):
    """What ``run.json`` holds."""

    run: RunRecord  # as it is stored: without its input, which is not written again and again
    born: str  # tells a run from an earlier one of the same id
    input_at: int
    size: int  # of the log


class RunFiles:
    """The files of one run. Whoever uses it holds the run's lock, but for `read_head`."""

    def __init__(self, folder: Path, indexes: dict[Path, tuple[str, frames.Index]]) -> None:
        self._folder = folder
        self._log = folder / _LOG
        self._indexes = indexes
        self._head = read_head(folder)

    @property
    def run(self) -> RunRecord | None:
        """The run's record, but for its input; None if it was never opened."""
        return None if self._head is None else self._head.run

    def with_input(self) -> RunRecord:
        """Return the run's record with its input."""
        head = self._opened()
        with frames.understood(self._log), self._log.open("rb") as log:
            return head.run._replace(input_payload=frames.input_at(log, head.input_at))

    def create(self, run: RunRecord) -> None:
        """Write the record of a new run."""
        first = frames.frame(b"", run.input_payload)
        write_file(self._log, first)
        # The disk gets the names before something refers to them.
        sync_folder(self._folder)
        sync_folder(self._folder.parent)
        self._save(Head(run, uuid.uuid4().hex, 0, len(first)))

    def change(self, run: RunRecord, records: Sequence[CheckpointRecord] = ()) -> None:
        """Write the changed record of the run, and add checkpoint records with it."""
        head = self._opened()
        added = b"".join(map(frames.record_frame, records))
        if added:
            write_file(self._log, added, at=head.size)
        self._save(head._replace(run=run, size=head.size + len(added)))

    def headers(self) -> list[RecordHeader]:
        """Return the headers of all checkpoint records, oldest first."""
        return [slot.header for slot in self._index().slots.values()]

    def find(self, key: RecordKey) -> RecordHeader | None:
        """Return the header of a key's record."""
        slot = self._index().find(key)
        return None if slot is None else slot.header

    def read(self, key: RecordKey) -> CheckpointRecord | None:
        """Return the record of a key."""
        if self._head is None:
            return None
        slot = self._index().find(key)
        if slot is None:
            return None
        with frames.understood(self._log), self._log.open("rb") as log:
            return slot.read(log)

    def forget(self) -> None:
        """Keep no index of the run in memory."""
        self._indexes.pop(self._folder, None)

    def _index(self) -> frames.Index:
        head = self._opened()
        born, index = self._indexes.get(self._folder, ("", frames.Index()))
        if born != head.born:
            index = frames.Index()
        if index.size < head.size:
            with frames.understood(self._log), self._log.open("rb") as log:
                index.grow(log, head.size)
        self._indexes[self._folder] = head.born, index
        return index

    def _opened(self) -> Head:
        if self._head is None:
            raise AssertionError("the caller has not looked whether the run was opened")
        return self._head

    def _save(self, head: Head) -> None:
        document = {
            "format": _FORMAT,
            "run": run_to_json(head.run._replace(input_payload=b"")).decode(),
            "born": head.born,
            "input_at": head.input_at,
            "size": head.size,
        }
        replace_file(self._folder / _HEAD, json.dumps(document).encode())
        self._head = head


def read_head(folder: Path) -> Head | None:
    """Return what is kept of a run beside its checkpoint records. It needs no lock."""
    file = folder / _HEAD
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        return None
    with frames.understood(file):
        document = json.loads(content)
        if document["format"] != _FORMAT:
            raise StoreUnusable(f"{file} has the format {document['format']}, not {_FORMAT}")
        run = run_from_json(document["run"])
        return Head(run, document["born"], document["input_at"], document["size"])
