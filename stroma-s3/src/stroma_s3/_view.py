"""A run as its log tells it, and what may be added to the log: rules, without any I/O.

A log is only ever added to, at its next free place, by a write that fails when the place is taken.
Whoever wants to add has read all that stands before: so nobody adds anything to a run that another
worker has claimed meanwhile, and no key gets two records.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeAlias

from stroma.errors import AlreadyCommitted, RecordCorrupt, StoreError
from stroma.records import (
    CLAIMABLE,
    Commit,
    RecordHeader,
    RecordKey,
    RecordKind,
    RunRecord,
    last_result,
    unique_id,
)
from stroma.stores.rules import already_committed, stale
from stroma_s3._documents import Entry, Located, encode, encode_index

Place: TypeAlias = tuple[int, str, RecordKind, int]
"""Epoch, path, kind and attempt: a record's key within its run."""


class Renewal(NamedTuple):
    """A wish to extend a lease, even if that makes it end sooner."""

    token: str
    lease_ms: int


Change: TypeAlias = Commit | Renewal


class View:
    """A run, as far as its log was read.

    Attributes:
        run: the run record, with the owner and the lease as they are now.
        log: id of the log.
        next_slot: the first place in the log that was free.
        state: the newest place that has the run record.
        records: every record with its place, oldest first.
        base: the newest place that has an index of the records before it.
        mark: the newest place that a marker was written for; it is there as long as the run is
            PENDING or RUNNING.
        is_deleted: the log has its end.
    """

    __slots__ = ("base", "is_deleted", "log", "mark", "next_slot", "records", "run", "state")

    def __init__(self, head: Entry) -> None:
        if head.run is None:
            raise RecordCorrupt(f"run {head.run_id!r}: its head has no run record")
        self.run: RunRecord = head.run
        self.log = head.log
        self.next_slot = 1
        self.state = 0
        self.base = 0
        self.mark = 0
        self.records: dict[Place, Located] = {}
        self.is_deleted = False

    def copy(self) -> View:
        """Return a view that another thread may go on with."""
        twin = object.__new__(View)
        twin.run, twin.log, twin.next_slot = self.run, self.log, self.next_slot
        twin.state, twin.base, twin.mark = self.state, self.base, self.mark
        twin.is_deleted = self.is_deleted
        twin.records = dict(self.records)
        return twin

    def begin_at(self, base: Entry, index: Iterable[Located]) -> None:
        """Take note of a step that says what all steps before it did."""
        self.records = {place_of(each.header): each for each in index}
        self.next_slot = base.slot
        self.fold(base)

    def fold(self, entry: Entry) -> None:
        """Take note of the next step.

        Raises:
            RecordCorrupt: it is not the next step of this log.
        """
        if (entry.log, entry.slot) != (self.log, self.next_slot):
            raise RecordCorrupt(
                f"run {entry.run_id!r}: place {self.next_slot} of its log holds step {entry.slot} "
                f"of log {entry.log!r}"
            )
        self.next_slot += 1
        self.base = entry.base
        self.mark = entry.mark
        if entry.run is not None:
            self.run = with_input(entry.run, self.run)
            self.state = entry.slot
        self.run = self.run._replace(lease_expires_at=entry.lease_expires_at)
        for record in entry.records:
            self.records.setdefault(place_of(record.header), record)
        self.is_deleted = self.is_deleted or entry.is_end

    def headers(self) -> list[RecordHeader]:
        """Return the headers of the records, oldest first."""
        return [each.header for each in self.records.values()]

    def last(self) -> Located | None:
        """Return the record that `OpenedRun.last` is."""
        header = last_result(self.headers())
        return None if header is None else self.records[place_of(header)]

    def find(self, key: RecordKey) -> Located | None:
        """Return the record of a key; without an epoch, the newest epoch's."""
        if key.epoch is not None:
            return self.records.get((key.epoch, key.path, key.kind, key.attempt))
        rest = (key.path, key.kind, key.attempt)
        newest = max((place for place in self.records if place[1:] == rest), default=None)
        return None if newest is None else self.records[newest]

    def step(self, run: RunRecord | None, lease_expires_at: float) -> Entry:
        """Return the next step of the log, without records.

        Args:
            run: the run record, if the step changes more than the lease.
            lease_expires_at: see `Entry`.
        """
        slot = self.next_slot
        mark = slot if self._has_to_be_marked(run or self.run, lease_expires_at) else self.mark
        entry = Entry(unique_id(), self.run.run_id, self.log, slot, lease_expires_at, mark=mark)
        if run is None:
            return entry._replace(state=self.state, base=self.base)
        return entry._replace(state=slot, base=slot, run=run)

    def _has_to_be_marked(self, after: RunRecord, lease_expires_at: float) -> bool:
        """Say whether others have to look at the run anew because of the next step.

        They look at a marker that they do not know, and again when the lease ends that they
        found then.
        """
        is_open, was_open = after.status in CLAIMABLE, self.run.status in CLAIMABLE
        return is_open and (not was_open or lease_expires_at < self.run.lease_expires_at)

    def encoded(self, entry: Entry, payloads: Sequence[bytes] = ()) -> bytes:
        """Return the object of the next step."""
        is_base = entry.base == entry.slot
        return encode(entry, payloads, encode_index(self.records.values()) if is_base else b"")


