"""The kit that every store is tested by, on the package as it is installed."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest
from stroma_sample_dir.store import DirStore

from stroma.testing import StoreConformance, StoreSubject


class TestDirStore(StoreConformance):
    @pytest.fixture
    def subject(self, tmp_path: Path) -> StoreSubject:
        """Return how the kit makes stores over one folder."""
        folder = tmp_path / "states"
        return StoreSubject(make=lambda: DirStore(folder), outage=lambda: file_instead_of(folder))


@contextmanager
def file_instead_of(folder: Path) -> Generator[None]:
    """Move the folder away for a while, and put a file in its place."""
    aside = folder.rename(folder.with_name("aside"))
    folder.touch()
    try:
        yield
    finally:
        folder.unlink()
        aside.rename(folder)
