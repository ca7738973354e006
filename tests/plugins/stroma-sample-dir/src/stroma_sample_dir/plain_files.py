"""The states that `save` keeps outside runs: a file for each, and one that lists them.

Only the listed files count. A new state gets a file of its own, and replacing the list makes it
visible.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from stroma.errors import StoreUnusable
from stroma.records import CheckpointRecord, RecordKey
from stroma_sample_dir import frames
from stroma_sample_dir.files import remove_files, replace_file, sync_folder, write_file

_FORMAT = 1
_LIST = "plain.json"


class PlainFiles:
    """The plain records of one run. Whoever uses it holds the run's lock."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def replace(self, records: Sequence[CheckpointRecord]) -> None:
        """Write records; they replace earlier ones of their key."""
        numbers = self._read()
        old = set(numbers.values())
        for number, record in enumerate(records, 1 + max(old, default=0)):
            write_file(self._file(number), frames.record_frame(record))
            numbers[_name(record.header.key)] = number
        # The disk gets the names before the list refers to them.
        sync_folder(self._folder)
        sync_folder(self._folder.parent)
        document = {"format": _FORMAT, "files": numbers}
        replace_file(self._folder / _LIST, json.dumps(document).encode())
        remove_files(map(self._file, old.difference(numbers.values())))

    def read(self, key: RecordKey) -> CheckpointRecord | None:
        """Return the record of a key, whose epoch does not matter."""
        number = self._read().get(_name(key))
        if number is None:
            return None
        path = self._file(number)
        with frames.understood(path), path.open("rb") as file:
            return frames.only_slot(file).read(file)

    def _read(self) -> dict[str, int]:
        file = self._folder / _LIST
        try:
            content = file.read_bytes()
        except FileNotFoundError:
            return {}
        with frames.understood(file):
            document = json.loads(content)
            if document["format"] != _FORMAT:
                raise StoreUnusable(f"{file} has the format {document['format']}, not {_FORMAT}")
            return {str(name): int(number) for name, number in document["files"].items()}

    def _file(self, number: int) -> Path:
        return self._folder / f"plain-{number}"


def _name(key: RecordKey) -> str:
    return json.dumps(frames.place(key))
