"""The options of the store, and how they are checked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from stroma.config import mask_passwords
from stroma.errors import ConfigError
from stroma.schemas import describe
from stroma_postgres._url import check_url, take_options

MAX_PREFIX_BYTES: Final = 40
"""PostgreSQL cuts identifiers to 63 bytes; the longest name after the prefix needs some."""

_IDENTIFIER: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_MAX_IDENTIFIER_BYTES: Final = 63

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
            ``sslrootcert``, ``sslcert`` and ``sslkey`` if need be; after "?" it may also have
            any other option of these but ``connect_options``. It may hold a password, whose
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

    @model_validator(mode="before")
    @classmethod
    def _read_url(cls, data: Any) -> Any:
        # Without a URL, the driver looks at PGHOST and the like.
        if not isinstance(data, Mapping) or not isinstance(data.get("dsn"), str) or not data["dsn"]:
            return data
        options = dict(data)
        check_url(options["dsn"])
        options["dsn"], in_url = take_options(options["dsn"], options_by_name(cls))
        for name, value in in_url.items():
            if name in options and str(options[name]) != value:
                raise ValueError(f"{name} is given in the URL and beside it: give it once")
            options.setdefault(name, value)
        return options

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
        settings = value.get("server_settings")
        if settings is not None and not _are_settings(settings):
            raise ValueError("server_settings must be a dict of str to str, without NUL")
        return value


def _are_settings(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(text, str) and "\0" not in text
        for pair in value.items()  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
        for text in pair  # pyright: ignore[reportUnknownVariableType]
    )


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


def options_by_name(model: type[PostgresOptions]) -> dict[str, FieldInfo]:
    """Return the options by the names that users write."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


def checked_options(given: Mapping[str, Any]) -> PostgresOptions:
    """Return the options that a caller gave by keyword.

    Args:
        given: by the names of the options. One that has its default may be in the URL instead.

    Raises:
        ConfigError: one of them is wrong; the message names it and leaves secrets out.
    """
    fields = options_by_name(PostgresOptions)
    options = {name: value for name, value in given.items() if value != fields[name].default}
    try:
        return PostgresOptions.model_validate(options)
    except ValidationError as exc:
        # Not chained: pydantic repeats the values, and one of them may be a password.
        problems = "; ".join(describe(exc, whole=""))
        raise ConfigError(f"PostgresStore: {mask_passwords(problems)}") from None
