"""Workers in many processes on one bucket."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.core import fleet as fleets
from tests.core.fleet import Fleet
from tests.servers.s3 import S3Server

pytestmark = [
    pytest.mark.crash,
    pytest.mark.server,
    pytest.mark.slow,
    pytest.mark.timeout(240),
]


@pytest.fixture
def fleet(tmp_path: Path, server: S3Server, bucket: str) -> Iterator[Fleet]:
    made = Fleet(tmp_path, f"s3://{bucket}", lease_seconds=3, **server.options())
    yield made
    made.close()


async def test_the_oldest_run_is_the_first(fleet: Fleet) -> None:
    await fleets.works_off_oldest_first(fleet)


async def test_workers_are_killed_and_no_result_is_bought_twice(fleet: Fleet) -> None:
    await fleets.survives_kills(fleet, 5, runs=20, kills=3)


async def test_what_does_not_fit_is_left_alone(fleet: Fleet) -> None:
    await fleets.leaves_alone_what_does_not_fit(fleet)
