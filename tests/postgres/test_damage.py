"""What a run that cannot be read does to listings and purges of all the others: nothing."""

from __future__ import annotations

import pytest

from stroma.errors import RecordCorrupt
from stroma.records import ClaimQuery, RunQuery, RunStatus
from stroma_postgres import PostgresStore
from tests.core.stores.support import request
from tests.postgres.conftest import Admin

pytestmark = pytest.mark.server

DAMAGE = {
    "status": "status = 'BOGUS'",
    "epochs": "epochs = 'junk'",
    "no epochs": "epochs = '[]'",
}


@pytest.fixture(params=DAMAGE)
async def damaged(
    request: pytest.FixtureRequest, store: PostgresStore, admin: Admin, schema: str
) -> PostgresStore:
    """A store of five runs of which two are damaged."""
    await fill(store)
    change = f"{DAMAGE[request.param]} WHERE run_id IN ('r1', 'r4')"
    await admin.execute(f'UPDATE "{schema}".stroma_runs SET {change}')
    return store


async def fill(store: PostgresStore) -> None:
    for i in range(5):
        await store.open_run(request(f"r{i}"))
        await store.release(f"r{i}", "alice")


async def test_a_damaged_run_is_told_and_hides_no_other(damaged: PostgresStore) -> None:
    for limit in (1, 2, 3, 4, 10):
        runs: list[str] = []
        told: dict[str, Exception] = {}
        cursor: str | None = ""
        while cursor is not None:
            page = await damaged.runs(RunQuery(limit=limit, cursor=cursor))
            runs += [run.run_id for run in page.runs]
            told |= dict(page.unreadable)
            cursor = page.cursor or None
        assert runs == ["r3", "r2", "r0"]
        assert told.keys() == {"r1", "r4"}
        assert type(told["r1"]) is RecordCorrupt
        assert "run 'r1': its row cannot be read" in str(told["r1"])


async def test_a_damaged_run_is_not_purged_as_somebody_may_own_it(damaged: PostgresStore) -> None:
    assert await damaged.purge(RunQuery(limit=1)) == 1
    assert await damaged.purge(RunQuery((RunStatus.RUNNING,), limit=10)) == 2
    assert await damaged.purge(RunQuery()) == 0

    page = await damaged.runs(RunQuery())
    assert page.runs == ()
    assert {each.run_id for each in page.unreadable} == {"r1", "r4"}
    await damaged.delete("r1")
    await damaged.delete("r4")
    assert (await damaged.runs(RunQuery())).unreadable == ()


async def test_a_claim_of_a_damaged_run_is_refused(damaged: PostgresStore) -> None:
    with pytest.raises(RecordCorrupt, match="run 'r1': its row cannot be read"):
        await damaged.open_run(request("r1"))


@pytest.mark.parametrize("time", ["Infinity", "NaN", "-Infinity"])
async def test_pages_go_on_after_a_damaged_time(
    time: str, store: PostgresStore, admin: Admin, schema: str
) -> None:
    await fill(store)
    change = f"updated_at = '{time}', created_at = '{time}' WHERE run_id = 'r1'"
    await admin.execute(f'UPDATE "{schema}".stroma_runs SET {change}')
    for limit in (1, 2, 3, 10):
        runs, claimable = RunQuery(limit=limit), ClaimQuery(limit=limit)
        listed = claimed = 0
        while listed < 10:
            page = await store.runs(runs)
            listed += len(page.runs)
            if not page.cursor:
                break
            runs = runs._replace(cursor=page.cursor)
        while claimed < 10:
            page = await store.claimable(claimable)
            claimed += len(page.runs)
            if not page.cursor:
                break
            claimable = claimable._replace(cursor=page.cursor)
        assert (listed, claimed) == (5, 5)
