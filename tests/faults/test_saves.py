"""Saves that fail, or whose reply is lost: only the save is repeated, never the node."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import pytest

from stroma import NodeHooks, current
from stroma.testing._kills import sampled
from stroma.testing.faulty import Fault, FaultKind
from tests.faults.oracle import Excuses, check
from tests.faults.places import DURABLE, Place, in_every_way
from tests.faults.sidelog import SideLog
from tests.faults.size import Size
from tests.faults.worker import work
from tests.faults.workload import PIPELINE, Order, Provider, closing, paying, runner_of

pytestmark = pytest.mark.timeout(3600)

ALL_COMMITS = 12
"""How many there are at least: of the run's 8 paid results, 2 groups, and 2 failed attempts."""


KINDS = (FaultKind.REFUSED, FaultKind.LOST)
WAYS = tuple((kind, nodes) for nodes in ("plain", "reserving") for kind in KINDS)


@pytest.mark.parametrize(("place", "kind", "nodes"), in_every_way(*WAYS), indirect=["place"])
def test_a_commit_that_fails_once(place: Place, kind: FaultKind, nodes: str, size: Size) -> None:
    """Each commit of a run in turn: not done, or done without an answer."""
    reserves = nodes == "reserving"
    numbers = sampled(ALL_COMMITS + 8 * reserves, size.points)
    for number in numbers:
        fault = Fault("commit_many", kind, number + 1)
        work(place.job(f"run {number}", faults=(fault,), reserves=reserves))

    bill = check(place.open, place.lines, at_least=8 * len(numbers))
    assert bill.in_doubt == []
    assert len(bill.recorded) == 10 * len(numbers), "a node was called again for a save"
    ends = [line.more.get("status") for line in place.lines if line.event in ("ended", "lost")]
    assert ends == ["COMPLETED"] * len(numbers)


@pytest.mark.parametrize("place", DURABLE, indirect=True)
@pytest.mark.parametrize("kind", KINDS)
def test_a_claim_that_fails_once(place: Place, kind: FaultKind) -> None:
    """Of a new run, and of one that is continued."""
    work(place.job("new", faults=(Fault("open_run", kind, 1),)))
    work(place.job("again"))
    work(place.job("again", faults=(Fault("open_run", kind, 1),)))

    bill = check(place.open, place.lines, at_least=16)
    assert bill.in_doubt == []
    assert len(bill.recorded) == 20


def test_what_a_store_did_not_take_goes_with_the_last_word(place: Place, size: Size) -> None:
    """No save is tried again: the commit that ends the run takes along what came before."""
    for number in range(2, ALL_COMMITS):
        fault = Fault("commit_many", FaultKind.REFUSED, number)
        with pytest.raises(AssertionError, match="does not come to its end: PARTIAL"):
            work(place.job(f"run {number}", faults=(fault,), patience=1, save_retries=0))
        work(place.job(f"run {number}"))

    bill = check(place.open, place.lines, excuses=Excuses(all_listed=True), at_least=60)
    answered = {line.call for line in place.lines if line.event == "answered"}
    assert [line for line in bill.in_doubt if line.call in answered] == []


def test_what_a_hook_is_told_of_is_stored(place: Place) -> None:
    """Another connection sees a result, and a failed attempt, before the hook is called."""
    told = 0

    async def look(event: str, run_id: str, path: str, *_: object) -> None:
        nonlocal told
        call = current().usage.model
        if call:
            store: Any = place.open()
            found = await store.inspect(run_id)
            await store.aclose()
            told += 1
            kind = "result" if event == "success" else "attempt"
            assert (path, kind, call) in {(h.path, h.kind, h.usage.model) for h in found.headers}

    async def body() -> None:
        log = SideLog(place.log)
        failures: list[BaseException] = []

        async def guarded(*args: Any) -> None:
            try:
                await look(*args)
            except AssertionError as exc:  # which the runner would only log
                failures.append(exc)

        hooks = NodeHooks(
            on_node_success=partial(guarded, "success"), on_node_failure=partial(guarded, "failure")
        )
        runner = runner_of("sqlite", log, options=place.options).with_hooks(hooks)
        async with closing(runner):
            with paying(Provider(log)):
                await runner.run(PIPELINE, Order(), run_id="run")
        assert failures == []

    asyncio.run(body())
    assert told == 10


def test_a_store_that_stays_away(place: Place) -> None:
    """Every commit from one on is refused: PARTIAL, and what was bought is in the result."""
    for first in range(2, ALL_COMMITS):
        faults = tuple(Fault("commit_many", FaultKind.REFUSED, first + n) for n in range(60))
        with pytest.raises(AssertionError, match="does not come to its end: PARTIAL"):
            work(place.job(f"run {first}", faults=faults, patience=1, save_retries=2))
        work(place.job(f"run {first}"))

    bill = check(place.open, place.lines, excuses=Excuses(is_unsaved_known=True), at_least=60)
    ends = [line for line in place.lines if line.event == "ended"]
    unsaved = sum(len(line.more["unsaved"]) for line in ends)
    assert unsaved > ALL_COMMITS // 2
    assert len(bill.in_doubt) <= unsaved + ALL_COMMITS  # and failed attempts that were not saved


@pytest.mark.parametrize("place", DURABLE, indirect=True)
def test_a_store_that_fails_at_random(place: Place, size: Size, seed: int) -> None:
    """A quarter of all operations fails, half of them done."""
    runs = [f"run {number}" for number in range(max(3, size.lost_replies // 10))]
    work(place.job(*runs, fault_rate=0.25, seed=seed))

    excuses = Excuses(is_unsaved_known=True)
    bill = check(place.open, place.lines, excuses=excuses, at_least=4 * len(runs))
    assert bill.runs == len(runs)
