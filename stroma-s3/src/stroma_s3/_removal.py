"""Removal of runs, whoever owns them or works on them."""

from __future__ import annotations

from stroma.errors import RecordCorrupt
from stroma.records import unique_id
from stroma_s3._client import Bucket
from stroma_s3._documents import Entry, encode
from stroma_s3._keys import Keys
from stroma_s3._log import RunLogs, Vanished, about_run
from stroma_s3._markers import Markers
from stroma_s3._view import View
from stroma_s3._views import Views


class Removal:
    """Removes runs.

    Args:
        bucket: where.
        keys: under which keys.
        logs: of the runs.
        views: what this process remembers of them.
        markers: of the runs that are PENDING or RUNNING.
    """

    def __init__(
        self, bucket: Bucket, keys: Keys, logs: RunLogs, views: Views, markers: Markers
    ) -> None:
        self._bucket = bucket
        self._keys = keys
        self._logs = logs
        self._views = views
        self._markers = markers

    def delete(self, run_id: str, *, is_fenced: bool = False) -> None:
        """Remove a run, its records and its plain ones; see `RecordStore.delete`.

        The head goes first: from then on there is no run, and what a death on the way leaves
        behind belongs to none, until it is deleted once more or swept by a purge.

        Args:
            run_id: the run.
            is_fenced: nobody can be adding to it.
        """
        about = about_run(run_id)
        # Listed before the head is read: what is listed belongs to this head or to an older one,
        # never to a run that somebody creates meanwhile.
        doomed = set(self._objects_of(run_id))
        try:
            head = self._logs.head(run_id)
        except RecordCorrupt:
            head = None
            self._bucket.delete_one(self._keys.head(run_id), about)
        self._views.forget(run_id)
        if head is not None:
            self._bucket.delete_one(self._keys.head(run_id), about)
            doomed |= set() if head.run is None else set(self._markers.of_log(head.run, head.log))
        if head is not None and not is_fenced:
            end = self._seal(head)
            written_since = self._logs.slots(run_id, head.log)
            doomed |= {self._keys.slot(run_id, head.log, slot) for slot in written_since}
            doomed.discard(end or "")
        self._bucket.delete(sorted(doomed), about)

    def _objects_of(self, run_id: str) -> list[str]:
        """Return the keys of everything that is kept of a run, except its head."""
        about = about_run(run_id)
        of_logs = (found.key for found in self._bucket.list(self._keys.logs_of(run_id), about))
        of_plain = (found.key for found in self._bucket.list(self._keys.plain_of(run_id), about))
        return [key for key in of_logs if self._keys.parse_log(key) is not None] + [
            key for key in of_plain if self._keys.is_plain_of(run_id, key)
        ]

    def _seal(self, head: Entry) -> str | None:
        """Put an end into the log of a run that somebody owns, so that its worker is told.

        Returns:
            The end's key: it stays, as the worker's next step would find the place free.
        """
        slots = self._logs.slots(head.run_id, head.log)
        last = head
        if slots:
            try:
                last = self._logs.entry(head.run_id, head.log, slots[-1]) or head
            except RecordCorrupt:
                return None  # nobody can go on with it
        while not last.is_end and last.lease_expires_at > self._bucket.clock.now():
            slot = last.slot + 1
            end = Entry(
                unique_id(), head.run_id, head.log, slot, last.lease_expires_at, is_end=True
            )
            key = self._keys.slot(head.run_id, head.log, slot)
            if self._bucket.put_new(key, encode(end), about_run(head.run_id)):
                return key
            taken = self._logs.entry(head.run_id, head.log, slot)
            if taken is None:
                break  # another deletion removes it
            last = taken
        return None

    def fence(self, view: View, holder: str, lease_seconds: float) -> bool:
        """Claim a run that nobody owns, without any other change, to delete it.

        Returns:
            False if somebody did something to it since it was read.
        """
        expires_at = self._bucket.clock.now() + lease_seconds
        run = view.run._replace(owner=unique_id(), holder=holder, lease_expires_at=expires_at)
        # Not a base: the view of a listing has no records.
        step = view.step(run, expires_at)._replace(base=view.base)
        try:
            return self._logs.append(view, step)
        except Vanished:
            return False
