"""Files that outlive a failure of the machine, and a lock that ends with its process."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from stroma.errors import OutcomeUnknown, StoreUnavailable, StoreUnusable

_LOCK = "lock"
# Where these come from, trying again does not help.
_HOPELESS = (FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError)


@contextmanager
def reported(folder: Path) -> Iterator[None]:
    """Turn errors of the file system into those of a store; not for what may be done already."""
    try:
        yield
    except _HOPELESS as exc:
        raise StoreUnusable(f"{folder} cannot be used: {exc}") from exc
    except OSError as exc:
        raise StoreUnavailable(f"{folder} cannot be used now: {exc}") from exc


def make_folder(path: Path) -> None:
    """Create a folder and what is missing above it, and let the disk have their names."""
    missing = []
    for folder in (path, *path.parents):
        if folder.is_dir():
            break
        missing.append(folder)
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def sync_folder(path: Path) -> None:
    """Let the disk have the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_after_change(path: Path) -> None:
    """Let the disk have names that others see already: nobody can say what it has if it fails."""
    try:
        sync_folder(path)
    except OSError as exc:
        raise OutcomeUnknown(f"{path} may have been changed: {exc}") from exc


def write_file(path: Path, content: bytes, *, at: int = 0) -> None:
    """Write content from an offset on, cut off what follows, and let the disk have it."""
    path.touch()
    with path.open("r+b") as file:
        file.truncate(at)
        file.seek(at)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, content: bytes) -> None:
    """Replace a file as a whole; the caller holds the lock, so that one draft is enough."""
    draft = path.with_name(f"{path.name}.draft")
    write_file(draft, content)
    draft.replace(path)
    sync_after_change(path.parent)


def remove_files(paths: Iterable[Path]) -> None:
    """Remove files that nothing refers to any more; those that cannot be removed do no harm."""
    for path in paths:
        try:
            path.unlink()
        except OSError:
            continue


@contextmanager
def locked(folder: Path, *, create: bool) -> Iterator[bool]:
    """Hold a folder's lock against other threads and processes.

    Yields:
        Whether there is such a folder. If it may be created, there always is.
    """
    descriptor = _lock(folder, create=create)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            # Closing is not enough: a child that was forked meanwhile has the descriptor, too.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)


def _lock(folder: Path, *, create: bool) -> int | None:
    while True:
        try:
            descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:
            if not create:
                return None
            folder.mkdir(exist_ok=True)  # and again: somebody may remove it at once
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if _is_same_file(folder / _LOCK, descriptor):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # the run was deleted, with its lock, while this waited


def _is_same_file(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
