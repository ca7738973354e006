"""What a run has spent, and what it may spend, over any number of starts."""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import Any

import pytest

from stroma import RunInputMismatch, RunLocked, RunStatus, node, report_usage
from stroma.result import ExecutionResult
from stroma.testing import failing
from tests.faults.oracle import Excuses, check
from tests.faults.places import Place, stored
from tests.faults.sidelog import Line, SideLog
from tests.faults.size import Size
from tests.faults.test_paused import has_begun, until
from tests.faults.worker import Job, Worker, runner_for, work
from tests.faults.workload import (
    CONCURRENCY,
    FAILURE_TOKENS,
    PIPELINE,
    RESERVED_BESIDE,
    RESERVING,
    TOKENS,
    Answer,
    Order,
    Provider,
    closing,
    paying,
    runner_of,
    say_how_it_ended,
)

pytestmark = pytest.mark.timeout(3600)

CLEAN_TOKENS = sum(TOKENS.values()) + 3 * TOKENS["extract"] + 2 * FAILURE_TOKENS
"""What a run costs in which nothing fails but what always does."""


async def _start(job: Job, nodes: Any = PIPELINE, **wanted: Any) -> ExecutionResult:
    """Start a run once, in this process."""
    log = SideLog(job.log)
    async with closing(runner_for(job, log)) as runner:
        with paying(Provider(log, slow=job.slow, slow_seconds=job.slow_seconds)):
            (run_id,) = job.runs
            result = await runner.run(nodes, job.order, run_id=run_id, **wanted)
    say_how_it_ended(log, result)
    log.close()
    return result


def start(job: Job, nodes: Any = PIPELINE, **wanted: Any) -> ExecutionResult:
    return asyncio.run(_start(job, nodes, **wanted))


def calls(place: Place, path: str) -> int:
    return sum((line.event, line.path) == ("begun", path) for line in place.lines)


# -- spend ---------------------------------------------------------------------------------------


def test_a_clean_run_costs_what_its_calls_cost(place: Place) -> None:
    result = start(place.job("run"))

    assert result.tokens == CLEAN_TOKENS
    assert result.spent_before.tokens == 0
    assert check(place.open, place.lines, at_least=8).in_doubt == []


def test_failed_attempts_count_in_this_start_and_in_the_next(place: Place) -> None:
    fails = failing(PIPELINE, at="join", error=ValueError("a bug"), attempt=None)
    first = start(place.job("run"), fails)
    assert (first.status, first.tokens) == (RunStatus.FAILED, CLEAN_TOKENS - TOKENS["join"])

    second = start(place.job("run"))
    assert second.spent_before.tokens == first.tokens
    assert second.tokens == CLEAN_TOKENS
    assert check(place.open, place.lines, at_least=8).in_doubt == []


def test_retries_are_those_of_the_policy(place: Place) -> None:
    """Three retries are four calls, and each is charged."""
    log = SideLog(place.log)
    made = 0

    @node
    async def flaky(state: Order) -> Answer:
        nonlocal made
        made += 1
        report_usage(input_tokens=5, model="m", cost_usd="0.001")
        raise TimeoutError("each time")

    async def body() -> ExecutionResult:
        async with closing(runner_of("sqlite", log, options=place.options)) as runner:
            return await runner.run([flaky], Order(), run_id="run")

    first, second = asyncio.run(body()), asyncio.run(body())
    assert (first.status, made, first.tokens, second.tokens) == (RunStatus.PARTIAL, 8, 20, 40)
    run, headers, _ = stored(place, "run")
    assert [(h.kind, h.attempt, h.usage.tokens) for h in headers] == [
        ("attempt", n, 5) for n in range(1, 9)
    ]
    assert run.spend.tokens == 40


@pytest.mark.parametrize("nodes", [PIPELINE, RESERVING], ids=["plain", "reserving"])
def test_calls_that_were_cut_are_listed_by_every_later_start(place: Place, nodes: Any) -> None:
    """By a sibling that fails, and by the cancellation of the run."""

    async def body() -> None:
        slow = place.job("run", slow=("right",), slow_seconds=30.0)
        fails = failing(nodes, at="left", error=ValueError("a bug"), attempt=2, when="after")
        assert (await _start(slow, fails)).status is RunStatus.FAILED
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(_start(slow, nodes), 0.3)
        await _start(place.job("run"), nodes)
        result = await _start(place.job("run"), nodes)
        assert [doubt.path for doubt in result.in_doubt] == ["right", "right"]
        each = 0 if nodes is PIPELINE else TOKENS["right"] + RESERVED_BESIDE
        assert [doubt.charged.tokens for doubt in result.in_doubt] == [each, each]

    asyncio.run(body())
    check(place.open, place.lines, excuses=Excuses(all_listed=True), at_least=8)


