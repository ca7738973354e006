"""Stores in memory: for tests and short pipelines, with the rules of the durable ones."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from stroma.checkpoint import Capabilities, Durability
from stroma.clock import SYSTEM_CLOCK, Clock
from stroma.errors import AlreadyCommitted, StoreError
from stroma.level0 import AsyncPlainMethods, SyncPlainMethods
from stroma.records import (
    CLAIMABLE,
    PLAIN_EPOCH,
    CheckpointRecord,
    ClaimQuery,
    Commit,
    OpenedRun,
    OpenRequest,
    RecordHeader,
    RecordKey,
    RecordKind,
    RunPage,
    RunQuery,
    RunRecord,
    RunUpdate,
    last_result,
)
from stroma.stores.rules import (
    already_committed,
    claimable_page,
    claimed,
    cursor_after,
    cursor_position,
    is_closed_book,
    is_held,
    locked,
    matches,
    stale,
)

_CAPABILITIES = Capabilities(Durability.MEMORY, groups_commits=True)
_Place = tuple[int, str, RecordKind, int]
"""Epoch, path, kind and attempt: a record's key within its run."""


class _Entry:
    """Everything that is kept of one run."""

    __slots__ = ("records", "run")

    def __init__(self) -> None:
        self.run: RunRecord | None = None
        self.records: dict[_Place, CheckpointRecord] = {}

    def headers(self) -> list[RecordHeader]:
        return [r.header for r in self.records.values() if r.header.epoch != PLAIN_EPOCH]

    def add(self, records: Sequence[CheckpointRecord]) -> AlreadyCommitted | None:
        """Add all of the records, or none and say which key another commit holds."""
        if len(records) > 1 and (refused := self._conflict(records)) is not None:
            return refused
        for record in records:
            found = self.records.setdefault(record[0][1:5], record)
            if found is not record and found[0].commit_id != record[0].commit_id:
                return already_committed(record[0].key)
        return None

    def _conflict(self, records: Sequence[CheckpointRecord]) -> AlreadyCommitted | None:
        ids: dict[_Place, str] = {}
        for header, _ in records:
            place = header[1:5]
            kept = self.records.get(place)
            first = ids.setdefault(place, header.commit_id if kept is None else kept[0].commit_id)
            if first != header.commit_id:
                return already_committed(header.key)
        return None

    def replace(self, records: Sequence[CheckpointRecord]) -> None:
        for record in records:
            place = record[0][1:5]
            self.records.pop(place, None)
            self.records[place] = record

    def find(self, key: RecordKey) -> CheckpointRecord | None:
        if key.epoch is not None:
            return self.records.get((key.epoch, key.path, key.kind, key.attempt))
        plain = self.records.get((PLAIN_EPOCH, key.path, key.kind, key.attempt))
        if plain is not None:
            return plain
        rest = key[2:]
        newest = max((p for p in self.records if p[1:] == rest), default=None)
        return None if newest is None else self.records[newest]


