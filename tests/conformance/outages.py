"""How the medium of stores in files is put out of order."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def file_instead_of(folder: Path) -> Generator[None]:
    """Move a folder away, and put a file in its place: root is stopped by that, too."""
    aside = folder.rename(folder.with_name("aside"))
    folder.touch()
    try:
        yield
    finally:
        folder.unlink()
        aside.rename(folder)
