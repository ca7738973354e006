"""Runs that can be claimed are found by their owners' locks, too, and by an index of their own."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from stroma.errors import RecordCorrupt
from stroma.records import ClaimQuery, RunStatus, RunUpdate
from stroma.stores._owner_lock import OwnerLock
from stroma.stores._sqlite_session import Session
from stroma.stores.sqlite import SQLiteStore
from tests.core.stores.support import ManualClock, commit, request, speaking_child

LONG = 3600.0
DONE = RunUpdate(status=RunStatus.COMPLETED, release=True)


def claimable(database: Path) -> list[str]:
    """Return what a store of its own lists, and close it."""

    async def body() -> list[str]:
        store = SQLiteStore(database)
        try:
            return [run.run_id for run in (await store.claimable(ClaimQuery())).runs]
        finally:
            await store.aclose()

    return asyncio.run(body())


def claim_three_and_stay(database: Path) -> Callable[[Callable[[str], None]], None]:
    """Return the work of a process that claims three runs and then stays alive."""

    def body(say: Callable[[str], None]) -> None:
        async def work() -> None:
            store = SQLiteStore(database)
            for i in range(3):
                await store.open_run(request(f"r{i}", lease_seconds=LONG))
            await store.commit_many([commit(run_id="r1", update=DONE)])
            say("claimed")
            await asyncio.sleep(60)

        asyncio.run(work())

    return body


@pytest.mark.crash
def test_the_runs_of_a_killed_worker_are_claimable_at_once(database: Path) -> None:
    with speaking_child(claim_three_and_stay(database)) as child:
        assert next(child.lines()) == "claimed"
        assert claimable(database) == []
        child.kill()
        assert claimable(database) == ["r0", "r2"]


async def test_living_stores_are_not_taken_for_dead(database: Path) -> None:
    sqlite = SQLiteStore(database)
    await sqlite.open_run(request(lease_seconds=LONG))
    assert (await sqlite.claimable(ClaimQuery())).runs == ()
    other = SQLiteStore(database)
    assert (await other.claimable(ClaimQuery())).runs == ()
    await other.aclose()
    await sqlite.aclose()


async def test_what_a_closed_store_owned_is_claimable(database: Path) -> None:
    first, second = SQLiteStore(database), SQLiteStore(database)
    await first.open_run(request(lease_seconds=LONG))
    await first.aclose()
    (run,) = (await second.claimable(ClaimQuery())).runs
    assert (run.run_id, run.owner) == ("run", "alice")
    opened = await second.open_run(request(token="bob", lease_seconds=LONG))
    assert opened is not None
    assert opened.is_claimed
    await second.aclose()


def test_runs_that_ended_cost_nothing(database: Path, clock: ManualClock) -> None:
    with closing(Session(database, 1.0, clock, OwnerLock(database))) as session:
        tables = session.tables

        def add(prefix: str, count: int, update: RunUpdate) -> None:
            for i in range(count):
                clock.time += 1
                tables.open_run(request(f"{prefix}{i}"))
                assert tables.commit(commit(run_id=f"{prefix}{i}", update=update)) is None

        def steps() -> int:
            count = 0

            def step() -> None:
                nonlocal count
                count += 1

            session._connection.set_progress_handler(step, 1)
            assert len(tables.claimable(ClaimQuery(limit=5)).runs) == 5
            session._connection.set_progress_handler(None, 1)
            return count

        add("ended", 10, DONE)
        add("submitted", 10, RunUpdate(status=RunStatus.PENDING, release=True))
        few = steps()
        add("later", 500, DONE)
        add("more", 100, RunUpdate(status=RunStatus.PENDING, release=True))
        assert steps() == few


def test_a_file_from_before_the_index_gets_it(database: Path) -> None:
    asyncio.run(_submit(database))
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("DROP INDEX runs_unfinished")
    assert claimable(database) == ["run"]
    with closing(sqlite3.connect(database)) as connection:
        names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master")]
    assert names.count("runs_unfinished") == 1


async def _submit(database: Path) -> None:
    store = SQLiteStore(database)
    await store.open_run(request())
    update = RunUpdate(status=RunStatus.PENDING, release=True)
    assert await store.commit_many([commit(run_id="run", update=update)]) == [None]
    await store.aclose()


SUBMITTED = RunUpdate(status=RunStatus.PENDING, release=True)
DAMAGE = {
    "epochs": "junk",
    "tags": "[",
    "cost_usd": "much",
    "created_at": "long ago",
}


@pytest.mark.parametrize("column", DAMAGE)
async def test_a_damaged_run_is_told_and_hides_no_other(database: Path, column: str) -> None:
    store = SQLiteStore(database)
    for i in range(5):
        await store.open_run(request(f"r{i}", created_at=100.0 + i))
        await store.commit_many([commit(run_id=f"r{i}", update=SUBMITTED)])
    with closing(sqlite3.connect(database)) as connection, connection:
        change = f"UPDATE runs SET {column} = ? WHERE run_id IN ('r1', 'r4')"
        connection.execute(change, (DAMAGE[column],))

    for limit in (1, 2, 3, 4, 10):
        page = await store.claimable(ClaimQuery(limit=limit))
        found, unreadable = list(page.runs), list(page.unreadable)
        while page.cursor:
            page = await store.claimable(ClaimQuery(limit=limit, cursor=page.cursor))
            found += page.runs
            unreadable += page.unreadable
        assert [run.run_id for run in found] == ["r0", "r2", "r3"]
        told = {each.run_id: each.error for each in unreadable}
        assert {"r1"} <= told.keys() <= {"r1", "r4"}
        assert type(told["r1"]) is RecordCorrupt
        assert "run 'r1': its row cannot be read" in str(told["r1"])
        assert "r4" in told or column == "created_at"
    await store.aclose()
