"""The stores that come with the core keep every rule of the kit."""

from __future__ import annotations

from pathlib import Path

import pytest

from stroma.stores.memory import AsyncInMemoryStore, InMemoryStore
from stroma.stores.sqlite import SQLiteStore
from stroma.testing import FakeClock, StoreConformance, StoreSubject
from tests.conformance.outages import file_instead_of


class TestInMemoryStore(StoreConformance):
    @pytest.fixture
    def subject(self) -> StoreSubject:
        clock = FakeClock()
        return StoreSubject(make=lambda: InMemoryStore(clock=clock), clock=clock)


class TestAsyncInMemoryStore(StoreConformance):
    @pytest.fixture
    def subject(self) -> StoreSubject:
        clock = FakeClock()
        return StoreSubject(make=lambda: AsyncInMemoryStore(clock=clock), clock=clock)


class TestSQLiteStore(StoreConformance):
    @pytest.fixture
    def subject(self, tmp_path: Path) -> StoreSubject:
        clock = FakeClock()
        folder = tmp_path / "folder"
        folder.mkdir()
        return StoreSubject(
            make=lambda: SQLiteStore(folder / "runs.db", clock=clock),
            clock=clock,
            outage=lambda: file_instead_of(folder),
        )


@pytest.mark.slow
class TestSQLiteStoreOnTheMachinesClock(StoreConformance):
    @pytest.fixture
    def subject(self, tmp_path: Path) -> StoreSubject:
        path = tmp_path / "runs.db"
        return StoreSubject(make=lambda: SQLiteStore(path, max_payload_bytes=2_000_000))
