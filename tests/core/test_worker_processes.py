"""Workers in many processes on one SQLite file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.core import fleet as fleets
from tests.core.fleet import Fleet

pytestmark = [pytest.mark.crash, pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    # A lease that outlasts the test: it is the lock beside the file that proves who is dead.
    made = Fleet(tmp_path, f"sqlite:///{tmp_path}/runs.db", lease_seconds=600)
    yield made
    made.close()


async def test_the_oldest_run_is_the_first(fleet: Fleet) -> None:
    await fleets.works_off_oldest_first(fleet)


@pytest.mark.parametrize("seed", [1, 2])
async def test_workers_are_killed_and_no_result_is_bought_twice(fleet: Fleet, seed: int) -> None:
    await fleets.survives_kills(fleet, seed)


async def test_a_new_version_is_rolled_out_under_load(fleet: Fleet) -> None:
    await fleets.rolls_out(fleet)


async def test_what_does_not_fit_is_left_alone(fleet: Fleet) -> None:
    await fleets.leaves_alone_what_does_not_fit(fleet)
