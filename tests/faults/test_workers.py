"""`stroma worker`: submitted runs, taken up by any number of processes that die and are stopped."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from stroma import Pipeline, RunStatus
from tests.faults.oracle import Excuses, check
from tests.faults.places import DURABLE, Place, stored
from tests.faults.sidelog import Line, SideLog
from tests.faults.size import Size
from tests.faults.test_paused import has_begun, until
from tests.faults.worker import Worker
from tests.faults.workload import RESERVING, Order, closing, runner_of

pytestmark = [pytest.mark.crash, pytest.mark.slow, pytest.mark.timeout(3600)]

JOB = "STROMA_FAULTS_JOB"
ROOT = Path(__file__).resolve().parents[2]

PATIENCE_SECONDS = 180.0
"""How long nothing may happen: a request that is lost takes a driver a minute, and on a machine
that is busy a worker is imported for half of one."""


class Service:
    """`stroma worker` in a process of its own."""

    def __init__(
        self,
        place: Place,
        *,
        latency_seconds: float,
        lease_seconds: float,
        is_mute: bool = False,
    ) -> None:
        """Start it; one that is mute dies instead of saying that a run has ended."""
        job = {
            "store": place.store,
            "options": place.options,
            "log": str(place.log),
            "latency_seconds": latency_seconds,
            "lease_seconds": lease_seconds,
            "is_mute": is_mute,
        }
        self.printed = place.folder / f"worker-{time.monotonic_ns()}.log"
        with self.printed.open("wb") as printed:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "stroma", "worker", "tests.faults.service:pipeline"),
                    *("--concurrency", "2", "--drain", "20"),
                ],
                cwd=ROOT,
                env={**os.environ, JOB: json.dumps(job)},
                stdout=printed,
                stderr=subprocess.STDOUT,
            )

    def kill(self) -> int:
        """End it as a power cut would; return its pid."""
        self.process.kill()
        self.process.wait()
        return self.process.pid

    def stop(self) -> int:
        """Ask it to stop, as supervisors do; return its exit code.

        Not before it looks for runs: while it is imported, a signal just ends it.
        """
        deadline = time.monotonic() + PATIENCE_SECONDS
        while "takes up runs of" not in self.printed.read_text() and self.process.poll() is None:
            assert time.monotonic() < deadline, self.printed.read_text()
            time.sleep(0.02)
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_SECONDS)


def submit(place: Place, runs: list[str]) -> None:
    """Submit runs, each of them twice, as a queue may."""

    async def body() -> None:
        log = SideLog(place.log)
        runner = runner_of(place.store, log, options=place.options)
        pipeline = Pipeline(RESERVING.name, RESERVING.nodes, version="1", runner=runner)
        async with closing(runner):
            for run_id in [*runs, *runs]:
                submitted = await pipeline.submit(Order(), run_id=run_id)
                assert submitted.status is RunStatus.PENDING
        log.close()

    asyncio.run(body())


def ended(lines: list[Line]) -> set[str]:
    """Return the runs of which a worker said that they are complete."""
    return {line.run for line in lines if line.more.get("status") in ("COMPLETED", "RESUMED")}


def all_complete(place: Place, runs: list[str]) -> bool:
    """Say whether all runs are complete; their worker may have died before it could say so."""
    lines = place.lines
    last_node = {line.run for line in lines if (line.event, line.path) == ("begun", "join")}
    unsaid = {*runs} - ended(lines)
    return unsaid <= last_node and all(
        stored(place, run)[0].status is RunStatus.COMPLETED for run in unsaid
    )


def until_all_complete(
    place: Place, runs: list[str], workers: list[Service], meanwhile: Callable[[], object]
) -> None:
    """Do something again and again until all runs are complete.

    Raises:
        AssertionError: nothing has happened for long; it shows what the workers printed.
    """
    seen, since = 0, time.monotonic()
    while not all_complete(place, runs):
        meanwhile()
        if (now := len(place.lines)) != seen:
            seen, since = now, time.monotonic()
        idle_for = time.monotonic() - since
        assert idle_for < PATIENCE_SECONDS, "\n".join(w.printed.read_text() for w in workers)


def say_what_is_unsaid(place: Place, runs: list[str]) -> None:
    """Have somebody ask for the results of complete runs whose worker died with them."""
    unsaid = [run for run in runs if run not in ended(place.lines)]
    if unsaid:
        Worker(place.job(*unsaid, reserves=True)).wait()


@pytest.mark.parametrize("place", DURABLE, indirect=True)
def test_workers_that_are_killed_are_replaced_by_others(
    place: Place, size: Size, seed: int
) -> None:
    """Every submitted run comes to its end once, whoever dies; what died in flight is listed."""
    chance = random.Random(seed)
    runs = [f"run {number}" for number in range(max(4, size.kills // 4))]
    submit(place, runs)
    settings = {"latency_seconds": 0.05, "lease_seconds": max(1.0, place.lease_seconds)}
    workers, killed = [Service(place, **settings) for _ in range(2)], set[int]()

    def strike() -> None:
        time.sleep(chance.uniform(0.1, 0.4))
        at_work = {line.pid for line in place.lines}
        victim = chance.randrange(2)
        if len(killed) < max(2, size.kills // 4) and workers[victim].process.pid in at_work:
            killed.add(workers[victim].kill())
            workers[victim] = Service(place, **settings)

    try:
        until_all_complete(place, runs, workers, strike)
    finally:
        codes = [worker.stop() for worker in workers]

    assert codes == [0, 0]
    assert killed
    say_what_is_unsaid(place, runs)
    excuses = Excuses(killed=killed, all_listed=True)
    bill = check(place.open, place.lines, excuses=excuses, at_least=7 * len(runs) - 2 * len(killed))
    assert bill.runs == len(runs)


def test_a_worker_that_dies_before_it_says_that_a_run_is_complete(place: Place) -> None:
    """Nobody takes the run up again, and whoever asks is told its result."""
    submit(place, ["run"])
    mute = Service(place, latency_seconds=0.01, lease_seconds=1.0, is_mute=True)
    assert mute.process.wait(PATIENCE_SECONDS) == -signal.SIGKILL, mute.printed.read_text()
    assert not ended(place.lines)
    until_all_complete(place, ["run"], [mute], lambda: time.sleep(0.05))
    before = [line for line in place.lines if line.run == "run"]

    submit(place, ["next"])
    other = Service(place, latency_seconds=0.01, lease_seconds=1.0)
    until_all_complete(place, ["next"], [other], lambda: time.sleep(0.05))
    assert other.stop() == 0, other.printed.read_text()
    assert [line for line in place.lines if line.run == "run"] == before

    say_what_is_unsaid(place, ["run"])
    bill = check(place.open, place.lines, at_least=16)
    assert (bill.runs, bill.in_doubt) == (2, [])


@pytest.mark.parametrize("place", DURABLE, indirect=True)
def test_a_worker_that_is_asked_to_stop_leaves_nothing_in_doubt(place: Place) -> None:
    """It awaits its calls, records them, and gives its runs back: another one goes on at once."""
    runs = ["a", "b"]
    submit(place, runs)
    worker = Service(place, latency_seconds=0.3, lease_seconds=600.0)
    until(place, has_begun("left"), PATIENCE_SECONDS)
    assert worker.stop() == 0, worker.printed.read_text()
    left = [stored(place, run)[0] for run in runs]
    assert {(run.owner, str(run.status)) for run in left} == {("", "PENDING")}

    other = Service(place, latency_seconds=0.01, lease_seconds=600.0)
    until_all_complete(place, runs, [other], lambda: time.sleep(0.05))
    assert other.stop() == 0, other.printed.read_text()
    bill = check(place.open, place.lines, at_least=16)
    assert (bill.runs, bill.in_doubt) == (2, [])
