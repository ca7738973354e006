"""Workers that are killed: at every await, at every I/O call, and at random."""

from __future__ import annotations

import random

import pytest

from stroma.testing._kills import sampled
from tests.faults.oracle import Bill, Excuses, check
from tests.faults.places import DURABLE, EVERY, Place, in_every_way
from tests.faults.size import Size
from tests.faults.worker import Job, Where, Worker

pytestmark = [pytest.mark.crash, pytest.mark.timeout(7200)]

RESULTS = 8
"""Paid results of one run."""
_SIDE_BY_SIDE = 4
_BATCH = 40


def killed_at(place: Place, where: Where, points: list[int], **changes: object) -> Excuses:
    """Have a worker die at each of these points of its run, and others bring the runs to an end."""
    jobs = [place.job(f"{where} {n}", die_at=(where, n), **changes) for n in points]
    killed: set[int] = set()
    for batch in _parts(jobs, _BATCH):
        for few in _parts(batch, _SIDE_BY_SIDE):
            killed |= _killed(few)
        Worker(place.job(*(job.runs[0] for job in batch), **changes)).wait()
    return Excuses(killed=killed, all_listed=bool(changes.get("reserves")))


def _parts(jobs: list[Job], length: int) -> list[list[Job]]:
    return [jobs[start : start + length] for start in range(0, len(jobs), length)]


def _killed(jobs: list[Job]) -> set[int]:
    workers = [Worker(job) for job in jobs]
    return {worker.pid for worker in workers if worker.wait() is None}


WAYS = (("await", "plain"), ("await", "reserving"), ("io", "plain"), ("io", "reserving"))


@pytest.mark.parametrize(("place", "where", "kind"), in_every_way(*WAYS), indirect=["place"])
def test_a_worker_killed_at_any_point(place: Place, where: Where, kind: str, size: Size) -> None:
    """A kill at each wait of each task, and before and after each I/O call of each thread."""
    reserves = kind == "reserving"
    Worker(place.job("first", reserves=reserves)).wait()  # which creates what there has to be
    count = Worker(place.job("counted", die_at=(where, None), reserves=reserves)).wait()
    assert count is not None
    assert count > 30, "no points were found"
    points = sampled(count, size.points)

    excuses = killed_at(place, where, points, reserves=reserves)

    assert len(excuses.killed) >= len(points) // 2, "most of the points should be reached"
    bill = check(
        place.open, place.lines, excuses=excuses, at_least=RESULTS * (1 + len(points)) // 2
    )
    assert bill.runs == 2 + len(points)


@pytest.mark.parametrize("place", EVERY, indirect=True)
def test_workers_killed_at_random(place: Place, size: Size, seed: int) -> None:
    """Kills at any moment, until a number of them hit a worker that was at work."""
    chance = random.Random(seed)
    run, killed = 0, set[int]()
    while len(killed) < size.kills:
        job = place.job(f"run {run}", latency_seconds=0.01, seed=seed, reserves=True)
        worker = Worker(job)
        worker.is_over_within(chance.uniform(0.02, 0.5))
        if worker.kill():
            killed.add(worker.pid)
        else:
            run += 1
    Worker(place.job(f"run {run}", reserves=True)).wait()

    excuses = Excuses(killed=killed, all_listed=True)
    bill = check(place.open, place.lines, excuses=excuses, at_least=RESULTS * run - 2 * len(killed))
    assert bill.runs == run + 1
    assert_bounded(bill, len(killed))


def assert_bounded(bill: Bill, deaths: int) -> None:
    """In doubt is never more than what was in flight."""
    assert len(bill.in_doubt) <= 2 * deaths


@pytest.mark.parametrize("place", DURABLE, indirect=True)
def test_workers_killed_while_others_compete(place: Place, size: Size, seed: int) -> None:
    """Two workers on the same runs; one of them is killed, and another one comes."""
    chance = random.Random(seed)
    runs = [f"run {number}" for number in range(3)]
    job = place.job(*runs, latency_seconds=0.01)
    workers, killed = [Worker(job), Worker(job)], set[int]()
    for _ in range(max(2, size.kills // 10)):
        victim = chance.randrange(2)
        workers[victim].is_over_within(chance.uniform(0.05, 0.4))
        if workers[victim].kill():
            killed.add(workers[victim].pid)
        workers[victim] = Worker(job)
    for worker in workers:
        worker.wait()

    bill = check(place.open, place.lines, excuses=Excuses(killed=killed), at_least=len(runs))
    assert bill.runs == len(runs)
