"""A store in one SQLite file: the embedded default for what must last."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from stroma._aio import finish, in_daemon_thread
from stroma.checkpoint import Capabilities, Durability, check_size
from stroma.clock import SYSTEM_CLOCK, Clock
from stroma.errors import ConfigError, StoreError
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
)
from stroma.stores._sqlite_file import database_path
from stroma.stores._sqlite_tables import Tables
from stroma.stores._sqlite_thread import Mode, Writer

MAX_PAYLOAD_BYTES: Final = 999_000_000
"""SQLite takes a billion bytes in a row; the rest of the record needs some of them."""

_PURGE_PAGE: Final = 100
_EXIT_SECONDS: Final = 10.0


class SQLiteStore(AsyncPlainMethods):
    """Keeps runs and records in a SQLite file, which processes of one machine can share.

    A returned commit survives the failure of the machine (write-ahead log, synchronous FULL).
    One thread with one connection writes; commits that wait at the same time share a
    transaction. Safe to use from several event loops and threads, and after a fork.

    While it owns runs, the store holds a lock on a file in ``<path>-owners``: when its process
    dies, in whatever way, other processes take its runs over at once instead of waiting for
    their leases. The file goes when the store is closed.

    The file must be on a local disk: on network file systems neither SQLite's log nor the lock
    can be relied on.

    Args:
        path: of the file; it is created if there is none, its folder is not.
        busy_timeout_seconds: how long to wait for another process that writes.
        clock: what leases and times are measured by.
        max_payload_bytes: the largest payload of one record.

    Raises:
        ConfigError: the path names no file, or a number is out of range.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        busy_timeout_seconds: float = 5.0,
        clock: Clock = SYSTEM_CLOCK,
        max_payload_bytes: int = MAX_PAYLOAD_BYTES,
    ) -> None:
        if not 0 <= busy_timeout_seconds <= 3600:
            raise ConfigError(
                f"busy_timeout_seconds must be from 0 to 3600, not {busy_timeout_seconds!r}"
            )
        if not 0 < max_payload_bytes <= MAX_PAYLOAD_BYTES:
            raise ConfigError(
                f"max_payload_bytes must be from 1 to {MAX_PAYLOAD_BYTES}, "
                f"not {max_payload_bytes!r}"
            )
        self._path = database_path(path)
        self._capabilities = Capabilities(
            Durability.FSYNC, max_payload_bytes=max_payload_bytes, groups_commits=True
        )
        self._writer = Writer(self._path, busy_timeout_seconds, clock)
        # A store that nobody closed must not leave its thread, or at exit its lock file.
        self._finalizer = weakref.finalize(self, _close_now, self._writer)

    def __repr__(self) -> str:
        return f"SQLiteStore({str(self._path)!r})"

    @property
    def path(self) -> Path:
        """The file, as an absolute path."""
        return self._path

    @property
    def capabilities(self) -> Capabilities:
        """What this store promises: fencing, and commits that the disk has."""
        return self._capabilities

    async def setup(self) -> None:
        """Create the file and its tables, if need be. Every operation does so by itself.

        Raises:
            StoreUnusable: there is something at the path that is not a store.
            StoreUnavailable: it could not be created now.
        """
        await self._writer.run(_nothing, Mode.READ)

    async def open_run(self, request: OpenRequest) -> OpenedRun | None:
        """Claim a run; see `RecordStore.open_run`.

        Other processes see the claim at once, and it outlives this one. The disk has it with
        the run's first commit, or some milliseconds later if that takes longer. If the machine
        fails before, the claim is lost, and the claimant and all that it had not recorded with
        it: nothing durable can depend on a claim that is not.

        Raises:
            RunLocked: another token owns it.
        """
        return await self._writer.run(lambda tables: tables.open_run(request), Mode.CLAIM)

    async def inspect(self, run_id: str) -> OpenedRun | None:
        """Return a run without claiming it; see `RecordStore.inspect`."""
        return await self._writer.run(lambda tables: tables.inspect(run_id), Mode.READ)

    async def commit_many(self, commits: Sequence[Commit]) -> list[StoreError | None]:
        """Write several commits; see `RecordStore.commit_many`.

        Raises:
            StoreUnavailable: nothing was written: the disk is full, or another process writes.
            OutcomeUnknown: the disk did not confirm the write.
        """
        refusals = check_size(commits, self._capabilities)
        if len(commits) == 1 and refusals[0] is None and _is_one_record(commits[0]):
            commit = commits[0]
            refused = await self._writer.run(
                lambda tables: tables.commit(commit),
                Mode.WRITE,
                lambda tables: tables.commit_alone(commit),
            )
            return [refused]

        def commit_each(tables: Tables) -> list[StoreError | None]:
            return [
                refusal or tables.commit(commit)
                for commit, refusal in zip(commits, refusals, strict=True)
            ]

        return await self._writer.run(commit_each, Mode.WRITE)

    async def renew(self, claims: Sequence[tuple[str, str]], lease_ms: int) -> list[bool]:
        """Extend leases; see `RecordStore.renew`."""
        return await self._writer.run(lambda tables: tables.renew(claims, lease_ms), Mode.CLAIM)

    async def release(self, run_id: str, token: str) -> None:
        """Give up a run, if the token owns it."""
        await self._writer.run(lambda tables: tables.release(run_id, token), Mode.CLAIM)

    async def fetch(self, run_id: str, keys: Sequence[RecordKey]) -> list[CheckpointRecord | None]:
        """Return the record of each key, or None."""
        return await self._writer.run(lambda tables: tables.fetch(run_id, keys), Mode.READ)

    async def runs(self, query: RunQuery) -> RunPage:
        """List runs, the last updated first; equal times by run id.

        No transaction is held between two pages: a listing that is never finished keeps
        nobody from writing.
        """
        return await self._writer.run(lambda tables: tables.runs(query), Mode.READ)

    async def claimable(self, query: ClaimQuery) -> RunPage:
        """List runs that may be claimed, the first created first; see `RecordStore.claimable`.

        A run whose owner on this machine is dead is one of them at once, whatever its lease.
        """
        return await self._writer.run(lambda tables: tables.claimable(query), Mode.READ)

    async def delete(self, run_id: str) -> None:
        """Remove the run and all its records, plain ones too, and nothing else."""
        await self._writer.run(lambda tables: tables.delete(run_id), Mode.WRITE)

    async def purge(self, query: RunQuery) -> int:
        """Remove runs that a query finds and nobody owns; the limit counts the removed.

        They go some at a time, so that other writers get their turn.

        Returns:
            How many were removed.
        """
        removed = 0
        while removed < query.limit:
            limit = min(_PURGE_PAGE, query.limit - removed)
            count = await self._purge_page(query._replace(limit=limit))
            removed += count
            if count < limit:
                break
        return removed

    async def _purge_page(self, query: RunQuery) -> int:
        return await self._writer.run(lambda tables: tables.purge(query), Mode.WRITE)

    async def health(self) -> None:
        """Return if the file can be read and written now.

        Raises:
            StoreError: it cannot; the message says why.
        """
        await self._writer.run(Tables.touch, Mode.WRITE)

    async def aclose(self) -> None:
        """Finish what is waiting, end the thread, close the file and remove the owner's lock.

        Runs that the store still owns can be taken over at once. Afterwards every operation
        but this one raises `StoreUnusable`.
        """
        self._finalizer.detach()
        thread = self._writer.close()
        if thread is not None:
            await finish(in_daemon_thread(thread.join))


def _is_one_record(commit: Commit) -> bool:
    """Say whether a commit does nothing but add one record to an owned run."""
    return len(commit.records) == 1 and commit.update is None and commit.token != ""


def _nothing(tables: Tables) -> None:
    """Ask for nothing: opening the file is enough."""


def _close_now(writer: Writer) -> None:
    thread = writer.close()
    if thread is not None and thread is not threading.current_thread():
        thread.join(timeout=_EXIT_SECONDS)
