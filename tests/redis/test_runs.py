"""What runs cost in Redis, and how long they live there."""

from __future__ import annotations

import asyncio
import time

import pytest
import redis

from stroma import StromaRunner
from stroma.errors import (
    AlreadyCommitted,
    OutcomeUnknown,
    RunNotFound,
    StaleOwner,
    StoreUnusable,
)
from stroma.records import ClaimQuery, RecordKey, RunQuery, RunStatus
from stroma.testing import TcpProxy
from stroma_redis import RedisStore, SyncRedisStore
from stroma_redis._keys import Keys
from tests.core.stores.support import Note, commit, record, request
from tests.redis.support import DONE, Count, counting_nodes, immortal, keys_of, opened
from tests.servers.redis import Address

pytestmark = pytest.mark.server


class TestRoundTrips:
    @pytest.mark.parametrize("kind", [RedisStore, SyncRedisStore])
    async def test_a_clean_run_takes_one_more_than_it_has_nodes(
        self, server: Address, prefix: str, kind: type[RedisStore]
    ) -> None:
        with TcpProxy(*server) as proxy:
            store = kind(f"redis://{proxy.host}:{proxy.port}", key_prefix=prefix)
            async with StromaRunner.quick(store=store) as runner:
                await runner.run(counting_nodes(1), Count())  # connects, and loads the scripts
                before = proxy.round_trips
                result = await runner.run(counting_nodes(10), Count())
                assert result.status == "COMPLETED"
                assert proxy.round_trips - before == 11
            closed = store.aclose() if isinstance(store, RedisStore) else store.close()
            if closed is not None:
                await closed

    async def test_commits_that_meet_leave_together(self, server: Address, prefix: str) -> None:
        with TcpProxy(*server) as proxy:
            url = f"redis://{proxy.host}:{proxy.port}"
            async with opened(url, key_prefix=prefix) as store:
                for i in range(50):
                    await store.open_run(request(f"r{i}"))
                await store.commit_many([commit(record("r0", "first"))])
                before = proxy.round_trips
                commits = [commit(record(f"r{i}", "x")) for i in range(50)]
                outcomes = await asyncio.gather(*(store.commit_many([c]) for c in commits))
                assert outcomes == [[None]] * 50
                # One goes ahead; the others wait for a second connection, which is made, and share
                # one trip. Connecting takes trips of its own.
                assert proxy.round_trips - before <= 8
                before = proxy.round_trips
                commits = [commit(record(f"r{i}", "y")) for i in range(50)]
                assert await store.commit_many(commits) == [None] * 50
                assert proxy.round_trips - before == 1


