"""What the commands ask of a store."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple, TypeVar, cast

from stroma._aio import settled
from stroma.checkpoint import RecordStore, close_store, is_record_store
from stroma.config import default_store_spec, open_shared_store
from stroma.errors import ConfigError, RecordCorrupt, RunNotFound, StoreError, StoreUnavailable
from stroma.records import OpenedRun, RunPage, RunQuery, UnreadableRun

T = TypeVar("T")
AT_ONCE = 500


def with_store(url: str | None, work: Callable[[RecordStore], Awaitable[T]]) -> T:
    """Open a store, do some work with it, and close it.

    Args:
        url: the store; None takes the configured one.
        work: what to do.

    Raises:
        ConfigError: there is no store, it is one in memory, or it keeps no run records.
    """
    store = _chosen(url)

    async def session() -> T:
        try:
            _check_exists(store)
            await settled(store.setup())
            return await work(store)
        finally:
            await close_store(store)

    return asyncio.run(session())


def _chosen(url: str | None) -> RecordStore:
    if not url and default_store_spec() is None:
        raise ConfigError(
            "no store: pass --store URL, set STROMA_STORE, or write it into stroma.toml"
        )
    store = open_shared_store(url or None)
    if not is_record_store(store):
        raise ConfigError(f"{type(store).__name__} keeps states only, and no records of runs")
    return cast(RecordStore, store)


def _check_exists(store: RecordStore) -> None:
    """Refuse to make a new database where somebody mistyped the name of theirs."""
    path = getattr(store, "path", None)
    if not isinstance(path, str | Path):
        return
    if not Path(path).exists():
        raise StoreUnavailable(f"there is no file {str(path)!r}")
    if Path(path).is_file() and Path(path).stat().st_size == 0:
        raise StoreUnavailable(f"the file {str(path)!r} is empty: no run was ever written to it")


async def list_runs(store: RecordStore, query: RunQuery) -> RunPage:
    """Return a page of runs."""
    return await settled(store.runs(query))


async def inspect(store: RecordStore, run_id: str) -> OpenedRun:
    """Return a run and its headers.

    Raises:
        RunNotFound: the store has no such run.
    """
    found = await settled(store.inspect(run_id))
    if found is None:
        raise RunNotFound(f"the store has no run {run_id!r}")
    return found


async def delete(store: RecordStore, run_id: str, *, is_forced: bool) -> None:
    """Remove a run.

    Raises:
        RunNotFound: the store has no such run.
        StoreError: a worker owns it, and this is not forced.
    """
    try:
        run = (await inspect(store, run_id)).run
    except RecordCorrupt as exc:
        if not is_forced:
            raise StoreError(
                f"{exc}; nobody can tell whether a worker owns it: pass --force to remove it"
            ) from exc
        await settled(store.delete(run_id))
        return
    left_seconds = run.lease_expires_at - time.time()
    if run.owner and left_seconds > 0 and not is_forced:
        raise StoreError(
            f"run {run_id!r} is owned by {run.holder or 'a worker'}, for at least "
            f"{left_seconds:.0f} s more, and longer while it lives: stop that worker, or pass "
            "--force, and it will lose what it is doing"
        )
    await settled(store.delete(run_id))


class Purged(NamedTuple):
    """What became of a purge.

    Attributes:
        total: how many runs were removed.
        left: those that were left alone, as they cannot be read.
    """

    total: int
    left: tuple[UnreadableRun, ...]


async def purge(store: RecordStore, query: RunQuery) -> Purged:
    """Remove every run that a query finds, that can be read and that nobody owns."""
    total = 0
    query = query._replace(limit=AT_ONCE)
    while removed := await settled(store.purge(query)):
        total += removed
    left: dict[str, UnreadableRun] = {}
    page = await list_runs(store, query)
    left.update((run.run_id, run) for run in page.unreadable)
    while page.cursor:
        page = await list_runs(store, query._replace(cursor=page.cursor))
        left.update((run.run_id, run) for run in page.unreadable)
    return Purged(total, tuple(left.values()))
