"""Workers that meet: one winner each, nothing of a loser, no deadlock."""

from __future__ import annotations

import asyncio
import random

import pytest

from stroma.errors import AlreadyCommitted, RunLocked, StaleOwner
from stroma.records import OpenedRun, RecordKey, RunQuery, RunUpdate
from stroma_postgres import PostgresStore
from tests.core.stores.support import commit, record, request
from tests.postgres.conftest import Admin, MakeStore

pytestmark = pytest.mark.server


class TestOneKey:
    @pytest.mark.slow
    async def test_two_writers_a_thousand_times(self, make_store: MakeStore) -> None:
        stores = [make_store(), make_store()]
        await stores[0].open_run(request())

        async def write(number: int) -> list[str]:
            won = []
            for i in range(1000):
                one = record(path=f"n{i}", commit_id=f"{number}.{i}")
                (outcome,) = await stores[number].commit_many([commit(one)])
                assert outcome is None or isinstance(outcome, AlreadyCommitted)
                if outcome is None:
                    won.append(one.header.commit_id)
            return won

        mine, others = await asyncio.gather(write(0), write(1))
        opened = await stores[0].open_run(request())
        assert opened is not None
        stored = {header.commit_id for header in opened.headers}
        assert len(stored) == 1000
        assert stored == {*mine, *others}

    async def test_batches_on_the_same_keys(self, make_store: MakeStore) -> None:
        stores = [make_store() for _ in range(4)]
        runs = [f"r{i}" for i in range(10)]
        for run_id in runs:
            await stores[0].open_run(request(run_id))

        async def write(number: int) -> int:
            won = 0
            for i in range(20):
                batch = [
                    commit(record(run_id, f"a{i}"), record(run_id, f"b{i}")) for run_id in runs
                ]
                random.shuffle(batch)
                outcomes = await stores[number].commit_many(batch)
                assert {type(o) for o in outcomes} <= {type(None), AlreadyCommitted}
                won += outcomes.count(None)
            return won

        won = await asyncio.gather(*(write(number) for number in range(4)))
        assert sum(won) == 20 * len(runs)
        for run_id in runs:
            opened = await stores[0].inspect(run_id)
            assert opened is not None
            assert len(opened.headers) == 40