@pytest.mark.crash
def test_a_call_whose_worker_died_is_charged_and_listed(place: Place) -> None:
    """With an estimator: by its reservation. Without one, nothing tells of it but the bill."""
    for run, nodes in (("reserving", RESERVING), ("plain", PIPELINE)):
        worker = Worker(
            place.job(run, slow=("right",), slow_seconds=60.0, reserves=nodes is RESERVING)
        )
        until(place, lambda lines, run=run: has_begun("right")([n for n in lines if n.run == run]))  # type: ignore[misc]
        until(place, lambda lines, run=run: told_of(lines, run, "left"))  # type: ignore[misc]
        assert worker.kill()
        result = start(place.job(run), nodes)
        if nodes is PIPELINE:
            assert (result.in_doubt, result.tokens) == ((), CLEAN_TOKENS)
            continue
        ((path, attempt, reason, charged),) = result.in_doubt
        assert (path, attempt, reason) == ("right", 1, "died")
        assert charged.tokens == TOKENS["right"] + RESERVED_BESIDE
        assert result.tokens == CLEAN_TOKENS + charged.tokens
        check(place.open, place.lines, excuses=Excuses(all_listed=True), at_least=8)


def told_of(lines: list[Line], run: str, path: str) -> bool:
    """Say whether a worker was told that a result is recorded."""
    return ("acknowledged", run, path) in {(line.event, line.run, line.path) for line in lines}


def test_a_timeout_is_listed_and_charged(place: Place) -> None:
    log = SideLog(place.log)

    async def body() -> ExecutionResult:
        options = {"options": place.options, "node_timeouts": {"right": 50.0}}
        provider = Provider(log, slow=("right",), slow_seconds=0.2)
        async with closing(runner_of("sqlite", log, **options)) as runner:
            with paying(provider):
                result = await runner.run(RESERVING, Order(), run_id="run")
        say_how_it_ended(log, result)
        return result

    result = asyncio.run(body())
    assert {(doubt.path, doubt.reason) for doubt in result.in_doubt} == {("right", "timeout")}
    assert len(result.in_doubt) == 4
    assert result.status is RunStatus.PARTIAL
    work(place.job("run", reserves=True))
    check(place.open, place.lines, excuses=Excuses(all_listed=True), at_least=8)


# -- budgets -------------------------------------------------------------------------------------


@pytest.mark.crash
@pytest.mark.parametrize("reserves", [True, False], ids=["reserving", "plain"])
def test_a_budget_holds_over_kills(place: Place, reserves: bool, size: Size, seed: int) -> None:
    """Starts are killed until the budget is reached; with an estimator nothing goes over it."""
    chance, budget = random.Random(seed), CLEAN_TOKENS + 10
    run = f"run {seed}"
    killed: set[int] = set()
    pipeline = RESERVING if reserves else PIPELINE
    for _ in range(4 * size.kills):
        job = place.job(run, reserves=reserves, budget_tokens=budget, patience=1)
        worker = Worker(Job(**{**job.__dict__, "die_at": ("await", chance.randrange(10, 120))}))
        with contextlib.suppress(AssertionError):  # it is not complete: the budget is reached
            if worker.wait() is None:
                killed.add(worker.pid)
                continue
        break
    spent = start(place.job(run, budget_tokens=budget), pipeline)
    in_flight = 0 if reserves else CONCURRENCY * TOKENS["extract"]
    assert spent.tokens <= budget + in_flight

    start(place.job(run, budget_tokens=10 * budget), pipeline)
    excuses = Excuses(killed=killed, all_listed=reserves)
    check(place.open, place.lines, excuses=excuses, at_least=4)


def test_with_an_estimator_nothing_goes_over_the_budget(place: Place) -> None:
    for budget in range(5, CLEAN_TOKENS, 9):
        result = start(place.job(f"run {budget}", budget_tokens=budget), RESERVING)
        assert result.status is RunStatus.PARTIAL
        assert result.tokens <= budget
        start(place.job(f"run {budget}"), RESERVING)
    assert check(place.open, place.lines, at_least=8).in_doubt == []


