"""What the tests of the Redis stores share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import redis
from pydantic import BaseModel

import stroma
from stroma.records import RunStatus, RunUpdate
from stroma_redis import RedisStore
from tests.servers.process import ServerProcess, free_port
from tests.servers.redis import REDIS, is_ready, local_server

DONE = RunUpdate(status=RunStatus.COMPLETED, release=True)


class Count(BaseModel):
    """A small state."""

    value: int = 0


def counting_nodes(number: int, called: list[str] | None = None) -> list[Callable[..., Any]]:
    """Return nodes that add one each, and note that they were called."""

    def make(name: str) -> Callable[..., Any]:
        @stroma.node(id=name)
        async def add(state: Count) -> Count:
            if called is not None:
                called.append(name)
            return Count(value=state.value + 1)

        return add

    return [make(f"n{i}") for i in range(number)]


@asynccontextmanager
async def opened(url: str, **options: Any) -> AsyncIterator[RedisStore]:
    """Yield a store, and close it."""
    store = RedisStore(url, **options)
    try:
        yield store
    finally:
        await store.aclose()


def keys_of(client: redis.Redis, prefix: str) -> list[bytes]:
    """Return all keys of one test, sorted."""
    return sorted(client.scan_iter(match=f"{prefix}:*", count=1000))


def immortal(client: redis.Redis, prefix: str) -> list[bytes]:
    """Return the keys of one test that would never expire."""
    return [key for key in keys_of(client, prefix) if client.pttl(key) == -1]


def local_cluster() -> ServerProcess:
    """Start a cluster of one node, which has all the slots."""
    bus = ("--cluster-port", str(free_port()))
    process = local_server(REDIS, "--cluster-enabled", "yes", *bus)
    with redis.Redis(port=process.port) as client:
        client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        while client.execute_command("CLUSTER INFO")["cluster_state"] != "ok":
            assert is_ready(process.port)
    return process