class TestLife:
    async def test_no_key_lives_for_ever(
        self, server: Address, prefix: str, client: redis.Redis
    ) -> None:
        async with opened(server.url, key_prefix=prefix, ttl_seconds=100) as store:
            steps = [
                store.setup,
                store.health,
                lambda: store.save("plain", "node", Note()),
                lambda: store.open_run(request("run")),
                lambda: store.commit_many([commit(record("run"))]),
                lambda: store.renew([("run", "alice")], 1000),
                lambda: store.release("run", "alice"),
                lambda: store.open_run(request("run", "bob")),
                lambda: store.commit_many([commit(run_id="run", token="bob", update=DONE)]),
                lambda: store.commit_many([commit(record("none"))]),
                lambda: store.release("none", "x"),
                lambda: store.renew([("none", "x")], 1000),
                lambda: store.runs(RunQuery()),
            ]
            for step in steps:
                await step()
                assert immortal(client, prefix) == []
            await store.delete("run")
            await store.delete("plain")
            left = [key for key in keys_of(client, prefix) if b":index:" not in key]
            assert [key for key in left if b":health:" not in key] == []

    async def test_a_run_and_its_plain_states_expire_together(
        self, server: Address, prefix: str, client: redis.Redis
    ) -> None:
        async with opened(server.url, key_prefix=prefix, ttl_seconds=100) as store:
            await store.open_run(request("run", lease_seconds=1))
            await store.save("run", "node", Note())
            (key,) = [key for key in keys_of(client, prefix) if b":run:" in key]
            # While it is owned, a sixteenth is added, so that not every commit has to prolong it.
            assert 90_000 < client.pttl(key) <= 106_250

    async def test_commits_prolong_a_run_as_time_goes_by(
        self, server: Address, prefix: str, client: redis.Redis
    ) -> None:
        async with opened(server.url, key_prefix=prefix, ttl_seconds=1600) as store:
            await store.open_run(request("run", lease_seconds=1))
            (key,) = [key for key in keys_of(client, prefix) if b":run:" in key]
            lives: list[int] = []
            for number, seconds_later in enumerate([0, 50, 51, 101]):
                if number:
                    claimed = store._operations._claimed.of("run", "alice")
                    assert claimed is not None
                    claimed._young_until -= seconds_later
                client.pexpire(key, 30_000)
                await store.commit_many([commit(record("run", f"node-{number}"))])
                lives.append(client.pttl(key))
            assert [life > 30_000 for life in lives] == [False, False, True, True], lives

    async def test_an_owned_run_outlives_its_lease(
        self, server: Address, prefix: str, client: redis.Redis
    ) -> None:
        async with opened(server.url, key_prefix=prefix, ttl_seconds=1) as store:
            await store.open_run(request("run", lease_seconds=1000))
            (key,) = [key for key in keys_of(client, prefix) if b":run:" in key]
            assert client.pttl(key) > 1_050_000
            await store.commit_many([commit(record("run"))])
            await store.save("run", "node", Note())
            assert client.pttl(key) > 1_050_000
            await store.renew([("run", "alice")], 2_000_000)
            assert client.pttl(key) > 2_050_000
            await store.commit_many([commit(run_id="run", update=DONE)])
            assert client.pttl(key) <= 1000

    async def test_a_lease_that_no_server_can_keep_is_refused_and_nothing_written(
        self, server: Address, prefix: str, client: redis.Redis
    ) -> None:
        async with opened(server.url, key_prefix=prefix) as store:
            with pytest.raises(StoreUnusable, match=r"nothing was written.* too long"):
                await store.open_run(request("run", lease_seconds=1e15))
            assert keys_of(client, prefix) == []
            before = (await store.open_run(request("run"))).run
            with pytest.raises(StoreUnusable, match=r"nothing was written.* too long"):
                await store.renew([("run", before.owner)], 10**18)
            assert (await store.inspect("run")).run == before

    async def test_a_run_that_expired_is_not_found(
        self, server: Address, prefix: str, client: redis.Redis
    ) -> None:
        called: list[str] = []
        async with opened(server.url, key_prefix=prefix, ttl_seconds=100) as store:
            runner = StromaRunner.quick(store=store)
            await runner.run(counting_nodes(2), Count(), run_id="run")
            for key in keys_of(client, prefix):
                client.pexpire(key, 1)
            while any(b":run:" in key for key in keys_of(client, prefix)):
                await asyncio.sleep(0.002)
            with pytest.raises(RunNotFound):
                await runner.run(counting_nodes(2, called), run_id="run", resume=True)
            assert called == []
            (refused,) = await store.commit_many([commit(record("run"))])
            assert isinstance(refused, StaleOwner)
            assert not [key for key in keys_of(client, prefix) if b":run:" in key]

    async def test_the_result_says_when_a_run_expires(self, server: Address, prefix: str) -> None:
        async with opened(server.url, key_prefix=prefix, ttl_seconds=100) as store:
            runner = StromaRunner.quick(store=store)
            before = time.time()
            result = await runner.run(counting_nodes(2), Count(), run_id="run")
            assert result.expires_at is not None
            assert before + 100 <= result.expires_at <= time.time() + 100
            again = await runner.run(counting_nodes(2), Count(), run_id="run")
            assert again.expires_at is None  # it was only read
        kept = await StromaRunner.quick().run(counting_nodes(1), Count())
        assert kept.expires_at is None


class TestOnceOnly:
    async def test_a_commit_whose_reply_was_lost_may_come_again(
        self, server: Address, prefix: str
    ) -> None:
        with TcpProxy(*server) as proxy:
            url = f"redis://{proxy.host}:{proxy.port}"
            async with opened(url, key_prefix=prefix) as store:
                await store.open_run(request())
                one = commit(record())
                proxy.drop_reply()
                (unknown,) = await store.commit_many([one])
                assert isinstance(unknown, OutcomeUnknown)
                assert unknown.__cause__ is not None
                assert await store.commit_many([one]) == [None]
                (refused,) = await store.commit_many([commit(record())])
                assert isinstance(refused, AlreadyCommitted)
                opened_run = await store.inspect("run")
                assert opened_run is not None
                assert list(opened_run.headers) == [one.records[0].header]

    async def test_forgotten_scripts_are_sent_again(
        self, server: Address, prefix: str, client: redis.Redis
    ) -> None:
        async with opened(server.url, key_prefix=prefix) as store:
            await store.open_run(request())
            client.script_flush()
            commits = [commit(record(path=f"p{i}")) for i in range(5)]
            assert await store.commit_many(commits) == [None] * 5
            client.script_flush()
            found = await store.fetch("run", [c.records[0].header.key for c in commits])
            assert found == [c.records[0] for c in commits]

    async def test_a_commit_of_very_many_records(self, server: Address, prefix: str) -> None:
        async with opened(server.url, key_prefix=prefix) as store:
            await store.open_run(request())
            records = [record(path=f"p[{i}]", position=-1) for i in range(5000)]
            assert await store.commit_many([commit(*records)]) == [None]
            found = await store.inspect("run")
            assert found is not None
            assert list(found.headers) == [r.header for r in records]
            keys = [RecordKey("run", None, f"p[{i}]") for i in (0, 4999)]
            assert await store.fetch("run", keys) == [records[0], records[-1]]


