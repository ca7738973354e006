"""Proof that a worker on this machine is dead: the operating system let go of its file lock."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

_TRIES: Final = 3


class OwnerLock:
    """One store object's lock file, and a look at those of others.

    The file is named by a nonce that the runs' rows carry, and is locked for as long as the
    object lives. The lock ends with the process whatever ends it, so that a file that is gone,
    or that somebody else can lock, belongs to nobody that lives. `flock` belongs to the open
    file, not to the process: two objects in one process tell each other apart, too.

    Where there is no `flock` there are no locks: then only leases tell.

    Args:
        database: the file whose neighbour the folder of lock files is.
    """

    def __init__(self, database: Path) -> None:
        self._folder = database.with_name(f"{database.name}-owners")
        self._nonce = ""
        self._fd = -1

    def hold(self) -> str:
        """Return the nonce of this object's lock, taking it first if need be.

        Returns:
            The nonce, or "" where no lock can be had.
        """
        if not self._nonce:
            self._sweep()
            for _ in range(_TRIES):
                if self._take(os.urandom(12).hex()):
                    break
        return self._nonce

    def is_dead(self, nonce: str) -> bool:
        """Say whether the object that held this lock is proved to be gone."""
        if sys.platform == "win32" or not nonce.isalnum():  # also: no stored text is a path
            return False
        return nonce != self._nonce and _is_free(self._folder / nonce)

    def drop(self) -> None:
        """Let go of the lock and remove its file, and the folder when it was the last."""
        if self._nonce:
            _remove(self._folder / self._nonce)
            self.forget()
            with suppress(OSError):  # others may hold locks in it
                self._folder.rmdir()

    def forget(self) -> None:
        """Close the file without removing it.

        For a forked child: as long as one copy of the descriptor is open the lock holds, and
        the child's copy would make its dead parent look alive.
        """
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1
        self._nonce = ""

    def _take(self, nonce: str) -> bool:
        if sys.platform == "win32":
            return False
        path = self._folder / nonce
        try:
            self._folder.mkdir(exist_ok=True)
            fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
        except OSError:
            return False
        # Between creating the file and locking it, a sweep may have removed it: then the lock
        # would be on a file that nobody finds.
        if not _lock(fd, shared=False) or not _is_same_file(fd, path):
            os.close(fd)
            return False
        self._fd, self._nonce = fd, nonce
        return True

    def _sweep(self) -> None:
        """Remove the files that dead owners left."""
        if sys.platform == "win32":
            return
        try:
            names = os.listdir(self._folder)  # noqa: PTH208 - a name is all that is needed
        except OSError:
            return
        for name in names:
            _is_free(self._folder / name)


def _is_free(path: Path) -> bool:
    """Say whether nobody holds this lock file, and remove it if so."""
    try:
        fd = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    try:
        # Shared, so that two who look at once do not take each other for the owner.
        if not _lock(fd, shared=True):
            return False
        _remove(path)
        return True
    finally:
        os.close(fd)


def _lock(fd: int, *, shared: bool) -> bool:
    if sys.platform == "win32":
        return False
    import fcntl

    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _is_same_file(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except OSError:
        return False


def _remove(path: Path) -> None:
    with suppress(OSError):  # gone already, or not ours: it is empty and unlocked either way
        path.unlink()
