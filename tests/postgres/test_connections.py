"""Connections: none is lost or shared, whoever is cancelled and whichever loop ends."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import threading
import time
import warnings

import asyncpg
import pytest

from stroma.errors import ConfigError, OutcomeUnknown, StoreUnavailable, StoreUnusable
from stroma.records import ClaimQuery, RunQuery
from stroma.testing import TcpProxy
from stroma_postgres import PostgresStore
from stroma_postgres._migrations import lock
from stroma_postgres._opening import Openings
from stroma_postgres._pool import Connections
from tests.core.stores.support import Note, commit, record, request
from tests.postgres.conftest import Admin, MakeStore
from tests.servers.postgres import OLDER, Server, address_of, local_server

pytestmark = pytest.mark.server


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


async def turns(number: int) -> None:
    """Let the event loop turn."""
    for _ in range(number):
        await asyncio.sleep(0)


class TestPool:
    async def test_it_grows_no_larger_than_it_may(
        self, make_store: MakeStore, admin: Admin, schema: str
    ) -> None:
        store = make_store(max_connections=3)
        await asyncio.gather(*(store.save(f"r{i}", "n", Note()) for i in range(50)))
        pool = pool_of(store)
        assert 1 <= pool.size <= 3
        assert pool.idle_size == pool.size
        assert await backends(admin, schema) <= 5  # PgBouncer's pool is of five

    async def test_none_becomes_free_in_time(self, make_store: MakeStore, admin: Admin) -> None:
        store = make_store(max_connections=1, acquire_timeout_seconds=0.2)
        await store.open_run(request())
        async with admin.transaction():
            await lock_runs(admin, store)
            waiting = asyncio.create_task(store.commit_many([commit(record())]))
            await until(lambda: pool_of(store).idle_size == 0)
            with pytest.raises(StoreUnavailable, match="max_connections"):
                await store.inspect("run")
        assert await waiting == [None]
        assert await store.inspect("run") is not None

    async def test_idle_connections_are_closed_after_a_while(self, make_store: MakeStore) -> None:
        store = make_store(max_idle_seconds=0.2)
        await asyncio.gather(*(store.save(f"r{i}", "n", Note()) for i in range(20)))
        pool = pool_of(store)
        await until(lambda: pool.size == 0)
        assert await store.load_typed("r1", "n", Note) == Note()

    async def test_idle_connections_that_were_terminated(
        self, make_store: MakeStore, admin: Admin, schema: str
    ) -> None:
        store = make_store()
        for _ in range(3):
            await asyncio.gather(*(store.save(f"r{i}", "n", Note()) for i in range(20)))
            await admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                f"WHERE query LIKE '%{schema}%' AND pid <> pg_backend_pid()"
            )
            assert await store.load_typed("r1", "n", Note) == Note()

    async def test_a_statement_that_takes_too_long(
        self, make_store: MakeStore, admin: Admin
    ) -> None:
        store = make_store(command_timeout_seconds=0.5)
        await store.open_run(request())
        async with admin.transaction():
            await lock_runs(admin, store)
            (refused,) = await asyncio.gather(
                store.commit_many([commit(record())]), return_exceptions=True
            )
        assert type(refused).__name__ == "OutcomeUnknown"
        assert "run 'run': commit" in str(refused)
        assert "did not answer within 0.5 s (command_timeout_seconds)" in str(refused)
        assert await store.commit_many([commit(record(path="next"))]) == [None]

    async def test_closed_means_closed(self, make_store: MakeStore) -> None:
        store = make_store()
        await store.health()
        await store.aclose()
        await store.aclose()
        with pytest.raises(StoreUnusable, match="closed"):
            await store.health()


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
                if server == pgbouncer:
                    await asyncio.sleep(0.05)  # it would have connected by now
                    assert proxy.accepted == connections
                    assert pool_of(store).size == 1  # still at the server, so that it counts
                else:
                    await until(lambda: pool_of(store).size == 0)
                    assert proxy.accepted == connections + 1
                    assert not await waiting(observer, schema)
            if is_timed_out:
                assert isinstance(opening.exception(), OutcomeUnknown)
            assert await store.inspect("run") is not None
            await store.aclose()
        await observer.close()

    async def test_no_more_statements_wait_at_the_server_than_it_was_promised(
        self, server: Server, admin: Admin, schema: str
    ) -> None:
        """Also of those that were given up: a pooler does not have them cancelled."""
        observer = await asyncpg.connect(server.dsn, statement_cache_size=0)
        await self.make_a_run(server, schema)
        store = PostgresStore(
            server.dsn,
            schema=schema,
            max_connections=2,
            command_timeout_seconds=1.0,
            acquire_timeout_seconds=0.2,
        )
        async with admin.transaction():
            await lock_runs(admin, store)
            tries = [asyncio.create_task(store.open_run(request())) for _ in range(2)]
            await until(lambda: is_waiting(observer, schema))
            await asyncio.wait(tries)
            for _ in range(6):
                with pytest.raises((StoreUnavailable, OutcomeUnknown)):
                    await store.open_run(request())
                assert await waiting(observer, schema) <= 2
        assert await store.inspect("run") is not None
        await store.aclose()
        assert await waiting(observer, schema) == 0
        await observer.close()

    async def test_tries_to_make_the_tables_do_not_pile_up_at_the_server(
        self, server: Server, admin: Admin, schema: str
    ) -> None:
        """Every operation tries, while somebody else has the lock for it."""
        store = PostgresStore(server.dsn, schema=schema, command_timeout_seconds=0.3)
        async with admin.transaction():
            await admin.execute(lock(store._client._names))
            for _ in range(8):
                with pytest.raises(StoreUnavailable):
                    await store.setup()
            assert await admin.fetchval(_WAIT_TO_MIGRATE) <= 5  # PgBouncer's pool is of five
        await store.setup()
        await store.aclose()

    async def test_closing_waits_a_while_for_a_statement_that_was_given_up(
        self, server: Server, admin: Admin, schema: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("stroma_postgres._pool._CLOSE_SECONDS", 0.1)
        observer = await asyncpg.connect(server.dsn, statement_cache_size=0)
        loop, complaints = asyncio.get_running_loop(), list[str]()
        loop.set_exception_handler(lambda _, context: complaints.append(str(context)))
        await self.make_a_run(server, schema)
        store = PostgresStore(server.dsn, schema=schema)
        async with admin.transaction():
            await lock_runs(admin, store)
            opening = asyncio.create_task(store.open_run(request()))
            await until(lambda: is_waiting(observer, schema))
            opening.cancel()
            await asyncio.wait((opening,))
            pool = pool_of(store)
            await asyncio.wait_for(store.aclose(), 10)
            assert pool.size == 0
        gc.collect()
        assert complaints == []
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


class TestLoops:
    def test_loops_that_end_close_their_connections(self, server: Server, schema: str) -> None:
        store = PostgresStore(server.dsn, schema=schema)

        async def body(number: int) -> None:
            await asyncio.gather(*(store.save(f"r{number}.{i}", "n", Note()) for i in range(5)))

        async def count() -> int:
            connection = await asyncpg.connect(server.dsn, statement_cache_size=0)
            try:
                return await backends(connection, schema)
            finally:
                await connection.close()

        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for number in range(3):
                asyncio.run(body(number))
                gc.collect()
        assert asyncio.run(count()) <= 5

    def test_loops_side_by_side(self, server: Server, schema: str) -> None:
        store = PostgresStore(server.dsn, schema=schema)
        failures: list[BaseException] = []

        async def body(number: int) -> None:
            for i in range(10):
                await store.save(f"r{number}", f"n{i}", Note(text=str(i)))

        def run(number: int) -> None:
            try:
                asyncio.run(body(number))
            except BaseException as exc:
                failures.append(exc)

        threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []

    def test_a_loop_that_is_closed_without_notice(self, server: Server, schema: str) -> None:
        store = PostgresStore(server.dsn, schema=schema)
        loop = asyncio.new_event_loop()
        loop.run_until_complete(store.save("run", "n", Note()))
        loop.close()
        asyncio.run(store.save("run", "n", Note(text="2")))
        gc.collect()
        assert asyncio.run(store.load_typed("run", "n", Note)) == Note(text="2")


class TestHandedInPool:
    async def test_it_is_used_and_left_open(self, server: Server, schema: str) -> None:
        cache = {"statement_cache_size": 0}
        async with asyncpg.create_pool(server.dsn, min_size=1, max_size=2, **cache) as pool:
            store = PostgresStore(pool=pool, schema=schema)
            await asyncio.gather(*(store.save(f"r{i}", "n", Note()) for i in range(10)))
            assert len((await store.runs(RunQuery())).runs) == 0
            await store.aclose()
            assert await pool.fetchval("SELECT 1") == 1
            assert pool.get_size() == pool.get_idle_size()

    async def test_its_idle_connections_that_were_terminated(
        self, server: Server, schema: str, admin: Admin
    ) -> None:
        cache = {"statement_cache_size": 0}
        async with asyncpg.create_pool(server.dsn, min_size=2, max_size=2, **cache) as pool:
            store = PostgresStore(pool=pool, schema=schema)
            await asyncio.gather(*(store.save(f"r{i}", "n", Note()) for i in range(10)))
            await admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                f"WHERE query LIKE '%{schema}%' AND pid <> pg_backend_pid()"
            )
            assert await store.load_typed("r1", "n", Note) == Note()
            await store.open_run(request())
            assert await store.commit_many([commit(record())]) == [None]

    async def test_a_hundred_runs_on_two_of_its_connections(
        self, server: Server, schema: str
    ) -> None:
        cache = {"statement_cache_size": 0}
        async with asyncpg.create_pool(server.dsn, min_size=1, max_size=2, **cache) as pool:
            store = PostgresStore(pool=pool, schema=schema)
            runs = [f"r{i}" for i in range(100)]
            await asyncio.gather(*(store.open_run(request(run_id)) for run_id in runs))
            commits = (store.commit_many([commit(record(run_id))]) for run_id in runs)
            assert await asyncio.gather(*commits) == [[None]] * 100
            assert pool.get_size() == pool.get_idle_size() <= 2

    async def test_another_loop_asks_its_loop(self, server: Server, schema: str) -> None:
        async with asyncpg.create_pool(server.dsn, statement_cache_size=0) as pool:
            store = PostgresStore(pool=pool, schema=schema)
            await store.open_run(request())

            def elsewhere() -> list[bool]:
                return asyncio.run(store.renew([("run", "alice")], 60_000))

            assert await asyncio.to_thread(elsewhere) == [True]

    def test_its_loop_is_closed(self, server: Server, schema: str) -> None:
        async def make() -> PostgresStore:
            async with asyncpg.create_pool(server.dsn, statement_cache_size=0) as pool:
                store = PostgresStore(pool=pool, schema=schema)
                await store.setup()
            return store

        store = asyncio.run(make())
        with pytest.raises(StoreUnusable, match="event loop that is closed"):
            asyncio.run(store.health())


class TestErrors:
    async def test_nobody_listens(self) -> None:
        store = PostgresStore("postgresql://app:s3cret@127.0.0.1:1/app")
        with pytest.raises(StoreUnavailable) as refused:
            await store.open_run(request())
        assert "s3cret" not in f"{refused.value!r} {refused.value.__cause__!r}"
        assert "app:***@127.0.0.1:1" in str(refused.value)
        assert isinstance(refused.value.__cause__, ConnectionRefusedError)

    async def test_what_is_no_cursor_is_refused_before_anything_is_sent(self) -> None:
        store = PostgresStore("postgresql://127.0.0.1:1/app")
        for limit in (0, 10):
            with pytest.raises(ConfigError, match=r"'\[1,2\]' is no cursor: pass the one"):
                await store.runs(RunQuery(limit=limit, cursor="[1,2]"))
            with pytest.raises(ConfigError, match=r"'\[1,2\]' is no cursor: pass the one"):
                await store.claimable(ClaimQuery(limit=limit, cursor="[1,2]"))

    async def test_a_server_that_says_nothing_is_told_of_with_the_time_that_it_had(
        self, older: Server, schema: str
    ) -> None:
        with TcpProxy(older.host, older.port) as proxy:
            dsn = older.at(proxy.host, proxy.port).dsn
            times = {"acquire_timeout_seconds": 0.3, "command_timeout_seconds": 0.4}
            store = PostgresStore(dsn, schema=schema, **times)
            await store.health()
            proxy.pause()
            with pytest.raises(StoreUnavailable) as unanswered:
                await store.health()
            with pytest.raises(StoreUnavailable) as unconnected:
                await store.health()
            proxy.resume()
            await store.aclose()
        assert "the server did not answer within 0.4 s (command_timeout_seconds)" in str(
            unanswered.value
        )
        assert "did not let the store in within 0.3 s (acquire_timeout_seconds)" in str(
            unconnected.value
        )
        assert isinstance(unconnected.value.__cause__, TimeoutError)

    async def test_a_server_that_is_silent_at_the_first_look(
        self, older: Server, schema: str
    ) -> None:
        with TcpProxy(older.host, older.port) as proxy:
            dsn = older.at(proxy.host, proxy.port).dsn
            store = PostgresStore(dsn, schema=schema, acquire_timeout_seconds=0.3)
            proxy.pause()
            with pytest.raises(StoreUnavailable, match=r"0\.3 s \(acquire_timeout_seconds\)"):
                await store.setup()
            proxy.resume()
            await store.aclose()

    async def test_a_pool_that_lends_nothing(self, older: Server, schema: str) -> None:
        async with asyncpg.create_pool(older.dsn, min_size=1, max_size=1) as pool:
            store = PostgresStore(pool=pool, schema=schema, acquire_timeout_seconds=0.1)
            async with pool.acquire():
                with pytest.raises(StoreUnavailable, match=r"0\.1 s \(acquire_timeout_seconds\)"):
                    await store.health()
            await store.aclose()

    async def test_a_database_that_is_not_there(self, older: Server) -> None:
        store = PostgresStore(older._replace(database="none").dsn)
        with pytest.raises(StoreUnusable, match="create the database"):
            await store.setup()

    async def test_a_role_that_is_not_there(self, older: Server) -> None:
        store = PostgresStore(older._replace(user="nobody", password="s3cret").dsn)
        with pytest.raises(StoreUnusable) as refused:
            await store.setup()
        assert "s3cret" not in f"{refused.value!r} {refused.value.__cause__!r}"

    async def test_too_many_connections(self) -> None:
        process = local_server(OLDER, "max_connections=6", "superuser_reserved_connections=0")
        server = address_of(process)
        others = [await asyncpg.connect(server.dsn) for _ in range(6)]
        store = PostgresStore(server.dsn)
        with pytest.raises(StoreUnavailable, match="lower max_connections"):
            await store.setup()
        for other in others:
            await other.close()
        await store.health()
        await store.aclose()
        process.remove()

    async def test_a_lost_reply_of_a_commit_is_asked_for_again(
        self, older: Server, schema: str
    ) -> None:
        with TcpProxy(older.host, older.port) as proxy:
            store = PostgresStore(older.at(proxy.host, proxy.port).dsn, schema=schema)
            await store.open_run(request())
            proxy.drop_reply()
            assert await store.commit_many([commit(record())]) == [None]
            assert proxy.dropped == 1
            await store.aclose()

    async def test_values_that_postgresql_does_not_have(self, store: PostgresStore) -> None:
        await store.open_run(request())
        good, bad = record(path="good"), record(path="b\0d")
        outcomes = await store.commit_many([commit(good), commit(bad), commit(record(path="c"))])
        assert [outcome is None for outcome in outcomes] == [True, False, True]
        assert "run 'run'" in str(outcomes[1])
        (alone,) = await store.commit_many([commit(bad)])
        assert alone is not None

    @pytest.mark.parametrize(
        ("setting", "durability"),
        [("fsync=off", "process"), ("fsync=on", "fsync")],
    )
    async def test_durability_is_what_the_server_says(self, setting: str, durability: str) -> None:
        process = local_server(OLDER, setting)
        store = PostgresStore(address_of(process).dsn)
        await store.setup()
        assert store.capabilities.durability.value == durability
        await store.aclose()
        process.remove()


_WAIT_TO_MIGRATE = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'advisory'"


async def waiting(admin: Admin, schema: str) -> int:
    """Return how many statements on the tables of a schema wait for somebody's lock."""
    return int(
        await admin.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' "
            "AND query LIKE '%' || $1 || '%'",
            schema,
        )
    )


async def is_waiting(admin: Admin, schema: str) -> bool:
    """Say whether one does."""
    return await waiting(admin, schema) > 0


async def lock_runs(admin: Admin, store: PostgresStore) -> None:
    """Lock the rows of all runs, as a worker in the middle of a commit does."""
    await admin.fetch(f"SELECT 1 FROM {store._client._names.runs} FOR UPDATE")
