"""The store: runs in a bucket of Amazon S3, or of a server that speaks its language."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Final, TypeVar

from pydantic import ValidationError

from stroma.checkpoint import Capabilities, check_size
from stroma.errors import ConfigError, OutcomeUnknown, StoreError, StoreUnusable
from stroma.level0 import AsyncPlainMethods
from stroma.records import (
    CheckpointRecord,
    ClaimQuery,
    Commit,
    OpenedRun,
    OpenRequest,
    RecordKey,
    RunPage,
    RunQuery,
    RunUpdate,
    unique_id,
)
from stroma.schemas import describe
from stroma.stores.rules import cursor_position
from stroma_s3._documents import encode_plain
from stroma_s3._keys import Keys, checked_prefix
from stroma_s3._options import S3Options
from stroma_s3._runtime import Runtime, Services
from stroma_s3._view import Renewal

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

T = TypeVar("T")

_OF_CLIENTS: Final = {
    "access_key_id",
    "addressing_style",
    "connect_timeout_seconds",
    "endpoint_url",
    "profile",
    "read_timeout_seconds",
    "region",
    "request_checksum_calculation",
    "secret_access_key",
    "session_token",
}
GRACE_SECONDS: Final = 60.0
"""How long a cancelled caller waits for its write."""


class S3Store(AsyncPlainMethods):
    """Keeps runs and states as objects in a bucket.

    Usable from several event loops and threads; a forked process makes connections of its own.
    Nothing is connected, and boto3 is not imported, before the first operation.

    Args:
        bucket: the bucket, which has to exist.
        prefix: what the keys of all objects begin with.
        client: a client of boto3 to use; it stays open when the store is closed. It brings its
            own endpoint, region, credentials, timeouts and retries.
        **options: the other fields of `S3Options`, such as ``endpoint_url`` and ``region``.

    Raises:
        ConfigError: an option is wrong, or the client is none of boto3's for S3.
    """

    def __init__(
        self, bucket: str, *, prefix: str = "", client: S3Client | None = None, **options: Any
    ) -> None:
        if client is not None and (twice := sorted(_OF_CLIENTS & options.keys())):
            raise ConfigError(f"S3Store: {', '.join(twice)} cannot be given beside a client")
        if client is not None:
            _check_client(client)
        checked = _checked({"bucket": bucket, "prefix": prefix, **options})
        self._begin(checked, client)

    @classmethod
    def from_options(cls, options: S3Options) -> S3Store:
        """Return a store with options that were checked.

        Raises:
            ConfigError: no key can begin with the prefix.
        """
        store = cls.__new__(cls)
        store._begin(options, None)
        return store

    def _begin(self, options: S3Options, client: S3Client | None) -> None:
        self._options = options
        self._client = client
        self._keys = Keys(checked_prefix(options.prefix))
        self._is_closed = False
        self._inherited: list[Runtime] = []
        self._runtime: Runtime | None = None

    def __repr__(self) -> str:
        url = f"s3://{self._options.bucket}/{self._keys.prefix}"
        return f"S3Store({url!r})"

    def _here(self) -> Runtime:
        """Return what this process works with; a forked one leaves its parent's alone."""
        if self._is_closed:
            raise StoreUnusable(f"{self!r} is closed: make another one")
        found = self._runtime
        if found is None or found.pid != os.getpid():
            if found is not None:
                self._inherited.append(found)  # kept: collecting it might close what is shared
            found = self._runtime = Runtime(self._options, self._client, self._keys)
        return found

    @property
    def capabilities(self) -> Capabilities:
        """What this store promises. `setup` finds out whether the server can fence."""
        return self._here().capabilities()

    async def setup(self) -> None:
        """Find out what the server can do, unless the bucket has it already.

        Every operation does so by itself.

        Raises:
            StoreUnusable: there is no such bucket, or it must not be used.
            StoreUnavailable: the server does not answer.
        """
        await self._do(lambda services: None)

    async def open_run(self, request: OpenRequest) -> OpenedRun | None:
        """Claim a run; see `RecordStore.open_run`.

        Raises:
            RunLocked: another token owns it.
        """
        return await self._do(lambda services: services.logs.open_run(request))

    async def inspect(self, run_id: str) -> OpenedRun | None:
        """Return a run without claiming it; see `RecordStore.inspect`."""
        return await self._do(lambda services: services.logs.inspect(run_id))

    async def commit_many(self, commits: Sequence[Commit]) -> list[StoreError | None]:
        """Write several commits; see `RecordStore.commit_many`.

        Those of one run that wait at the same time share an object. A caller that is cancelled
        waits for up to a minute, as a thread cannot be cut.
        """
        here = self._here()
        refusals = check_size(commits, here.capabilities())
        waiting: list[Future[StoreError | None]] = []
        for commit, refused in zip(commits, refusals, strict=True):
            waiting.append(_told(refused) if refused is not None else self._send(here, commit))
        return [_outcome_of(each) for each in await _all_of(waiting)]

    def _send(self, here: Runtime, commit: Commit) -> Future[StoreError | None]:
        if commit.token:
            return here.change(commit.run_id, commit)
        return here.submit(lambda services: _replace(services, self._keys, commit))

    async def renew(self, claims: Sequence[tuple[str, str]], lease_ms: int) -> list[bool]:
        """Extend leases; see `RecordStore.renew`.

        Raises:
            StoreError: the server did not answer; nobody knows which leases were extended.
        """
        here = self._here()
        waiting = [here.change(run_id, Renewal(token, lease_ms)) for run_id, token in claims]
        done = await _all_of(waiting)
        return [each.result() is None for each in done]

    async def release(self, run_id: str, token: str) -> None:
        """Give up a run, if the token owns it."""
        released = Commit(run_id, token, (), RunUpdate(release=True))
        (done,) = await _all_of([self._here().change(run_id, released)])
        done.result()  # a refusal is returned, and does not matter

    async def fetch(self, run_id: str, keys: Sequence[RecordKey]) -> list[CheckpointRecord | None]:
        """Return the record of each key, or None."""
        return await self._do(lambda services: services.logs.fetch(run_id, keys))

    async def runs(self, query: RunQuery) -> RunPage:
        """List runs, the last updated first; equal times by run id.

        It takes one request for every thousand objects that the store has, and two or three for
        each run that is looked at. Times of different machines differ by up to half a second.
        """
        _check_cursor(query)
        return await self._do(lambda services: services.listing.runs(query))

    async def claimable(self, query: ClaimQuery) -> RunPage:
        """List runs that may be claimed, the first created first; see `RecordStore.claimable`.

        It takes one request for every thousand runs that are PENDING or RUNNING, and three or
        four for each run that is looked at, however many others there are.
        """
        _check_cursor(query)
        return await self._do(lambda services: services.claimable.page(query))

    async def delete(self, run_id: str) -> None:
        """Remove the run and all its records, plain ones too, and nothing else."""
        (done,) = await _all_of(
            [self._here().submit(lambda services: services.removal.delete(run_id))]
        )
        done.result()

    async def purge(self, query: RunQuery) -> int:
        """Remove runs that a query finds and nobody owns; the limit counts the removed.

        It also removes what deletions left behind that were killed, after a day.

        Returns:
            How many were removed.
        """
        _check_cursor(query)
        return await self._do(lambda services: services.listing.purge(query))

    async def health(self) -> None:
        """Return if the bucket can be written and read now.

        Raises:
            StoreError: it cannot; the message says why.
        """
        await self._do(lambda services: _touch(services, self._keys))

    async def aclose(self) -> None:
        """Finish what is under way, and end the threads and the connections.

        Afterwards every operation but this one raises `StoreUnusable`.
        """
        self._is_closed = True
        found, self._runtime = self._runtime, None
        if found is not None and found.pid == os.getpid():
            await asyncio.to_thread(found.close)

    async def _do(self, work: Callable[[Services], T]) -> T:
        return await asyncio.wrap_future(self._here().submit(work))


