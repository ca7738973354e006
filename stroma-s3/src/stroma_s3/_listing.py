"""Which runs there are, the last updated first; and the removal of those that nobody needs."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from concurrent.futures import Executor
from itertools import islice
from typing import Final, NamedTuple

from stroma.errors import RecordCorrupt
from stroma.ownership import describe_worker
from stroma.records import RunPage, RunQuery, RunRecord, UnreadableRun
from stroma.stores.rules import cursor_after, cursor_position, is_held, matches
from stroma_s3._client import Bucket, Listed
from stroma_s3._documents import NewerFormat
from stroma_s3._keys import Keys
from stroma_s3._log import PURGING, RunLogs
from stroma_s3._removal import Removal
from stroma_s3._view import View

_ABOUT: Final = "listing runs"
_BATCH: Final = 64
_MARGIN_SECONDS: Final = 5.0
"""A run's time of change is estimated by its writer; the bucket says when it was written."""

_FENCE_SECONDS: Final = 60.0
_SWEEP_SECONDS: Final = 24 * 3600.0
"""What belongs to no run is left for that long, as its worker may not know yet."""


class _Candidate(NamedTuple):
    """A run that is read when its turn comes.

    Attributes:
        head: its head, as listed.
        last: the last place of each of its logs, as listed, by the log's id.
        written_at: when something was last written to it: it did not change after.
    """

    head: Listed
    last: dict[str, int]
    written_at: float


class _Log(NamedTuple):
    slot: int
    modified: float


class _Found(NamedTuple):
    run: RunRecord
    view: View


class Listing:
    """Lists and purges.

    A listing asks for every thousand keys below ``runs/`` and ``logs/`` once, and then for two or
    three objects of each run that it has to look at: those last written to, until the page is
    full.
    """

    def __init__(
        self, bucket: Bucket, keys: Keys, readers: Executor, logs: RunLogs, removal: Removal
    ) -> None:
        self._bucket = bucket
        self._keys = keys
        self._readers = readers
        self._logs = logs
        self._removal = removal

    def runs(self, query: RunQuery) -> RunPage:
        """List runs; see `RecordStore.runs`."""
        limit = max(0, query.limit)
        page: list[RunRecord] = []
        unreadable: dict[str, UnreadableRun] = {}
        cursor = ""
        for found in self._matching(query, unreadable) if limit else ():
            if len(page) == limit:
                cursor = cursor_after(page[-1])
                break
            page.append(found.run)
        return RunPage(tuple(page), cursor, tuple(unreadable.values()))

    def purge(self, query: RunQuery) -> int:
        """Remove the runs that a query finds and nobody owns; see `RecordStore.purge`."""
        removed = 0
        matching = self._matching(query, unreadable={})  # these stay: somebody may own them
        while removed < query.limit:
            batch = list(islice(matching, min(_BATCH, query.limit - removed)))
            if not batch:
                break
            removed += sum(self._readers.map(self._remove, batch))
        self._sweep()
        return removed

    def _remove(self, found: _Found) -> bool:
        run = found.run
        if is_held(run.owner, run.lease_expires_at, self._bucket.clock.now()):
            return False
        if not self._removal.fence(found.view, PURGING + describe_worker(), _FENCE_SECONDS):
            return False
        self._removal.delete(run.run_id, is_fenced=True)
        return True

    def _matching(self, query: RunQuery, unreadable: dict[str, UnreadableRun]) -> Iterator[_Found]:
        """Yield what a query asks for, in order; note what cannot be read, asked for or not."""
        after = cursor_position(query.cursor) if query.cursor else None
        for found in self._newest_first(unreadable):
            run = found.run
            is_after = after is None or (-run.updated_at, run.run_id) > (-after[0], after[1])
            if is_after and matches(query, run):
                yield found

    def _newest_first(self, unreadable: dict[str, UnreadableRun]) -> Iterator[_Found]:
        """Yield the runs, the last updated first, reading no more of them than it takes."""
        candidates = self._candidates()
        read: list[tuple[float, str, _Found]] = []
        begin = 0
        while begin < len(candidates) or read:
            while begin < len(candidates) and (
                not read or candidates[begin].written_at + _MARGIN_SECONDS >= -read[0][0]
            ):
                batch = candidates[begin : begin + _BATCH]
                begin += len(batch)
                for found in self._readers.map(self._found, batch):
                    if isinstance(found, UnreadableRun):
                        unreadable[found.run_id] = found
                    elif found is not None:
                        heapq.heappush(read, (-found.run.updated_at, found.run.run_id, found))
            if read:
                yield heapq.heappop(read)[2]

    def _candidates(self) -> list[_Candidate]:
        """Return every run there may be, the last written to first."""
        heads = list(self._bucket.list(self._keys.heads, _ABOUT))
        logs = self._last_of_logs()
        candidates: list[_Candidate] = []
        for head in heads:
            part = self._keys.run_of_head(head.key)
            if part is not None:
                of_run = logs.get(part, {})
                written_at = max(head.modified, *(log.modified for log in of_run.values()), 0.0)
                last = {name: log.slot for name, log in of_run.items()}
                candidates.append(_Candidate(head, last, written_at))
        candidates.sort(key=lambda each: -each.written_at)
        return candidates

    def _last_of_logs(self) -> dict[str, dict[str, _Log]]:
        """Return the last place of each log, by encoded run id and the log's id."""
        logs: dict[str, dict[str, _Log]] = {}
        for listed in self._bucket.list(self._keys.logs, _ABOUT):
            found = self._keys.parse_log(listed.key)
            if found is not None:  # by key, so that the last one of a log comes last
                logs.setdefault(found.run, {})[found.log] = _Log(found.slot, listed.modified)
        return logs

    def _found(self, candidate: _Candidate) -> _Found | UnreadableRun | None:
        """Read what became of a run; None if it was deleted meanwhile."""
        run_id = self._keys.run_id_of_head(candidate.head.key)
        try:
            head = self._logs.entry_at(candidate.head.key, None, 0)
            if head is None:
                return None
            run_id = head.run_id
            view = self._logs.glance(head, candidate.last.get(head.log, 0))
        except (RecordCorrupt, NewerFormat) as exc:  # it hides no other run
            return UnreadableRun(run_id, exc)
        return None if view is None else _Found(view.run, view)

    def _sweep(self) -> None:
        """Remove logs that belong to no run: what a deletion left behind that was killed."""
        for part, logs in self._last_of_logs().items():
            newest = max(log.modified for log in logs.values())
            if newest + _SWEEP_SECONDS > self._bucket.clock.now():
                continue
            if not self._bucket.exists(self._keys.heads + part, _ABOUT):
                doomed = [
                    listed.key
                    for listed in self._bucket.list(f"{self._keys.logs}{part}/", _ABOUT)
                    if self._keys.parse_log(listed.key) is not None and listed.modified <= newest
                ]
                self._bucket.delete(doomed, _ABOUT)
