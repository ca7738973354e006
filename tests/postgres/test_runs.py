"""Whole runs on PostgreSQL: what they cost in round trips, and what they survive."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import asyncpg
import pytest
from pydantic import BaseModel

from stroma import ExecutionResult, RunStatus, StromaRunner, node
from stroma.errors import StoreUnavailable
from stroma.records import unique_id
from stroma.testing import TcpProxy
from stroma_postgres import PostgresStore
from tests.core.stores.support import commit, in_child, record, request
from tests.postgres.conftest import Admin, MakeStore, run_sql, run_sql_now
from tests.servers.postgres import OLDER, Server, address_of, local_server
from tests.servers.process import ServerProcess

pytestmark = pytest.mark.server


class Number(BaseModel):
    value: int = 0


Before = Callable[[int], object]
"""What a node does first; it is told its number."""


class Calls:
    """Nodes that add 1, and are counted."""

    def __init__(self) -> None:
        self.made: list[str] = []

    def nodes(
        self, count: int, before: Callable[[int], object] = lambda number: None
    ) -> list[object]:
        return [self._node(number, before) for number in range(count)]

    def _node(self, number: int, before: Before) -> object:
        @node(id=f"n{number}", input=Number, output=Number)
        async def add(state: Number) -> Number:
            self.made.append(f"n{number}")
            found = before(number)
            if asyncio.iscoroutine(found):
                await found
            return Number(value=state.value + 1)

        return add


def runner_on(store: object, **options: object) -> StromaRunner:
    return StromaRunner.quick(store=store, **options)  # type: ignore[arg-type]


async def result_of(store: object, nodes: list[object], run_id: str) -> ExecutionResult:
    return await runner_on(store).run(nodes, Number(), run_id=run_id)  # type: ignore[arg-type]


@pytest.fixture
def own_server() -> Iterator[ServerProcess]:
    """A PostgreSQL of the test's own, to be stopped."""
    process = local_server(OLDER, "fsync=on")
    yield process
    process.remove()


class TestRoundTrips:
    @pytest.mark.parametrize("count", [1, 10])
    async def test_a_run_of_n_nodes_takes_one_more(
        self, older: Server, count: int, request: pytest.FixtureRequest
    ) -> None:
        with TcpProxy(older.host, older.port) as proxy, schema_on(older) as schema:
            store = PostgresStore(older.at(proxy.host, proxy.port).dsn, schema=schema)
            await result_of(store, Calls().nodes(1), "warms the connection")
            before = proxy.round_trips
            result = await result_of(store, Calls().nodes(count), "run")
            assert result.status is RunStatus.COMPLETED
            assert proxy.round_trips - before == count + 1
            await store.aclose()

    async def test_runs_side_by_side_share_round_trips(self, older: Server) -> None:
        with TcpProxy(older.host, older.port) as proxy, schema_on(older) as schema:
            store = PostgresStore(older.at(proxy.host, proxy.port).dsn, schema=schema)
            runner = runner_on(store)
            await runner.run(Calls().nodes(1), Number(), run_id="warms")  # type: ignore[arg-type]
            before = proxy.round_trips
            runs = (runner.run(Calls().nodes(10), Number(), run_id=f"r{i}") for i in range(50))  # type: ignore[arg-type]
            results = await asyncio.gather(*runs)
            assert {result.status for result in results} == {RunStatus.COMPLETED}
            # 50 claims, connections that are opened, and far fewer commits than 500
            assert proxy.round_trips - before < 50 + 10 * 20 + 100
            await store.aclose()


class TestConnections:
    async def test_a_hundred_runs_on_two_connections(
        self, make_store: MakeStore, admin: Admin
    ) -> None:
        store = make_store(max_connections=2)
        runner = runner_on(store)

        async def busy(number: int) -> None:
            await asyncio.sleep(0.001)  # a connection that is held here would be missed

        runs = (
            runner.run(Calls().nodes(3, busy), Number(), run_id=f"r{i}")  # type: ignore[arg-type]
            for i in range(100)
        )
        results = await asyncio.gather(*runs)
        assert {result.status for result in results} == {RunStatus.COMPLETED}
        assert {result.final_state.value for result in results} == {3}  # type: ignore[union-attr]

    async def test_backends_that_are_terminated_in_the_middle(
        self, make_store: MakeStore, admin: Admin
    ) -> None:
        store, calls = make_store(), Calls()

        async def terminate(number: int) -> None:
            await terminate_others(admin)

        result = await result_of(store, calls.nodes(6, terminate), "run")
        assert result.status is RunStatus.COMPLETED
        assert calls.made == [f"n{i}" for i in range(6)]

    async def test_a_busy_loop_does_not_hear_that_its_connection_is_gone(
        self, make_store: MakeStore, server: Server
    ) -> None:
        store, calls = make_store(), Calls()

        def terminate(number: int) -> None:
            # In another thread, while this one runs no event loop.
            child = in_child(lambda: asyncio.run(terminate_from(server)))
            assert child.read() == "None"

        result = await result_of(store, calls.nodes(3, terminate), "run")
        assert result.status is RunStatus.COMPLETED
        assert len(calls.made) == 3