class TestIndex:
    async def test_entries_of_expired_runs_go_when_they_are_met(
        self, server: Address, prefix: str, client: redis.Redis
    ) -> None:
        async with opened(server.url, key_prefix=prefix) as store:
            for run_id in ("a", "b", "c"):
                await store.open_run(request(run_id))
            client.delete(*(key for key in keys_of(client, prefix) if key.endswith(b"{b}")))
            assert [run.run_id for run in (await store.runs(RunQuery())).runs] == ["c", "a"]
            assert entries(client, prefix) == {b"a", b"c"}

    async def test_an_index_that_was_lost_comes_back_with_a_renewal(
        self, server: Address, prefix: str, client: redis.Redis
    ) -> None:
        async with opened(server.url, key_prefix=prefix) as store:
            run = await store.open_run(request("a"))
            assert run is not None
            client.delete(*(key for key in keys_of(client, prefix) if b":index:" in key))
            assert (await store.runs(RunQuery())).runs == ()
            await store.renew([("a", "alice")], 60_000)
            (found,) = (await store.runs(RunQuery())).runs
            assert found.updated_at == run.run.updated_at

    async def test_a_score_that_is_wrong_is_put_right(
        self, server: Address, prefix: str, client: redis.Redis
    ) -> None:
        async with opened(server.url, key_prefix=prefix) as store:
            for run_id in ("a", "b", "c"):
                await store.open_run(request(run_id))
            for key in keys_of(client, prefix):
                if b":index:" in key and client.zscore(key, "a") is not None:
                    client.zadd(key, {"a": 9e15})
            runs = (await store.runs(RunQuery())).runs
            assert [run.run_id for run in runs] == ["c", "b", "a"]
            assert scores(client, prefix) == {
                r.run_id.encode(): round(r.updated_at * 1e6) for r in runs
            }

    async def test_claims_clear_away_entries_of_expired_runs(
        self, server: Address, prefix: str, client: redis.Redis
    ) -> None:
        """Nobody lists the runs, and the index does not grow with those that have gone."""
        async with opened(server.url, key_prefix=prefix, ttl_seconds=1) as store:
            for i in range(400):
                run_id = f"gone{i}"
                client.zadd(Keys(prefix).index_of(run_id), {run_id: 1.0})
            for i in range(1000):
                await store.open_run(request(f"run{i % 50}"))
            left = entries(client, prefix)
            assert len([entry for entry in left if entry.startswith(b"gone")]) < 100
            assert len([entry for entry in left if entry.startswith(b"run")]) == 50

    async def test_a_listing_of_few_runs_reads_few_of_them(
        self, server: Address, prefix: str, client: redis.Redis
    ) -> None:
        """A run has its input with it, which may be large."""

        def calls(command: str) -> int:
            return int(client.info("commandstats").get(f"cmdstat_{command}", {"calls": 0})["calls"])

        async with opened(server.url, key_prefix=prefix) as store:
            for i in range(300):
                await store.open_run(
                    request(f"run{i}", created_at=float(i + 1), lease_seconds=0.001)
                )
            all_runs = [run.run_id for run in (await store.runs(RunQuery(limit=1000))).runs]
            assert len(all_runs) == 300
            client.config_resetstat()
            page = await store.runs(RunQuery(limit=3))
            assert ([run.run_id for run in page.runs], calls("hmget")) == (all_runs[:3], 4)
            client.config_resetstat()
            waiting = await store.claimable(ClaimQuery(limit=3))
            assert [run.run_id for run in waiting.runs] == ["run0", "run1", "run2"]
            assert calls("evalsha") == 4

    async def test_pages_of_any_size_hold_every_run_once(
        self, server: Address, prefix: str, client: redis.Redis
    ) -> None:
        async with opened(server.url, key_prefix=prefix) as store:
            for i in range(60):
                await store.open_run(request(f"run{i}"))
                if i % 3 == 0:
                    await store.commit_many([commit(run_id=f"run{i}", update=DONE)])
            for query in (RunQuery(), RunQuery(statuses=(RunStatus.COMPLETED,))):
                whole = [run.run_id for run in (await store.runs(query)).runs]
                assert len(whole) == (20 if query.statuses else 60)
                for size in (1, 2, 7, 59, 60, 61):
                    found: list[str] = []
                    page = await store.runs(query._replace(limit=size))
                    found += [run.run_id for run in page.runs]
                    while page.cursor:
                        page = await store.runs(query._replace(limit=size, cursor=page.cursor))
                        found += [run.run_id for run in page.runs]
                    assert found == whole, f"pages of {size}"

    async def test_no_operation_walks_through_the_keys(
        self, server: Address, prefix: str, client: redis.Redis
    ) -> None:
        client.config_resetstat()
        async with opened(server.url, key_prefix=prefix) as store:
            await store.open_run(request("*"))
            await store.save("[ab]", "node", Note())
            await store.runs(RunQuery())
            await store.delete("*")
            await store.purge(RunQuery())
        used = set(client.info("commandstats"))
        assert not used & {"cmdstat_keys", "cmdstat_scan"}


def entries(client: redis.Redis, prefix: str) -> set[bytes]:
    return set(scores(client, prefix))


def scores(client: redis.Redis, prefix: str) -> dict[bytes, float]:
    found: dict[bytes, float] = {}
    for key in keys_of(client, prefix):
        if b":index:" in key:
            found.update(client.zrange(key, 0, -1, withscores=True))
    return found
