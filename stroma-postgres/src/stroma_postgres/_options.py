"""The options of the store, and how they are checked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final
from urllib.parse import parse_qsl, urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from stroma.config import mask_passwords
from stroma.errors import ConfigError

MAX_PREFIX_BYTES: Final = 40
"""PostgreSQL cuts identifiers to 63 bytes; the longest name after the prefix needs some."""

_IDENTIFIER: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_MAX_IDENTIFIER_BYTES: Final = 63

_SCHEMES: Final = ("postgresql", "postgres")
_HOST: Final = re.compile(r"(?:\[[^\[\]]+\]|[^:\[\]]+)(?::(.*))?")
_ENCODE: Final = (
    "it cannot be read: write postgresql://user:password@host:5432/database, with every special "
    "character of the password percent-encoded"
)

_SET_BY_THE_STORE: Final = (
    "dsn",
    "loop",
    "timeout",
    "command_timeout",
    "statement_cache_size",
    "connection_class",
    "record_class",
)

Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]


class PostgresOptions(BaseModel):
    """Options of the store "postgres".

    Attributes:
        dsn: where the database is, as libpq and asyncpg read it, with ``sslmode``,
            ``sslrootcert``, ``sslcert`` and ``sslkey`` if need be. It may hold a password, whose
            special characters are percent-encoded, and is not printed.
        schema: the PostgreSQL schema that holds the tables.
        table_prefix: begins the names of tables and functions.
        max_connections: connections of one event loop at most; runs share them.
        acquire_timeout_seconds: how long to wait for a free connection, or for a new one.
        command_timeout_seconds: how long to wait for an answer of the server.
        max_idle_seconds: a connection that nobody used for so long is closed.
        statement_cache_size: prepared statements that a connection keeps; None is 100, or 0
            when a pooler such as PgBouncer stands in between.
        migrate: create and upgrade the tables in `setup`; False only checks them.
        connect_options: passed on to `asyncpg.connect`, such as ``ssl``, ``password`` (also a
            function, for passwords that change) or ``server_settings``. Not printed.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        arbitrary_types_allowed=True,
        protected_namespaces=(),
        hide_input_in_errors=True,
    )

    dsn: str = Field(repr=False)
    # pydantic has an old method of this name on every model: the attribute has another one.
    schema_name: str = Field(default="public", alias="schema")
    table_prefix: str = "stroma_"
    max_connections: int = Field(default=10, ge=1, le=1000)
    acquire_timeout_seconds: Seconds = 30.0
    command_timeout_seconds: Seconds = 60.0
    max_idle_seconds: Seconds = 300.0
    statement_cache_size: int | None = Field(default=None, ge=0, le=10_000)
    migrate: bool = True
    connect_options: Mapping[str, Any] = Field(default_factory=dict, repr=False)

    @field_validator("dsn")
    @classmethod
    def _check_dsn(cls, value: str) -> str:
        if value:  # without one, the driver looks at PGHOST and the like
            _check_url(value)
        return value

    @field_validator("schema_name")
    @classmethod
    def _check_schema(cls, value: str) -> str:
        return check_identifier(value, "schema", _MAX_IDENTIFIER_BYTES)

    @field_validator("table_prefix")
    @classmethod
    def _check_prefix(cls, value: str) -> str:
        return check_identifier(value, "table_prefix", MAX_PREFIX_BYTES)

    @field_validator("connect_options")
    @classmethod
    def _check_connect_options(cls, value: Mapping[str, Any]) -> Mapping[str, Any]:
        for name in _SET_BY_THE_STORE:
            if name in value:
                raise ValueError(f"{name} is set by the store: leave it out")
        return value


def _check_url(dsn: str) -> None:
    """Refuse what the driver would misread; what is wrong is said without repeating it.

    A special character in a password moves the parts of the URL, and the driver's messages then
    quote pieces of the password as a port, a path or a setting.
    """
    if not dsn.lower().startswith(tuple(f"{scheme}://" for scheme in _SCHEMES)):
        raise ValueError("it must begin with postgresql:// or postgres://")
    try:
        parts = urlsplit(dsn)
        settings = dict(parse_qsl(parts.query, strict_parsing=True)) if parts.query else {}
    except ValueError:
        raise ValueError(_ENCODE) from None
    _, at, hosts = parts.netloc.rpartition("@")
    ports = settings.get("port", "").split(",")
    if (
        "#" in dsn
        or dsn.count("@") != len(at)  # one that is not before the host is in the wrong part
        or re.search(r"[\s\[\]]", dsn.rpartition("@")[0])
        or not all(map(_is_place, hosts.split(",")) if hosts else ())
        or not all(each == "" or _is_port(each) for each in ports)
        or _is_shown_in_part(parts.query)
    ):
        raise ValueError(_ENCODE)


def _is_place(host: str) -> bool:
    match = _HOST.fullmatch(host)
    return match is not None and (not match[1] or _is_port(match[1]))


def _is_port(text: str) -> bool:
    return re.fullmatch("[0-9]{1,5}", text) is not None and 0 < int(text) < 65_536


def _is_shown_in_part(query: str) -> bool:
    """Say whether `mask_passwords` would take the end of a password for something else."""
    return "password" in query.lower() and re.search(r"[;'\"\s]", query) is not None


def check_identifier(value: str, option: str, max_bytes: int = MAX_PREFIX_BYTES) -> str:
    """Return a name that goes into SQL.

    Raises:
        ConfigError: it has other characters than letters, digits and "_", or too many.
    """
    if not _IDENTIFIER.fullmatch(value) or len(value) > max_bytes:
        raise ConfigError(
            f"{option} {value[:80]!r} must match {_IDENTIFIER.pattern} and have at most "
            f"{max_bytes} characters"
        )
    return value


def checked_options(options: Mapping[str, Any]) -> PostgresOptions:
    """Return the options that a caller gave by keyword.

    Raises:
        ConfigError: one of them is wrong; the message names it and leaves secrets out.
    """
    try:
        return PostgresOptions.model_validate(options)
    except ValidationError as exc:
        # Not chained: pydantic repeats the values, and one of them may be a password.
        problems = "; ".join(
            f"{'.'.join(map(str, error['loc']))}: {error['msg']}" for error in exc.errors()
        )
        raise ConfigError(f"PostgresStore: {mask_passwords(problems)}") from None
