from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, TypeAlias

import asyncpg
import pytest

from stroma.records import unique_id
from stroma_postgres import PostgresStore
from tests.servers.postgres import (
    NEWEST,
    OLDER,
    Server,
    local_pgbouncer,
    shared_server,
)

Admin: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
MakeStore = Callable[..., PostgresStore]


@pytest.fixture(scope="session")
def older() -> Server:
    """A running PostgreSQL 15, or whatever the environment names."""
    return shared_server(OLDER)


@pytest.fixture(scope="session")
def newest() -> Server:
    """A running PostgreSQL 18."""
    return shared_server(NEWEST)


@pytest.fixture(scope="session")
def pgbouncer(older: Server) -> Iterator[Server]:
    """A PgBouncer in transaction mode before the older PostgreSQL."""
    process = local_pgbouncer(older)
    yield older.at("127.0.0.1", process.port)
    try:
        process.check()
    finally:
        process.remove()


@pytest.fixture(scope="session", params=["older", "newest", "pgbouncer"])
def server(request: pytest.FixtureRequest) -> Server:
    """Each of the three in turn."""
    found: Server = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def schema(server: Server) -> Iterator[str]:
    """A name for the schema of this test."""
    name = f"test_{unique_id()}"
    yield name
    run_sql_now(server, f'DROP SCHEMA IF EXISTS "{name}" CASCADE')


def run_sql_now(server: Server, sql: str) -> None:
    """Run statements as the owner of everything, whether or not a loop is running here."""
    thread = threading.Thread(target=lambda: asyncio.run(run_sql(server, sql)))
    thread.start()
    thread.join()


async def run_sql(server: Server, sql: str) -> None:
    """Run statements as the owner of everything."""
    connection = await asyncpg.connect(server.dsn)
    try:
        await connection.execute(sql)
    finally:
        await connection.close()


@pytest.fixture
async def make_store(server: Server, schema: str) -> AsyncIterator[MakeStore]:
    """Makes stores over the tables of this test, and closes them in the end."""
    made: list[PostgresStore] = []

    def make(dsn: str = server.dsn, **options: Any) -> PostgresStore:
        store = PostgresStore(dsn, **{"schema": schema, **options})
        made.append(store)
        return store

    yield make
    for store in made:
        await store.aclose()


@pytest.fixture
def store(make_store: MakeStore) -> PostgresStore:
    """A store over the tables of this test."""
    return make_store()


@pytest.fixture
async def admin(server: Server) -> AsyncIterator[Admin]:
    """A connection to look behind the store."""
    connection = await asyncpg.connect(server.dsn, statement_cache_size=0)
    yield connection
    await connection.close()
