"""What a store has in one process: client, threads, what it remembers, and who waits for what."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, TypeVar

from stroma.checkpoint import Capabilities, Durability
from stroma.errors import StoreError
from stroma_s3 import _probe
from stroma_s3._claimable import ClaimableRuns
from stroma_s3._client import Bucket, Conditional, make_client
from stroma_s3._clock import ServerClock
from stroma_s3._keys import Keys
from stroma_s3._listing import Listing
from stroma_s3._log import RunLogs
from stroma_s3._markers import Markers
from stroma_s3._options import S3Options
from stroma_s3._removal import Removal
from stroma_s3._view import Change, Renewal
from stroma_s3._views import Views

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

T = TypeVar("T")

MAX_GROUP: Final = 500
MAX_GROUP_BYTES: Final = 16 * 1024**2
"""Changes of one run that wait at the same time go into one object, up to this size."""

_clocks: Final[dict[str, ServerClock]] = {}
"""By endpoint: stores of one process agree on what time it is there."""


class Services:
    """What needs the client, which is made on first use: importing boto3 takes long."""

    def __init__(
        self,
        options: S3Options,
        client: S3Client | None,
        keys: Keys,
        readers: ThreadPoolExecutor,
        views: Views,
    ) -> None:
        own = client is None
        client = make_client(options, 2 * options.max_connections) if client is None else client
        clock = _clocks.setdefault(str(client.meta.endpoint_url), ServerClock())
        self.is_own_client = own
        self.bucket = Bucket(client, options, clock, is_own_client=own)
        self.bucket.conditional = _probe.setup(self.bucket, keys)
        markers = Markers(self.bucket, keys, readers)
        self.logs = RunLogs(self.bucket, keys, readers, views, markers)
        self.removal = Removal(self.bucket, keys, self.logs, views, markers)
        self.listing = Listing(self.bucket, keys, readers, self.logs, self.removal)
        self.claimable = ClaimableRuns(self.bucket, keys, readers, self.logs, markers)


class Runtime:
    """A store's threads and connections in one process.

    Args:
        options: see `S3Options`.
        client: boto3's, or None for one of its own.
        keys: the keys of the store.
    """

    def __init__(self, options: S3Options, client: S3Client | None, keys: Keys) -> None:
        self.pid = os.getpid()
        self.keys = keys
        self._options = options
        self._client = client
        self._views = Views()
        self._guard = threading.Lock()
        self._setting_up = threading.Lock()
        self._services: Services | None = None
        self._waiting: dict[str, deque[tuple[Change, Future[StoreError | None]]]] = {}
        # Two pools: what reads many objects waits for them while it holds a thread.
        self._operations = ThreadPoolExecutor(options.max_connections, "stroma-s3")
        self._readers = ThreadPoolExecutor(options.max_connections, "stroma-s3-read")

    def services(self) -> Services:
        """Return what works with the bucket; the first call asks what the server can do."""
        found = self._services
        if found is None:
            with self._setting_up:
                found = self._services
                if found is None:
                    found = self._services = Services(
                        self._options, self._client, self.keys, self._readers, self._views
                    )
        return found

    def capabilities(self) -> Capabilities:
        """Return what the store promises, as far as it knows the server."""
        found = self._services
        is_fenced = found is None or found.bucket.conditional is Conditional.ATOMIC
        return Capabilities(
            Durability.REPLICATED,
            fencing=is_fenced,
            max_payload_bytes=self._options.max_payload_bytes,
            groups_commits=True,
            refuses_stale_commits=is_fenced,
        )

    def submit(self, work: Callable[[Services], T]) -> Future[T]:
        """Do something in a thread."""
        return self._operations.submit(lambda: work(self.services()))

    def change(self, run_id: str, change: Change) -> Future[StoreError | None]:
        """Make a change of a run, after those that were asked for before."""
        outcome: Future[StoreError | None] = Future()
        outcome.set_running_or_notify_cancel()  # nothing cuts a write
        with self._guard:
            waiting = self._waiting.get(run_id)
            if waiting is not None:
                waiting.append((change, outcome))
                return outcome
            self._waiting[run_id] = deque([(change, outcome)])
        try:
            self._operations.submit(self._work_off, run_id)
        except RuntimeError:
            with self._guard:
                del self._waiting[run_id]
            raise
        return outcome

    def _work_off(self, run_id: str) -> None:
        """Make the changes of one run, those that wait at the same time together."""
        while True:
            with self._guard:
                group = _next_group(self._waiting[run_id])
                if not group:
                    del self._waiting[run_id]
                    return
            try:
                outcomes = self.services().logs.change(run_id, [change for change, _ in group])
            except BaseException as exc:
                for _, outcome in group:
                    outcome.set_exception(exc)
                if not isinstance(exc, Exception):
                    raise
                continue
            for (_, outcome), refused in zip(group, outcomes, strict=True):
                outcome.set_result(refused)

    def close(self) -> None:
        """Finish what was asked for, and end the threads and the connections."""
        self._operations.shutdown()
        self._readers.shutdown()
        if self._services is not None and self._services.is_own_client:
            self._services.bucket.close()


def _next_group(
    waiting: deque[tuple[Change, Future[StoreError | None]]],
) -> list[tuple[Change, Future[StoreError | None]]]:
    group: list[tuple[Change, Future[StoreError | None]]] = []
    size = 0
    while waiting and len(group) < MAX_GROUP:
        size += _size_of(waiting[0][0])
        if group and size > MAX_GROUP_BYTES:
            break
        group.append(waiting.popleft())
    return group


def _size_of(change: Change) -> int:
    if isinstance(change, Renewal):
        return 0
    return sum(len(record.payload) for record in change.records)