class TestClaims:
    async def test_of_many_that_create_a_run_one_wins(self, make_store: MakeStore) -> None:
        stores = [make_store() for _ in range(3)]
        for store in stores:
            await store.setup()
        for number in range(20):
            claims = [stores[i % 3].open_run(request(f"r{number}", f"w{i}")) for i in range(12)]
            results = await asyncio.gather(*claims, return_exceptions=True)
            assert sum(not isinstance(each, RunLocked) for each in results) == 1

    async def test_nothing_of_a_worker_becomes_visible_after_a_claim(
        self, make_store: MakeStore
    ) -> None:
        """The claim and commits of the one before it run at the same time, over and over."""
        writer, claimant = make_store(), make_store()
        for number in range(60):
            run_id = f"r{number}"
            await writer.open_run(request(run_id, "old", lease_seconds=0.001))
            await asyncio.sleep(0.002)
            writes = [
                asyncio.create_task(
                    writer.commit_many(
                        [commit(record(run_id, f"n{i}"), token="old")]
                        if i % 2
                        else [
                            commit(
                                record(run_id, f"n{i}"),
                                token="old",
                                update=RunUpdate(stop_reason="x"),
                            )
                        ]
                    )
                )
                for i in range(8)
            ]
            await asyncio.sleep(random.random() / 500)
            claimed = await claim(claimant, run_id)
            seen = {header.path for header in claimed.headers}
            outcomes = [outcome for (outcome,) in await asyncio.gather(*writes)]
            assert {type(o) for o in outcomes} <= {type(None), StaleOwner}
            written = {f"n{i}" for i, outcome in enumerate(outcomes) if outcome is None}
            assert seen == written
            found = await claimant.inspect(run_id)
            assert found is not None
            assert {header.path for header in found.headers} == seen

    async def test_a_claim_that_waits_sees_what_it_waited_for(
        self, make_store: MakeStore, admin: Admin
    ) -> None:
        store = make_store()
        await store.open_run(request(token="old", lease_seconds=0.01))
        names = store._client._names
        async with admin.transaction():
            await admin.fetch(f"SELECT 1 FROM {names.runs} FOR UPDATE")
            claim = asyncio.create_task(store.open_run(request(token="new")))
            late = asyncio.create_task(store.commit_many([commit(record(path="x"), token="old")]))
            await wait_for_locks(admin, 2)
            await admin.fetch("SELECT pg_sleep(0.05)")  # the lease ends on the server's clock
        opened = await claim
        (outcome,) = await late
        assert opened is not None
        is_there = await store.fetch("run", [key("run", "x")]) != [None]
        assert is_there == (outcome is None)
        assert ("x" in {header.path for header in opened.headers}) == (outcome is None)

    async def test_a_deleted_run_stays_deleted(self, make_store: MakeStore) -> None:
        stores = [make_store(), make_store()]
        await stores[0].setup()
        for number in range(30):
            run_id = f"r{number}"
            await stores[0].open_run(request(run_id))
            writes = [
                asyncio.create_task(stores[0].commit_many([commit(record(run_id, f"n{i}"))]))
                for i in range(5)
            ]
            await asyncio.sleep(random.random() / 500)
            await stores[1].delete(run_id)
            await asyncio.gather(*writes)
            assert await stores[0].fetch(run_id, [key(run_id, f"n{i}") for i in range(5)]) == (
                [None] * 5
            )


class TestDeadlocks:
    async def test_overlapping_batches_of_everything(self, make_store: MakeStore) -> None:
        stores = [make_store(max_connections=3) for _ in range(4)]
        runs = [f"r{i}" for i in range(12)]
        for run_id in runs:
            await stores[0].open_run(request(run_id))

        async def commits(store: PostgresStore, number: int) -> None:
            for i in range(15):
                picked = random.sample(runs, 8)
                batch = [
                    commit(
                        record(run_id, f"{number}.{i}"),
                        update=RunUpdate(stop_reason=str(i)) if i % 3 == 0 else None,
                    )
                    for run_id in picked
                ]
                plain = [
                    commit(record(run_id, "plain", epoch=-1), token="")
                    for run_id in random.sample([*runs, "x", "y", "z"], 5)
                ]
                assert set(await store.commit_many([*batch, *plain])) == {None}

        async def renewals(store: PostgresStore) -> None:
            for _ in range(30):
                pairs = [(run_id, "alice") for run_id in random.sample(runs, 10)]
                assert all(await store.renew(pairs, 60_000))

        async def purges(store: PostgresStore) -> None:
            for _ in range(10):
                assert await store.purge(RunQuery(limit=5)) == 0

        await asyncio.gather(
            *(commits(store, number) for number, store in enumerate(stores)),
            *(renewals(store) for store in stores[:2]),
            purges(stores[3]),
        )


async def claim(store: PostgresStore, run_id: str) -> OpenedRun:
    """Claim a run as soon as its lease has ended."""
    while True:
        try:
            opened = await store.open_run(request(run_id, "new"))
        except RunLocked:
            continue
        assert opened is not None
        return opened


def key(run_id: str, path: str) -> RecordKey:
    return RecordKey(run_id, 0, path)


async def wait_for_locks(admin: Admin, count: int) -> None:
    """Wait until so many sessions wait for a lock."""
    for _ in range(1000):
        await admin.execute("SELECT pg_stat_clear_snapshot()")
        found = await admin.fetchval(
            "SELECT count(*) FROM pg_stat_activity "
            "WHERE wait_event_type = 'Lock' AND query LIKE '%stroma%'"
        )
        if found >= count:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("nobody waits")
