"""The rows for stores with a server: next to one hand-written statement for each node."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

import asyncpg
import redis.asyncio

import stroma
from benchmarks.measuring import NODES, START, Row, State, bare, compared, numbered, paired
from tests.servers import postgres as postgres_servers
from tests.servers import redis as redis_servers

CONNECTIONS: Final = 10
RUNS_SIDE_BY_SIDE: Final = 1000
IN_FLIGHT: Final = 100
_TTL_SECONDS: Final = 3600
_UPSERT: Final = (
    "INSERT INTO results VALUES ($1, $2, $3) "
    "ON CONFLICT (run, node) DO UPDATE SET state = excluded.state"
)

Write = Callable[[str, str, str], Awaitable[object]]
"""Writes the state of one node by hand."""

_numbers = itertools.count()


async def redis_rows(rounds: int) -> list[Row]:
    """Redis, as it is started: one SET with an expiry against one script."""
    server = redis_servers.local_server()
    url = f"redis://127.0.0.1:{server.port}"
    pool = redis.asyncio.BlockingConnectionPool.from_url(url, max_connections=CONNECTIONS)
    client = redis.asyncio.Redis.from_pool(pool)

    plain = redis.asyncio.Redis.from_url(url)

    async def write(run: str, node: str, state: str) -> None:
        await plain.set(f"{run}:{node}", state, ex=_TTL_SECONDS)

    async def write_pooled(run: str, node: str, state: str) -> None:
        await client.set(f"{run}:{node}", state, ex=_TTL_SECONDS)

    store = {"url": url, "ttl_seconds": _TTL_SECONDS, "max_connections": CONNECTIONS}
    try:
        async with _runner("redis", store) as runner:
            return [
                await _one_run("Redis, one run, per node", rounds, write, runner, 1.25),
                await _side_by_side("Redis, 100 runs in flight, per node", write_pooled, runner),
            ]
    finally:
        await plain.aclose()
        await client.aclose()
        server.remove()


async def postgres_rows(rounds: int) -> list[Row]:
    """PostgreSQL that waits for the disk: one INSERT … ON CONFLICT against one statement."""
    server = postgres_servers.local_server(postgres_servers.OLDER, "fsync=on")
    dsn = postgres_servers.address_of(server).dsn
    try:
        async with asyncpg.create_pool(dsn, min_size=1, max_size=CONNECTIONS) as pool:
            await pool.execute(
                "CREATE TABLE results (run text, node text, state text, PRIMARY KEY (run, node))"
            )

            async def write(run: str, node: str, state: str) -> None:
                await pool.execute(_UPSERT, run, node, state)

            connection = await asyncpg.connect(dsn)

            async def write_bare(run: str, node: str, state: str) -> None:
                await connection.execute(_UPSERT, run, node, state)

            store = {"dsn": dsn, "max_connections": CONNECTIONS}
            async with _runner("postgres", store) as runner:
                rows = [
                    await _one_run("PostgreSQL, one run, per node", rounds, write, runner, 1.2),
                    await _one_run(
                        "the same, next to one bare connection", rounds, write_bare, runner, None
                    ),
                    await _side_by_side("PostgreSQL, 100 runs in flight, per node", write, runner),
                ]
            await connection.close()
            return rows
    finally:
        server.remove()


@asynccontextmanager
async def _runner(store: str, options: dict[str, object]) -> AsyncIterator[stroma.StromaRunner]:
    async with stroma.StromaRunner.quick(store=store, store_options=options) as runner:
        await runner.run(numbered(NODES), START)  # connects, and creates what there has to be
        yield runner


async def _by_hand(write: Write) -> None:
    """Run the nodes in a bare loop that writes each state."""
    state, run = START, f"run-{next(_numbers)}"
    for number in range(NODES):
        state = State.model_validate(await bare(state))
        await write(run, f"node-{number}", state.model_dump_json())


async def _one_run(
    work: str, rounds: int, write: Write, runner: stroma.StromaRunner, target: float | None
) -> Row:
    runs, nodes = 30, numbered(NODES)

    async def floor() -> None:
        for _ in range(runs):
            await _by_hand(write)

    async def ours() -> None:
        for _ in range(runs):
            assert (await runner.run(nodes, START)).is_complete

    await floor()
    await ours()
    return compared(work, await paired(rounds * 10, floor, ours), runs * NODES, target)


async def _side_by_side(work: str, write: Write, runner: stroma.StromaRunner) -> Row:
    nodes = numbered(NODES)

    async def floor() -> None:
        await _in_flight(lambda: _by_hand(write))

    async def ours() -> None:
        await _in_flight(lambda: runner.run(nodes, START))

    return compared(work, await paired(3, floor, ours), RUNS_SIDE_BY_SIDE * NODES, None)


async def _in_flight(run: Callable[[], Awaitable[object]]) -> None:
    left = itertools.count()

    async def worker() -> None:
        while next(left) < RUNS_SIDE_BY_SIDE:
            await run()

    async with asyncio.TaskGroup() as group:
        for _ in range(IN_FLIGHT):
            group.create_task(worker())