class InMemoryStore(SyncPlainMethods):
    """Keeps runs and states as JSON in this process; they are gone with it.

    Safe to use from several threads. Claims hold within the process.

    Args:
        clock: what leases and times are measured by.
    """

    def __init__(self, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._now = clock.now
        self._lock = threading.Lock()
        self._entries: dict[str, _Entry] = {}
        self._unfinished: dict[str, _Entry] = {}  # so that `claimable` does not look at the rest

    @property
    def capabilities(self) -> Capabilities:
        """What this store promises: fencing, and nothing after the process."""
        return _CAPABILITIES

    def setup(self) -> None:
        """Do nothing: there is nothing to create."""

    def open_run(self, request: OpenRequest) -> OpenedRun | None:
        """Claim a run; see `RecordStore.open_run`.

        Raises:
            RunLocked: another token owns it.
        """
        with self._lock:
            entry = self._entries.get(request.run_id)
            if entry is None or (run := entry.run) is None:
                return self._create(request)
            if is_closed_book(run, request):
                return _opened(entry, run, is_claimed=False)
            now = self._now()
            if run.owner != request.token and is_held(run.owner, run.lease_expires_at, now):
                raise locked(run, now)
            entry.run = mine = claimed(run, request, now)
            self._unfinished[request.run_id] = entry
            return _opened(entry, mine, is_claimed=True)._replace(status_before=run.status)

    def _create(self, request: OpenRequest) -> OpenedRun | None:
        if request.new is None:
            return None
        run = claimed(request.new, request, self._now(), is_new=True)
        entry = self._unfinished[request.run_id] = self._entries.setdefault(
            request.run_id, _Entry()
        )
        entry.run = run
        return OpenedRun(run, (), None, True, True)

    def inspect(self, run_id: str) -> OpenedRun | None:
        """Return a run without claiming it; see `RecordStore.inspect`."""
        with self._lock:
            entry = self._entries.get(run_id)
            if entry is None or entry.run is None:
                return None
            return _opened(entry, entry.run, is_claimed=False)

    def commit_many(self, commits: Sequence[Commit]) -> list[StoreError | None]:
        """Write several commits; see `RecordStore.commit_many`."""
        with self._lock:
            if len(commits) == 1:
                return [self._commit(commits[0])]
            return [self._commit(commit) for commit in commits]

    def _commit(self, commit: Commit) -> StoreError | None:
        run_id, token, records, update = commit
        entry = self._entries.get(run_id)
        if not token:
            if records:
                self._entries.setdefault(run_id, _Entry()).replace(records)
            return None
        if entry is None or (run := entry.run) is None:
            return stale(run_id, None)
        if run.owner != token:
            return stale(run_id, run.holder)
        refused = entry.add(records)
        if refused is not None:
            return refused
        if update is not None:
            entry.run = update.apply(run, self._now())
            if update.status in CLAIMABLE:
                self._unfinished[run_id] = entry
            elif update.status is not None:
                self._unfinished.pop(run_id, None)
        return None

    def renew(self, claims: Sequence[tuple[str, str]], lease_ms: int) -> list[bool]:
        """Extend leases; see `RecordStore.renew`."""
        with self._lock:
            expires_at = self._now() + lease_ms / 1000
            return [self._renew(run_id, token, expires_at) for run_id, token in claims]

    def _renew(self, run_id: str, token: str, expires_at: float) -> bool:
        entry = self._owned(run_id, token)
        if entry is None or entry.run is None:
            return False
        entry.run = entry.run._replace(lease_expires_at=expires_at)
        return True

    def release(self, run_id: str, token: str) -> None:
        """Give up a run, if the token owns it."""
        with self._lock:
            entry = self._owned(run_id, token)
            if entry is not None and entry.run is not None:
                entry.run = RunUpdate(release=True).apply(entry.run, self._now())

    def _owned(self, run_id: str, token: str) -> _Entry | None:
        entry = self._entries.get(run_id)
        if not token or entry is None or entry.run is None or entry.run.owner != token:
            return None
        return entry

    def fetch(self, run_id: str, keys: Sequence[RecordKey]) -> list[CheckpointRecord | None]:
        """Return the record of each key, or None."""
        with self._lock:
            entry = self._entries.get(run_id)
            return [entry.find(key) if entry is not None else None for key in keys]

    def runs(self, query: RunQuery) -> RunPage:
        """List runs, the last updated first; equal times by run id."""
        with self._lock:
            found = self._found(query)
        page = tuple(found[: max(0, query.limit)])
        has_more = 0 < len(page) < len(found)
        return RunPage(page, cursor_after(page[-1]) if has_more else "")

    def _found(self, query: RunQuery) -> list[RunRecord]:
        found = [
            entry.run
            for entry in self._entries.values()
            if entry.run is not None and matches(query, entry.run)
        ]
        if query.cursor:
            updated_at, run_id = cursor_position(query.cursor)
            found = [r for r in found if (-r.updated_at, r.run_id) > (-updated_at, run_id)]
        found.sort(key=lambda run: (-run.updated_at, run.run_id))
        return found

    def claimable(self, query: ClaimQuery) -> RunPage:
        """List runs that may be claimed, the first created first; see `RecordStore.claimable`."""
        with self._lock:
            runs = [entry.run for entry in self._unfinished.values() if entry.run is not None]
            return claimable_page(runs, query, self._now())

    def delete(self, run_id: str) -> None:
        """Remove the run and all its records, plain ones too, and nothing else."""
        with self._lock:
            self._remove(run_id)

    def _remove(self, run_id: str) -> None:
        self._entries.pop(run_id, None)
        self._unfinished.pop(run_id, None)

    def purge(self, query: RunQuery) -> int:
        """Remove runs that a query finds and nobody owns; the limit counts the removed.

        Returns:
            How many were removed.
        """
        with self._lock:
            now = self._now()
            free = [
                run.run_id
                for run in self._found(query)
                if not is_held(run.owner, run.lease_expires_at, now)
            ]
            removed = free[: max(0, query.limit)]
            for run_id in removed:
                self._remove(run_id)
            return len(removed)

    def health(self) -> None:
        """Return: memory can always be read and written."""

    def close(self) -> None:
        """Do nothing: what is kept stays usable until the store is collected."""


def _opened(entry: _Entry, run: RunRecord, *, is_claimed: bool) -> OpenedRun:
    headers = entry.headers()
    last = last_result(headers)
    record = None if last is None else entry.records[last[1:5]]
    return OpenedRun(run, headers, record, False, is_claimed)


class AsyncInMemoryStore(AsyncPlainMethods):
    """`InMemoryStore` with coroutine methods, for any number of event loops and threads.

    No operation suspends, so that two coroutines cannot meet inside one: no asyncio lock is
    needed.

    Args:
        clock: what leases and times are measured by.
    """

    def __init__(self, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._store = InMemoryStore(clock=clock)
        self._commit_many = self._store.commit_many

    @property
    def capabilities(self) -> Capabilities:
        """What this store promises: fencing, and nothing after the process."""
        return _CAPABILITIES

    async def setup(self) -> None:
        """Do nothing: there is nothing to create."""

    async def open_run(self, request: OpenRequest) -> OpenedRun | None:
        """Claim a run; see `RecordStore.open_run`.

        Raises:
            RunLocked: another token owns it.
        """
        return self._store.open_run(request)

    async def inspect(self, run_id: str) -> OpenedRun | None:
        """Return a run without claiming it; see `RecordStore.inspect`."""
        return self._store.inspect(run_id)

    async def commit_many(self, commits: Sequence[Commit]) -> list[StoreError | None]:
        """Write several commits; see `RecordStore.commit_many`."""
        return self._commit_many(commits)

    async def renew(self, claims: Sequence[tuple[str, str]], lease_ms: int) -> list[bool]:
        """Extend leases; see `RecordStore.renew`."""
        return self._store.renew(claims, lease_ms)

    async def release(self, run_id: str, token: str) -> None:
        """Give up a run, if the token owns it."""
        self._store.release(run_id, token)

    async def fetch(self, run_id: str, keys: Sequence[RecordKey]) -> list[CheckpointRecord | None]:
        """Return the record of each key, or None."""
        return self._store.fetch(run_id, keys)

    async def runs(self, query: RunQuery) -> RunPage:
        """List runs, the last updated first; equal times by run id."""
        return self._store.runs(query)

    async def claimable(self, query: ClaimQuery) -> RunPage:
        """List runs that may be claimed, the first created first; see `RecordStore.claimable`."""
        return self._store.claimable(query)

    async def delete(self, run_id: str) -> None:
        """Remove the run and all its records, plain ones too, and nothing else."""
        self._store.delete(run_id)

    async def purge(self, query: RunQuery) -> int:
        """Remove runs that a query finds and nobody owns; the limit counts the removed.

        Returns:
            How many were removed.
        """
        return self._store.purge(query)

    async def health(self) -> None:
        """Return: memory can always be read and written."""

    async def aclose(self) -> None:
        """Do nothing: what is kept stays usable until the store is collected."""
