from __future__ import annotations

import asyncio
import time

from stroma_postgres import PostgresStore
from stroma_postgres._pool import Connections
from tests.postgres.conftest import Admin


def pool_of(store: PostgresStore) -> Connections:
    """Return the connections of the running loop."""
    return store._client._lenders.get()


async def backends(admin: Admin, marker: str) -> int:
    """Return how many sessions of the server ever sent something with this text last."""
    return int(
        await admin.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%' || $1 || '%' "
            "AND pid <> pg_backend_pid()",
            marker,
        )
    )


async def until(condition: object, seconds: float = 10.0) -> None:
    """Wait until a function, or coroutine function, returns something true."""
    deadline = time.monotonic() + seconds
    while True:
        found = condition()  # type: ignore[operator]
        if asyncio.iscoroutine(found):
            found = await found
        if found:
            return
        assert time.monotonic() < deadline, "it did not become true"
        await asyncio.sleep(0.01)


async def lock_runs(admin: Admin, store: PostgresStore) -> None:
    """Lock the rows of all runs, as a worker in the middle of a commit does."""
    await admin.fetch(f"SELECT 1 FROM {store._client._names.runs} FOR UPDATE")
