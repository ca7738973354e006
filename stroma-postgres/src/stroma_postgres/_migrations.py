# ruff: noqa: S608  (what is put in are names that were checked, and columns of this package)
"""The schema in the database: its versions, and the SQL that leads to them."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Final, NamedTuple

from stroma_postgres._columns import KEY, NULLABLE, RECORD, RUN, UNFINISHED, Column
from stroma_postgres._functions import functions
from stroma_postgres._names import Names, names_of
from stroma_postgres._options import check_identifier


class Migration(NamedTuple):
    """One step of the schema.

    Attributes:
        version: that the schema has afterwards.
        min_compatible: the oldest version of the store that works on it.
        sql: returns the statements; doing them again does no harm.
    """

    version: int
    min_compatible: int
    sql: Callable[[Names], str]


def migrations_sql(
    schema: str = "public", table_prefix: str = "stroma_", *, grant_to: str = ""
) -> str:
    """Return the SQL that `PostgresStore.setup` would run, for somebody who may.

    It is one transaction, and can be run again. Afterwards a role without rights to create
    anything can use the store.

    Args:
        schema: the PostgreSQL schema; it is created if there is none.
        table_prefix: begins the names of tables and functions.
        grant_to: a role that gets the rights that the store needs; "" grants nothing.

    Raises:
        ConfigError: one of the names is no plain identifier.
    """
    names = names_of(schema, table_prefix)
    parts = ["BEGIN;", lock(names), steps(names)]
    if grant_to:
        parts.append(_grants(names, check_identifier(grant_to, "grant_to", 63)))
    return "\n".join((*parts, "COMMIT;", ""))


def steps(names: Names, after: int = 0) -> str:
    """Return the statements of all migrations after a version, without a transaction."""
    parts = [_create_schema(names), _create_versions(names)]
    for migration in MIGRATIONS:
        if migration.version > after:
            parts += [migration.sql(names), _note(names, migration)]
    return "\n".join(parts)


def lock(names: Names) -> str:
    """Return the statement after which this transaction alone changes the schema."""
    key = zlib.crc32(f"stroma:{names.schema}.{names.prefix}".encode())
    return f"SELECT pg_advisory_xact_lock({_LOCK_CLASS}, {key - 2**31});"


_LOCK_CLASS: Final = 0x5374726D  # "Strm", so that nobody else's advisory locks are met


def _create_schema(names: Names) -> str:
    # CREATE SCHEMA IF NOT EXISTS needs the right to create one even where there is one.
    return f"""
DO $do$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_namespace WHERE nspname = '{names.schema}') THEN
        CREATE SCHEMA "{names.schema}";
    END IF;
END $do$;"""


def _create_versions(names: Names) -> str:
    return f"""
CREATE TABLE IF NOT EXISTS {names.migrations} (
    version integer PRIMARY KEY,
    min_compatible integer NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    checked_at timestamptz NOT NULL DEFAULT clock_timestamp()
);"""


def _note(names: Names, migration: Migration) -> str:
    return (
        f"INSERT INTO {names.migrations} (version, min_compatible) "
        f"VALUES ({migration.version}, {migration.min_compatible}) ON CONFLICT DO NOTHING;"
    )


def _grants(names: Names, role: str) -> str:
    tables = ", ".join((names.runs, names.records, names.migrations))
    return f"""
GRANT USAGE ON SCHEMA "{names.schema}" TO "{role}";
GRANT SELECT, INSERT, UPDATE, DELETE ON {tables} TO "{role}";"""


def _first(names: Names) -> str:
    runs, records, prefix = names.runs, names.records, names.prefix
    return f"""
CREATE TABLE IF NOT EXISTS {runs} (
    {_definitions(RUN)},
    PRIMARY KEY (run_id)
) WITH (fillfactor = 70); -- claims and renewals find room for the new row on the same page
CREATE INDEX IF NOT EXISTS "{prefix}runs_by_time" ON {runs} (updated_at DESC, run_id);
CREATE INDEX IF NOT EXISTS "{prefix}runs_by_status" ON {runs} (status, updated_at DESC, run_id);
CREATE TABLE IF NOT EXISTS {records} (
    {_definitions(RECORD)},
    seq bigint GENERATED ALWAYS AS IDENTITY, -- the order in which a run's records were added
    PRIMARY KEY ({", ".join(KEY)})
);
{_compress(names)}
{functions(names)}"""


def _second(names: Names) -> str:
    """Return what finds runs that a worker may take up.

    The functions are made again, as some were made for commits that extended a lease.
    """
    return f"""
CREATE INDEX IF NOT EXISTS "{names.prefix}runs_unfinished" ON {names.runs} (created_at, run_id)
    WHERE {UNFINISHED};
{functions(names)}"""


def _definitions(columns: tuple[Column, ...]) -> str:
    return ",\n    ".join(
        f"{column.name} {column.type}" + ("" if column.name in NULLABLE else " NOT NULL")
        for column in columns
    )


def _compress(names: Names) -> str:
    """Compress payloads by lz4, which is several times faster, where the server was built with it.

    https://www.postgresql.org/docs/current/runtime-config-client.html
    (default_toast_compression)
    """
    return f"""
DO $do$ BEGIN
    IF EXISTS (
        SELECT FROM pg_attribute WHERE attrelid = '{names.records}'::regclass
        AND attname = 'payload' AND attcompression = 'l'
    ) THEN
        RETURN; -- workers that are at work need not wait
    END IF;
    ALTER TABLE {names.records} ALTER COLUMN payload SET COMPRESSION lz4;
    ALTER TABLE {names.runs} ALTER COLUMN input_payload SET COMPRESSION lz4,
        ALTER COLUMN plan SET COMPRESSION lz4;
EXCEPTION WHEN feature_not_supported THEN
    NULL; -- this server has pglz only
END $do$;"""


MIGRATIONS: Final = (Migration(1, 1, _first), Migration(2, 1, _second))
"""Oldest first. Never change one that was released: add another."""

VERSION: Final = MIGRATIONS[-1].version
"""Of the schema that this version of the store works with."""
