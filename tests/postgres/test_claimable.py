"""Runs that a worker may take up: one statement, an index, and nothing for runs that ended."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from stroma.records import ClaimQuery, RunStatus, RunUpdate
from stroma.testing import TcpProxy
from stroma_postgres import PostgresStore
from stroma_postgres._statements import claiming
from tests.core.stores.support import commit, record, request
from tests.postgres.conftest import Admin, MakeStore
from tests.postgres.support import until
from tests.servers.postgres import Server

pytestmark = pytest.mark.server

SUBMITTED = RunUpdate(status=RunStatus.PENDING, release=True)
DONE = RunUpdate(status=RunStatus.COMPLETED, release=True)


async def submit(store: PostgresStore, *run_ids: str) -> None:
    for run_id in run_ids:
        await store.open_run(request(run_id))
        assert await store.commit_many([commit(run_id=run_id, update=SUBMITTED)]) == [None]


async def finish(store: PostgresStore, run_id: str) -> None:
    await store.open_run(request(run_id))
    assert await store.commit_many([commit(record(run_id), update=DONE)]) == [None]


class TestCost:
    async def test_a_page_is_one_statement(
        self, older: Server, make_store: MakeStore, schema: str
    ) -> None:
        with TcpProxy(older.host, older.port) as proxy:
            store = PostgresStore(older.at(proxy.host, proxy.port).dsn, schema=schema)
            await submit(store, "a", "b", "c")
            await store.claimable(ClaimQuery())  # the statement is prepared now
            before = proxy.round_trips
            page = await store.claimable(ClaimQuery(limit=2))
            assert ([run.run_id for run in page.runs], page.cursor != "") == (["a", "b"], True)
            assert proxy.round_trips - before == 1
            await store.aclose()

    async def test_runs_that_ended_long_ago_cost_nothing(
        self, store: PostgresStore, admin: Admin
    ) -> None:
        """Long ago: vacuum has been there. The plan is one that a connection keeps."""
        await submit(store, "a", "b", "c")
        await asyncio.gather(*(finish(store, f"few.{i}") for i in range(500)))
        with_few = await pages_of_plans(store, admin)
        await asyncio.gather(*(finish(store, f"many.{i}") for i in range(500)))

        async def many_cost_no_more() -> bool:
            with_many = await pages_of_plans(store, admin)
            print(f"pages that were read, with 500 ended runs and 1,000: {with_few}, {with_many}")
            return all(many <= few for few, many in zip(with_few, with_many, strict=True))

        # Vacuum leaves what somebody may still see, such as the server's own ANALYZE elsewhere.
        await until(many_cost_no_more, seconds=30)

    async def test_a_renewal_changes_no_index(self, store: PostgresStore, admin: Admin) -> None:
        """Who owns a run is not in the index: where it is stays as it is."""
        await store.open_run(request("run"))
        for _ in range(30):
            assert await store.renew([("run", "alice")], 60_000) == [True]
        await store.aclose()  # its updates are counted now; an idle connection's, after 10 s
        table = store._client._names.runs

        async def are_counted() -> bool:
            await admin.execute("SELECT pg_stat_clear_snapshot()")
            return int(await admin.fetchval(_UPDATES, table)) >= 30

        await until(are_counted)
        assert await admin.fetchval(_UPDATES_OF_INDEXES, table) == 0


_UPDATES = "SELECT n_tup_upd FROM pg_stat_user_tables WHERE relid = $1::text::regclass"
_UPDATES_OF_INDEXES = _UPDATES.replace("n_tup_upd", "n_tup_upd - n_tup_hot_upd")


async def pages_of_plans(store: PostgresStore, admin: Admin) -> list[int]:
    """Vacuum, and return how many pages a first listing reads then, and one that goes on."""
    await admin.execute(f"VACUUM ANALYZE {store._client._names.runs}")
    read = []
    for query in (ClaimQuery(), ClaimQuery(("digest",), cursor='[1,"a"]')):
        plan = await kept_plan(store, admin, query)
        (scan,) = [node for node in nodes_of(plan) if "Relation Name" in node]
        assert scan["Index Name"] == "stroma_runs_unfinished", scan
        assert not [node for node in nodes_of(plan) if node["Node Type"] == "Sort"]
        read.append(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])
    return read


async def kept_plan(store: PostgresStore, admin: Admin, query: ClaimQuery) -> dict[str, Any]:
    """Return the plan of a listing that does not look at its arguments, and what it read."""
    pipelines, after_time, after_id, limit = claiming(query)
    arguments = (
        "ARRAY[{}]::text[]".format(", ".join(map(repr, pipelines))),
        f"'{after_time}'::double precision",
        f"'{after_id}'",
        str(limit),
    )
    async with admin.transaction():
        await admin.execute("SET LOCAL plan_cache_mode = force_generic_plan")
        types = "text[], double precision, text, bigint"
        await admin.execute(f"PREPARE listing ({types}) AS {store._sql.claimable}")
        (row,) = await admin.fetch(
            f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE listing({', '.join(arguments)})"
        )
        await admin.execute("DEALLOCATE listing")
    return dict(json.loads(row[0])[0]["Plan"])


def nodes_of(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [plan, *(node for part in plan.get("Plans", ()) for node in nodes_of(part))]


DAMAGE = {"epochs": "'junk'", "no epochs": "'[]'"}


@pytest.mark.parametrize("kind", DAMAGE)
async def test_a_damaged_run_is_told_and_hides_no_other(
    store: PostgresStore, admin: Admin, schema: str, kind: str
) -> None:
    await submit(store, *(f"r{i}" for i in range(5)))
    change = f"epochs = {DAMAGE[kind]} WHERE run_id IN ('r1', 'r4')"
    await admin.execute(f'UPDATE "{schema}".stroma_runs SET {change}')

    for limit in (1, 2, 3, 4, 10):
        runs: list[str] = []
        told: dict[str, Exception] = {}
        cursor: str | None = ""
        while cursor is not None:
            page = await store.claimable(ClaimQuery(limit=limit, cursor=cursor))
            runs += [run.run_id for run in page.runs]
            told |= dict(page.unreadable)
            cursor = page.cursor or None
        assert runs == ["r0", "r2", "r3"]
        assert told.keys() == {"r1", "r4"}
        assert "run 'r1': its row cannot be read" in str(told["r1"])
