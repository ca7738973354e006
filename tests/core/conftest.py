from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from stroma import AsyncInMemoryStore, InMemoryStore, SQLiteStore
from tests.core.helpers import Calls, FakeClock


@pytest.fixture(params=["memory", "async-memory", "sqlite"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Any]:
    """Each built-in store, one after the other."""
    if request.param == "memory":
        yield InMemoryStore()
    elif request.param == "async-memory":
        yield AsyncInMemoryStore()
    else:
        made = SQLiteStore(tmp_path / "runs.db")
        yield made
        await made.aclose()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def calls() -> Calls:
    return Calls()
