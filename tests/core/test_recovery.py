"""`recover` takes up what waits, the oldest first, each run once, and leaves alone what differs."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from stroma import (
    AsyncInMemoryStore,
    ConfigError,
    FailurePolicy,
    InMemoryStore,
    NodeHooks,
    Pipeline,
    RunStatus,
    StoreUnavailable,
    StromaRunner,
    Worker,
    node,
    recover,
)
from stroma.checkpoint import Capabilities, Durability
from stroma.records import Commit, OpenRequest, RunUpdate
from tests.core.helpers import Calls, FakeClock, FaultyStore, Number, make_runner, stored_run


def adding(calls: Calls, *script: object, **options: Any) -> Pipeline:
    return Pipeline("adding", [calls.node("a"), calls.node("b", *script)], **options)


async def submitted(store: Any, pipeline: Pipeline, *run_ids: str) -> None:
    """Submit runs, each a moment after the one before."""
    for run_id in run_ids:
        await pipeline.submit(Number(), run_id=run_id, runner=StromaRunner.quick(store=store))
        await asyncio.sleep(0.002)


async def claim(store: Any, run_id: str, *, lease_ms: int) -> None:
    """Claim a run as another worker, which does nothing with it."""
    claiming = store.open_run(OpenRequest(run_id, "token", "another worker", lease_ms))
    if asyncio.iscoroutine(claiming):
        await claiming


# -- what is taken up ------------------------------------------------------------------------


async def test_submitted_runs_are_run(store: Any, calls: Calls) -> None:
    pipeline = adding(calls)
    await submitted(store, pipeline, "1", "2")
    done = await recover(pipeline, store=store)
    assert [result.status for result in done.results] == [RunStatus.COMPLETED] * 2
    assert {result.run_id for result in done.results} == {"1", "2"}
    assert done.left_alone == ()
    assert (await stored_run(store, "1")).status is RunStatus.COMPLETED
    assert (await recover(pipeline, store=store)).results == ()


async def test_a_run_whose_owner_died_goes_on_where_it_was(store: Any, calls: Calls) -> None:
    pipeline = adding(calls, TypeError("bug"), {"value": 9})
    await make_runner(store).run(pipeline, Number(), run_id="1")
    await claim(store, "1", lease_ms=1)
    await asyncio.sleep(0.005)
    (result,) = (await recover(pipeline, store=store)).results
    assert (result.status, calls["a"], calls["b"]) == (RunStatus.RESUMED, 1, 2)


async def test_the_oldest_comes_first(store: Any, calls: Calls) -> None:
    pipeline = adding(calls)
    order = ["c", "a", "d", "b"]
    await submitted(store, pipeline, *order)
    done = await recover(pipeline, store=store, concurrency=1)
    assert [result.run_id for result in done.results] == order


async def test_runs_that_ended_and_runs_of_others_are_not_touched(store: Any, calls: Calls) -> None:
    pipeline = adding(calls, TypeError("bug"))
    runner = make_runner(store)
    await runner.run(pipeline, Number(), run_id="failed")
    await runner.submit(Pipeline("other", [calls.node("x")]), Number(), run_id="other")
    await runner.submit(pipeline, Number(), run_id="owned")
    await claim(store, "owned", lease_ms=60_000)
    assert await recover(pipeline, store=store) == ((), ())
    assert (await stored_run(store, "failed")).status is RunStatus.FAILED
    assert (await stored_run(store, "other")).status is RunStatus.PENDING


async def test_a_limit_leaves_the_rest(store: Any, calls: Calls) -> None:
    pipeline = adding(calls)
    await submitted(store, pipeline, *"123456")
    done = await recover(pipeline, store=store, limit=4, concurrency=3)
    assert sorted(result.run_id for result in done.results) == list("1234")
    assert (await stored_run(store, "5")).status is RunStatus.PENDING


async def test_so_many_at_a_time(store: Any) -> None:
    under_way, most = 0, 0

    @node
    async def slow(state: Number) -> Number:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.01)
        under_way -= 1
        return state

    pipeline = Pipeline("slow", [slow])
    await submitted(store, pipeline, *"1234567")
    done = await recover(pipeline, store=store, concurrency=3)
    assert (len(done.results), most) == (7, 3)


async def test_more_runs_than_are_listed_at_once(calls: Calls) -> None:
    store, pipeline = InMemoryStore(), adding(calls)
    ids = [f"{i:03}" for i in range(130)]
    for run_id in ids:
        await pipeline.submit(Number(), run_id=run_id, runner=StromaRunner.quick(store=store))
    done = await recover(pipeline, store=store)
    assert sorted(result.run_id for result in done.results) == ids
    assert calls["a"] == 130


async def test_side_by_side_no_run_is_run_twice(store: Any, calls: Calls) -> None:
    pipeline = adding(calls)
    ids = [str(i) for i in range(40)]
    await submitted(store, pipeline, *ids)
    every = await asyncio.gather(*(recover(pipeline, store=store) for _ in range(5)))
    assert sorted(r.run_id for done in every for r in done.results) == sorted(ids)
    assert (calls["a"], calls["b"]) == (40, 40)
    assert all(done.left_alone == () for done in every)


async def test_a_run_that_ended_after_it_was_listed_is_not_run_again(calls: Calls) -> None:
    store, pipeline = InMemoryStore(), adding(calls)
    await submitted(store, pipeline, "1", "2", "3")

    async def end_the_third(state: Number) -> Number:
        store.open_run(OpenRequest("3", "token", "somebody", 60_000))
        store.commit_many([Commit("3", "token", (), RunUpdate(RunStatus.FAILED, release=True))])
        await recover(pipeline, store=store)
        return state

    first = Pipeline("adding", [node(id="a")(end_the_third), calls.node("b")])
    done = await recover(first, store=store, concurrency=1)
    assert [result.run_id for result in done.results] == ["1"]
    assert (await stored_run(store, "2")).status is RunStatus.COMPLETED
    assert (await stored_run(store, "3")).status is RunStatus.FAILED


# -- what it is run with ---------------------------------------------------------------------


async def test_the_pipelines_runner_says_how(calls: Calls) -> None:
    store = InMemoryStore()
    seen: list[str] = []
    hooks = NodeHooks(on_run_start=lambda start: seen.append(start.run_id))
    runner = make_runner(store, hooks=hooks, budget={"tokens": 5})
    pipeline = Pipeline("buying", [calls.node("a", ({}, 9)), calls.node("b")], runner=runner)
    await pipeline.submit(Number(), run_id="1")
    (result,) = (await recover(pipeline)).results
    assert (result.status, seen) == (RunStatus.PARTIAL, ["1"])
    assert "tokens" in result.stop_reason


async def test_another_store_changes_nothing_else(calls: Calls) -> None:
    store = AsyncInMemoryStore()
    seen: list[str] = []
    hooks = NodeHooks(on_run_start=lambda start: seen.append(start.run_id))
    pipeline = adding(calls, runner=make_runner(InMemoryStore(), hooks=hooks))
    await submitted(store, pipeline, "1")
    assert len((await recover(pipeline, store=store)).results) == 1
    assert seen == ["1"]


async def test_each_pipeline_has_its_own_store(calls: Calls) -> None:
    one = adding(calls, runner=make_runner(InMemoryStore()))
    other = Pipeline("other", [calls.node("x")], runner=make_runner(AsyncInMemoryStore()))
    await one.submit(Number(), run_id="1")
    await other.submit(Number(), run_id="2")
    done = await recover(one, other)
    assert sorted(result.run_id for result in done.results) == ["1", "2"]


@pytest.mark.parametrize("chosen", ["url", "environment"])
async def test_the_store_is_opened_and_closed(
    calls: Calls, chosen: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{tmp_path}/runs.db"
    pipeline = adding(calls)
    async with StromaRunner.quick(store=url) as runner:
        await runner.submit(pipeline, Number(), run_id="1")
    if chosen == "environment":
        monkeypatch.setenv("STROMA_STORE", url)
    done = await recover(pipeline, store=url if chosen == "url" else None)
    assert len(done.results) == 1
    assert not list(tmp_path.glob("*-owners/*"))


# -- what does not fit -----------------------------------------------------------------------


async def test_versions_that_are_not_accepted_are_left_alone(
    store: Any, calls: Calls, caplog: pytest.LogCaptureFixture
) -> None:
    old, new = adding(calls, version="1"), adding(calls, version="2")
    await submitted(store, old, "1")
    await submitted(store, new, "2")
    before = await stored_run(store, "1")

    done = await recover(new, store=store)

    assert [result.run_id for result in done.results] == ["2"]
    (left,) = done.left_alone
    assert (left.run_id, left.pipeline, left.version) == ("1", "adding", "1")
    assert "version '2' does not accept" in left.reason
    assert "accepts=['1']" in left.reason
    assert "run '1' is left alone" in caplog.text
    assert await stored_run(store, "1") == before
    assert len((await recover(old, store=store)).results) == 1


@pytest.mark.parametrize("accepts", [["1"], ["*"], ["0", "1"]])
async def test_accepted_versions_are_taken_up(store: Any, calls: Calls, accepts: list[str]) -> None:
    await submitted(store, adding(calls, version="1"), "1")
    new = adding(calls, version="2", accepts=accepts)
    assert len((await recover(new, store=store)).results) == 1
    assert (await stored_run(store, "1")).version == "2"


async def test_each_version_gets_its_own_runs(store: Any, calls: Calls) -> None:
    old = Pipeline("adding", [calls.node("old")], version="1")
    new = Pipeline("adding", [calls.node("new")], version="2", accepts=["*"])
    await submitted(store, old, "1")
    await submitted(store, new, "2")
    await submitted(store, Pipeline("adding", [calls.node("new")], version="3"), "3")
    done = await recover(new, old, store=store, concurrency=1)
    assert len(done.results) == 3
    assert (calls["old"], calls["new"]) == (1, 2)


async def test_a_changed_pipeline_leaves_the_run_as_it_stood(store: Any, calls: Calls) -> None:
    old = adding(calls, TypeError("bug"))
    await make_runner(store).run(old, Number(), run_id="1")
    await old.submit(run_id="1", runner=make_runner(store))
    await submitted(store, old, "2")

    changed = Pipeline("adding", [calls.node("z"), calls.node("b")])
    done = await recover(changed, store=store)

    (left,) = done.left_alone
    assert left.run_id == "1"
    assert "has recorded 'a'" in left.reason
    run = await stored_run(store, "1")
    assert (run.status, run.owner) == (RunStatus.PENDING, "")
    assert [result.run_id for result in done.results] == ["2"]


async def test_runs_that_do_not_fit_do_not_starve_the_others(calls: Calls) -> None:
    store = InMemoryStore()
    old, new = adding(calls, version="1"), adding(calls, version="2")
    runner = make_runner(store)
    for i in range(120):
        await runner.submit(old, Number(), run_id=f"a {i}")
    await runner.submit(new, Number(), run_id="b")  # all at one time: by their ids
    done = await recover(new, store=store, limit=1)
    assert [result.run_id for result in done.results] == ["b"]
    assert len(done.left_alone) == 120


async def test_a_damaged_record_is_left_alone(calls: Calls) -> None:
    store, pipeline = InMemoryStore(), adding(calls)
    await submitted(store, pipeline, "1")
    store.open_run(OpenRequest("1", "token", "somebody", 60_000))
    update = RunUpdate(RunStatus.PENDING, plan=b"no JSON", release=True)
    store.commit_many([Commit("1", "token", (), update)])
    (left,) = (await recover(pipeline, store=store)).left_alone
    assert "a run's plan cannot be read" in left.reason


# -- a worker that is to stop ----------------------------------------------------------------


async def test_a_cancelled_recovery_leaves_its_runs_waiting(store: Any) -> None:
    started = asyncio.Event()

    @node
    async def endless(state: Number) -> Number:
        started.set()
        await asyncio.sleep(600)
        return state

    pipeline = Pipeline("endless", [endless])
    await submitted(store, pipeline, "1")
    task = asyncio.create_task(recover(pipeline, store=store))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    run = await stored_run(store, "1")
    assert (run.status, run.owner) == (RunStatus.PENDING, "")
    assert run.stop_reason == "its worker ended before it did"


# -- a store that fails ----------------------------------------------------------------------


class Claimable(FaultyStore):
    async def claimable(self, query: Any) -> Any:
        return await self._do("claimable", query)


async def test_a_store_that_does_not_answer_is_an_error(calls: Calls) -> None:
    store = Claimable()
    store.fail("claimable", StoreUnavailable("away"))
    with pytest.raises(StoreUnavailable, match="away"):
        await recover(adding(calls), store=store)


async def test_a_run_that_cannot_be_claimed_now_waits(
    calls: Calls, caplog: pytest.LogCaptureFixture
) -> None:
    store, pipeline = Claimable(), adding(calls)
    await submitted(store, pipeline, "1", "2")
    store.fail("open_run", StoreUnavailable("away"))
    done = await recover(pipeline, store=store, concurrency=1)
    assert [result.run_id for result in done.results] == ["2"]
    assert "a run was not taken up: away" in caplog.text
    assert (await stored_run(store, "1")).status is RunStatus.PENDING


async def test_a_run_that_lost_its_store_for_a_while_waits_for_a_worker(calls: Calls) -> None:
    store = Claimable()
    save_once = FailurePolicy(max_retries=0)
    pipeline = adding(calls, runner=make_runner(store, save_policy=save_once))
    await submitted(store, pipeline, "1")
    store.fail("commit_many", StoreUnavailable("away"))
    (result,) = (await recover(pipeline)).results
    assert result.status is RunStatus.PARTIAL
    assert result.stop_reason == (
        "the store failed at 'a': away. Every output is saved: a worker goes on with the run when "
        "the store answers"
    )
    assert (await stored_run(store, "1")).status is RunStatus.PENDING
    (result,) = (await recover(pipeline)).results
    assert (result.status, calls["a"], calls["b"]) == (RunStatus.RESUMED, 1, 1)


async def test_a_run_that_is_deleted_meanwhile_is_let_go(
    calls: Calls, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "stroma.worker")
    store = InMemoryStore()

    async def delete(state: Number) -> Number:
        store.delete("1")
        return state

    pipeline = Pipeline("adding", [node(id="a")(delete), calls.node("b")])
    await submitted(store, pipeline, "1")
    assert await recover(pipeline, store=store) == ((), ())
    assert "run '1' is another worker's now" in caplog.text
    assert calls["b"] == 0


async def test_what_nobody_has_foreseen_leaves_the_run_alone_and_the_worker_alive(
    calls: Calls, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(FakeClock):
        def now(self) -> float:
            if calls["a"]:
                raise ZeroDivisionError
            return super().now()

    store = InMemoryStore()
    pipeline = adding(calls, runner=make_runner(store, clock=Broken()))
    await submitted(store, pipeline, "1")
    (left,) = (await recover(pipeline)).left_alone
    assert left.reason == "ZeroDivisionError was raised"
    assert "run '1' could not be taken up" in caplog.text


class Unfenced(InMemoryStore):
    capabilities = Capabilities(Durability.FSYNC, fencing=False)


class PlainStore:
    def save(self, *args: object) -> None: ...
    def load(self, *args: object) -> None: ...
    def delete(self, *args: object) -> None: ...


@pytest.mark.parametrize(
    ("store", "problem"),
    [
        (Unfenced(), "Unfenced cannot keep a worker that lost its run from writing"),
        (PlainStore(), "PlainStore has only save, load and delete"),
    ],
    ids=["no fencing", "level 0"],
)
async def test_a_store_that_cannot_guard_runs_is_refused(
    calls: Calls, store: object, problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem):
        await recover(adding(calls), store=store)


async def test_wrong_use_is_named(calls: Calls, tmp_path: Any, monkeypatch: Any) -> None:
    store = InMemoryStore()
    nodes: Any = [calls.node("x")]
    with pytest.raises(ConfigError, match="at least one pipeline"):
        await recover(store=store)
    with pytest.raises(ConfigError, match="is no Pipeline"):
        await recover(nodes, store=store)
    with pytest.raises(ConfigError, match="'adding' is given twice as version '1'"):
        await recover(adding(calls, version="1"), adding(calls, version="1"), store=store)
    for options in ({"limit": 0}, {"concurrency": 0}, {"concurrency": True}, {"limit": 1.5}):
        wrong: Any = options
        with pytest.raises(ConfigError, match="must be a whole number from 1"):
            await recover(adding(calls), store=store, **wrong)
    monkeypatch.delenv("STROMA_STORE", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="no store that workers share"):
        await recover(adding(calls))


async def test_nobody_can_have_put_runs_into_a_store_in_memory_that_is_only_named(
    calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"^store 'memory:': a store in memory is seen by one"):
        await recover(adding(calls), store="memory:")
    monkeypatch.setenv("STROMA_STORE", "memory")
    with pytest.raises(ConfigError, match=r"^STROMA_STORE: a store in memory is seen by one"):
        await recover(adding(calls))
    with pytest.raises(ConfigError, match=r"^STROMA_STORE: a store in memory is seen by one"):
        await Worker(adding(calls)).run()
