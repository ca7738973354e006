"""Choosing the store, its options, and what is said when they are wrong."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
import traceback
from collections.abc import Iterator
from typing import Any

import pytest
from asyncpg import connect_utils
from pydantic import ValidationError

from stroma.config import open_store
from stroma.errors import ConfigError
from stroma.registry import StoreRegistry
from stroma_postgres import PostgresOptions, PostgresStore, migrations_sql
from stroma_postgres._plugin import PostgresFactory, stroma_register_stores
from stroma_postgres._url import PARAMETERS

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
            ("connect_options", {"server_settings": ["jit"]}),
            ("connect_options", {"server_settings": {"statement_timeout": 1000}}),
            ("connect_options", {"server_settings": {"application_name": "a\0b"}}),
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


class TestOptionsInTheUrl:
    def test_they_are_the_stores_and_the_rest_is_the_drivers(self) -> None:
        query = "sslmode=require&schema=work&application_name=a%20b&max_connections=3&x.y=z"
        for options in (
            PostgresOptions(dsn=f"{DSN}?{query}"),
            PostgresFactory().options.model_validate(PostgresFactory().from_url(f"{DSN}?{query}")),
        ):
            assert options.dsn == f"{DSN}?sslmode=require&application_name=a%20b&x.y=z"
            assert (options.schema_name, options.max_connections) == ("work", 3)

    def test_a_url_with_options_alone_is_a_plain_one_for_the_driver(self) -> None:
        options = PostgresOptions(dsn=f"{DSN}?table_prefix=a_&migrate=false")
        assert (options.dsn, options.table_prefix, options.migrate) == (DSN, "a_", False)

    def test_the_defaults_of_the_class_contradict_nothing(self) -> None:
        for store in (
            PostgresStore(f"{DSN}?schema=work&max_connections=3"),
            PostgresStore(f"{DSN}?schema=work", schema="work", max_connections=3),
            open_store(f"{DSN}?schema=work", {"max_connections": 3}),
        ):
            assert isinstance(store, PostgresStore)
            options = store._client._options
            assert (options.schema_name, options.max_connections) == ("work", 3)

    @pytest.mark.parametrize(
        ("query", "options", "problem"),
        [
            ("max_connections=0", {}, "max_connections: Input should be greater than or equal"),
            ("max_connections=few", {}, "max_connections: Input should be a valid integer"),
            ("migrate=perhaps", {}, "migrate: Input should be a valid boolean"),
            ("schema=", {}, "schema '' must match"),
            ("schema=a.b", {}, "schema 'a.b' must match"),
            ("schema=a&schema=b", {}, "the URL says schema twice"),
            ("schema=a", {"schema": "b"}, "schema is given in the URL and beside it"),
            ("connect_options=x", {}, "connect_options cannot stand in a URL"),
            ("dsn=x", {}, "dsn cannot stand in a URL"),
            ("shema=a", {}, "did you mean 'schema'?"),
            ("max_conections=1", {}, "did you mean 'max_connections'?"),
            ("command_timeout=1", {}, "did you mean 'command_timeout_seconds'?"),
            ("Password=a", {}, "did you mean 'password'?"),
            ("keepalives=1", {}, "the URL has 'keepalives' after \"?\""),
            ("application_name=a%00b", {}, "the URL has a NUL (%00)"),
        ],
    )
    def test_a_wrong_one_is_named(self, query: str, options: dict[str, Any], problem: str) -> None:
        for refuse in (
            lambda: PostgresStore(f"{DSN}?{query}", **options),
            lambda: open_store(f"{DSN}?{query}", options),
        ):
            with pytest.raises(ConfigError) as refused:
                refuse()
            assert problem in str(refused.value)
            assert "s3cret" not in str(refused.value)

    def test_the_command_line_says_that_it_was_called_wrongly(self) -> None:
        command = [sys.executable, "-m", "stroma", "runs"]
        done = subprocess.run(
            [*command, "--store", f"{DSN}?max_connections=0"], capture_output=True, text=True
        )
        assert (done.returncode, "max_connections" in done.stderr) == (2, True)

    def test_what_the_driver_reads_there_is_all_known(self) -> None:
        """By its source, as its documentation names only some."""
        read = set(re.findall(r"'(\w+)' in query", inspect.getsource(connect_utils)))
        assert "password" in read
        assert read <= PARAMETERS


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

    @pytest.mark.parametrize(
        "query",
        ["pasword=s3cret", "schema=a&sslpassw=s3cret", "colour=s3cret", "PGPASSWORD=s3cret"],
    )
    def test_a_parameter_that_is_none_is_refused_without_its_value(self, query: str) -> None:
        for refuse in (
            lambda: PostgresStore(f"{DSN}?{query}"),
            lambda: open_store(f"{DSN}?{query}"),
            lambda: PostgresOptions(dsn=f"{DSN}?{query}"),
        ):
            with pytest.raises((ConfigError, ValidationError)) as refused:
                refuse()
            said = "".join(traceback.format_exception(refused.value, chain=True, limit=0))
            assert "s3cret" not in said
            assert f"{query.rsplit('&', maxsplit=1)[-1].partition('=')[0]!r}" in said

    def test_values_that_may_be_secret_are_not_shown(self) -> None:
        query = "password=s3cret&sslpassword=s3cret&options=-c%20a.b%3Ds3cret&a.b=s3cret&user=u"
        assert repr(PostgresStore(f"postgresql://h/app?{query}")) == (
            "PostgresStore('postgresql://h/app?password=***&sslpassword=***&options=***&a.b=***"
            "&user=u')"
        )
