"""What SQLite's errors mean for who uses a store."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Final

from stroma.errors import (
    OutcomeUnknown,
    RecordTooLarge,
    StoreError,
    StoreUnavailable,
    StoreUnusable,
    StromaError,
)

_PRIMARY: Final = 0xFF
"""The part of an extended result code that tells the kind."""

_Maker = Callable[[Path, str], StoreError]


def _busy(path: Path, detail: str) -> StoreError:
    return StoreUnavailable(
        f"{path}: another process is writing, and did not finish within the busy timeout "
        f"({detail}): try again, or raise busy_timeout_seconds"
    )


def _full(path: Path, detail: str) -> StoreError:
    return StoreUnavailable(
        f"{path}: the disk is full, or the file may not grow ({detail}): nothing was written; "
        "make room and try again"
    )


def _io(path: Path, detail: str) -> StoreError:
    return StoreUnavailable(
        f"{path}: the operating system reports an I/O error ({detail}): nothing was written; "
        "look at the disk and its limits, then try again"
    )


def _read_only(path: Path, detail: str) -> StoreError:
    return StoreUnusable(
        f"{path} cannot be written ({detail}): this process needs write permission on the file, "
        "on its -wal and -shm neighbours and on the folder"
    )


def _cannot_open(path: Path, detail: str) -> StoreError:
    return StoreUnusable(
        f"{path} cannot be opened ({detail}): this process needs to read and write the file, "
        "and to create files in its folder"
    )


def _damaged(path: Path, detail: str) -> StoreError:
    return StoreUnusable(
        f"{path} is no SQLite database, or a damaged one ({detail}): choose another path, or "
        "restore the file from a backup; it was left as it is"
    )


def _too_big(path: Path, detail: str) -> StoreError:
    return RecordTooLarge(f"{path}: a value is larger than SQLite takes ({detail}): return less")


def _no_memory(path: Path, detail: str) -> StoreError:
    return StoreUnavailable(f"{path}: SQLite ran out of memory ({detail})")


_BY_CODE: Final[dict[int, _Maker]] = {
    sqlite3.SQLITE_BUSY: _busy,
    sqlite3.SQLITE_LOCKED: _busy,
    sqlite3.SQLITE_PROTOCOL: _busy,
    sqlite3.SQLITE_FULL: _full,
    sqlite3.SQLITE_IOERR: _io,
    sqlite3.SQLITE_READONLY: _read_only,
    sqlite3.SQLITE_PERM: _read_only,
    sqlite3.SQLITE_CANTOPEN: _cannot_open,
    sqlite3.SQLITE_CORRUPT: _damaged,
    sqlite3.SQLITE_NOTADB: _damaged,
    sqlite3.SQLITE_TOOBIG: _too_big,
    sqlite3.SQLITE_NOMEM: _no_memory,
}


def store_error(exc: Exception, path: Path) -> StromaError:
    """Return what an error of the driver means, with the driver's as its cause."""
    if isinstance(exc, StromaError):
        return exc
    detail = f"{getattr(exc, 'sqlite_errorname', type(exc).__name__)}: {exc}"
    make = _BY_CODE.get(error_code(exc) & _PRIMARY)
    if make is not None:
        error = make(path, detail)
    elif isinstance(exc, sqlite3.Error):
        error = StoreUnusable(f"{path} is not as a Stroma store should be ({detail})")
    else:
        error = StoreError(f"{path}: a value cannot be stored ({detail})")
    error.__cause__ = exc
    return error


UNSTORABLE: Final = (sqlite3.DataError, OverflowError, UnicodeError)
"""What the driver raises for a value that it cannot pass on, before anything is written."""


def unstorable(run_id: str, exc: Exception) -> StoreError:
    """Return the refusal of a commit that holds such a value."""
    kind = StoreError if isinstance(exc, UnicodeError) else RecordTooLarge
    error = kind(f"run {run_id!r}: a record holds a value that SQLite cannot keep: {exc}")
    error.__cause__ = exc
    return error


def commit_error(exc: sqlite3.Error, path: Path) -> StromaError:
    """Return what an error of COMMIT itself means.

    When the sync fails, the commit lies in the log though it is not visible: it comes back if
    the machine restarts before anybody writes over it.
    """
    if error_code(exc) != sqlite3.SQLITE_IOERR_FSYNC:
        return store_error(exc, path)
    error = OutcomeUnknown(f"{path}: the disk did not confirm a write ({exc}): look at the disk")
    error.__cause__ = exc
    return error


def error_code(exc: BaseException) -> int:
    """Return SQLite's extended result code, or 0 when the error has none."""
    return getattr(exc, "sqlite_errorcode", None) or 0


def is_lasting(exc: BaseException) -> bool:
    """Say whether the connection had better be opened anew after an error."""
    passing = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_FULL, sqlite3.SQLITE_TOOBIG)
    return isinstance(exc, sqlite3.Error) and error_code(exc) & _PRIMARY not in passing
