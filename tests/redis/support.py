"""What the tests of the Redis stores share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import redis
from pydantic import BaseModel

import stroma
from stroma_redis import RedisStore


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
