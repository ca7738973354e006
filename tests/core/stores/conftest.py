from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from stroma.stores.memory import AsyncInMemoryStore, InMemoryStore
from stroma.stores.sqlite import SQLiteStore
from tests.core.stores.support import Awaited, ManualClock


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "runs.db"


@pytest.fixture(params=["memory", "async memory", "sqlite"])
def store(request: pytest.FixtureRequest, clock: ManualClock, database: Path) -> Iterator[Awaited]:
    if request.param == "memory":
        yield Awaited(InMemoryStore(clock=clock))
    elif request.param == "async memory":
        yield Awaited(AsyncInMemoryStore(clock=clock))
    else:
        sqlite = SQLiteStore(database, clock=clock)
        yield Awaited(sqlite)
        asyncio.run(sqlite.aclose())


@pytest.fixture
def sqlite(clock: ManualClock, database: Path) -> Iterator[SQLiteStore]:
    store = SQLiteStore(database, clock=clock, busy_timeout_seconds=5.0)
    yield store
    asyncio.run(store.aclose())
