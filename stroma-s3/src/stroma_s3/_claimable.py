"""Which runs a worker may take up, the first created first, whatever else is in the bucket."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import Executor
from functools import partial
from itertools import islice
from typing import Final, NamedTuple

from stroma.errors import RecordCorrupt
from stroma.records import CLAIMABLE, ClaimQuery, RunPage, RunRecord, UnreadableRun
from stroma.stores.rules import claim_cursor_after, cursor_position, is_claimable
from stroma_s3._client import Bucket
from stroma_s3._documents import NewerFormat
from stroma_s3._keys import Keys, time_part
from stroma_s3._log import RunLogs
from stroma_s3._markers import Mark, Markers
from stroma_s3._view import View

_BATCH: Final = 64
_STRAY_SECONDS: Final = 24 * 3600.0
"""A marker is left for that long without the step that it was written for: it may still come."""

_MAX_KNOWN: Final = 65_536


class _Known(NamedTuple):
    """What a marker was found to mean.

    Attributes:
        pipeline: of the run; it never changes.
        held_until: when the lease ends that was found. Whoever ends it sooner, or owns the run
            next, changes nothing about this marker: the one writes another, and the other begins
            when it has ended.
    """

    pipeline: str
    held_until: float


class ClaimableRuns:
    """Finds runs by their markers, and looks into the log of each.

    A listing asks for every thousand markers once, and then for three or four objects of each run
    until the page is full. A run that somebody owns is not looked at again before its lease ends.
    """

    def __init__(
        self, bucket: Bucket, keys: Keys, readers: Executor, logs: RunLogs, markers: Markers
    ) -> None:
        self._bucket = bucket
        self._keys = keys
        self._readers = readers
        self._logs = logs
        self._markers = markers
        self._guard = threading.Lock()
        self._known: OrderedDict[str, _Known] = OrderedDict()

    def page(self, query: ClaimQuery) -> RunPage:
        """List runs that may be claimed; see `RecordStore.claimable`."""
        after = cursor_position(query.cursor) if query.cursor else (0.0, "")
        limit = max(0, query.limit)
        page: list[RunRecord] = []
        unreadable: dict[str, UnreadableRun] = {}
        cursor = ""
        for run in self._claimable(query, after[0], unreadable) if limit else ():
            if query.cursor and (run.created_at, run.run_id) <= after:
                continue
            if len(page) == limit:
                cursor = claim_cursor_after(page[-1])
                break
            page.append(run)
        return RunPage(tuple(page), cursor, tuple(unreadable.values()))

    def _claimable(
        self, query: ClaimQuery, created_at: float, unreadable: dict[str, UnreadableRun]
    ) -> Iterator[RunRecord]:
        """Yield what is claimable, in order, reading little more of it than is asked for."""
        marks = (m for m in self._markers.since(created_at) if self._is_worth_reading(m, query))
        read: dict[str, RunRecord] = {}
        # One more than a page tells whether it is the last, and of the last one read, another
        # marker may follow, or one of a run of the same moment.
        while batch := list(islice(marks, min(_BATCH, query.limit + 2))):
            for run in self._readers.map(partial(self._found, query), batch):
                if isinstance(run, UnreadableRun):
                    unreadable[run.run_id] = run
                elif run is not None:
                    read[run.run_id] = run
            yield from _taken_from(read, batch[-1].parts.time)
        yield from _taken_from(read)

    def _is_worth_reading(self, mark: Mark, query: ClaimQuery) -> bool:
        with self._guard:
            known = self._known.get(mark.key)
        if known is None:
            return True
        is_asked_for = not query.pipelines or known.pipeline in query.pipelines
        return is_asked_for and known.held_until <= self._bucket.clock.now()

    def _found(self, query: ClaimQuery, mark: Mark) -> RunRecord | UnreadableRun | None:
        """Return the run of a marker if it is asked for, or what keeps it from being read."""
        try:
            return self._judged(query, mark)
        except (RecordCorrupt, NewerFormat) as exc:  # it hides no other run
            run_id = self._markers.run_id_of(mark)
            return None if run_id is None else UnreadableRun(run_id, exc)

    def _judged(self, query: ClaimQuery, mark: Mark) -> RunRecord | None:
        """Return the run of a marker if it is asked for; a marker that nobody needs is removed."""
        view, now = self._read(mark), self._bucket.clock.now()
        if view is None:
            if mark.modified + _STRAY_SECONDS < now:
                self._markers.remove(mark)
            return None
        if view.mark != mark.parts.slot or view.run.status not in CLAIMABLE:
            self._markers.remove(mark)  # no later step of the log is for this place
            return None
        self._learn(mark, _Known(view.run.pipeline, view.run.lease_expires_at))
        return view.run if is_claimable(query, view.run, now) else None

    def _read(self, mark: Mark) -> View | None:
        """Return a run as it is now; None if the step is not there that the marker is for.

        It may be about to be written. Where the log has gone on without it, the run is returned:
        its newest marker is another one.
        """
        run, log, slot = mark.parts[1:]
        head = self._logs.entry_at(f"{self._keys.heads}{run}", None, 0)
        if head is None or head.log != log:
            return None
        after = self._keys.slot(head.run_id, log, slot - 1) if slot > 1 else ""
        slots = self._logs.slots(head.run_id, log, after)
        if slot and not slots:
            return None
        return self._logs.glance(head, slots[-1] if slots else 0)

    def _learn(self, mark: Mark, known: _Known) -> None:
        with self._guard:
            self._known[mark.key] = known
            self._known.move_to_end(mark.key)
            if len(self._known) > _MAX_KNOWN:
                self._known.popitem(last=False)


def _taken_from(read: dict[str, RunRecord], before: str | None = None) -> list[RunRecord]:
    """Take the runs that were created before a time, in order; without one, all."""
    taken = [r for r in read.values() if before is None or time_part(r.created_at) < before]
    for run in taken:
        del read[run.run_id]
    return sorted(taken, key=lambda run: (run.created_at, run.run_id))
