"""The schema: created once, by whoever may, and checked by everybody else."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys

import asyncpg
import pytest

from stroma.errors import StoreUnusable
from stroma.records import ClaimQuery, RunQuery, RunStatus, RunUpdate, unique_id
from stroma_postgres import PostgresStore, _migrations, _setup, migrations_sql
from stroma_postgres._migrations import VERSION
from tests.core.stores.support import commit, record, request
from tests.postgres.conftest import Admin, MakeStore
from tests.servers.postgres import Server

pytestmark = pytest.mark.server


async def use(store: PostgresStore) -> None:
    """Do some of everything."""
    await store.open_run(request())
    assert await store.commit_many([commit(record())]) == [None]
    assert await store.commit_many([commit(record(path="b"), record(path="c"))]) == [None]
    await store.release("run", "alice")
    assert (await store.inspect("run")) is not None
    await store.health()
    assert await store.purge(RunQuery()) == 1


class TestSetup:
    async def test_operations_set_up_by_themselves(self, store: PostgresStore) -> None:
        await use(store)

    async def test_again_and_at_the_same_time(self, make_store: MakeStore) -> None:
        stores = [make_store() for _ in range(8)]
        await asyncio.gather(*(store.setup() for store in stores))
        await asyncio.gather(*(store.setup() for store in stores))
        await use(stores[0])

    def test_processes_at_the_same_time(self, server: Server, schema: str) -> None:
        program = (
            "import asyncio, sys\n"
            "from stroma_postgres import PostgresStore\n"
            "async def main():\n"
            "    store = PostgresStore(sys.argv[1], schema=sys.argv[2])\n"
            "    await store.setup()\n"
            "    await store.health()\n"
            "    await store.aclose()\n"
            "asyncio.run(main())\n"
        )
        command = [sys.executable, "-W", "error", "-c", program, server.dsn, schema]
        processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
        assert [process.communicate()[1] for process in processes] == [""] * 3

    async def test_stores_with_other_prefixes_do_not_see_each_other(
        self, make_store: MakeStore
    ) -> None:
        mine, other = make_store(), make_store(table_prefix="Other_")
        await mine.open_run(request())
        assert await other.inspect("run") is None
        await use(other)

    async def test_payloads_are_compressed_by_lz4(
        self, store: PostgresStore, admin: Admin, schema: str
    ) -> None:
        await store.setup()
        has_lz4 = "lz4" in await admin.fetchval(
            "SELECT array_to_string(enumvals, ',') FROM pg_settings "
            "WHERE name = 'default_toast_compression'"
        )
        method = "lz4" if has_lz4 else "pglz"
        # Longer than a row may be after compression, so that it is kept beside it, too.
        large = json.dumps({"text": "".join(map(str, range(20_000)))}).encode()
        await store.open_run(request(input_payload=large, plan=large))
        assert await store.commit_many([commit(record(payload=large))]) == [None]
        for table, columns in (("runs", ("input_payload", "plan")), ("records", ("payload",))):
            for column in columns:
                found = await admin.fetchval(
                    f'SELECT pg_column_compression({column}) FROM "{schema}".stroma_{table}'
                )
                assert found == method, f"{table}.{column} is compressed by {found}"


class TestWithoutRights:
    async def test_another_role_runs_the_printed_sql(
        self, server: Server, schema: str, admin: Admin
    ) -> None:
        role = f"app_{unique_id()}"
        await admin.execute(f'CREATE ROLE "{role}" LOGIN')
        try:
            with pytest.raises(StoreUnusable, match="python -m stroma_postgres sql"):
                await self.use_as(role, server, schema, migrate=False)
            with pytest.raises(StoreUnusable, match="permission denied") as refused:
                await self.use_as(role, server, schema, migrate=True)
            assert f"sql --schema {schema} --grant-to ROLE`" in str(refused.value)
            await admin.execute(printed_sql("--schema", schema, "--grant-to", role))
            await self.use_as(role, server, schema, migrate=False)
            await self.use_as(role, server, schema, migrate=True)
        finally:
            await admin.execute(f'DROP SCHEMA IF EXISTS "{schema}" CASCADE')
            await admin.execute(f'DROP OWNED BY "{role}"; DROP ROLE "{role}"')

    async def use_as(self, role: str, server: Server, schema: str, *, migrate: bool) -> None:
        if server.port != (await direct_port(server)):
            pytest.skip("PgBouncer knows one user here")
        store = PostgresStore(server._replace(user=role).dsn, schema=schema, migrate=migrate)
        try:
            await use(store)
        finally:
            await store.aclose()

    async def test_the_sql_can_be_run_again(self, admin: Admin, schema: str) -> None:
        for _ in range(2):
            await admin.execute(migrations_sql(schema, "x_"))
        assert await versions_in(admin, schema, "x_") == list(range(1, VERSION + 1))

    def test_a_bad_name_is_an_error_of_the_command_line(self) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "stroma_postgres", "sql", "--schema", "a b"],
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stdout) == (2, "")
        assert "schema 'a b' must match" in done.stderr


class TestVersions:
    async def test_a_newer_schema_that_this_store_knows(
        self, make_store: MakeStore, admin: Admin, schema: str
    ) -> None:
        await make_store().setup()
        await note_version(admin, schema, VERSION + 1, min_compatible=VERSION)
        await admin.execute(
            f"ALTER TABLE \"{schema}\".stroma_runs ADD COLUMN later text NOT NULL DEFAULT '';"
            f'ALTER TABLE "{schema}".stroma_records ADD COLUMN later integer'
        )
        await use(make_store())

    async def test_a_store_at_work_while_a_newer_one_migrates(
        self, store: PostgresStore, admin: Admin, schema: str
    ) -> None:
        await store.open_run(request())
        for i in range(10):
            assert await store.commit_many([commit(record(path=f"before{i}"))]) == [None]
        await admin.execute(
            f"ALTER TABLE \"{schema}\".stroma_runs ADD COLUMN later text NOT NULL DEFAULT '';"
            f'ALTER TABLE "{schema}".stroma_records ADD COLUMN later integer'
        )
        for i in range(10):
            assert await store.commit_many([commit(record(path=f"after{i}"))]) == [None]
        opened = await store.open_run(request())
        assert opened is not None
        assert len(opened.headers) == 20
        assert len((await store.runs(RunQuery())).runs) == 1

    async def test_a_schema_that_is_too_new(
        self, make_store: MakeStore, admin: Admin, schema: str
    ) -> None:
        await make_store().setup()
        await note_version(admin, schema, VERSION + 2, min_compatible=VERSION + 1)
        with pytest.raises(StoreUnusable) as refused:
            await make_store().setup()
        assert f"version {VERSION + 2}" in str(refused.value)
        assert f"version {VERSION}:" in str(refused.value)
        assert "upgrade stroma-postgres" in str(refused.value)

    async def test_tables_that_went_away(
        self, store: PostgresStore, admin: Admin, schema: str
    ) -> None:
        await store.setup()
        await admin.execute(f'DROP SCHEMA "{schema}" CASCADE')
        with pytest.raises(StoreUnusable, match="python -m stroma_postgres sql"):
            await store.open_run(request())
        await use(store)  # it looked, and made them again


class TestUpgrades:
    """From each version to this one, as a program with the store of that version left it."""

    @pytest.fixture
    async def first(self, make_store: MakeStore, monkeypatch: pytest.MonkeyPatch) -> PostgresStore:
        """A store of the first version, at work on tables that it made."""
        store = make_store()
        with monkeypatch.context() as patch:
            as_of_version(patch, 1)
            await store.open_run(request("old", created_at=1.0))
        return store

    async def test_tables_of_the_first_version_are_upgraded(
        self, first: PostgresStore, make_store: MakeStore, admin: Admin, schema: str
    ) -> None:
        assert await versions_in(admin, schema) == [1]
        await first.release("old", "alice")
        store = make_store()
        assert [run.run_id for run in (await store.claimable(ClaimQuery())).runs] == ["old"]
        assert await versions_in(admin, schema) == list(range(1, VERSION + 1))
        found = await admin.fetchval(
            "SELECT indexdef FROM pg_indexes WHERE schemaname = $1 AND indexname = $2",
            schema,
            "stroma_runs_unfinished",
        )
        assert "(created_at, run_id) WHERE" in found

    async def test_functions_of_another_form_are_made_again(
        self, first: PostgresStore, make_store: MakeStore, admin: Admin, schema: str
    ) -> None:
        for name in ("commit_v1", "commit_one_v1"):
            await admin.execute(f'DROP FUNCTION "{schema}".stroma_{name}')
        store = make_store()
        await store.setup()
        assert await store.commit_many([commit(record("old"))]) == [None]
        done = RunUpdate(status=RunStatus.COMPLETED, release=True)
        assert await store.commit_many([commit(record("old", "b"), update=done)]) == [None]

    async def test_both_versions_work_side_by_side(
        self,
        first: PostgresStore,
        make_store: MakeStore,
        monkeypatch: pytest.MonkeyPatch,
        admin: Admin,
        schema: str,
    ) -> None:
        """One that was at work before the upgrade, and one that is started after it."""
        newer = make_store()
        await newer.setup()
        assert await first.commit_many([commit(record("old", "after"))]) == [None]
        await first.release("old", "alice")
        assert [run.run_id for run in (await newer.claimable(ClaimQuery())).runs] == ["old"]
        late = make_store()
        with monkeypatch.context() as patch:
            as_of_version(patch, 1)
            claimed = await late.open_run(request("old", "bob"))
            await use(late)
        assert claimed is not None
        assert [header.path for header in claimed.headers] == ["after"]
        assert (await newer.claimable(ClaimQuery())).runs == ()
        assert await versions_in(admin, schema) == list(range(1, VERSION + 1))

    async def test_tables_that_lag_behind_and_may_not_be_changed(
        self, first: PostgresStore, make_store: MakeStore
    ) -> None:
        with pytest.raises(StoreUnusable, match=r"have version 1, migration 2 is missing"):
            await make_store(migrate=False).setup()


def as_of_version(patch: pytest.MonkeyPatch, version: int) -> None:
    """Let stores that are set up now be of an earlier version."""
    earlier = _migrations.MIGRATIONS[:version]
    patch.setattr(_migrations, "MIGRATIONS", earlier)
    patch.setattr(_setup, "MIGRATIONS", earlier)
    patch.setattr(_setup, "VERSION", version)


class TestServers:
    async def test_another_encoding_is_refused(
        self, server: Server, admin: Admin, schema: str
    ) -> None:
        await admin.execute(
            f"CREATE DATABASE \"{schema}\" ENCODING 'SQL_ASCII' TEMPLATE template0 LOCALE 'C'"
        )
        store = PostgresStore(server._replace(database=schema).dsn)
        try:
            with pytest.raises(StoreUnusable, match="UTF8"):
                await store.setup()
        finally:
            await store.aclose()
            await admin.execute(f'DROP DATABASE "{schema}" WITH (FORCE)')


async def note_version(admin: Admin, schema: str, version: int, *, min_compatible: int) -> None:
    await admin.execute(
        f'INSERT INTO "{schema}".stroma_migrations (version, min_compatible) '
        f"VALUES ({version}, {min_compatible})"
    )


async def versions_in(admin: Admin, schema: str, prefix: str = "stroma_") -> list[int]:
    rows = await admin.fetch(f'SELECT version FROM "{schema}"."{prefix}migrations" ORDER BY 1')
    return [int(row[0]) for row in rows]


async def direct_port(server: Server) -> int:
    """Return the port of the PostgreSQL behind an address."""
    connection = await asyncpg.connect(server.dsn, statement_cache_size=0)
    try:
        return int(await connection.fetchval("SELECT current_setting('port')::integer"))
    finally:
        await connection.close()


def printed_sql(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "stroma_postgres", "sql", *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout
