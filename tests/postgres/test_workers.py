"""Workers in many processes on one server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from stroma.records import unique_id
from tests.core import fleet as fleets
from tests.core.fleet import Fleet
from tests.postgres.conftest import run_sql_now
from tests.servers.postgres import Server

pytestmark = [
    pytest.mark.crash,
    pytest.mark.server,
    pytest.mark.slow,
    pytest.mark.timeout(240),
]


@pytest.fixture
def fleet(tmp_path: Path, older: Server) -> Iterator[Fleet]:
    schema = f"test_{unique_id()}"
    made = Fleet(tmp_path, older.dsn, schema=schema)
    yield made
    made.close()
    run_sql_now(older, f'DROP SCHEMA IF EXISTS "{schema}" CASCADE')


async def test_the_oldest_run_is_the_first(fleet: Fleet) -> None:
    await fleets.works_off_oldest_first(fleet)


async def test_workers_are_killed_and_no_result_is_bought_twice(fleet: Fleet) -> None:
    await fleets.survives_kills(fleet, 4)


async def test_a_new_version_is_rolled_out_under_load(fleet: Fleet) -> None:
    await fleets.rolls_out(fleet)


async def test_what_does_not_fit_is_left_alone(fleet: Fleet) -> None:
    await fleets.leaves_alone_what_does_not_fit(fleet)
