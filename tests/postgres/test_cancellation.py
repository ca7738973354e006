"""Statements that are cancelled or take too long: whatever they leave behind, it is not much."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import time

import asyncpg
import pytest

from stroma.errors import OutcomeUnknown, StoreUnavailable, StoreUnusable
from stroma.testing import TcpProxy
from stroma_postgres import PostgresStore
from stroma_postgres._migrations import lock
from stroma_postgres._opening import Openings
from tests.core.stores.support import Note, commit, record, request
from tests.postgres.conftest import Admin, MakeStore
from tests.postgres.support import backends, lock_runs, pool_of, until
from tests.servers.postgres import Server, local_pgbouncer

pytestmark = pytest.mark.server


async def turns(number: int) -> None:
    """Let the event loop turn."""
    for _ in range(number):
        await asyncio.sleep(0)


class TestCancellation:
    async def test_a_storm_leaves_the_pool_as_it_was(
        self, make_store: MakeStore, admin: Admin, schema: str
    ) -> None:
        store, seed = make_store(max_connections=4), random.randrange(10**6)
        print(f"seed {seed}")
        dice = random.Random(seed)
        await store.open_run(request())
        for round_ in range(15):
            tasks = [
                asyncio.create_task(
                    store.commit_many([commit(record(path=f"{round_}.{i}"))])
                    if i % 2
                    else store.load_typed("run", f"{round_}.{i}", Note)  # type: ignore[arg-type]
                )
                for i in range(20)
            ]
            for task in tasks:
                await asyncio.sleep(dice.random() / 2000)
                task.cancel()
                if dice.random() < 0.3:
                    task.cancel()
            await asyncio.wait(tasks)
        pool = pool_of(store)
        await until(lambda: pool.idle_size == pool.size)
        assert await store.commit_many([commit(record(path="last"))]) == [None]

        async def are_gone() -> bool:
            return await backends(admin, schema) <= 5

        await until(are_gone)

    async def test_a_cancelled_commit_is_wholly_there_or_not(
        self, make_store: MakeStore, admin: Admin
    ) -> None:
        store = make_store(max_connections=2)
        await store.open_run(request())
        whole = 0
        for i in range(30):
            pair = [record(path=f"{i}a"), record(path=f"{i}b")]
            task = asyncio.create_task(store.commit_many([commit(*pair)]))
            await asyncio.sleep(0.0003 * (i % 10))
            task.cancel()
            await asyncio.wait({task})
            pool = pool_of(store)
            await until(lambda pool=pool: pool.idle_size == pool.size)  # type: ignore[misc]
            found = await store.fetch("run", [one.header.key for one in pair])
            assert found in ([None, None], pair)
            whole += found == pair
            assert await store.commit_many([commit(*pair)]) == [None]
        print(f"{whole} of 30 were there")

    async def test_cancelled_while_connecting(self, server: Server, schema: str) -> None:
        """The driver forgets a future when it is cut, and the loop complains of its exception."""
        loop, complaints = asyncio.get_running_loop(), list[str]()
        loop.set_exception_handler(lambda _, context: complaints.append(str(context)))
        for i in range(150):
            store = PostgresStore(server.dsn, schema=schema)
            task = asyncio.create_task(store.inspect("run"))
            await asyncio.sleep(0.0002 * i)
            task.cancel()
            await asyncio.wait({task})
            if i % 2:
                assert await store.inspect("run") is None
            await store.aclose()
        gc.collect()
        await asyncio.sleep(0)
        assert complaints == []

    @pytest.mark.parametrize("is_set_up", [False, True])
    async def test_operations_under_way_leave_no_connection_open(
        self, older: Server, schema: str, *, is_set_up: bool
    ) -> None:
        """The store is closed at some time: they may wait for the tables, too."""
        admin = await asyncpg.connect(older.dsn)
        for turns in (0, 1, 2, 5, 10, 20, 40, 80):
            store = PostgresStore(older.dsn, schema=schema)
            if is_set_up:
                await store.setup()
            under_way = [asyncio.create_task(store.inspect("run")) for _ in range(6)]
            for _ in range(turns):
                await asyncio.sleep(0.0003)
            await store.aclose()
            for outcome in await asyncio.gather(*under_way, return_exceptions=True):
                assert outcome is None or isinstance(outcome, StoreUnavailable | StoreUnusable)

        async def none_is_left() -> bool:
            return await backends(admin, schema) == 0

        await until(none_is_left)
        await admin.close()

    def test_a_loop_that_ends_while_connecting(self, older: Server, schema: str) -> None:
        complaints: list[str] = []
        stores: list[PostgresStore] = []

        async def end_after(seconds: float) -> None:
            loop = asyncio.get_running_loop()
            loop.set_exception_handler(lambda _, context: complaints.append(str(context)))
            store = PostgresStore(older.dsn, schema=schema)
            stores.append(store)  # see below
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(store.inspect("run"), seconds)

        for i in range(100):
            asyncio.run(end_after(0.0002 * i))
        gc.collect()
        assert complaints == []

    @pytest.mark.parametrize("is_set_up", [True, False])
    def test_a_loop_that_ends_at_any_turn_of_a_cancellation(
        self, server: Server, schema: str, is_set_up: bool
    ) -> None:
        """The driver connects once more, to have the statement cancelled at the server."""
        complaints: list[str] = []
        stores: list[PostgresStore] = []

        async def end_after(turns_before: int, turns_after: int) -> None:
            loop = asyncio.get_running_loop()
            loop.set_exception_handler(lambda _, context: complaints.append(str(context)))
            store = PostgresStore(server.dsn, schema=schema)
            stores.append(store)  # the garbage collector must not close it while the loop ends
            if is_set_up:
                await store.inspect("run")
            task = asyncio.create_task(store.inspect("run"))
            await turns(turns_before)
            task.cancel()
            await turns(turns_after)

        for before in range(1, 3) if is_set_up else range(1, 41, 3):
            for after in range(20):
                asyncio.run(end_after(before, after))
        gc.collect()
        assert complaints == []

    @pytest.mark.parametrize("is_timed_out", [False, True])
    async def test_a_server_is_asked_to_cancel_and_a_pooler_is_not(
        self, server: Server, pgbouncer: Server, admin: Admin, schema: str, is_timed_out: bool
    ) -> None:
        """PgBouncer 1.18 exits when whoever asks it is gone before the answer."""
        observer = await asyncpg.connect(server.dsn, statement_cache_size=0)
        await self.make_a_run(server, schema)
        with TcpProxy(server.host, server.port) as proxy:
            limit = 2.0 if is_timed_out else 30.0
            dsn = server.at(proxy.host, proxy.port).dsn
            store = PostgresStore(
                dsn, schema=schema, max_connections=1, command_timeout_seconds=limit
            )
            await store.inspect("run")
            connections = proxy.accepted
            async with admin.transaction():
                await lock_runs(admin, store)
                opening = asyncio.create_task(store.open_run(request()))
                await until(lambda: is_waiting(observer, schema))
                if not is_timed_out:
                    opening.cancel()
                await asyncio.wait((opening,))
                await until(lambda: pool_of(store).size == 0)
                if server == pgbouncer:
                    assert proxy.accepted == connections
                else:
                    assert proxy.accepted == connections + 1
                    assert not await waiting(observer, schema)
            if is_timed_out:
                assert isinstance(opening.exception(), OutcomeUnknown)
            assert await store.inspect("run") is not None
            await store.aclose()
        await observer.close()

    async def test_what_took_too_long_waits_no_more_at_the_server(
        self, older: Server, schema: str
    ) -> None:
        """Whatever it was: a claim, the tables, or what makes a connection ready."""
        store = PostgresStore(older.dsn, schema=schema, command_timeout_seconds=0.3)
        admin, observer = await asyncpg.connect(older.dsn), await asyncpg.connect(older.dsn)

        async def none_waits() -> bool:
            return await observer.fetchval(_WAITING) == 0

        async with admin.transaction():
            await admin.execute(lock(store._client._names))
            with pytest.raises(StoreUnavailable, match="setup"):
                await store.setup()
            await until(none_waits)
        await store.open_run(request())
        async with admin.transaction():
            await lock_runs(admin, store)
            with pytest.raises(OutcomeUnknown):
                await store.open_run(request())
            await until(none_waits)
        await until(lambda: pool_of(store).size == 0)
        async with admin.transaction():
            await admin.execute(f"LOCK {store._client._names.runs} IN SHARE MODE")
            with pytest.raises(StoreUnavailable, match="no connection"):
                await store.open_run(request())
            await until(none_waits)
        await store.aclose()
        await admin.close()
        await observer.close()

    async def test_a_role_may_have_the_server_end_what_a_pooler_left(
        self, older: Server, schema: str
    ) -> None:
        admin, observer = await asyncpg.connect(older.dsn), await asyncpg.connect(older.dsn)
        await self.make_a_run(older, schema)
        await admin.execute("ALTER ROLE postgres SET client_connection_check_interval = '50ms'")
        pooler = local_pgbouncer(older)
        try:
            store = PostgresStore(
                older.at("127.0.0.1", pooler.port).dsn, schema=schema, command_timeout_seconds=0.5
            )
            async with admin.transaction():
                await lock_runs(admin, store)
                with pytest.raises(OutcomeUnknown):
                    await store.open_run(request())

                async def none_waits() -> bool:
                    return await observer.fetchval(_WAITING) == 0

                await until(none_waits)
            await store.aclose()
        finally:
            await admin.execute("ALTER ROLE postgres RESET client_connection_check_interval")
            pooler.remove()
            await admin.close()
            await observer.close()

    async def make_a_run(self, server: Server, schema: str) -> None:
        store = PostgresStore(server.dsn, schema=schema)
        await store.open_run(request())
        await store.aclose()

    async def test_what_came_while_the_loop_stood_still_is_heard(self, older: Server) -> None:
        """No time is left, and the server has answered: the driver is not cut before it knows."""
        loop, complaints = asyncio.get_running_loop(), list[str]()
        loop.set_exception_handler(lambda _, context: complaints.append(str(context)))

        def unclaimed(connection: Admin | None) -> None:
            if connection is not None:
                connection.terminate()

        for turns_before in range(1, 12):
            openings = Openings[Admin](patience_seconds=0.0)
            opening = openings.open(lambda: asyncpg.connect(older.dsn), unclaimed)
            task = asyncio.create_task(opening)
            await turns(turns_before)
            task.cancel()
            await openings.end()
            await asyncio.wait((task,))
        gc.collect()
        assert complaints == []

    async def test_a_connection_that_comes_too_late_is_kept(
        self, older: Server, schema: str
    ) -> None:
        with TcpProxy(older.host, older.port) as proxy:
            store = await self.cancelled_while_connecting(older, schema, proxy)
            proxy.resume()
            await until(lambda: pool_of(store).idle_size == 1)
            assert await store.inspect("run") is None
            assert pool_of(store).size == 1
            await store.aclose()

    async def test_one_that_fails_for_nobody_frees_its_place(
        self, older: Server, schema: str
    ) -> None:
        with TcpProxy(older.host, older.port) as proxy:
            store = await self.cancelled_while_connecting(older, schema, proxy)
            proxy.reset()
            await until(lambda: pool_of(store).size == 0)
            proxy.resume()
            assert await store.inspect("run") is None
            await store.aclose()

    async def test_closing_does_not_wait_for_a_server_that_says_nothing(
        self, older: Server, schema: str
    ) -> None:
        with TcpProxy(older.host, older.port) as proxy:
            store = await self.cancelled_while_connecting(older, schema, proxy)
            began = time.monotonic()
            await store.aclose()
            assert time.monotonic() - began < 4

    async def cancelled_while_connecting(
        self, server: Server, schema: str, proxy: TcpProxy
    ) -> PostgresStore:
        """Return a store with one connection at most, which is being opened for nobody."""
        dsn = server.at(proxy.host, proxy.port).dsn
        store = PostgresStore(dsn, schema=schema, max_connections=1)
        await store.setup()
        await until(lambda: proxy.open_connections == 0)  # that of the setup has gone
        proxy.pause()
        task = asyncio.create_task(store.inspect("run"))
        await until(lambda: proxy.open_connections == 1)
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled()
        assert (pool_of(store).size, pool_of(store).idle_size) == (1, 0)
        return store

    async def test_cancelled_while_waiting_for_a_connection(
        self, make_store: MakeStore, admin: Admin
    ) -> None:
        store = make_store(max_connections=1)
        await store.open_run(request())
        async with admin.transaction():
            await lock_runs(admin, store)
            first = asyncio.create_task(store.commit_many([commit(record(path="a"))]))
            await until(lambda: pool_of(store).idle_size == 0)
            queue = [asyncio.create_task(store.inspect("run")) for _ in range(5)]
            await asyncio.sleep(0)
            for task in queue[:3]:
                task.cancel()
        assert await first == [None]
        results = await asyncio.gather(*queue, return_exceptions=True)
        assert [type(each).__name__ for each in results] == ["CancelledError"] * 3 + [
            "OpenedRun"
        ] * 2
        assert (pool_of(store).size, pool_of(store).idle_size) == (1, 1)


_WAITING = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"


async def waiting(admin: Admin, schema: str) -> int:
    """Return how many statements on the tables of a schema wait for somebody's lock."""
    return int(
        await admin.fetchval(
            f"{_WAITING} AND query LIKE '%' || $1 || '%'",
            schema,
        )
    )


async def is_waiting(admin: Admin, schema: str) -> bool:
    """Say whether one does."""
    return await waiting(admin, schema) > 0
