"""Opening a SQLite file as a store: what may be opened, what is refused, and its settings."""

from __future__ import annotations

import os
import sqlite3
import stat
import time
from contextlib import closing
from pathlib import Path
from typing import Final

from stroma.errors import ConfigError, StoreUnusable
from stroma.stores._sqlite_errors import error_code
from stroma.stores._sqlite_schema import (
    APPLICATION_ID,
    CREATE,
    CREATE_LATER,
    FORMAT,
    HAS_ALL,
)

_LOG_LIMIT_BYTES: Final = 64 * 1024 * 1024
_RETRY_SECONDS: Final = 0.005
_TORN_TRIES: Final = 40


def database_path(path: str | os.PathLike[str]) -> Path:
    """Return the absolute path of a database file, links resolved.

    Raises:
        ConfigError: it names no file, such as ":memory:".
    """
    text = os.fspath(path)
    if text in ("", ":memory:") or text.startswith("file:"):
        raise ConfigError(
            f"{text!r} is no path of a file: a SQLite store needs one, such as 'runs.db'; "
            "for runs that may go with the process use the store 'memory'"
        )
    if "\0" in text:
        raise ConfigError(f"{text!r} is no path: it has a NUL character")
    return Path(text).resolve()


def connect(path: Path, busy_timeout_seconds: float) -> sqlite3.Connection:
    """Open a store's file, creating it and its tables when there is none.

    Any number of processes may do this at once. A file that is something else is not written.

    Raises:
        StoreUnusable: there is something that is not a store, or of a newer format.
        sqlite3.Error: it could not be opened or created.
    """
    _check_place(path)
    _check_header(path)
    connection = sqlite3.connect(
        path, timeout=busy_timeout_seconds, isolation_level=None, check_same_thread=False
    )
    try:
        _prepare(connection, path, busy_timeout_seconds)
    except BaseException:
        connection.close()
        raise
    return connection


def _check_place(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        if not path.parent.is_dir():
            raise StoreUnusable(
                f"{path} cannot be created: there is no folder {path.parent}; create it first"
            ) from None
        return
    except OSError as exc:
        raise StoreUnusable(f"{path} cannot be looked at: {exc.strerror}") from exc
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "no regular file"
        raise StoreUnusable(f"{path} is {kind}: a SQLite store needs the path of a file")


def _check_header(path: Path) -> None:
    """Refuse a foreign file before anything could change it.

    Opened as immutable, SQLite neither locks the file, nor rolls back or checkpoints what
    another program left beside it. The mark of a store is in the file itself from the first
    moment, since the tables are made before the log is switched on. (Reading the file without
    SQLite would not do: closing it would end the locks of other connections in this process.)
    """
    uri = f"{path.as_uri()}?mode=ro&immutable=1"
    for tries_left in reversed(range(_TORN_TRIES)):
        if not path.exists() or path.stat().st_size == 0:
            return
        try:
            with closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as connection:
                _is_store_now(connection, path)
            return
        except sqlite3.DatabaseError as exc:
            # Without a lock, a file that another process makes longer just now looks damaged.
            if not tries_left or error_code(exc) & 0xFF != sqlite3.SQLITE_CORRUPT:
                raise
            time.sleep(_RETRY_SECONDS)


def _is_store_now(connection: sqlite3.Connection, path: Path) -> bool:
    """Do `_is_store` in a transaction, in which no other process is seen making the tables."""
    connection.execute("BEGIN")
    is_store = _is_store(connection, path)
    connection.execute("COMMIT")
    return is_store


def _is_store(connection: sqlite3.Connection, path: Path) -> bool:
    """Say whether the file has a store's mark, or is empty and may become one.

    Raises:
        StoreUnusable: it is something else, or of a newer format.
    """
    (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application_id == APPLICATION_ID:
        if version != FORMAT:
            raise StoreUnusable(
                f"{path} has format {version}, and this version of stroma knows format {FORMAT}: "
                "use the version that wrote it, or a newer one"
            )
        return True
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if application_id or version or tables:
        raise StoreUnusable(
            f"{path} is a SQLite database of another program (application id {application_id:#x}, "
            f"{tables} tables and indexes): choose another path; it was left as it is"
        )
    return False


def _prepare(connection: sqlite3.Connection, path: Path, busy_timeout_seconds: float) -> None:
    connection.execute("PRAGMA trusted_schema = OFF")
    if not _is_store_now(connection, path) or not _has_all(connection):
        connection.execute("BEGIN IMMEDIATE")
        if not _is_store(connection, path):  # else another process was quicker
            _create(connection)
        for statement in CREATE_LATER:
            connection.execute(statement)
        connection.execute("COMMIT")
    _switch_log_on(connection, path, busy_timeout_seconds)
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute(f"PRAGMA journal_size_limit = {_LOG_LIMIT_BYTES}")


def _has_all(connection: sqlite3.Connection) -> bool:
    (count,) = connection.execute(HAS_ALL).fetchone()
    return bool(count)


def _create(connection: sqlite3.Connection) -> None:
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {FORMAT}")
    for statement in CREATE:
        connection.execute(statement)


def _switch_log_on(connection: sqlite3.Connection, path: Path, busy_timeout_seconds: float) -> None:
    """Switch to the write-ahead log, which the file remembers."""
    # SQLite gives up at once, whatever the busy timeout, when two switch at the same time.
    deadline = time.monotonic() + busy_timeout_seconds
    mode = None
    while mode is None:
        try:
            (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        except sqlite3.OperationalError as exc:
            if error_code(exc) & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(_RETRY_SECONDS)
    if mode != "wal":
        raise StoreUnusable(
            f"{path}: SQLite cannot keep a write-ahead log there (journal mode {mode!r}); "
            "network file systems cannot: choose a local disk"
        )
