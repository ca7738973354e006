"""What a run that cannot be read does to listings and purges of all the others: nothing."""

from __future__ import annotations

from typing import Any

import pytest
import redis

from stroma.errors import RecordCorrupt, StoreUnusable
from stroma.records import RunQuery
from stroma_redis import RedisStore
from stroma_redis._keys import Keys
from tests.core.stores.support import request
from tests.redis.support import keys_of, opened
from tests.servers.redis import Address

pytestmark = pytest.mark.server

DAMAGE: dict[str, Any] = {
    "status": (b"status", b"BOGUS"),
    "epochs": (b"epochs", b"junk"),
    "owner's lease": (b"owner", b"alice", b"lease_expires_at", b"soon"),
    "created_at": (b"created_at", b"xx"),
    "updated_at": (b"updated_at", b"xx"),
    "format": (b"format", b"99"),
}
LOST = {f"no {column}": column for column in ("tags", "epochs", "spend", "active_ms")}
KINDS = [*DAMAGE, *LOST, "another type"]


async def fill(store: RedisStore, client: redis.Redis, prefix: str, kind: str) -> None:
    """Make five runs of which two are damaged."""
    for i in range(5):
        await store.open_run(request(f"r{i}"))
        await store.release(f"r{i}", "alice")
    for run_id in ("r1", "r4"):
        key = Keys(prefix).run(run_id)
        if kind in DAMAGE:
            client.hset(key, items=list(DAMAGE[kind]))
        elif kind in LOST:
            assert client.hdel(key, LOST[kind]) == 1
        else:
            client.set(key, "another program's")


@pytest.mark.parametrize("kind", KINDS)
async def test_a_damaged_run_is_told_and_hides_no_other(
    server: Address, prefix: str, client: redis.Redis, kind: str
) -> None:
    async with opened(server.url, key_prefix=prefix) as store:
        await fill(store, client, prefix, kind)

        for limit in (1, 3, 10):
            runs: list[str] = []
            told: dict[str, Exception] = {}
            cursor: str | None = ""
            while cursor is not None:
                page = await store.runs(RunQuery(limit=limit, cursor=cursor))
                runs += [run.run_id for run in page.runs]
                told |= dict(page.unreadable)
                cursor = page.cursor or None
            assert runs == ["r3", "r2", "r0"]
            assert told.keys() == {"r1", "r4"}
            assert "run 'r1': " in str(told["r1"])


@pytest.mark.parametrize("kind", KINDS)
async def test_a_damaged_run_is_not_purged_as_somebody_may_own_it(
    server: Address, prefix: str, client: redis.Redis, kind: str
) -> None:
    async with opened(server.url, key_prefix=prefix) as store:
        await fill(store, client, prefix, kind)

        assert await store.purge(RunQuery(limit=1)) == 1
        assert await store.purge(RunQuery(limit=10)) == 2

        page = await store.runs(RunQuery())
        assert page.runs == ()
        assert {each.run_id for each in page.unreadable} == {"r1", "r4"}


@pytest.mark.parametrize("kind", KINDS)
async def test_a_damaged_run_can_be_deleted_and_nothing_is_left_of_it(
    server: Address, prefix: str, client: redis.Redis, kind: str
) -> None:
    async with opened(server.url, key_prefix=prefix) as store:
        await fill(store, client, prefix, kind)

        with pytest.raises(StoreUnusable if kind == "format" else RecordCorrupt, match="'r1'"):
            await store.inspect("r1")
        for i in range(5):
            await store.delete(f"r{i}")

        assert (await store.runs(RunQuery())).unreadable == ()
        assert keys_of(client, prefix) == []


async def test_a_claim_of_a_run_without_a_status_is_refused(
    server: Address, prefix: str, client: redis.Redis
) -> None:
    async with opened(server.url, key_prefix=prefix) as store:
        await fill(store, client, prefix, "status")

        with pytest.raises(RecordCorrupt, match="run 'r1': its record cannot be read: 'BOGUS'"):
            await store.open_run(request("r1"))
