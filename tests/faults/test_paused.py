"""Workers that are stopped for longer than their lease, and workers that only are slow."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable

import pytest

from stroma import StaleOwner
from stroma.result import ExecutionResult
from stroma.testing.faulty import Fault, FaultKind
from tests.faults.oracle import Excuses, check
from tests.faults.places import DURABLE, Place, stored
from tests.faults.sidelog import Line, SideLog
from tests.faults.worker import Worker, bring_to_its_end, runner_for
from tests.faults.workload import PIPELINE, Order, Provider, closing, paying

pytestmark = [pytest.mark.crash, pytest.mark.timeout(300)]

SLOW_SECONDS = 24.0


def until(place: Place, holds: Callable[[list[Line]], bool], seconds: float = 30.0) -> list[Line]:
    """Wait until something holds of the side log."""
    deadline = time.monotonic() + seconds
    while not holds(lines := place.lines):
        assert time.monotonic() < deadline, lines
        time.sleep(0.005)
    return lines


def stop(worker: Worker, place: Place, path: str) -> None:
    """Stop a worker in a node, when nothing else of it is under way.

    A process that is stopped in a commit to SQLite holds the file's lock, and nobody can write.
    """
    seen = until(place, has_begun(path))
    time.sleep(0.1)
    while seen != (seen := place.lines):
        time.sleep(0.1)
    worker.signal(signal.SIGSTOP)


def has_begun(path: str) -> Callable[[list[Line]], bool]:
    return lambda lines: any((line.event, line.path) == ("begun", path) for line in lines)


@pytest.mark.parametrize("place", DURABLE, indirect=True)
@pytest.mark.parametrize("path", ["split", "right", "extract[0]"])
def test_a_stopped_worker_changes_nothing_when_it_goes_on(place: Place, path: str) -> None:
    """SIGSTOP in a node, past the lease; another worker finishes; SIGCONT."""
    stopped = Worker(place.job("run", slow=(path,), slow_seconds=SLOW_SECONDS))
    stop(stopped, place, path)
    other = Worker(place.job("run"))
    other.wait()
    before = stored(place, "run")

    stopped.signal(signal.SIGCONT)
    stopped.wait(SLOW_SECONDS / 3)  # it stops its nodes, and does not wait for them

    assert stored(place, "run") == before
    lines = place.lines
    (lost,) = [line for line in lines if line.event == "lost"]
    assert lost.pid == stopped.pid
    assert path in [doubt[0] for doubt in lost.more["in_doubt"]]
    bill = check(place.open, lines, excuses=Excuses(stale={stopped.pid}), at_least=8)
    assert bill.runs == 1


@pytest.mark.parametrize("place", DURABLE, indirect=True)
def test_a_stopped_worker_whose_answer_comes_late_saves_nothing(place: Place) -> None:
    """SIGSTOP in a node whose answer is there when it goes on: the save is refused."""
    stopped = Worker(place.job("run", slow=("split",), slow_seconds=0.5))
    until(place, has_begun("split"))
    stopped.signal(signal.SIGSTOP)
    Worker(place.job("run")).wait()
    before = stored(place, "run")

    stopped.signal(signal.SIGCONT)
    stopped.wait()

    assert stored(place, "run") == before
    assert [line.pid for line in place.lines if line.event == "lost"] == [stopped.pid]
    check(place.open, place.lines, excuses=Excuses(stale={stopped.pid}), at_least=8)


@pytest.mark.parametrize("place", DURABLE, indirect=True)
def test_a_slow_worker_keeps_its_run(place: Place) -> None:
    """A node that takes three leases, while another worker asks for the run all the time."""
    seconds = 3 * place.lease_seconds
    slow = Worker(place.job("run", slow=("split", "join"), slow_seconds=seconds))
    until(place, has_begun("split"))
    other = Worker(place.job("run"))
    slow.wait(20)
    other.wait(20)

    bill = check(place.open, place.lines, at_least=8)
    assert bill.in_doubt == []
    assert {line.pid for line in place.lines if line.event == "begun"} == {slow.pid}


def test_a_worker_that_does_not_know_that_it_lost_its_run_saves_nothing(place: Place) -> None:
    """Its renewals do not get through: the commit is what is refused."""
    never = tuple(Fault("renew", FaultKind.REFUSED, n) for n in range(1, 1000))
    # not so slow that a renewal could get through
    slow = place.job("run", slow=("split",), slow_seconds=1.2, faults=never, patience=1)
    other = place.job("run")

    async def side_by_side() -> BaseException | ExecutionResult:
        log = SideLog(place.log)
        async with closing(runner_for(slow, log)) as one, closing(runner_for(other, log)) as two:
            with paying(Provider(log, slow=("split",), slow_seconds=1.2)) as provider:
                first = asyncio.ensure_future(one.run(PIPELINE, Order(), run_id="run"))
                await asyncio.sleep(0.6)  # the lease is shorter
                provider.slow = ()
                await bring_to_its_end(two, other, "run", log)
                before.append(await two.checkpoint_manager.store.inspect("run"))  # type: ignore[attr-defined]
                (outcome,) = await asyncio.gather(first, return_exceptions=True)
                before.append(await two.checkpoint_manager.store.inspect("run"))  # type: ignore[attr-defined]
                return outcome

    before: list[object] = []
    outcome = asyncio.run(side_by_side())
    assert isinstance(outcome, StaleOwner)
    assert before[0] == before[1]
    told = [line.path for line in place.lines if line.event == "acknowledged"]
    assert len(told) == len({*told}) == 8