class Draft:
    """The next step of a run: several changes, each of which is taken whole or refused.

    Args:
        view: the run as it is.
        now: seconds since the epoch on the server's clock.
    """

    def __init__(self, view: View, now: float) -> None:
        self._view = view
        self._now = now
        self._run = view.run
        self._has_run_changed = False
        self._added: dict[Place, RecordHeader] = {}
        self._payloads: list[bytes] = []
        self.is_wanted = False

    def add(self, change: Change) -> StoreError | None:
        """Take a change, or return why it is refused."""
        if self._view.is_deleted:
            return stale(self._run.run_id, None)
        if not change.token or self._run.owner != change.token:
            return stale(self._run.run_id, self._run.holder)
        if isinstance(change, Renewal):
            expires_at = self._now + change.lease_ms / 1000
            self._run = self._run._replace(lease_expires_at=expires_at)
        elif (refused := self._add_records(change)) is not None:
            return refused
        elif change.update is not None:
            self._run = change.update.apply(self._run, self._now)
            self._has_run_changed = True
        self.is_wanted = True
        return None

    def _add_records(self, commit: Commit) -> AlreadyCommitted | None:
        fresh: dict[Place, tuple[RecordHeader, bytes]] = {}
        for header, payload in commit.records:
            place = place_of(header)
            held_by = self._holder_of(place)
            if place in fresh:
                held_by = fresh[place][0].commit_id
            if held_by not in {None, header.commit_id}:
                return already_committed(header.key)
            if held_by is None:
                fresh[place] = (header, payload)
        for place, (header, payload) in fresh.items():
            self._added[place] = header
            self._payloads.append(payload)
        return None

    def _holder_of(self, place: Place) -> str | None:
        stored = self._view.records.get(place)
        if stored is not None:
            return stored.header.commit_id
        added = self._added.get(place)
        return None if added is None else added.commit_id

    def encoded(self) -> tuple[Entry, bytes]:
        """Return the step and its object."""
        run = self._run if self._has_run_changed else None
        entry = self._view.step(run, self._run.lease_expires_at)
        headers = tuple(Located(header, 0, 0, 0) for header in self._added.values())
        return entry, self._view.encoded(entry._replace(records=headers), self._payloads)


def place_of(header: RecordHeader) -> Place:
    """Return a record's key within its run."""
    return (header.epoch, header.path, header.kind, header.attempt)


def with_input(run: RunRecord, head: RunRecord) -> RunRecord:
    """Return a run record with its input, which only the head has."""
    return run._replace(input_payload=head.input_payload, input_fingerprint=head.input_fingerprint)


def judged(
    view: View, changes: Sequence[Change], now: float
) -> tuple[Draft, list[StoreError | None]]:
    """Return the next step with those of the changes that can be made, and the refusals."""
    draft = Draft(view, now)
    return draft, [draft.add(change) for change in changes]
