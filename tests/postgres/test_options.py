"""Choosing the store, its options, and what is said when they are wrong."""

from __future__ import annotations

import subprocess
import sys
import traceback
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import ValidationError

from stroma.config import open_store
from stroma.errors import ConfigError
from stroma.registry import StoreRegistry
from stroma_postgres import PostgresOptions, PostgresStore, migrations_sql
from stroma_postgres._plugin import PostgresFactory, stroma_register_stores

DSN = "postgresql://app:s3cret@db.example:5432/app"

BAD_NAMES = (
    'public"; DROP TABLE users; --',
    "a.b",
    "a b",
    "",
    "1a",
    "a-b",
    "a\0b",
    "é",
    "a'b",
    "a\nb",
    "x" * 64,
)


class TestPlugin:
    def test_importing_it_imports_neither_driver_nor_models(self) -> None:
        program = (
            "import sys, stroma_postgres._plugin as plugin\n"
            "from stroma.registry import StoreRegistry\n"
            "plugin.stroma_register_stores(StoreRegistry())\n"
            "print([name for name in ('asyncpg', 'stroma_postgres._options') "
            "if name in sys.modules])"
        )
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == "[]"

    def test_no_driver_is_imported_until_a_store_of_this_name_is_opened(self) -> None:
        """Not by a program that has the package and keeps its runs elsewhere."""
        program = (
            "import sys, stroma, stroma_postgres\n"
            "from stroma.config import open_store\n"
            "stroma.StromaRunner.quick(store='memory')\n"
            "open_store('memory')\n"
            "print('asyncpg' in sys.modules)\n"
            "open_store('postgresql://localhost/app')\n"
            "print('asyncpg' in sys.modules)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True
        )
        assert done.stdout.split() == ["False", "True"]

    def test_it_offers_a_name_and_two_schemes(self) -> None:
        registry = StoreRegistry()
        stroma_register_stores(registry)
        factory, schemes = registry.factories["postgres"]
        assert schemes == ("postgres", "postgresql")
        options = factory.options.model_validate(factory.from_url(DSN))
        assert isinstance(options, PostgresOptions)
        assert isinstance(factory.open(options), PostgresStore)

    def test_options_reach_the_store(self) -> None:
        factory = PostgresFactory()
        options = factory.options.model_validate({"dsn": DSN, "schema": "work", "migrate": False})
        assert (options.schema_name, options.migrate) == ("work", False)


class TestOptions:
    @pytest.mark.parametrize(
        ("option", "value"),
        [
            ("max_connections", 0),
            ("acquire_timeout_seconds", 0),
            ("command_timeout_seconds", float("nan")),
            ("max_idle_seconds", -1),
            ("statement_cache_size", -1),
            ("connect_options", {"statement_cache_size": 3}),
        ],
    )
    def test_a_wrong_option_is_named(self, option: str, value: object) -> None:
        options: dict[str, Any] = {option: value}
        with pytest.raises(ConfigError, match=option):
            PostgresStore(DSN, **options)

    @pytest.mark.parametrize("name", BAD_NAMES)
    @pytest.mark.parametrize("option", ["schema", "table_prefix"])
    def test_names_that_are_no_identifiers_are_refused(self, option: str, name: str) -> None:
        options: dict[str, Any] = {option: name}
        with pytest.raises(ConfigError, match=option):
            PostgresStore(DSN, **options)
        with pytest.raises(ConfigError, match=option):
            migrations_sql(**options)

    def test_a_role_that_is_no_identifier_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="grant_to"):
            migrations_sql(grant_to='app"; DROP ROLE app; --')

    def test_a_dsn_or_a_pool(self) -> None:
        with pytest.raises(ConfigError, match="dsn or a pool"):
            PostgresStore()

    def test_a_pool_of_the_wrong_type_is_named(self) -> None:
        with pytest.raises(ConfigError, match=r"asyncpg\.create_pool, not builtins\.str"):
            PostgresStore(pool="x")  # type: ignore[arg-type]

    def test_unknown_options_are_refused(self) -> None:
        with pytest.raises(ValueError, match="extra"):
            PostgresOptions.model_validate({"dsn": DSN, "shema": "x"})


READABLE = (
    DSN,
    "",
    "postgres://localhost",
    "postgresql:///app?host=/run/postgresql&port=5433",
    "postgresql://app@/app",
    "postgresql://app:p:s3cret@[::1]:5432/app?sslmode=require",
    "postgresql://app@one:5432,two,[::1]:7/app?target_session_attrs=primary",
    "postgresql://app%40x:p%40%2F%23%3F%5B@%2Frun%2Fpostgresql/app",
)

# Each has parts of a password where a driver looks for something else.
UNREADABLE = (
    "postgresql://app:p:ssw0rd/x@127.0.0.1:17432/app",
    "postgresql://app:1/ssw0rd@127.0.0.1/app",
    "postgresql://admin:ssw0rd?x@127.0.0.1/app",
    "postgresql://admin:1?x=ssw0rd@127.0.0.1/app",
    "postgresql://admin:ssw0rd#x@127.0.0.1/app",
    "postgresql://admin:x@127.0.0.1/app#ssw0rd",
    "postgresql://admin:x[ssw0rd@127.0.0.1/app",
    "postgresql://admin:x@ssw0rd@127.0.0.1/app",
    "postgresql://admin:x ssw0rd@127.0.0.1/app",
    "postgresql://admin:x@[ssw0rd/app",
    "postgresql://admin:x@host:ssw0rd/app",
    "postgresql://admin:x@host:70000/ssw0rd",
    "postgresql://admin:x@one,/ssw0rd",
    "postgresql://host/app?port=ssw0rd",
    "postgresql://host/app?ssw0rd",
    "postgresql://host/app?password=x;ssw0rd",
    "mysql://admin:ssw0rd@host/app",
    "host=localhost password=ssw0rd",
    "localhost/ssw0rd",
)


class TestUrls:
    @pytest.mark.parametrize("dsn", READABLE)
    def test_what_the_driver_reads(self, dsn: str) -> None:
        assert "s3cret" not in repr(PostgresStore(dsn))

    @pytest.mark.parametrize("dsn", UNREADABLE)
    def test_what_it_would_misread_is_refused_at_once_and_not_repeated(self, dsn: str) -> None:
        for refuse in (
            lambda: PostgresStore(dsn),
            lambda: open_store("postgres", {"dsn": dsn}),
            lambda: PostgresOptions(dsn=dsn),
        ):
            with pytest.raises((ConfigError, ValidationError)) as refused:
                refuse()
            said = "".join(traceback.format_exception(refused.value, chain=True, limit=0))
            assert "ssw0rd" not in said
            assert "percent-encoded" in said or "begin with postgresql://" in said


class TestSecrets:
    def texts(self) -> Iterator[str]:
        store = PostgresStore(DSN, connect_options={"password": "s3cret"})
        yield repr(store)
        yield repr(PostgresOptions(dsn=DSN, connect_options={"password": "s3cret"}))
        with pytest.raises(ConfigError) as refused:
            PostgresStore(DSN, max_connections="postgresql://x:s3cret@y")  # type: ignore[arg-type]
        yield repr(refused.value)

    def test_passwords_are_not_printed(self) -> None:
        for text in self.texts():
            assert "s3cret" not in text

    def test_the_server_is_named_without_it(self) -> None:
        assert (
            repr(PostgresStore(DSN)) == "PostgresStore('postgresql://app:***@db.example:5432/app')"
        )
