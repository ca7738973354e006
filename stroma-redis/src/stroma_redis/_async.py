"""The async store: `redis.asyncio`, with connections of its own in each event loop."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncGenerator, Sequence
from functools import partial
from typing import TypeVar, Unpack

from redis.asyncio import Redis, RedisCluster

from stroma.batching import EagerBatcher
from stroma.checkpoint import Capabilities
from stroma.errors import ConfigError, StoreError
from stroma.level0 import AsyncPlainMethods
from stroma.per_loop import PerLoop
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
from stroma_redis._async_lines import Line, line_like, line_of, line_to
from stroma_redis._commands import Operations
from stroma_redis._errors import closed
from stroma_redis._options import MoreOptions, RedisOptions, options_of
from stroma_redis._steps import Steps
from stroma_redis._wire import address_of

T = TypeVar("T")


class RedisStore(AsyncPlainMethods):
    """Keeps runs and states in Redis 6.2 or later, or in Valkey; no modules are needed.

    A run is one hash, and every commit one script, which compares the owner's token, writes the
    records and prolongs the life of the whole run in a single step of the server. Leases and
    times are on the server's clock.

    The token is a random word of the claim's own, compared for equality. A counter would add
    nothing to it: an expired run takes its counter along, and a commit to a run that does not
    exist is refused, so that nothing revives it.

    Args:
        redis_url: ``redis://``, ``rediss://`` or ``unix://``; the default is this machine's
            server. Or a ready `redis.asyncio.Redis` or `RedisCluster`.
        ttl_seconds: how long a run is kept after the last write to it.
        client: a ready client. Who hands it in closes it. It serves the event loop that uses the
            store first; for others, the store opens connections with its settings.
        options: see `RedisOptions`.

    Raises:
        ConfigError: an option is wrong; the message names it and those that are accepted.
    """

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
        self._begin(options_of(given, has_client=client is not None), client)

    @classmethod
    def from_options(cls, options: RedisOptions) -> RedisStore:
        """Return a store with options that are checked already."""
        store = cls.__new__(cls)
        store._begin(options, None)
        return store

    def _begin(self, options: RedisOptions, client: Redis | RedisCluster | None) -> None:
        if client is not None and not isinstance(client, (Redis, RedisCluster)):
            raise ConfigError(
                f"RedisStore takes a client of redis.asyncio, not {type(client).__module__}."
                f"{type(client).__qualname__}; SyncRedisStore takes one of redis"
            )
        self._options = options
        self._client = client
        self._client_is_free = client is not None
        self._client_pid = os.getpid()
        self._address = options.address if client is None else address_of(client)
        self._operations = Operations(
            options,
            self._address,
            groups_commits=True,
            is_cluster=options.cluster or isinstance(client, RedisCluster),
        )
        self._lines: PerLoop[_LoopLine] = PerLoop(self._new_line, _LoopLine.aclose)

    def __repr__(self) -> str:
        return f"RedisStore({self._address!r}, ttl_seconds={self._options.ttl_seconds:g})"

    def _new_line(self) -> _LoopLine:
        if self._lines.is_closed:
            raise closed(self)
        line = self._line()
        alone = partial(self._commit_alone, line)
        return _LoopLine(line, EagerBatcher(self._commit_together, alone))

    def _line(self) -> Line:
        client, options = self._client, self._options
        if client is None:
            return line_to(options)
        if self._client_is_free and os.getpid() == self._client_pid:
            self._client_is_free = False
            return line_of(client, options)
        return line_like(client, options)

    async def _run(self, steps: Steps[T]) -> T:
        """Send what an operation asks for, until it returns its result."""
        line = self._lines.get().line
        try:
            request = next(steps)
            while True:
                request = steps.send(await line.ask(request))
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]

    @property
    def capabilities(self) -> Capabilities:
        """What this store promises; after `setup`, with the durability that the server has."""
        return self._operations.capabilities

    async def setup(self) -> None:
        """Ask the server for its version and durability; there is nothing to create.

        Raises:
            StoreUnusable: it is older than Redis 6.2, or refuses this user.
            StoreUnavailable: it cannot be reached.
        """
        one_by_one = self._lines.get().line.one_by_one
        await self._run(self._operations.setup(one_by_one=one_by_one))

    async def open_run(self, request: OpenRequest) -> OpenedRun | None:
        """Claim a run; see `RecordStore.open_run`.

        Raises:
            RunLocked: another token owns it.
        """
        return await self._run(self._operations.open_run(request))

    async def inspect(self, run_id: str) -> OpenedRun | None:
        """Return a run without claiming it; see `RecordStore.inspect`."""
        return await self._run(self._operations.inspect(run_id))

    async def commit_many(self, commits: Sequence[Commit]) -> list[StoreError | None]:
        """Write several commits; see `RecordStore.commit_many`.

        A commit that comes alone is sent at once, in the task of its caller; what comes meanwhile
        leaves together. Commits end even when their caller is cancelled.
        """
        return await self._lines.get().batcher.commit_many(commits)

    async def _commit_alone(self, line: Line, commit: Commit) -> StoreError | None:
        lone = self._operations.lone_record(commit)
        if lone is not None:
            (answer,) = await line.ask(lone)
            if answer == 1:
                return None
            refused = self._operations.lone_refusal(commit, answer)
            if refused is not None:
                return refused
        (outcome,) = await self._commit_together((commit,))
        return outcome

    async def _commit_together(self, commits: Sequence[Commit]) -> list[StoreError | None]:
        return await self._run(self._operations.commit_many(commits))

    async def renew(self, claims: Sequence[tuple[str, str]], lease_ms: int) -> list[bool]:
        """Extend leases, and the lives of their runs; see `RecordStore.renew`."""
        return await self._run(self._operations.renew(claims, lease_ms))

    async def release(self, run_id: str, token: str) -> None:
        """Give up a run, if the token owns it."""
        await self._run(self._operations.release(run_id, token))

    async def fetch(self, run_id: str, keys: Sequence[RecordKey]) -> list[CheckpointRecord | None]:
        """Return the record of each key, or None."""
        return await self._run(self._operations.fetch(run_id, keys))

    async def runs(self, query: RunQuery) -> RunPage:
        """List runs, the last updated first; equal times by run id."""
        return await self._run(self._operations.runs(query))

    async def claimable(self, query: ClaimQuery) -> RunPage:
        """List runs that a worker may take up now; see `RecordStore.claimable`."""
        return await self._run(self._operations.claimable(query))

    async def delete(self, run_id: str) -> None:
        """Remove the run and all its records, plain ones too, and nothing else."""
        await self._run(self._operations.delete(run_id))

    async def purge(self, query: RunQuery) -> int:
        """Remove runs that a query finds and nobody owns; the limit counts the removed.

        Returns:
            How many were removed.
        """
        return await self._run(self._operations.purge(query))

    async def health(self) -> None:
        """Write and read a key that lives for ten seconds.

        Raises:
            StoreError: the server cannot; the message says why.
        """
        await self._run(self._operations.health())

    async def aclose(self) -> None:
        """Close the connections of this store; a ready client is closed by its owner.

        Afterwards every operation but this one raises `StoreUnusable`.
        """
        await self._lines.aclose()


class _LoopLine:
    """What a store has in one event loop: a line, closed with the loop, and a batcher.

    `asyncio.run` and `asyncio.Runner` finish the asynchronous generators that were begun in
    their loop before they close it: the one place where a library learns of the end.
    """

    def __init__(self, line: Line, batcher: EagerBatcher) -> None:
        self.line = line
        self.batcher = batcher
        self._end = self._until_closed()
        with contextlib.suppress(StopIteration):  # it yields at once, and awaits nothing
            self._end.__anext__().send(None)

    async def _until_closed(self) -> AsyncGenerator[None]:
        try:
            yield
        finally:
            await self.line.aclose()

    async def aclose(self) -> None:
        await self._end.aclose()
