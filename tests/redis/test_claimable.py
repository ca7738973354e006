"""Runs that a worker may take up: what they cost to find, and an index that puts itself right."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from stroma.errors import StoreUnusable
from stroma.records import ClaimQuery, RunStatus, RunUpdate
from stroma.testing import TcpProxy
from stroma_redis import RedisStore, SyncRedisStore
from stroma_redis._keys import Keys
from tests.core.stores.support import commit, record, request
from tests.redis.support import DONE, immortal, keys_of, local_cluster, opened
from tests.servers.process import ServerProcess
from tests.servers.redis import Address

pytestmark = pytest.mark.server

ANY = ClaimQuery()
SUBMITTED = RunUpdate(status=RunStatus.PENDING, release=True)


async def submit(store: RedisStore, *run_ids: str, **columns: Any) -> None:
    for run_id in run_ids:
        await store.open_run(request(run_id, **columns))
        assert await store.commit_many([commit(run_id=run_id, update=SUBMITTED)]) == [None]


async def finish(store: RedisStore, *run_ids: str) -> None:
    for run_id in run_ids:
        await store.open_run(request(run_id))
        assert await store.commit_many([commit(record(run_id), update=DONE)]) == [None]


async def found(store: RedisStore, query: ClaimQuery = ANY) -> list[str]:
    return [run.run_id for run in (await store.claimable(query)).runs]


def unfinished(client: redis.Redis, prefix: str) -> dict[str, float]:
    """Return the entries of the index, and the time in each."""
    entries: dict[str, float] = {}
    for key in keys_of(client, prefix):
        if b":unfinished:" in key:
            pairs = client.zrange(key, 0, -1, withscores=True)
            entries.update((run_id.decode(), -score) for run_id, score in pairs)
    return entries


def lose_indexes(client: redis.Redis, prefix: str) -> None:
    client.delete(*(k for k in keys_of(client, prefix) if b":unfinished:" in k or b":index:" in k))


class TestCost:
    async def test_runs_that_ended_cost_nothing(
        self, server: Address, prefix: str, client: redis.Redis
    ) -> None:
        async with opened(server.url, key_prefix=prefix) as store:
            await submit(store, "a", "b", "c")
            before = await commands_of_a_listing(store, client)
            await finish(store, *(f"r{i}" for i in range(300)))
            assert await commands_of_a_listing(store, client) == before
            assert set(unfinished(client, prefix)) == {"a", "b", "c"}

    async def test_a_page_takes_three_round_trips_at_the_most(
        self, server: Address, prefix: str
    ) -> None:
        with TcpProxy(*server) as proxy:
            url = f"redis://{proxy.host}:{proxy.port}"
            async with opened(url, key_prefix=prefix) as store:
                await submit(store, *(f"r{i}" for i in range(100)))
                await store.claimable(ClaimQuery())
                before = proxy.round_trips
                assert len(await found(store, ClaimQuery(limit=100))) == 100
                assert proxy.round_trips - before <= 3

    async def test_records_of_owned_runs_stay_where_they_are(
        self, server: Address, prefix: str, client: redis.Redis
    ) -> None:
        """What a run holds may be large: it is sent only if the run can be taken up."""
        async with opened(server.url, key_prefix=prefix) as store:
            await store.open_run(request("owned", input_payload=b"x" * 1_000_000))
            await store.claimable(ClaimQuery())  # the script is known now
            before = client.info("stats")["total_net_output_bytes"]
            assert await found(store) == []
            sent = client.info("stats")["total_net_output_bytes"] - before
            assert sent < 100_000

    def test_of_the_sync_store(self, server: Address, prefix: str) -> None:
        store = SyncRedisStore(server.url, key_prefix=prefix)
        store.open_run(request("a", pipeline="p"))
        store.release("a", "alice")
        assert [run.run_id for run in store.claimable(ClaimQuery(("p",))).runs] == ["a"]
        assert store.claimable(ClaimQuery(("q",))).runs == ()
        store.close()


async def commands_of_a_listing(store: RedisStore, client: redis.Redis) -> dict[str, int]:
    """Return how often the server called which command for a listing, scripts included."""
    await store.claimable(ClaimQuery())
    client.config_resetstat()
    await store.claimable(ClaimQuery())
    used = client.info("commandstats")
    return {name: said["calls"] for name, said in used.items() if not is_own(name)}


def is_own(name: str) -> bool:
    """Say whether this test itself sends the command."""
    return name.removeprefix("cmdstat_").partition("|")[0] in {"info", "config", "client"}


class TestLife:
    async def test_a_submitted_run_lives_as_long_as_others(
        self, server: Address, prefix: str, client: redis.Redis
    ) -> None:
        async with opened(server.url, key_prefix=prefix, ttl_seconds=100) as store:
            await submit(store, "run")
            assert 90_000 < client.pttl(Keys(prefix).run("run")) <= 100_000
            assert immortal(client, prefix) == []

    async def test_entries_of_expired_runs_vanish(
        self, server: Address, prefix: str, client: redis.Redis
    ) -> None:
        async with opened(server.url, key_prefix=prefix) as store:
            await submit(store, "a", "b", "c")
            client.pexpire(Keys(prefix).run("b"), 1)
            while client.exists(Keys(prefix).run("b")):
                await asyncio.sleep(0.002)
            assert await found(store) == ["a", "c"]
            assert set(unfinished(client, prefix)) == {"a", "c"}

    async def test_claims_clear_them_away_where_nobody_looks(
        self, server: Address, prefix: str, client: redis.Redis
    ) -> None:
        keys = Keys(prefix)
        async with opened(server.url, key_prefix=prefix, ttl_seconds=1) as store:
            for i in range(400):
                client.zadd(keys.index_of(f"gone{i}"), {f"gone{i}": 1.0})
                client.zadd(keys.unfinished_of(f"gone{i}"), {f"gone{i}": -1.0})
            for i in range(1000):
                await store.open_run(request(f"run{i % 50}"))
            left = unfinished(client, prefix)
            assert len([run_id for run_id in left if run_id.startswith("gone")]) < 100
            assert len([run_id for run_id in left if run_id.startswith("run")]) == 50

    async def test_the_indexes_outlive_a_run_with_a_long_lease(
        self, server: Address, prefix: str, client: redis.Redis
    ) -> None:
        """Its worker dies at once, and the run is there for an hour: it has to be found."""
        async with opened(server.url, key_prefix=prefix, ttl_seconds=1) as store:
            await store.open_run(request("run", lease_seconds=3600))
            keys = keys_of(client, prefix)
            lives = {key: client.pttl(key) for key in keys}
            assert len(lives) == 3
            assert min(lives, key=lives.__getitem__) == Keys(prefix).run("run"), lives


class TestHealing:
    async def test_an_entry_that_is_left_over_goes_when_it_is_met(
        self, server: Address, prefix: str, client: redis.Redis
    ) -> None:
        async with opened(server.url, key_prefix=prefix) as store:
            await submit(store, "a")
            await finish(store, "done")
            client.zadd(Keys(prefix).unfinished_of("done"), {"done": -1.0})
            assert await found(store) == ["a"]
            assert set(unfinished(client, prefix)) == {"a"}

    async def test_a_time_that_is_wrong_is_put_right(
        self, server: Address, prefix: str, client: redis.Redis
    ) -> None:
        async with opened(server.url, key_prefix=prefix) as store:
            await submit(store, "a", created_at=100.25)
            await submit(store, "b", created_at=200.5)
            await store.open_run(request("owned", created_at=300.75))
            for run_id in ("b", "owned"):
                client.zadd(Keys(prefix).unfinished_of(run_id), {run_id: 9e9})
            assert await found(store) == ["a", "b"]
            assert unfinished(client, prefix) == {"a": 100.25, "b": 200.5, "owned": 300.75}

    @pytest.mark.parametrize("how", ["renewal", "commit"])
    async def test_entries_that_were_lost_come_back(
        self, server: Address, prefix: str, client: redis.Redis, how: str
    ) -> None:
        """Also before older ones, whose time is known; then the owner dies."""
        async with opened(server.url, key_prefix=prefix, ttl_seconds=100) as store:
            await store.setup()
            await store.open_run(request("lost", created_at=200.0, lease_seconds=0.2))
            lose_indexes(client, prefix)
            await submit(store, "first", created_at=100.0)
            await submit(store, "last", created_at=300.0)
            if how == "renewal":
                assert await store.renew([("lost", "alice")], 200) == [True]
            else:  # the first one after a quarter of the time to live
                store._operations._indexes._listed_at.clear()
                store._operations._claimed.forget("lost")
                assert await store.commit_many([commit(record("lost"))]) == [None]
            await asyncio.sleep(0.25)
            assert await found(store, ClaimQuery(limit=2)) == ["first", "lost"]
            assert unfinished(client, prefix) == {"first": 100.0, "lost": 200.0, "last": 300.0}

    async def test_the_last_commit_of_a_run_brings_no_entry_back(
        self, server: Address, prefix: str, client: redis.Redis
    ) -> None:
        async with opened(server.url, key_prefix=prefix) as store:
            await store.open_run(request("run"))
            store._operations._indexes._listed_at.clear()
            assert await store.commit_many([commit(record("run"), update=DONE)]) == [None]
            assert unfinished(client, prefix) == {}

    async def test_a_run_that_is_claimed_again_meanwhile_keeps_its_entry(
        self, server: Address, prefix: str, client: redis.Redis
    ) -> None:
        """A listing met it when it had ended, and puts right what it saw."""
        async with opened(server.url, key_prefix=prefix) as store:
            await store.open_run(request("run", created_at=100.0))
            listing = store._operations.claimable(ClaimQuery())
            looks = listing.send([client.execute_command(*c) for c in next(listing).commands])
            await store.commit_many([commit(run_id="run", update=DONE)])
            looked = [client.eval(*as_eval(command)) for command in looks.commands]
            assert looked == [None]
            more = listing.send(looked)
            await store.open_run(request("run", reopen=True))
            for command in more.commands:
                client.eval(*as_eval(command))
            assert unfinished(client, prefix) == {"run": 100.0}


def as_eval(command: tuple[bytes, ...]) -> list[Any]:
    from stroma_redis._scripts import BY_SHA

    _, sha, count, *rest = command
    return [BY_SHA[sha].source, int(count), *rest]


class TestInACluster:
    """There a script that changes a run cannot reach the index."""

    @pytest.fixture
    def cluster(self) -> Iterator[ServerProcess]:
        process = local_cluster()
        yield process
        process.remove()

    async def test_runs_are_found_in_order(self, cluster: ServerProcess) -> None:
        async with opened(f"redis://127.0.0.1:{cluster.port}", cluster=True) as store:
            for i in range(30):
                await submit(store, f"r{i:02}", created_at=1000.0 - i)
            await store.open_run(request("owned"))
            expected = [f"r{i:02}" for i in reversed(range(30))]
            assert await found(store) == expected
            page = await store.claimable(ClaimQuery(limit=20))
            rest = await store.claimable(ClaimQuery(limit=20, cursor=page.cursor))
            assert [run.run_id for run in (*page.runs, *rest.runs)] == expected

    async def test_entries_of_runs_that_ended_go_with_the_next_claims(
        self, cluster: ServerProcess
    ) -> None:
        with redis.Redis(port=cluster.port) as client:
            async with opened(f"redis://127.0.0.1:{cluster.port}", cluster=True) as store:
                await finish(store, *(f"r{i}" for i in range(40)))
                await store.open_run(request("r0", "reader"))  # it is COMPLETED, and only read
                await submit(store, "next", "one more")
                assert set(unfinished(client, "stroma")) == {"next", "one more"}
                assert await found(store) == ["next", "one more"]

    async def test_a_run_that_is_claimed_again_keeps_its_entry(
        self, cluster: ServerProcess
    ) -> None:
        with redis.Redis(port=cluster.port) as client:
            async with opened(f"redis://127.0.0.1:{cluster.port}", cluster=True) as store:
                await finish(store, "run")
                await store.open_run(request("run", "bob", reopen=True))
                await submit(store, "next")
                assert set(unfinished(client, "stroma")) == {"run", "next"}

    async def test_a_claim_that_cannot_be_listed_is_refused(self, cluster: ServerProcess) -> None:
        """If its worker died, nobody would find the run."""
        url = f"redis://127.0.0.1:{cluster.port}"
        with redis.Redis(port=cluster.port) as client:
            client.acl_setuser(
                "narrow",
                enabled=True,
                nopass=True,
                categories=["+@all"],
                keys=["stroma:run:*", "stroma:index:*"],
            )
        async with opened(url, cluster=True, username="narrow", password="x") as store:
            with pytest.raises(StoreUnusable, match="index"):
                await store.open_run(request("run"))
        async with opened(url, cluster=True) as store:
            assert await store.open_run(request("run")) is not None  # the same token, again
            await store.release("run", "alice")
            assert await found(store) == ["run"]


DAMAGE: dict[str, Any] = {
    "epochs": (b"epochs", b"junk"),
    "owner's lease": (b"owner", b"alice", b"lease_expires_at", b"soon"),
    "created_at": (b"created_at", b"long ago"),
    "format": (b"format", b"99"),
}


@pytest.mark.parametrize("kind", [*DAMAGE, "another type"])
async def test_a_damaged_run_is_told_and_hides_no_other(
    server: Address, prefix: str, client: redis.Redis, kind: str
) -> None:
    async with opened(server.url, key_prefix=prefix) as store:
        await submit(store, *(f"r{i}" for i in range(5)))
        for run_id in ("r1", "r4"):
            key = Keys(prefix).run(run_id)
            if kind in DAMAGE:
                client.hset(key, items=list(DAMAGE[kind]))
            else:
                client.set(key, "another program's")

        for query in (ClaimQuery(limit=1), ClaimQuery(limit=3), ClaimQuery(("", "another"))):
            runs: list[str] = []
            told: dict[str, Exception] = {}
            cursor: str | None = ""
            while cursor is not None:
                page = await store.claimable(query._replace(cursor=cursor))
                runs += [run.run_id for run in page.runs]
                told |= dict(page.unreadable)
                cursor = page.cursor or None
            assert runs == ["r0", "r2", "r3"]
            assert told.keys() == {"r1", "r4"}
            assert "run 'r1': " in str(told["r1"])
        assert [run.run_id for run in (await store.claimable(ClaimQuery(("none",)))).runs] == []
        await store.delete("r1")
        await store.delete("r4")
        assert (await store.claimable(ANY)).unreadable == ()
