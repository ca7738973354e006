"""Connections: none is lost or shared, whoever is cancelled and whichever loop ends."""

from __future__ import annotations

import asyncio
import gc
import threading
import warnings

import asyncpg
import pytest

from stroma.errors import ConfigError, StoreUnavailable, StoreUnusable
from stroma.records import ClaimQuery, RunQuery
from stroma.testing import TcpProxy
from stroma_postgres import PostgresStore
from tests.core.stores.support import Note, commit, record, request
from tests.postgres.conftest import Admin, MakeStore
from tests.postgres.support import backends, lock_runs, pool_of, until
from tests.servers.postgres import OLDER, Server, address_of, local_server

pytestmark = pytest.mark.server


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
