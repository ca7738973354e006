"""One open connection and its transactions."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from stroma.clock import Clock
from stroma.errors import StoreUnusable
from stroma.stores._owner_lock import OwnerLock
from stroma.stores._sqlite_errors import commit_error
from stroma.stores._sqlite_file import connect
from stroma.stores._sqlite_tables import Tables

CHECK_FILE_SECONDS = 0.02
"""How long a file that was there is taken to be there still, by commits of a lone record. A
claim and the end of a run always look."""

_sync = getattr(os, "fdatasync", os.fsync)


class Session:
    """An open store file. For one thread.

    Args:
        path: of the file.
        busy_timeout_seconds: how long to wait for other processes that write.
        clock: for the tables.
        lock: for the tables.

    Raises:
        StoreUnusable: the file is no store.
        sqlite3.Error: it could not be opened.
    """

    def __init__(
        self, path: Path, busy_timeout_seconds: float, clock: Clock, lock: OwnerLock
    ) -> None:
        self._path = path
        self._path_text = str(path)
        self._connection = connect(path, busy_timeout_seconds)
        self._execute = self._connection.cursor().execute
        self._identity = _identity(self._path_text)
        self._is_durable = True
        self._checked_until = 0.0
        self._log_fd = -1
        self.has_unsynced = False
        self.tables = Tables(self._connection, clock, lock)

    def transact(self, body: Callable[[], None], *, durable: bool) -> None:
        """Commit what ``body`` writes, or nothing if it raises.

        Args:
            body: writes.
            durable: return only when the disk has it. Otherwise every process sees it at once,
                and it is lost if the machine fails before the next durable commit or `sync`,
                which sync the log with everything before them in it: nothing durable can
                survive what came before it.
        """
        self._check_file()
        self._set_durable(durable)
        self._execute("BEGIN IMMEDIATE")
        try:
            body()
            self._commit()
        except BaseException:
            if self._connection.in_transaction:  # some errors have rolled back already
                with suppress(sqlite3.Error):
                    self._execute("ROLLBACK")
            raise
        self.has_unsynced = not durable

    def state_alone(self, body: Callable[[Tables], bool]) -> bool:
        """Run one durable statement without a transaction around it.

        Returns:
            What ``body`` returns: whether it wrote.
        """
        if time.monotonic() >= self._checked_until:
            self._check_file()
        self._set_durable(True)
        try:
            has_written = body(self.tables)
        except sqlite3.Error as exc:
            raise commit_error(exc, self._path) from exc
        if has_written:
            self.has_unsynced = False
        return has_written

    def _check_file(self) -> None:
        """Notice a file that was removed or replaced."""
        self._checked_until = time.monotonic() + CHECK_FILE_SECONDS
        if _identity(self._path_text) != self._identity:
            raise StoreUnusable(
                f"{self._path} was removed or replaced while it was in use: what was recorded "
                "is in the old file; put it back, or start the runs again"
            )

    def _commit(self) -> None:
        try:
            self._execute("COMMIT")
        except sqlite3.Error as exc:
            raise commit_error(exc, self._path) from exc

    def _set_durable(self, durable: bool) -> None:
        if durable is not self._is_durable:
            # The pragma acts when it is compiled, so that it must not come from the
            # connection's cache of statements: a script does not use it.
            level = "FULL" if durable else "NORMAL"
            self._connection.executescript(f"PRAGMA synchronous = {level}")
            self._is_durable = durable

    def sync(self) -> None:
        """Make durable what was committed without waiting for the disk."""
        if self._log_fd < 0:
            # SQLite keeps no locks on the log itself, so that closing it does no harm.
            self._log_fd = os.open(f"{self._path}-wal", os.O_RDWR)
        _sync(self._log_fd)
        self.has_unsynced = False

    def close(self) -> None:
        """Close the connection; the last one of all processes folds the log into the file."""
        if self._log_fd >= 0:
            os.close(self._log_fd)
            self._log_fd = -1
        self._connection.close()


def _identity(path: str) -> tuple[int, int]:
    try:
        found = os.stat(path)  # noqa: PTH116 - on every commit, and half the time of Path.stat
    except OSError:
        return (0, 0)
    return (found.st_dev, found.st_ino)
