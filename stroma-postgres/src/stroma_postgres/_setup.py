"""What `setup` finds out about a server, and does there."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final, NamedTuple

import asyncpg

from stroma.checkpoint import Capabilities, Durability
from stroma.errors import StoreUnusable
from stroma_postgres._migrations import MIGRATIONS, VERSION, Migration, lock, steps
from stroma_postgres._names import Names
from stroma_postgres._pool import OwnConnection
from stroma_postgres._statements import Statements

if TYPE_CHECKING:
    from stroma_postgres._pool import Connection

MAX_PAYLOAD_BYTES: Final = 1_000_000_000
"""PostgreSQL takes fields of 1 GB (2**30 bytes; manual, appendix K), and the array or message
around a payload counts."""

OLDEST_SERVER: Final = 140_000
"""PostgreSQL 14: the first with lz4 for columns."""


class Found(NamedTuple):
    """What a server says of itself.

    Attributes:
        durability: what its commits survive.
        has_pooler: somebody stands between the client and the server.
    """

    durability: Durability
    has_pooler: bool


def capabilities_of(durability: Durability) -> Capabilities:
    """Return what a store promises on a server."""
    return Capabilities(durability, max_payload_bytes=MAX_PAYLOAD_BYTES, groups_commits=True)


async def look(connection: Connection, sql: Statements, timeout: float) -> Found:
    """Return what a server says of itself.

    Raises:
        StoreUnusable: the store cannot work on it.
    """
    row = await connection.fetchrow(sql.look, timeout=timeout)
    assert row is not None
    if row["server_version"] < OLDEST_SERVER:
        raise StoreUnusable(
            f"the server is PostgreSQL {row['server_version'] // 10000}, and the store needs 14 "
            "or newer: upgrade the server"
        )
    if row["encoding"] != "UTF8":
        raise StoreUnusable(
            f"the database has encoding {row['encoding']}, which cannot hold every id and "
            "message: create one with ENCODING 'UTF8'"
        )
    if row["isolation"] != "read committed":
        raise StoreUnusable(
            f"default_transaction_isolation is {row['isolation']!r}, under which workers that "
            "meet fail instead of waiting for each other: set it to 'read committed' for this "
            "role, by ALTER ROLE"
        )
    return Found(
        _durability(row),
        # A pooler answers the client with a key of its own; the server's processes are behind it.
        row["backend_pid"] != connection.get_server_pid(),
    )


def _durability(row: asyncpg.Record) -> Durability:
    """Return what a commit survives.

    https://www.postgresql.org/docs/current/runtime-config-wal.html (synchronous_commit)
    """
    if row["fsync"] == "off":
        return Durability.PROCESS
    if row["synchronous_commit"] == "off":
        return Durability.INTERVAL_FSYNC
    if row["synchronous_commit"] in {"on", "remote_apply"} and row["standbys"].strip():
        return Durability.REPLICATED
    return Durability.FSYNC


async def migrate(
    connection: Connection, sql: Statements, names: Names, *, may_change: bool
) -> None:
    """Bring the schema to the version of this store, or only check it.

    Args:
        connection: to use for it.
        sql: the statements of the store.
        names: the names of the store.
        may_change: bring it to this version; else an older one is refused.

    Raises:
        StoreUnusable: the schema is too new, or too old and may not be changed.
    """
    version = await _check_version(connection, sql, names)
    if version >= VERSION:
        return
    if not may_change:
        raise StoreUnusable(_missing(names, version))
    # All of it happens or nothing does, and the lock is held to the end.
    transaction = connection.transaction()
    await transaction.start()
    try:
        await connection.execute(lock(names))
        version = await _check_version(connection, sql, names)
        if version < VERSION:  # nobody else did it meanwhile, whose store is at work by now
            await connection.execute(steps(names, version))
    except BaseException:
        # A connection of the store's own is closed, which does it. On one that is gone it fails:
        # that must not hide a cancellation, as the driver's context manager would.
        if type(connection) is not OwnConnection:
            with contextlib.suppress(Exception):
                await transaction.rollback()
        raise
    await transaction.commit()


async def _check_version(connection: Connection, sql: Statements, names: Names) -> int:
    if not await connection.fetchval(sql.has_tables, names.migrations):
        return 0
    row = await connection.fetchrow(sql.versions)
    if row is None:
        return 0
    version, min_compatible = int(row[0]), int(row[1])
    if min_compatible > VERSION:
        raise StoreUnusable(
            f"the tables {names.schema}.{names.prefix}* have version {version}, which needs a "
            f"store of version {min_compatible} or newer, and this one is version {VERSION}: "
            "upgrade stroma-postgres"
        )
    return version


def _missing(names: Names, version: int) -> str:
    what = ", ".join(str(each.version) for each in _after(version))
    found = f"have version {version}" if version else "are not there"
    return (
        f"the tables {names.schema}.{names.prefix}* {found}, migration {what} is missing, and "
        f"migrate is False: have the SQL run that `{names.sql_command}` prints"
    )


def _after(version: int) -> list[Migration]:
    return [migration for migration in MIGRATIONS if migration.version > version]
