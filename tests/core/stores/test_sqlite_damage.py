"""What a run that cannot be read does to listings and purges of all the others: nothing."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from stroma import SQLiteStore
from stroma.errors import RecordCorrupt
from stroma.records import RunQuery, RunStatus
from tests.core.stores.support import request

pytestmark = pytest.mark.anyio

DAMAGE = {
    "status": "BOGUS",
    "epochs": "junk",
    "tags": "[",
    "cost_usd": "much",
    "lease_expires_at": "soon",
    "created_at": "long ago",
    "updated_at": "long ago",
    "active_ms": "long",
}


async def store_with(database: Path, column: str) -> SQLiteStore:
    """Return a store of five runs of which two are damaged."""
    store = SQLiteStore(database)
    for i in range(5):
        await store.open_run(request(f"r{i}"))
        await store.release(f"r{i}", "alice")
    with closing(sqlite3.connect(database)) as connection, connection:
        change = f"UPDATE runs SET {column} = ? WHERE run_id IN ('r1', 'r4')"
        connection.execute(change, (DAMAGE[column],))
    return store


@pytest.mark.parametrize("column", DAMAGE)
async def test_a_damaged_run_is_told_and_hides_no_other(database: Path, column: str) -> None:
    store = await store_with(database, column)

    for limit in (1, 2, 3, 4, 10):
        page = await store.runs(RunQuery(limit=limit))
        found, unreadable = list(page.runs), list(page.unreadable)
        while page.cursor:
            page = await store.runs(RunQuery(limit=limit, cursor=page.cursor))
            found += page.runs
            unreadable += page.unreadable
        assert [run.run_id for run in found] == ["r3", "r2", "r0"]
        told = {each.run_id: each.error for each in unreadable}
        assert {"r1"} <= told.keys() <= {"r1", "r4"}
        assert type(told["r1"]) is RecordCorrupt
        assert "run 'r1': its row cannot be read" in str(told["r1"])
        assert "r4" in told or (column == "updated_at" and limit == 1)
    await store.aclose()


async def test_a_run_with_damaged_tags_may_have_any_tag(database: Path) -> None:
    store = await store_with(database, "tags")

    page = await store.runs(RunQuery(tag="urgent"))

    assert page.runs == ()
    assert sorted(each.run_id for each in page.unreadable) == ["r1", "r4"]
    await store.aclose()


@pytest.mark.parametrize("column", DAMAGE)
async def test_a_damaged_run_is_not_purged_as_somebody_may_own_it(
    database: Path, column: str
) -> None:
    store = await store_with(database, column)

    assert await store.purge(RunQuery((), limit=1)) == 1
    assert await store.purge(RunQuery((), limit=10)) == 2
    assert await store.purge(RunQuery((RunStatus.RUNNING,), limit=10)) == 0

    page = await store.runs(RunQuery())
    assert page.runs == ()
    assert sorted(each.run_id for each in page.unreadable) == ["r1", "r4"]
    await store.delete("r1")
    await store.delete("r4")
    assert (await store.runs(RunQuery())).unreadable == ()
    await store.aclose()
