"""Runs that are cancelled wherever they wait, once and twice."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from stroma.testing._kills import sampled
from stroma.testing.faulty import Fault, FaultKind
from tests.faults.oracle import Excuses, check
from tests.faults.places import Place, in_every_way
from tests.faults.sidelog import SideLog
from tests.faults.size import Size
from tests.faults.worker import Job, bring_to_its_end, cancelled_at, runner_for, work
from tests.faults.workload import Provider, closing, paying

pytestmark = pytest.mark.timeout(7200)


WAYS = (("plain", 1), ("plain", 2), ("reserving", 1), ("reserving", 2))


@pytest.mark.parametrize(("place", "kind", "times"), in_every_way(*WAYS), indirect=["place"])
def test_a_run_cancelled_at_any_await(place: Place, kind: str, times: int, size: Size) -> None:
    """What was finished is recorded, what was cut is listed, and the run goes on."""
    reserves = kind == "reserving"
    count, _ = cancelled_at(place.job("counted", reserves=reserves), None, times)
    points = sampled(count, size.points)
    runs = [f"at {point}" for point in points]
    cut = 0
    for run, point in zip(runs, points, strict=True):
        # the lease does not end: the run has to be given up
        job = place.job(run, lease_seconds=600.0, reserves=reserves)
        cut += cancelled_at(job, point, times)[1]
    for start in range(0, len(runs), 40):
        work(place.job(*runs[start : start + 40], patience=2, reserves=reserves))

    assert cut > len(points) // 2
    bill = check(place.open, place.lines, excuses=Excuses(all_listed=True), at_least=8)
    assert bill.runs == 1 + len(points)


def test_a_cancelled_run_is_released_and_says_so(place: Place) -> None:
    for times in (1, 2):
        run_id = f"run {times}"
        assert cancelled_at(place.job(run_id, lease_seconds=600.0), 12, times)[1]
        found = asyncio.run(_inspect(place, run_id))
        assert (found.run.status, found.run.owner) == ("CANCELLED", "")


@pytest.mark.parametrize("times", [1, 2], ids=["once", "twice"])
def test_a_save_under_way_is_finished(place: Place, times: int) -> None:
    """Each commit in turn is slow, and the run is cancelled meanwhile."""
    for number in range(1, 12):
        job = place.job(f"run {number}", faults=(Fault("commit_many", FaultKind.DELAYED, number),))
        log = SideLog(job.log)
        asyncio.run(_cancelled_in_a_save(job, number, times, log))
        log.close()
        work(place.job(f"run {number}"))

    bill = check(place.open, place.lines, excuses=Excuses(all_listed=True), at_least=60)
    answered = {line.call for line in place.lines if line.event == "answered"}
    assert [line for line in bill.in_doubt if line.call in answered] == []


async def _cancelled_in_a_save(job: Job, number: int, times: int, log: SideLog) -> None:
    async with closing(runner_for(job, log)) as runner:
        store: Any = runner.checkpoint_manager.store
        with paying(Provider(log)):
            task = asyncio.ensure_future(bring_to_its_end(runner, job, job.runs[0], log))
            while store.calls.get("commit_many", 0) < number and not task.done():
                await asyncio.sleep(0)
            for _ in range(times):
                await asyncio.sleep(0)
                task.cancel()
            await asyncio.wait({task})


async def _inspect(place: Place, run_id: str) -> object:
    store = place.open()
    try:
        return await store.inspect(run_id)  # type: ignore[attr-defined]
    finally:
        await store.aclose()  # type: ignore[attr-defined]
