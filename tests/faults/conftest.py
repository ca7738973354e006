from __future__ import annotations

import multiprocessing
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.places import Place, place_of
from tests.faults.size import SIZE, Size

SEED = "STROMA_FAULTS_SEED"


@pytest.fixture(autouse=True)
def no_worker_is_left() -> Iterator[None]:
    """End the workers of a test that failed: the interpreter would wait for a stopped one."""
    yield
    for left in multiprocessing.active_children():
        left.kill()
        left.join()


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """The store of a test; a test says on which ones it runs by `indirect` parameters."""
    with place_of(getattr(request, "param", "sqlite"), tmp_path) as found:
        yield found


@pytest.fixture(scope="session")
def size() -> Size:
    """How much of everything is tried: STROMA_FAULTS_SIZE is "small" or "full"."""
    return SIZE


@pytest.fixture
def seed() -> int:
    """What random faults are made from: STROMA_FAULTS_SEED, or else another one each time.

    pytest shows what is printed of a test that fails.
    """
    found = int(os.environ.get(SEED) or random.SystemRandom().randrange(1 << 32))
    print(f"\nto replay: {SEED}={found}")
    return found