def test_an_output_that_crosses_the_budget_is_kept(place: Place) -> None:
    """It is recorded, and then nothing begins; with a higher budget it is not bought again."""
    before_join = CLEAN_TOKENS - TOKENS["join"]
    first = start(place.job("run", budget_tokens=before_join - 1))
    assert (first.status, first.tokens) == (RunStatus.PARTIAL, before_join)
    assert first.final_state is not None
    assert len(first.final_state.facts) == 4  # type: ignore[attr-defined]
    again = start(place.job("run", budget_tokens=before_join - 1))
    assert (again.status, again.tokens) == (RunStatus.PARTIAL, before_join)

    assert start(place.job("run")).tokens == CLEAN_TOKENS
    assert check(place.open, place.lines, at_least=8).in_doubt == []


# -- who buys what -------------------------------------------------------------------------------


def test_a_job_that_is_delivered_twice_is_run_once(place: Place) -> None:
    """Side by side, and again when it is complete: by then nobody claims it."""

    async def twice() -> None:
        job = place.job("run", lease_seconds=60.0, slow=("split",), slow_seconds=0.5)
        ends = await asyncio.gather(_start(job), _start(job), return_exceptions=True)
        assert {type(end) for end in ends} == {ExecutionResult, RunLocked}, ends

    asyncio.run(twice())
    before = stored(place, "run")
    assert start(place.job("run")).tokens == CLEAN_TOKENS
    assert stored(place, "run") == before
    bill = check(place.open, place.lines, at_least=8)
    assert len(bill.recorded) == 10


def test_only_consent_buys_again(place: Place) -> None:
    """`resume_from` from there on, with all spend; `restart` everything, and without it."""
    start(place.job("run"))
    bought = CLEAN_TOKENS
    again = start(place.job("run"), resume_from="fan_out(extract)")
    from_there = 4 * TOKENS["extract"] + FAILURE_TOKENS + TOKENS["join"]
    assert again.tokens == bought + from_there
    assert again.skipped == ("split", "both")
    assert start(place.job("run")).tokens == bought + from_there
    assert (calls(place, "split"), calls(place, "left"), calls(place, "join")) == (1, 2, 2)

    anew = start(place.job("run"), restart=True)
    assert anew.tokens == CLEAN_TOKENS
    assert (calls(place, "split"), calls(place, "left"), calls(place, "join")) == (2, 4, 3)
    assert start(place.job("run")).tokens == CLEAN_TOKENS


def test_finished_children_and_items_are_not_bought_again(place: Place) -> None:
    for path in ("right", "extract[3]"):
        fails = failing(PIPELINE, at=path, error=ValueError("a bug"), attempt=None, when="after")
        slow = place.job(path, slow=(path,), slow_seconds=0.3)
        assert start(slow, fails).status is RunStatus.FAILED
        start(place.job(path))

    bill = check(place.open, place.lines, excuses=Excuses(all_listed=True), at_least=16)
    assert bill.runs == 2


def test_a_run_that_stopped_is_free_at_once(place: Place) -> None:
    """After its end, after an error of its caller's, and after a refusal to go on."""
    job = place.job("run", lease_seconds=600.0)
    fails = failing(PIPELINE, at="join", error=TimeoutError("again"), attempt=None)
    assert start(job, fails).status is RunStatus.PARTIAL
    with pytest.raises(RunInputMismatch):
        start(place.job("run", order=Order(number=8), lease_seconds=600.0))
    run, _, _ = stored(place, "run")
    assert (run.owner, run.status) == ("", RunStatus.PARTIAL)

    assert start(job).is_complete
    assert check(place.open, place.lines, at_least=8).in_doubt == []


def test_a_refused_output_is_paid_for_and_not_bought_again(place: Place) -> None:
    made = 0

    @node(id="picky", input=Order, output=Answer)
    async def picky(state: Order) -> Any:
        nonlocal made
        made += 1
        report_usage(input_tokens=9, model="m", cost_usd="0.001")
        return {"total": "many"}

    log = SideLog(place.log)

    async def body() -> ExecutionResult:
        async with closing(runner_of("sqlite", log, options=place.options)) as runner:
            return await runner.run([picky], Order(), run_id="run")

    first, second = asyncio.run(body()), asyncio.run(body())
    assert (first.status, second.status) == (RunStatus.FAILED, RunStatus.FAILED)
    assert (made, first.tokens, second.tokens) == (1, 9, 9)


def test_active_time_counts_over_all_starts(place: Place) -> None:
    fails = failing(PIPELINE, at="join", error=TimeoutError("again"), attempt=None)
    slow = place.job("run", slow=("split",), slow_seconds=0.2)
    assert start(slow, fails).active_ms > 200
    assert start(place.job("run")).active_ms > 200
