"""The sync store, for code that is not async; safe to use from several threads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar, Unpack, cast

from redis import Redis, RedisCluster

from stroma.checkpoint import Capabilities
from stroma.errors import ConfigError, StoreError
from stroma.level0 import SyncPlainMethods
from stroma.records import (
    CheckpointRecord,
    ClaimQuery,
    Commit,
    OpenedRun,
    OpenRequest,
    RecordKey,
    RunPage,
    RunQuery,
)
from stroma_redis._commands import Operations
from stroma_redis._errors import closed
from stroma_redis._options import MoreOptions, options_of
from stroma_redis._steps import Steps
from stroma_redis._sync_lines import line_of, line_to
from stroma_redis._wire import address_of

T = TypeVar("T")


class SyncRedisStore(SyncPlainMethods):
    """`RedisStore` without ``await``.

    A runner calls it in threads of its own, so that its event loop goes on.

    Args:
        redis_url: ``redis://``, ``rediss://`` or ``unix://``; the default is this machine's
            server. Or a ready `redis.Redis` or `redis.RedisCluster`.
        ttl_seconds: how long a run is kept after the last write to it.
        client: a ready client. Who hands it in closes it.
        options: see `RedisOptions`.

    Raises:
        ConfigError: an option is wrong; the message names it and those that are accepted.
    """

    run_in_thread = True

    def __init__(
        self,
        redis_url: str | Redis | RedisCluster | None = None,
        *,
        ttl_seconds: float = 3600,
        client: Redis | RedisCluster | None = None,
        **options: Unpack[MoreOptions],
    ) -> None:
        if redis_url is not None and not isinstance(redis_url, str):
            redis_url, client = None, redis_url
        given: dict[str, object] = {"ttl_seconds": ttl_seconds, **options}
        if redis_url is not None:
            given["url"] = redis_url
        checked = options_of(given, has_client=client is not None)
        if client is not None and not isinstance(client, (Redis, RedisCluster)):
            raise ConfigError(
                f"SyncRedisStore takes a client of redis, not {type(client).__module__}."
                f"{type(client).__qualname__}; RedisStore takes one of redis.asyncio"
            )
        self._options = checked
        self._address = checked.address if client is None else address_of(client)
        self._operations = Operations(
            checked,
            self._address,
            groups_commits=False,
            is_cluster=checked.cluster or isinstance(client, RedisCluster),
        )
        self._line = line_to(checked) if client is None else line_of(client, checked)
        self._is_closed = False

    def __repr__(self) -> str:
        return f"SyncRedisStore({self._address!r}, ttl_seconds={self._options.ttl_seconds:g})"

    def _run(self, steps: Steps[T]) -> T:
        """Send what an operation asks for, until it returns its result."""
        if self._is_closed:
            raise closed(self)
        try:
            request = next(steps)
            while True:
                request = steps.send(self._line.ask(request))
        except StopIteration as end:
            return cast(T, end.value)

    @property
    def capabilities(self) -> Capabilities:
        """What this store promises; after `setup`, with the durability that the server has."""
        return self._operations.capabilities

    def setup(self) -> None:
        """Ask the server for its version and durability; there is nothing to create.

        Raises:
            StoreUnusable: it is older than Redis 6.2, or refuses this user.
            StoreUnavailable: it cannot be reached.
        """
        self._run(self._operations.setup(one_by_one=self._line.one_by_one))

    def open_run(self, request: OpenRequest) -> OpenedRun | None:
        """Claim a run; see `RecordStore.open_run`.

        Raises:
            RunLocked: another token owns it.
        """
        return self._run(self._operations.open_run(request))

    def inspect(self, run_id: str) -> OpenedRun | None:
        """Return a run without claiming it; see `RecordStore.inspect`."""
        return self._run(self._operations.inspect(run_id))

    def commit_many(self, commits: Sequence[Commit]) -> list[StoreError | None]:
        """Write several commits in one round trip; see `RecordStore.commit_many`."""
        return self._run(self._operations.commit_many(commits))

    def renew(self, claims: Sequence[tuple[str, str]], lease_ms: int) -> list[bool]:
        """Extend leases, and the lives of their runs; see `RecordStore.renew`."""
        return self._run(self._operations.renew(claims, lease_ms))

    def release(self, run_id: str, token: str) -> None:
        """Give up a run, if the token owns it."""
        self._run(self._operations.release(run_id, token))

    def fetch(self, run_id: str, keys: Sequence[RecordKey]) -> list[CheckpointRecord | None]:
        """Return the record of each key, or None."""
        return self._run(self._operations.fetch(run_id, keys))

    def runs(self, query: RunQuery) -> RunPage:
        """List runs, the last updated first; equal times by run id."""
        return self._run(self._operations.runs(query))

    def claimable(self, query: ClaimQuery) -> RunPage:
        """List runs that a worker may take up now; see `RecordStore.claimable`."""
        return self._run(self._operations.claimable(query))

    def delete(self, run_id: str) -> None:
        """Remove the run and all its records, plain ones too, and nothing else."""
        self._run(self._operations.delete(run_id))

    def purge(self, query: RunQuery) -> int:
        """Remove runs that a query finds and nobody owns; the limit counts the removed.

        Returns:
            How many were removed.
        """
        return self._run(self._operations.purge(query))

    def health(self) -> None:
        """Write and read a key that lives for ten seconds.

        Raises:
            StoreError: the server cannot; the message says why.
        """
        self._run(self._operations.health())

    def close(self) -> None:
        """Close the connections of this store; a ready client is closed by its owner.

        Afterwards every operation but this one raises `StoreUnusable`.
        """
        self._is_closed = True
        self._line.close()