class TestOutages:
    async def test_a_server_that_crashes_and_comes_back(self, own_server: ServerProcess) -> None:
        store, calls = PostgresStore(address_of(own_server).dsn), Calls()

        def crash(number: int) -> None:
            if number in {1, 3}:
                own_server.restart()

        result = await result_of(store, calls.nodes(5, crash), "run")
        if result.status is RunStatus.PARTIAL:  # it took longer than the save was retried
            result = await result_of(store, calls.nodes(5), "run")
        assert result.status in {RunStatus.COMPLETED, RunStatus.RESUMED}
        assert calls.made == [f"n{i}" for i in range(5)]
        await store.aclose()

    async def test_a_server_that_stays_away(self, own_server: ServerProcess) -> None:
        store, calls = PostgresStore(address_of(own_server).dsn), Calls()

        def stop(number: int) -> None:
            if number == 1:
                own_server.stop()

        result = await result_of(store, calls.nodes(3, stop), "run")
        assert result.status is RunStatus.PARTIAL
        with pytest.raises(StoreUnavailable):
            await store.open_run(request("other"))
        own_server.start()
        await end_leases(address_of(own_server))
        result = await result_of(store, calls.nodes(3), "run")
        assert result.status in {RunStatus.COMPLETED, RunStatus.RESUMED}
        await store.aclose()

    async def test_a_server_that_becomes_read_only(self, own_server: ServerProcess) -> None:
        server = address_of(own_server)
        store, calls = PostgresStore(server.dsn), Calls()

        async def make_read_only(number: int) -> None:
            if number == 1:
                await set_read_only(server, "on")
                await terminate_from(server)

        result = await result_of(store, calls.nodes(3, make_read_only), "run")
        assert result.status is RunStatus.PARTIAL
        with pytest.raises(StoreUnavailable, match="read-only"):
            await store.commit_many([commit(record())])
        with pytest.raises(StoreUnavailable, match="read-only"):
            await store.health()
        assert (await store.inspect("run")) is not None
        await set_read_only(server, "off")
        await terminate_from(server)
        await end_leases(server)
        result = await result_of(store, calls.nodes(3), "run")
        assert result.status in {RunStatus.COMPLETED, RunStatus.RESUMED}
        await store.aclose()


class TestProcesses:
    def test_one_store_in_three_event_loops(self, server: Server, schema: str) -> None:
        store = PostgresStore(server.dsn, schema=schema)
        for i in range(3):
            result = asyncio.run(result_of(store, Calls().nodes(2), f"r{i}"))
            assert result.status is RunStatus.COMPLETED
        gc.collect()  # an unclosed socket would say so

    def test_a_fork_has_connections_of_its_own(self, server: Server, schema: str) -> None:
        store = PostgresStore(server.dsn, schema=schema)

        async def body() -> None:
            await result_of(store, Calls().nodes(2), "parent before")
            child = in_child(
                lambda: asyncio.run(result_of(store, Calls().nodes(2), "child")).status.value
            )
            await result_of(store, Calls().nodes(2), "parent during")
            assert child.read() == "COMPLETED"
            await result_of(store, Calls().nodes(2), "parent after")
            for run_id in ("parent before", "child", "parent during", "parent after"):
                found = await store.inspect(run_id)
                assert found is not None
                assert found.run.status is RunStatus.COMPLETED
            await store.aclose()

        asyncio.run(body())


@contextmanager
def schema_on(server: Server) -> Iterator[str]:

    name = f"test_{unique_id()}"
    yield name
    run_sql_now(server, f'DROP SCHEMA IF EXISTS "{name}" CASCADE')


async def terminate_others(admin: Admin) -> None:
    await admin.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE pid <> pg_backend_pid() AND query LIKE '%stroma%'"
    )


async def terminate_from(server: Server) -> None:
    connection = await asyncpg.connect(server.dsn, statement_cache_size=0)
    await terminate_others(connection)
    await connection.close()


async def set_read_only(server: Server, value: str) -> None:
    connection = await asyncpg.connect(server.dsn)
    await connection.execute("SET default_transaction_read_only = off")
    await connection.execute(f"ALTER SYSTEM SET default_transaction_read_only = {value}")
    await connection.execute("SELECT pg_reload_conf()")
    await connection.close()


async def end_leases(server: Server) -> None:
    """Let the time pass that a worker's lease lasts which could not say that it gave up."""
    await run_sql(server, "UPDATE stroma_runs SET lease_expires_at = 0")
