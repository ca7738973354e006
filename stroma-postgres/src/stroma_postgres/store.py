"""A store in PostgreSQL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import asyncpg

from stroma.batching import EagerBatcher
from stroma.checkpoint import Capabilities, check_size
from stroma.errors import ConfigError, OutcomeUnknown, StaleOwner, StoreError
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
from stroma.stores.rules import locked, page_of_rows
from stroma_postgres._batches import (
    add_one_arguments,
    commit_arguments,
    commit_one_arguments,
    is_one_record,
    refusals_of,
    statements_of,
)
from stroma_postgres._client import Client
from stroma_postgres._errors import is_value_error
from stroma_postgres._options import PostgresOptions, checked_options
from stroma_postgres._rows import (
    created_of,
    fetch_arguments,
    open_arguments,
    opened_of,
    place_of,
    record_of,
    run_of,
    updated_place_of,
)
from stroma_postgres._setup import capabilities_of
from stroma_postgres._statements import claiming, listing, purging

if TYPE_CHECKING:
    from stroma_postgres._pool import HandedInPool, Rows

_PURGE_PAGE: Final = 100


class PostgresStore(AsyncPlainMethods):
    """Keeps runs and records in two tables of a PostgreSQL database.

    Each operation is one statement and one transaction, and holds a connection for no longer
    than that; nothing of a session is used, so that a pooler in transaction mode may stand in
    between. Leases and times are by the server's clock. Safe to use from several event loops
    and threads, and after a fork: each loop has connections of its own. They are closed by
    `aclose`, and when their loop ends.

    An operation whose connection breaks is sent once more: all of them may be done twice.

    Args:
        dsn: where the database is, such as ``postgresql://user@host/database``.
        pool: connections to use instead, made by `asyncpg.create_pool`. It belongs to the loop
            that made it, and whoever hands it in closes it. ``max_connections``,
            ``statement_cache_size`` and ``connect_options`` are the pool's own then.
        schema: the PostgreSQL schema that holds the tables.
        table_prefix: begins the names of tables and functions.
        max_connections: connections of one event loop at most; runs share them.
        acquire_timeout_seconds: how long to wait for a free connection, or for a new one.
        command_timeout_seconds: how long to wait for an answer of the server.
        max_idle_seconds: a connection that nobody used for so long is closed.
        statement_cache_size: prepared statements that a connection keeps; None is 100, or 0
            when a pooler stands in between.
        migrate: create and upgrade the tables in `setup`; False only checks them.
        connect_options: passed on to `asyncpg.connect`, such as ``ssl``.

    Raises:
        ConfigError: an option is wrong, the pool is none of asyncpg's, or not exactly one of
            ``dsn`` and ``pool`` is given.
    """

    def __init__(
        self,
        dsn: str | None = None,
        *,
        pool: HandedInPool | None = None,
        schema: str = "public",
        table_prefix: str = "stroma_",
        max_connections: int = 10,
        acquire_timeout_seconds: float = 30.0,
        command_timeout_seconds: float = 60.0,
        max_idle_seconds: float = 300.0,
        statement_cache_size: int | None = None,
        migrate: bool = True,
        connect_options: Mapping[str, Any] | None = None,
    ) -> None:
        if (dsn is None) == (pool is None):
            raise ConfigError("PostgresStore takes a dsn or a pool, and one of them")
        if pool is not None and not isinstance(pool, asyncpg.Pool):
            raise ConfigError(
                "PostgresStore takes a pool of asyncpg.create_pool, not "
                f"{type(pool).__module__}.{type(pool).__qualname__}"
            )
        options = checked_options(
            {
                "dsn": "" if dsn is None else dsn,
                "schema": schema,
                "table_prefix": table_prefix,
                "max_connections": max_connections,
                "acquire_timeout_seconds": acquire_timeout_seconds,
                "command_timeout_seconds": command_timeout_seconds,
                "max_idle_seconds": max_idle_seconds,
                "statement_cache_size": statement_cache_size,
                "migrate": migrate,
                "connect_options": connect_options or {},
            }
        )
        self._connect_to(options, pool)

    @classmethod
    def from_options(cls, options: PostgresOptions) -> PostgresStore:
        """Return the store that these options describe."""
        store = cls.__new__(cls)
        store._connect_to(options, None)
        return store

    def _connect_to(self, options: PostgresOptions, pool: HandedInPool | None) -> None:
        self._client = Client(options, pool)
        self._sql = self._client.sql
        self._batchers: PerLoop[EagerBatcher] = PerLoop(self._make_batcher, _nothing_to_close)

    def _make_batcher(self) -> EagerBatcher:
        return EagerBatcher(self._commit_together, self._commit_alone)

    def __repr__(self) -> str:
        return f"PostgresStore({self._client.address!r})"

    @property
    def capabilities(self) -> Capabilities:
        """What this store promises: fencing, and commits that the server's disk has.

        How durable these are depends on the server's settings, and is known after `setup`.
        """
        return capabilities_of(self._client.durability)

    async def setup(self) -> None:
        """Create or upgrade the tables, if need be. The first operation does so by itself.

        Raises:
            StoreUnusable: the server, the role or the tables cannot be used as they are.
            StoreUnavailable: the server could not be reached now.
        """
        await self._client.setup()

    async def open_run(self, request: OpenRequest) -> OpenedRun | None:
        """Claim a run; see `RecordStore.open_run`.

        Raises:
            RunLocked: another token owns it.
        """
        what = f"run {request.run_id!r}: open_run"
        given = open_arguments(request)
        rows = (await self._client.run(what, self._sql.open, given, is_write=True)).rows
        if rows and rows[0][0] == "new":
            return created_of(given, rows[0][2])
        opened = opened_of(rows)
        if opened is None:
            return None
        if rows[0][0] == "locked":
            raise locked(opened.run, rows[0][2])
        return opened

    async def inspect(self, run_id: str) -> OpenedRun | None:
        """Return a run without claiming it; see `RecordStore.inspect`."""
        rows = await self._read(f"run {run_id!r}: inspect", self._sql.inspect, (run_id,))
        return opened_of(rows)

    async def commit_many(self, commits: Sequence[Commit]) -> list[StoreError | None]:
        """Write several commits by one statement; see `RecordStore.commit_many`.

        A commit that comes alone is sent at once, in the task of its caller; what comes meanwhile
        leaves together. Commits end even when their caller is cancelled.

        Raises:
            StoreUnavailable: nothing was written.
            OutcomeUnknown: the server did not answer.
        """
        return await self._batchers.get().commit_many(commits)

    async def _commit_alone(self, commit: Commit) -> StoreError | None:
        if is_one_record(commit) and check_size((commit,), self.capabilities) == [None]:
            return await self._commit_one(commit)
        (outcome,) = await self._commit_together((commit,))
        return outcome

    async def _commit_together(self, commits: Sequence[Commit]) -> list[StoreError | None]:
        outcomes = check_size(commits, self.capabilities)
        left = [n for n, refusal in enumerate(outcomes) if refusal is None]
        is_begun = False
        for group in statements_of([commits[n] for n in left]):
            places = [left[n] for n in group]
            try:
                found = await self._commit([commits[n] for n in places])
            except StoreError as exc:
                if not is_begun:
                    raise
                found = [exc] * len(places)
            is_begun = True
            for place, outcome in zip(places, found, strict=True):
                outcomes[place] = outcome
        return outcomes

    async def _commit_one(self, commit: Commit) -> StoreError | None:
        """Write a commit of one record; ask for the reason only if it was not added."""
        if commit.update is None:
            statement, arguments = self._sql.add_one, add_one_arguments(commit)
        else:
            arguments = commit_one_arguments(commit, commit.update)
            statement = self._sql.commit_one
        try:
            answer = await self._client.run(_saving([commit]), statement, arguments, is_write=True)
        except StoreError as exc:
            if _is_about_a_value(exc):
                return exc
            raise
        if answer.rows:
            return None
        (outcome,) = await self._commit([commit])
        return _unless_done(commit, outcome) if answer.is_repeated else outcome

    async def _commit(self, commits: Sequence[Commit]) -> list[StoreError | None]:
        try:
            answer = await self._client.run(
                _saving(commits), self._sql.commit, commit_arguments(commits), is_write=True
            )
        except StoreError as exc:
            if not _is_about_a_value(exc):
                raise
            if len(commits) == 1:
                return [exc]
            return [(await self._commit([commit]))[0] for commit in commits]
        outcomes = refusals_of(commits, answer.rows)
        if answer.is_repeated:
            return [_unless_done(*pair) for pair in zip(commits, outcomes, strict=True)]
        return outcomes

    async def renew(self, claims: Sequence[tuple[str, str]], lease_ms: int) -> list[bool]:
        """Extend leases; see `RecordStore.renew`."""
        run_ids, tokens = [run_id for run_id, _ in claims], [token for _, token in claims]
        arguments = (run_ids, tokens, lease_ms)
        answer = await self._client.run(
            f"renewal of {len(claims)} runs", self._sql.renew, arguments, is_write=True
        )
        renewed = {(row[0], row[1]) for row in answer.rows}
        return [claim in renewed for claim in claims]

    async def release(self, run_id: str, token: str) -> None:
        """Give up a run, if the token owns it."""
        if token:
            what = f"run {run_id!r}: release"
            await self._client.run(what, self._sql.release, (run_id, token), is_write=True)

    async def fetch(self, run_id: str, keys: Sequence[RecordKey]) -> list[CheckpointRecord | None]:
        """Return the record of each key, or None."""
        arguments = fetch_arguments(run_id, keys)
        rows = await self._read(f"run {run_id!r}: fetch", self._sql.fetch, arguments)
        found = {row[0]: record_of(row[1:]) for row in rows}
        return [found.get(number) for number in range(1, len(keys) + 1)]

    async def runs(self, query: RunQuery) -> RunPage:
        """List runs, the last updated first; equal times by run id."""
        statement, arguments = listing(self._sql.list_runs, query)
        if query.limit < 1:
            return RunPage(())
        rows = await self._read("listing of runs", statement, arguments)
        return page_of_rows([row[:] for row in rows], query.limit, run_of, updated_place_of)

    async def claimable(self, query: ClaimQuery) -> RunPage:
        """List runs that a worker may take up now; see `RecordStore.claimable`."""
        arguments = claiming(query)
        if query.limit < 1:
            return RunPage(())
        rows = await self._read("listing of claimable runs", self._sql.claimable, arguments)
        return page_of_rows([row[:] for row in rows], query.limit, run_of, place_of)

    async def delete(self, run_id: str) -> None:
        """Remove the run and all its records, plain ones too, and nothing else."""
        await self._client.run(
            f"run {run_id!r}: delete", self._sql.delete, (run_id,), is_write=True
        )

    async def purge(self, query: RunQuery) -> int:
        """Remove runs that a query finds and nobody owns; the limit counts the removed.

        They go some at a time, so that no transaction lasts. A run whose record cannot be read
        stays: nobody can tell whether a worker owns it.

        Returns:
            How many were removed.
        """
        removed = 0
        while removed < query.limit:
            limit = min(_PURGE_PAGE, query.limit - removed)
            asked = query._replace(limit=limit)
            statement, arguments = listing(self._sql.list_without_documents, asked)
            rows = await self._read("purge", statement, arguments)
            page = page_of_rows([row[:] for row in rows], limit, run_of, updated_place_of)
            doomed = purging(query, [run.run_id for run in page.runs])
            answer = await self._client.run("purge", self._sql.purge, doomed, is_write=True)
            removed += int(answer.rows[0][0])
            if not page.cursor:
                break
            query = query._replace(cursor=page.cursor)
        return removed

    async def health(self) -> None:
        """Return if the tables can be read and written now.

        Raises:
            StoreError: they cannot; the message says why.
        """
        await self._client.run("health", self._sql.touch, (), is_write=False)

    async def aclose(self) -> None:
        """Close the store's own connections; a pool that was handed in is left as it is.

        Afterwards every operation but this one raises `StoreUnusable`.
        """
        await self._client.aclose()

    async def _read(self, what: str, statement: str, arguments: Sequence[Any]) -> Rows:
        return (await self._client.run(what, statement, arguments, is_write=False)).rows


async def _nothing_to_close(batcher: EagerBatcher) -> None:
    """Close nothing: a batcher has no connections."""


def _saving(commits: Sequence[Commit]) -> str:
    if len(commits) == 1:
        return f"run {commits[0].run_id!r}: commit"
    return f"commits of {len({commit.run_id for commit in commits})} runs"


def _is_about_a_value(error: StoreError) -> bool:
    return error.__cause__ is not None and is_value_error(error.__cause__)


def _unless_done(commit: Commit, outcome: StoreError | None) -> StoreError | None:
    """Return the outcome of a commit that was sent twice.

    The first time may have worked, given the run up or been followed by another owner's claim.
    """
    if not isinstance(outcome, StaleOwner):
        return outcome
    error = OutcomeUnknown(
        f"run {commit.run_id!r}: the connection broke during a commit, and this worker does not "
        "own the run any more: read back what is recorded"
    )
    error.__cause__ = outcome
    return error