def _check_cursor(query: RunQuery | ClaimQuery) -> None:
    """Refuse a cursor that is none before anything is sent.

    Raises:
        ConfigError: it is none.
    """
    if query.cursor:
        cursor_position(query.cursor)


def _check_client(client: object) -> None:
    from botocore.client import BaseClient  # imported already by whoever made a client

    if not isinstance(client, BaseClient):
        raise ConfigError(
            "S3Store takes a client of boto3, not "
            f"{type(client).__module__}.{type(client).__qualname__}"
        )
    service = client.meta.service_model.service_name
    if service != "s3":
        raise ConfigError(f"S3Store takes boto3's client of s3, not of {service}")


def _checked(options: dict[str, Any]) -> S3Options:
    accepted = [*S3Options.model_fields, "client"]
    for name in options:
        if name not in accepted:
            raise ConfigError(f"S3Store has no option {name!r}: it takes {', '.join(accepted)}")
    try:
        return S3Options.model_validate(options)
    except ValidationError as exc:
        # Not chained: pydantic repeats the values, and one of them may be a secret.
        raise ConfigError(f"S3Store: {'; '.join(describe(exc, whole=''))}") from None


def _replace(services: Services, keys: Keys, commit: Commit) -> None:
    for record in commit.records:
        key = keys.plain(record.header.key)
        services.bucket.put(key, encode_plain(record), f"run {commit.run_id!r}")


def _touch(services: Services, keys: Keys) -> None:
    key, body = keys.probe(unique_id()), b"health"
    services.bucket.put(key, body, "health")
    found = services.bucket.get(key, "health")
    services.bucket.delete_one(key, "health")
    if found != body:
        raise StoreUnusable(
            f"{services.bucket.url(key)} was written and could not be read: the server does not "
            "show what was written"
        )


def _told(refused: StoreError) -> Future[StoreError | None]:
    outcome: Future[StoreError | None] = Future()
    outcome.set_result(refused)
    return outcome


def _outcome_of(done: Future[StoreError | None]) -> StoreError | None:
    exc = done.exception()
    if exc is None:
        return done.result()
    if isinstance(exc, StoreError):
        return exc
    if not isinstance(exc, Exception):
        raise exc
    error = OutcomeUnknown(f"a commit failed: {type(exc).__name__}: {exc}")
    error.__cause__ = exc
    return error


async def _all_of(work: Sequence[Future[T]]) -> Sequence[Future[T]]:
    """Wait until all of it is done, for up to a minute even while being cancelled."""
    waiting = {asyncio.ensure_future(asyncio.wrap_future(each)) for each in work}
    if not waiting:
        return work
    try:
        await asyncio.wait(waiting)
    except asyncio.CancelledError:
        await asyncio.wait(waiting, timeout=GRACE_SECONDS)
        raise
    finally:
        for each in waiting:
            if each.done() and not each.cancelled():
                each.exception()  # retrieved, so that the loop does not report it as lost
    return work
