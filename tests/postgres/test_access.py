"""How a server lets a store in: TLS, passwords, Unix sockets, and what is said when it does not."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import asyncpg
import pytest

from stroma.errors import StoreUnavailable, StoreUnusable
from stroma_postgres import PostgresStore
from tests.core.stores.support import Note
from tests.postgres.conftest import run_sql_now
from tests.servers.certificates import make_certificate
from tests.servers.postgres import OLDER, SYSTEM_USER, Server, address_of, local_server
from tests.servers.process import ServerProcess

pytestmark = pytest.mark.server

PASSWORD = "p@ss/w:rd#%"
QUOTED = "p%40ss%2Fw%3Ard%23%25"

RULES = """
local   all postgres              trust
host    all postgres 127.0.0.1/32 trust
hostssl all app      127.0.0.1/32 scram-sha-256 clientcert=verify-ca
"""


@pytest.fixture(scope="module")
def files() -> Iterator[Path]:
    """A certificate, its key and rules, which the server may read."""
    folder = Path(tempfile.mkdtemp(prefix="stroma-tls-"))
    folder.chmod(0o755)
    make_certificate(folder)
    (folder / "rules.conf").write_text(RULES)
    (folder / "key.pem").chmod(0o600)
    if os.geteuid() == 0:
        shutil.chown(folder / "key.pem", SYSTEM_USER)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def guarded(files: Path) -> Iterator[ServerProcess]:
    """A server that the role "app" reaches by TLS only, with a certificate and a password."""
    process = local_server(
        OLDER,
        "ssl=on",
        f"ssl_cert_file={files / 'cert.pem'}",
        f"ssl_key_file={files / 'key.pem'}",
        f"ssl_ca_file={files / 'cert.pem'}",
        f"hba_file={files / 'rules.conf'}",
    )
    run_sql_now(
        address_of(process),
        f"CREATE ROLE app LOGIN PASSWORD '{PASSWORD}'; GRANT CREATE ON DATABASE postgres TO app",
    )
    yield process
    process.remove()


def url_of(server: ServerProcess, files: Path, secret: str = f":{QUOTED}") -> str:
    tls = "&".join(
        (
            "sslmode=verify-full",
            f"sslrootcert={files / 'cert.pem'}",
            f"sslcert={files / 'cert.pem'}",
            f"sslkey={files / 'key.pem'}",
        )
    )
    return f"postgresql://app{secret}@localhost:{server.port}/postgres?{tls}"


async def uses(store: PostgresStore) -> None:
    """Write and read something, and close the store."""
    try:
        await store.save("run", "node", Note(text="x"))
        assert await store.load_typed("run", "node", Note) == Note(text="x")
    finally:
        await store.aclose()


async def refusal(store: PostgresStore) -> StoreUnusable | StoreUnavailable:
    with pytest.raises((StoreUnusable, StoreUnavailable)) as refused:
        await uses(store)
    said = f"{refused.value!r} {refused.value.__cause__!r}"
    assert PASSWORD not in said
    assert QUOTED not in said
    return refused.value


class TestTls:
    async def test_certificates_on_both_sides_and_a_password(
        self, guarded: ServerProcess, files: Path
    ) -> None:
        store = PostgresStore(url_of(guarded, files), schema="by_url")
        assert QUOTED not in repr(store)
        await store.save("run", "node", Note())
        admin = await asyncpg.connect(address_of(guarded).dsn)
        encrypted = await admin.fetch(
            "SELECT ssl FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE usename = 'app'"
        )
        await admin.close()
        assert {row["ssl"] for row in encrypted} == {True}
        await uses(store)

    async def test_a_password_that_a_function_returns(
        self, guarded: ServerProcess, files: Path
    ) -> None:
        options = {"password": lambda: PASSWORD}
        dsn = url_of(guarded, files, secret="")
        await uses(PostgresStore(dsn, schema="by_function", connect_options=options))

    async def test_a_server_that_is_not_the_one_in_the_url(
        self, guarded: ServerProcess, files: Path
    ) -> None:
        dsn = url_of(guarded, files).replace("@localhost", "@127.0.0.1")
        refused = await refusal(PostgresStore(dsn))
        assert isinstance(refused, StoreUnusable)
        assert "certificate" in str(refused)

    async def test_a_wrong_password_is_not_repeated(
        self, guarded: ServerProcess, files: Path
    ) -> None:
        refused = await refusal(PostgresStore(url_of(guarded, files, secret=f":{QUOTED}x")))
        assert isinstance(refused, StoreUnusable)
        assert "look at the password" in str(refused)

    async def test_a_connection_without_tls_is_refused_by_the_server(
        self, guarded: ServerProcess, files: Path
    ) -> None:
        plain = url_of(guarded, files).partition("?")[0] + "?sslmode=disable"
        refused = await refusal(PostgresStore(plain))
        assert isinstance(refused, StoreUnusable)
        assert "pg_hba.conf" in str(refused)

    @pytest.mark.parametrize(
        ("query", "said"),
        [
            ("sslmode=require", "the server offers no TLS, which sslmode in the URL"),
            ("sslmode=verify-full&sslrootcert=/none", "the file that sslrootcert names cannot be"),
            ("sslmode=require&sslcert=/none", "the file that sslcert names cannot be read"),
            ("sslmode=verify-ca&sslrootcert=/dev/null", "look at sslmode, sslrootcert, sslcert"),
            ("sslmode=perhaps", "`sslmode` parameter must be one of"),
        ],
    )
    async def test_what_tls_lacks_is_not_tried_again(
        self, older: Server, query: str, said: str
    ) -> None:
        refused = await refusal(PostgresStore(f"{older.dsn}?{query}"))
        assert isinstance(refused, StoreUnusable)
        assert said in str(refused)


class TestSettings:
    @pytest.mark.parametrize(
        ("query", "named"),
        [
            ("statement_timeout=abc", "statement_timeout"),
            ("statement_timeout=-5", "statement_timeout"),
            ("jit=perhaps", "jit"),
            ("timezone=Mars", "TimeZone"),
            ("search_path=%22", "search_path"),
            ("role=nobody", "role"),
            ("options=-c%20no_such_thing%3D1", "no_such_thing"),
            ("options=-c%20shared_buffers%3D1", "shared_buffers"),
            ("options=--geqo", "options"),
            ("1.b=c", "1.b"),
        ],
    )
    async def test_one_that_the_server_refuses_is_named(
        self, older: Server, query: str, named: str
    ) -> None:
        for store in (
            PostgresStore(f"{older.dsn}?{query}"),
            PostgresStore(f"{older.dsn}?{query}", migrate=False),
        ):
            refused = await refusal(store)
            assert isinstance(refused, StoreUnusable)
            assert named in str(refused).partition(" (")[2]
            assert "the server refuses a setting" in str(refused)

    async def test_one_beside_the_url(self, older: Server) -> None:
        options = {"server_settings": {"statement_timeout": "abc"}}
        refused = await refusal(PostgresStore(older.dsn, connect_options=options))
        assert isinstance(refused, StoreUnusable)
        assert "statement_timeout" in str(refused)

    async def test_one_that_a_pooler_refuses(self, pgbouncer: Server) -> None:
        refused = await refusal(PostgresStore(f"{pgbouncer.dsn}?work_mem=4MB"))
        assert isinstance(refused, StoreUnusable)
        assert "unsupported startup parameter: work_mem" in str(refused)
        assert "ignore_startup_parameters" in str(refused)

    @pytest.mark.parametrize(
        "options",
        [
            PASSWORD,
            f"-c{PASSWORD}",
            f"--{PASSWORD}",
            f"-c geqo={PASSWORD}",
            f"-c my.password=x -c statement_timeout={PASSWORD}",
            f"-c statement_timeout={PASSWORD}\\ x",
        ],
    )
    async def test_the_server_repeats_a_secret_and_the_store_does_not(
        self, older: Server, options: str
    ) -> None:
        for store in (
            PostgresStore(f"{older.dsn}?options={quote(options, safe='')}"),
            PostgresStore(older.dsn, connect_options={"server_settings": {"options": options}}),
        ):
            assert isinstance(await refusal(store), StoreUnusable)


class TestSockets:
    async def test_a_unix_socket(self, guarded: ServerProcess) -> None:
        where = f"host={guarded.folder}&port={guarded.port}"
        await uses(PostgresStore(f"postgresql://postgres@/postgres?{where}", schema="by_socket"))

    async def test_a_socket_that_is_not_there(self, tmp_path: Path) -> None:
        refused = await refusal(PostgresStore(f"postgresql://postgres@/postgres?host={tmp_path}"))
        assert isinstance(refused, StoreUnavailable)


class TestUrls:
    async def test_options_of_the_store_and_settings_of_the_server(
        self, guarded: ServerProcess
    ) -> None:
        dsn = address_of(guarded).dsn
        settings = "application_name=by-url&options=-c%20geqo%3Doff"
        store = PostgresStore(f"{dsn}?schema=by_options&{settings}&table_prefix=a_")
        await store.save("run", "node", Note())
        connection = await store._client._lenders.get().acquire()
        assert await connection.fetchval("SELECT current_setting('application_name')") == "by-url"
        assert await connection.fetchval("SELECT current_setting('geqo')") == "off"
        assert await connection.fetchval("SELECT to_regclass('by_options.a_runs') IS NOT NULL")
        await store._client._lenders.get().give_back(connection)
        await store.aclose()
