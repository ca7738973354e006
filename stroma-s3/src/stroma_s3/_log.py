"""The logs of runs in a bucket: read, added to, sealed and removed; sync, for threads."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Executor
from contextlib import suppress
from typing import Final

from stroma.errors import RecordCorrupt, StoreError, StoreUnavailable
from stroma.records import (
    CLAIMABLE,
    PLAIN_EPOCH,
    CheckpointRecord,
    OpenedRun,
    OpenRequest,
    RecordKey,
    RunRecord,
    unique_id,
)
from stroma.stores.rules import claimed, is_closed_book, is_held, locked, stale
from stroma_s3._client import Bucket
from stroma_s3._documents import Entry, Located, decode, decode_index, decode_plain, encode
from stroma_s3._keys import Keys
from stroma_s3._markers import Markers
from stroma_s3._view import Change, Renewal, View, judged, with_input
from stroma_s3._views import Views

_TRIES: Final = 20
"""How often an operation begins anew because others changed the run under it."""

PURGING: Final = "a purge by "
"""How the holder of a run begins that is being purged."""

_PURGED_AGAIN_SECONDS: Final = 0.1
"""After which time a claim looks again whether a purge has come to its end."""


class Vanished(Exception):
    """A log went away while it was read: its run was deleted."""


class RunLogs:
    """What happened to each run.

    Args:
        bucket: where.
        keys: under which keys.
        readers: reads many objects at a time. Nothing that runs in it waits for others there.
        views: what this process has read or written.
        markers: of the runs that are PENDING or RUNNING.
    """

    def __init__(
        self, bucket: Bucket, keys: Keys, readers: Executor, views: Views, markers: Markers
    ) -> None:
        self._bucket = bucket
        self._keys = keys
        self._readers = readers
        self._views = views
        self._markers = markers

    def open_run(self, request: OpenRequest) -> OpenedRun | None:
        """Claim a run, new or not; see `RecordStore.open_run`.

        A new run takes two requests: its marker and its head. Otherwise: three and a removal to
        find out, one for every thousand steps of its log and one for each step to read it, one or
        two to claim it and one to see that nobody deleted it meanwhile.
        """
        self._views.forget(request.run_id)
        for number in range(1, _TRIES + 1):
            new = request.new
            head = self.head(request.run_id) if new is None else self._created(request, new)
            if isinstance(head, OpenedRun):
                return head
            view = self._read(request.run_id, head, with_input=True)
            if view is None:
                if request.new is None:
                    return None
                continue
            with suppress(Vanished):
                opened = self._claim(view, request, is_patient=number < _TRIES)
                if opened is not None:
                    return opened
        raise _too_busy(request.run_id)

    def _created(self, request: OpenRequest, new: RunRecord) -> OpenedRun | Entry | None:
        """Create a run, or return the head of the one that is there."""
        run = claimed(new, request, self._bucket.clock.now(), is_new=True)
        head = Entry(unique_id(), run.run_id, unique_id(), 0, run.lease_expires_at, 0, run)
        key = self._keys.head(run.run_id)
        body = encode(head, lead=run.input_payload)
        self._markers.put(run, head.log, 0)
        if not self._bucket.put_new(key, body, about_run(run.run_id)):
            found = self.head(run.run_id)
            if found is None or found.id != head.id:
                self._markers.remove_later(run, head.log, 0)
                return found
        self._views.keep(View(head))
        return OpenedRun(run, (), None, True, True)

    def _claim(self, view: View, request: OpenRequest, *, is_patient: bool) -> OpenedRun | None:
        """Claim a run that was read; None if it was deleted meanwhile, or is being purged."""
        while not view.is_deleted:
            run, now = view.run, self._bucket.clock.now()
            if is_closed_book(run, request):
                return self._opened(view)
            if run.owner != request.token and is_held(run.owner, run.lease_expires_at, now):
                if not self._is_current(view):
                    return None  # its log was removed while it was read: it showed an older state
                if is_patient and run.holder.startswith(PURGING):
                    time.sleep(_PURGED_AGAIN_SECONDS)
                    return None
                raise locked(run, now)
            opened = self._opened(view)  # a payload that is gone is noticed before the claim
            mine = claimed(run, request, now)
            if not self.append(view, view.step(mine, mine.lease_expires_at)):
                continue
            if not self._is_current(view):
                return None
            self._views.keep(view)
            return opened._replace(run=view.run, is_claimed=True, status_before=run.status)
        return None

    def inspect(self, run_id: str) -> OpenedRun | None:
        """Return a run without changing it; see `RecordStore.inspect`."""
        for _ in range(_TRIES):
            view = self._read(run_id, with_input=True)
            if view is None:
                return None
            with suppress(Vanished):
                return self._opened(view)
        raise _too_busy(run_id)

    def _opened(self, view: View) -> OpenedRun:
        last = view.last()
        record = None if last is None else self._record(view, last)
        return OpenedRun(view.run, view.headers(), record, False, False)

    def change(self, run_id: str, changes: Sequence[Change]) -> list[StoreError | None]:
        """Make changes of one run by one request, each whole or not at all.

        Returns:
            For each change None, or why it was refused. A refusal is checked against the
            bucket: what this process remembers may be old.
        """
        view = self._views.get(run_id)
        is_fresh = view is None
        if view is None:
            view = self._read(run_id)
        while view is not None:
            draft, refusals = judged(view, changes, self._bucket.clock.now())
            if any(refusals) and not is_fresh:
                view, is_fresh = self._refreshed(view), True
                continue
            if not draft.is_wanted:
                self._views.keep(view)
                return refusals
            held_until = view.run.lease_expires_at
            entry, body = draft.encoded()
            is_fresh = False
            try:
                if not self.append(view, entry, body):
                    continue
            except Vanished:
                view = self._read(run_id)
                continue
            if self._must_look(changes, held_until) and not self._is_current(view):
                self._bucket.delete_one(self._key(entry), about_run(run_id))  # nobody would find it
                if entry.is_marked:
                    self._markers.remove_later(view.run, entry.log, entry.slot)
                view = None
                continue
            self._views.keep(view)
            return refusals
        self._views.forget(run_id)
        return [stale(run_id, None)] * len(changes)

    def _must_look(self, changes: Sequence[Change], held_until: float) -> bool:
        """Say whether the run may have been deleted since this worker last knew.

        A worker whose run is deleted finds that out from the end that is put into its log. That
        is left out, or removed again, for a run whose lease had ended; and it is missing if
        whoever deletes the run dies on the way, which is why renewals look, too.
        """
        if any(isinstance(change, Renewal) for change in changes):
            return True
        return held_until <= self._bucket.clock.now()

    def append(self, view: View, entry: Entry, body: bytes | None = None) -> bool:
        """Write the next step and take note of it; if another one is there, of that.

        Raises:
            Vanished: the log is being removed.
        """
        run, mark = view.run, view.mark
        body = view.encoded(entry) if body is None else body
        if entry.is_marked:
            self._markers.put(run, entry.log, entry.slot)
        found = self._written(entry, body)
        is_ours = found is not None and found.id == entry.id
        if not is_ours and entry.is_marked:
            self._markers.remove_later(run, entry.log, entry.slot)
        if found is None:
            raise Vanished
        view.fold(found)
        is_marked_as_before = view.mark == mark and view.run.status in CLAIMABLE
        if is_ours and run.status in CLAIMABLE and not is_marked_as_before:
            self._markers.remove_later(run, entry.log, mark)
        return is_ours

    def _written(self, entry: Entry, body: bytes) -> Entry | None:
        """Write a step, and return what is at its place then; None if the log is being removed."""
        key = self._key(entry)
        if self._bucket.put_new(key, body, about_run(entry.run_id)):
            return decode(body, entry.run_id, entry.slot, key)
        return self.entry(entry.run_id, entry.log, entry.slot)

    def _read(
        self, run_id: str, head: Entry | None = None, *, with_input: bool = False
    ) -> View | None:
        """Return a run with its whole log, or None if it does not exist.

        Args:
            run_id: the run.
            head: its head, if that was read just now.
            with_input: also read what is large.
        """
        for _ in range(_TRIES):
            head = self.head(run_id) if head is None else head
            if head is None:
                return None
            with suppress(Vanished):
                view = View(self.with_input(head) if with_input else head)
                self._read_on(view)
                return None if view.is_deleted else view
            head = None
        raise _too_busy(run_id)

    def _refreshed(self, view: View) -> View | None:
        """Return the run as it is now, or None if it does not exist."""
        run_id = view.run.run_id
        if not self._is_current(view):
            return self._read(run_id)
        try:
            self._read_on(view)
        except Vanished:
            return self._read(run_id)
        return None if view.is_deleted else view

    def _read_on(self, view: View) -> None:
        """Read what the log has beyond the view.

        Raises:
            Vanished: the run was deleted meanwhile.
            RecordCorrupt: a step is missing.
        """
        run_id = view.run.run_id
        after = self._keys.log(run_id, view.log)
        if view.next_slot > 1:
            after = self._keys.slot(run_id, view.log, view.next_slot - 1)
        slots = self.slots(run_id, view.log, after)
        if view.next_slot == 1 and len(slots) > 1:
            self._begin_late(view, slots[-1])
            slots = [slot for slot in slots if slot >= view.next_slot]
        expected = list(range(view.next_slot, view.next_slot + len(slots)))
        entries = list(self._readers.map(lambda n: self.entry(run_id, view.log, n), expected))
        for slot, entry in zip(expected, entries, strict=True):
            if entry is None:
                raise self._missing(view, slot)
            view.fold(entry)

    def _missing(self, view: View, slot: int) -> Exception:
        """Return what it means that a step which was there is not there."""
        if not self._is_current(view):
            return Vanished()
        run_id = view.run.run_id
        return RecordCorrupt(
            f"run {run_id!r}: {self._bucket.url(self._keys.slot(run_id, view.log, slot))} is "
            "missing, and later steps are there: restore it, or delete the run"
        )

    def _begin_late(self, view: View, last: int) -> None:
        """Begin with the newest step that has an index, if there is one."""
        run_id = view.run.run_id
        found = self.entry(run_id, view.log, last)
        if found is None:
            raise Vanished
        if found.base not in {0, last}:
            found = self.entry(run_id, view.log, found.base)
        if found is None:
            raise Vanished
        if found.base:
            view.begin_at(found, decode_index(self._lead(found), self._key(found)))

    def _lead(self, entry: Entry) -> bytes:
        if entry.lead is not None:
            return entry.lead
        start, size = entry.lead_at
        data = self._bucket.get(self._key(entry), about_run(entry.run_id), start, size)
        if data is None:
            raise Vanished
        return data

    def slots(self, run_id: str, log: str, after: str = "") -> list[int]:
        """Return the places of a log that are taken, in order."""
        prefix = self._keys.log(run_id, log)
        listed = self._bucket.list(prefix, about_run(run_id), after)
        parsed = (self._keys.parse_log(found.key) for found in listed)
        return [found.slot for found in parsed if found is not None]

    def head(self, run_id: str) -> Entry | None:
        """Return the first step of a run, or None if there is no run."""
        return self.entry(run_id, "", 0)

    def entry(self, run_id: str, log: str, slot: int) -> Entry | None:
        """Return the step at a place, or None; see `entry_at`."""
        return self.entry_at(self._keys.slot(run_id, log, slot), run_id, slot)

    def entry_at(self, key: str, run_id: str | None, slot: int) -> Entry | None:
        """Return the step that an object holds, or None if there is no such object.

        Args:
            key: of the object.
            run_id: the run that it has to be of; None where only its key is known.
            slot: the place in the log that it has to have; 0 for the head.

        Raises:
            RecordCorrupt: it holds something else.
        """
        data = self._bucket.get_head(
            key, f"object {key!r}" if run_id is None else about_run(run_id)
        )
        if data is None:
            return None
        entry = decode(data, run_id, slot, key)
        if run_id is None and self._keys.head(entry.run_id) != key:
            raise RecordCorrupt(f"object {key!r} is the head of run {entry.run_id!r}")
        return entry

    def glance(self, head: Entry, slot: int) -> View | None:
        """Return a run without its records, from the last step of its log.

        Args:
            head: its head.
            slot: the place of the last step; 0 if there is none but the head.

        Returns:
            The run with its input, as that step left it; None if it was deleted meanwhile.
        """
        if head.run is None:
            return None
        try:
            view = View(self.with_input(head))
        except Vanished:
            return None
        return view if not slot or self._skip_to(view, slot) else None

    def _skip_to(self, view: View, slot: int) -> bool:
        run_id = view.run.run_id
        last = self.entry(run_id, view.log, slot)
        if last is None or last.is_end:
            return False
        stated = last if last.state in {0, slot} else self.entry(run_id, view.log, last.state)
        if stated is None:
            return False
        if stated.run is not None:
            view.run = with_input(stated.run, view.run)
        view.run = view.run._replace(run_id=run_id, lease_expires_at=last.lease_expires_at)
        view.next_slot, view.state, view.base = slot + 1, last.state, last.base
        view.mark = last.mark
        return True

    def with_input(self, head: Entry) -> Entry:
        """Return the head of a run with the run's input.

        Raises:
            Vanished: the run was deleted meanwhile.
        """
        if head.run is None:
            return head
        return head._replace(run=head.run._replace(input_payload=self._lead(head)))

    def _is_current(self, view: View) -> bool:
        head = self.head(view.run.run_id)
        return head is not None and head.log == view.log

    def _key(self, entry: Entry) -> str:
        return self._keys.slot(entry.run_id, entry.log, entry.slot)

    def fetch(self, run_id: str, keys: Sequence[RecordKey]) -> list[CheckpointRecord | None]:
        """Return the record of each key, or None; see `RecordStore.fetch`."""
        found: list[CheckpointRecord | None] = list(self._readers.map(self._plain, keys))
        rest = [key for key, record in zip(keys, found, strict=True) if record is None]
        if all(key.epoch == PLAIN_EPOCH for key in rest):
            return found
        of_run = iter(self._of_run(run_id, rest))
        return [next(of_run) if record is None else record for record in found]

    def _plain(self, key: RecordKey) -> CheckpointRecord | None:
        if key.epoch not in {None, PLAIN_EPOCH}:
            return None
        name = self._keys.plain(key)
        data = self._bucket.get(name, about_run(key.run_id))
        if data is None:
            return None
        record = decode_plain(data, name)
        if record.header.key != key._replace(epoch=PLAIN_EPOCH):
            raise RecordCorrupt(f"object {name!r} holds another record: {record.header.key}")
        return record

    def _of_run(self, run_id: str, keys: Sequence[RecordKey]) -> list[CheckpointRecord | None]:
        for _ in range(_TRIES):
            kept = self._views.get(run_id)
            view = self._read(run_id) if kept is None else self._refreshed(kept.copy())
            if view is None:
                return [None] * len(keys)
            try:
                return list(self._readers.map(self._found, [view] * len(keys), keys))
            except Vanished:
                self._views.forget(run_id)
        raise _too_busy(run_id)

    def _found(self, view: View, key: RecordKey) -> CheckpointRecord | None:
        place = None if key.run_id != view.run.run_id else view.find(key)
        return None if place is None else self._record(view, place)

    def _record(self, view: View, place: Located) -> CheckpointRecord:
        if not place.size:
            return CheckpointRecord(place.header, b"")
        run_id = view.run.run_id
        key = self._keys.slot(run_id, view.log, place.slot)
        payload = self._bucket.get(key, about_run(run_id), place.offset, place.size)
        if payload is None:
            raise self._missing(view, place.slot)
        return CheckpointRecord(place.header, payload)


def about_run(run_id: str) -> str:
    """Return how messages name a run."""
    return f"run {run_id!r}"


def _too_busy(run_id: str) -> StoreUnavailable:
    return StoreUnavailable(f"run {run_id!r}: others create and delete it over and over; try again")
