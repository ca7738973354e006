"""Workers that compete for the same runs while they and their server are killed.

STROMA_FAULTS_SIZE=full: four workers for an hour, and a restart every 5 to 40 seconds.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.oracle import Bill, Excuses, check
from tests.faults.places import Place, place_of
from tests.faults.size import Size
from tests.faults.test_servers import own_place
from tests.faults.worker import Worker

pytestmark = [pytest.mark.crash, pytest.mark.slow, pytest.mark.timeout(14_400)]

RUNS = 4


@pytest.fixture
def contested(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """A place whose server can be killed, where a server of its kind keeps anything then."""
    if request.param in ("sqlite", "s3"):
        with place_of(request.param, tmp_path) as found:
            yield found
    else:
        with own_place(request.param, tmp_path) as found:
            yield found


@pytest.mark.parametrize(
    "contested",
    [
        "sqlite",
        pytest.param("redis", marks=pytest.mark.server),
        pytest.param("postgres", marks=pytest.mark.server),
        pytest.param("s3", marks=pytest.mark.server),
    ],
    indirect=True,
)
def test_workers_compete_while_they_and_their_server_are_killed(
    contested: Place, size: Size, seed: int
) -> None:
    ends_at = time.monotonic() + size.competition_seconds
    trouble = Trouble(contested, size, seed)
    total, batch = Bill(), 0
    while time.monotonic() < ends_at:
        batch += 1
        killed = trouble.one_batch([f"run {batch}.{number}" for number in range(RUNS)])
        excuses = Excuses(killed=killed, is_unsaved_known=True)
        total.add(check(contested.open, contested.lines, excuses=excuses, at_least=8 * RUNS // 2))
        contested.log.unlink()

    assert total.runs == RUNS * batch
    assert trouble.restarts or contested.server is None
    assert trouble.kills
    print(
        f"{total.runs} runs, {total.acknowledged} results, {trouble.restarts} restarts, "
        f"{trouble.kills} kills, {len(total.in_doubt)} calls in doubt"
    )


class Trouble:
    """Kills workers and their server, now and then."""

    def __init__(self, place: Place, size: Size, seed: int) -> None:
        self._place = place
        self._size = size
        self._seed = seed
        self._chance = random.Random(seed)
        self._next = time.monotonic() + min(0.3, size.restart_seconds[0])
        self.restarts = 0
        self.kills = 0

    def one_batch(self, runs: list[str]) -> set[int]:
        """Let workers compete for some runs until all are complete; return who was killed."""
        lease_seconds = max(2.0, self._place.lease_seconds)
        job = self._place.job(*runs, latency_seconds=0.05, lease_seconds=lease_seconds)
        workers, killed = [Worker(job) for _ in range(self._size.competitors)], set[int]()
        while not all(worker.is_over_within(0.02) for worker in workers):
            if time.monotonic() < self._next:
                continue
            if self._place.server is not None and self.restarts <= self.kills:
                self._place.server.restart()
                self.restarts += 1
            else:
                victim = self._chance.randrange(len(workers))
                if workers[victim].kill():
                    killed.add(workers[victim].pid)
                    self.kills += 1
                workers[victim] = Worker(job)
            self._next = time.monotonic() + self._chance.uniform(*self._size.restart_seconds)
        for worker in workers:
            worker.wait()
        return killed
