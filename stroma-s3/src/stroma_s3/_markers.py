"""Markers of the runs that are PENDING or RUNNING, by which those are found among all the others.

A marker is an object without content that matters: its key says which run it is of, when that was
created, and which place in the run's log it was written for. It is written before the step at that
place, so that no death loses a run, and no two steps share one, so that a marker which is removed
late is never the one that a later step needs.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import suppress
from typing import NamedTuple

from stroma.errors import StoreError
from stroma.records import RunRecord
from stroma_s3._client import Bucket
from stroma_s3._keys import Keys, MarkKey, time_part


class Mark(NamedTuple):
    """A marker in a listing.

    Attributes:
        key: of the object.
        parts: what its key says.
        modified: when it was written, in seconds since the epoch on the server's clock.
    """

    key: str
    parts: MarkKey
    modified: float


class Markers:
    """The markers of one store.

    Args:
        bucket: where.
        keys: under which keys.
        helpers: remove what nobody waits for.
    """

    def __init__(self, bucket: Bucket, keys: Keys, helpers: Executor) -> None:
        self._bucket = bucket
        self._keys = keys
        self._helpers = helpers

    def put(self, run: RunRecord, log: str, slot: int) -> None:
        """Write the marker for a step that is to be written next."""
        key = self._keys.mark(run, log, slot)
        self._bucket.put(key, run.run_id.encode(), f"run {run.run_id!r}")

    def remove_later(self, run: RunRecord, log: str, slot: int) -> None:
        """Remove a marker that is not needed any more, while the caller goes on.

        Where that fails, the next one who looks for claimable runs does it.
        """
        key = self._keys.mark(run, log, slot)
        with suppress(RuntimeError):  # the process is ending
            self._helpers.submit(self._remove, key, f"run {run.run_id!r}")

    def _remove(self, key: str, about: str) -> None:
        with suppress(StoreError):
            self._bucket.delete_one(key, about)

    def remove(self, mark: Mark) -> None:
        """Remove a marker that was listed."""
        self._bucket.delete_one(mark.key, f"marker of run {mark.parts.run}")

    def run_id_of(self, mark: Mark) -> str | None:
        """Return the id of the run that a listed marker is of, or None if it is gone."""
        data = self._bucket.get(mark.key, f"marker of run {mark.parts.run}")
        return None if data is None else data.decode(errors="replace")

    def of_log(self, run: RunRecord, log: str) -> list[str]:
        """Return the keys of all markers that are there for a log of a run."""
        listed = self._bucket.list(f"{self._keys.marks_of(run)}{log}/", f"run {run.run_id!r}")
        return [found.key for found in listed if self._keys.parse_mark(found.key) is not None]

    def since(self, created_at: float) -> Iterator[Mark]:
        """Yield the markers of runs that were created at a time or later, in that order."""
        after = f"{self._keys.open}{time_part(created_at)}"
        for found in self._bucket.list(self._keys.open, "listing claimable runs", after):
            parts = self._keys.parse_mark(found.key)
            if parts is not None:
                yield Mark(found.key, parts, found.modified)
