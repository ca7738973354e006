"""The kit that every store is tested by, on the package as it is installed."""

from pathlib import Path

import pytest
from stroma_sample_dir.store import DirStore

from stroma.testing import StoreConformance, StoreSubject


class TestDirStore(StoreConformance):
    @pytest.fixture
    def subject(self, tmp_path: Path) -> StoreSubject:
        """Return how the kit makes stores over one folder."""
        return StoreSubject(make=lambda: DirStore(tmp_path / "states"))
