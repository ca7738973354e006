"""A cancelled run finishes its save, says where it stopped, gives the run up and re-raises."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import logging
import sys
from collections import Counter
from collections.abc import Callable, Coroutine, Generator
from typing import Any

import pytest
from pydantic import BaseModel

from stroma import (
    OutcomeUnknown,
    RunStatus,
    SQLiteStore,
    StoreUnavailable,
    attempts,
    batching,
    driver,
    fan_out,
    node,
    opening,
    parallel,
    report_usage,
)
from stroma._aio import finish, uncut
from stroma.runner import NodeHooks
from tests.core.helpers import Calls, FaultyStore, Number, make_runner, stored, stored_run


class Batch(BaseModel):
    items: list[Number] = [Number(value=1), Number(value=2), Number(value=3)]
    value: int = 0


class Till:
    """Makes nodes that pay: each call is written down before it is made and when it is answered."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answered: list[str] = []

    def node(
        self, node_id: str, takes: type[BaseModel] = Number, gives: type[BaseModel] = Number
    ) -> Any:
        @node(id=node_id, input=takes, output=gives)
        async def pay(state: Any) -> Any:
            place = f"{node_id}:{getattr(state, 'value', 0)}"
            self.asked.append(place)
            report_usage(input_tokens=1)
            await asyncio.sleep(0)
            self.answered.append(place)
            return {"value": state.value}

        return pay


def _sequence(till: Till) -> list[Any]:
    return [till.node("a"), till.node("b"), till.node("c")]


def _side_by_side(till: Till) -> list[Any]:
    return [till.node("a"), parallel(till.node("b"), till.node("c"))]


def _items(till: Till) -> list[Any]:
    return [
        fan_out(till.node("w"), over="items", into="done", max_concurrency=2, input=Batch),
    ]


SHAPES = {"sequence": _sequence, "parallel": _side_by_side, "fan_out": _items}


def _first_state(shape: str) -> BaseModel:
    return Batch() if shape == "fan_out" else Number(value=1)


async def _steps(k: int) -> None:
    for _ in range(k):
        await asyncio.sleep(0)


async def _cut_after(k: int, again_after: int | None, run: asyncio.Task[Any]) -> bool:
    """Cancel a run after k steps of the loop, and say whether it was cut."""
    await _steps(k)
    if run.done():
        return False
    run.cancel()
    if again_after is not None:
        await _steps(again_after)
        run.cancel()
    try:
        await run
    except asyncio.CancelledError:
        return True
    return False


async def _check_cut_everywhere(
    shape: str,
    make_store: Callable[[], Any],
    again_after: int | None = None,
    stride: int = 1,
) -> None:
    """Cut a run at every await, continue it, and compare with what was paid for."""
    k = cut = 0
    while True:
        store, till = make_store(), Till()
        runner = make_runner(store)
        make, state = SHAPES[shape], _first_state(shape)
        run = asyncio.create_task(runner.run(make(till), state, run_id="r"))
        was_cut = await _cut_after(k, again_after, run)
        record = await stored_run(getattr(store, "inner", store), "r")
        if was_cut and record is not None:
            cut += 1
            assert record.owner == "", f"the lease is kept after {k} steps"
            assert record.status in (RunStatus.CANCELLED, RunStatus.COMPLETED), k
            answered = list(till.answered)
            result = await runner.run(make(till), state, run_id="r")
            assert result.is_complete, k
            again = till.answered[len(answered) :]
            # an answer that the run still had a chance to save is not bought again
            assert len(again) + len(set(answered)) <= 3 + len(till.asked) - len(till.answered)
            assert result.tokens == len(till.asked), k
        if run.done() and not was_cut and run.exception() is None and k > 3:
            break
        k += stride
    assert cut > 3
    assert {t for t in asyncio.all_tasks() if t is not asyncio.current_task()} == set()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("again_after", [None, 0, 1, 2])
async def test_a_run_may_be_cut_at_every_await(
    shape: str, again_after: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "stroma"):
        await _check_cut_everywhere(shape, FaultyStore, again_after)
    assert caplog.text == ""


class _CutAtWait(Coroutine[Any, Any, Any]):
    """A coroutine whose task is cancelled when it waits for the k-th time, counted from 0.

    Steps of the loop are no measure of a run that waits for a thread: how many there are in
    between is a matter of how busy the machine is.
    """

    def __init__(self, work: Coroutine[Any, Any, Any], k: int) -> None:
        self._work = work
        self._left = k

    def send(self, value: Any) -> Any:
        waited = self._work.send(value)
        self._count()
        return waited

    def throw(self, *error: Any) -> Any:
        waited = self._work.throw(*error)
        self._count()
        return waited

    def close(self) -> None:
        self._work.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._work.__await__()

    def _count(self) -> None:
        if self._left == 0:
            task = asyncio.current_task()
            assert task is not None
            asyncio.get_running_loop().call_soon(task.cancel)
        self._left -= 1


async def test_a_run_in_sqlite_may_be_cut_at_every_await(tmp_path: Any) -> None:
    found: Counter[RunStatus | None] = Counter()
    for k in itertools.count():
        store, till = SQLiteStore(tmp_path / f"{k}.db"), Till()
        runner = make_runner(store)
        work = runner.run(_sequence(till), Number(value=1), run_id="r")
        run = asyncio.create_task(_CutAtWait(work, k))
        await asyncio.wait({run})
        record = await stored_run(store, "r")
        if run.cancelled():
            found[record.status if record is not None else None] += 1
        if record is not None:
            # when what it waits for is its last save, it is complete
            assert record.status in (RunStatus.CANCELLED, RunStatus.COMPLETED), k
            assert record.owner == "", k
            result = await runner.run(_sequence(till), Number(value=1), run_id="r")
            assert (result.is_complete, result.tokens) == (True, len(till.asked)), k
        await store.aclose()
        if not run.cancelled():
            break
    assert run.result().is_complete
    assert found[RunStatus.CANCELLED] > 3


async def test_a_cut_run_says_where_it_stopped(store: Any) -> None:
    inside = asyncio.Event()

    @node
    async def slow(state: Number) -> Number:
        report_usage(input_tokens=5)
        inside.set()
        await asyncio.sleep(60)
        return state

    calls = Calls()
    runner = make_runner(store)
    run = asyncio.create_task(runner.run([calls.node("a"), slow], Number(), run_id="r"))
    await inside.wait()
    run.cancel("bye")
    with pytest.raises(asyncio.CancelledError):
        await run
    record = await stored_run(store, "r")
    assert (record.status, record.owner) == (RunStatus.CANCELLED, "")
    assert record.stop_reason == "cancelled by its caller"
    assert record.spend.tokens == 5
    headers = (await stored(store, "r")).headers
    assert [(h.path, h.kind) for h in headers] == [("a", "result"), ("slow", "attempt")]


async def test_a_timeout_around_a_run_works(store: Any) -> None:
    @node
    async def slow(state: Number) -> Number:
        limit.reschedule(asyncio.get_running_loop().time())
        await asyncio.sleep(60)
        return state

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(30) as limit:
            await make_runner(store).run([slow], Number(), run_id="r")
    assert (await stored_run(store, "r")).status is RunStatus.CANCELLED


async def test_a_run_cut_during_a_backoff_is_cancelled(calls: Calls) -> None:
    class Waiting:
        now = monotonic = staticmethod(lambda: 0.0)

        async def sleep(self, seconds: float) -> None:
            waiting.set()
            await asyncio.sleep(60)

    waiting = asyncio.Event()
    runner = make_runner(clock=Waiting())
    run = asyncio.create_task(runner.run([calls.node("a", TimeoutError())], Number(), run_id="r"))
    await waiting.wait()
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    found = await stored(runner.checkpoint_manager.store, "r")
    assert found.run.status is RunStatus.CANCELLED
    assert [(h.path, h.kind) for h in found.headers] == [("a", "attempt")]


async def test_a_save_that_fails_while_the_run_is_cut_goes_with_the_last_word() -> None:
    till, store = Till(), FaultyStore()
    runner = make_runner(store)
    store.fail("commit_many", StoreUnavailable("restarting"))
    run = asyncio.create_task(runner.run(_sequence(till), Number(value=1), run_id="r"))
    while store.calls["commit_many"] == 0:
        await asyncio.sleep(0)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert till.answered == ["a:1"]
    result = await runner.run(_sequence(till), Number(value=1), run_id="r")
    assert result.skipped == ("a",)
    assert result.tokens == len(till.asked) == 3


async def test_a_store_that_is_down_does_not_hide_the_cancellation(
    caplog: pytest.LogCaptureFixture,
) -> None:
    inside = asyncio.Event()

    @node
    async def slow(state: Number) -> Number:
        report_usage(input_tokens=5)
        inside.set()
        await asyncio.sleep(60)
        return state

    store = FaultyStore()
    run = asyncio.create_task(make_runner(store).run([slow], Number(), run_id="r"))
    await inside.wait()
    store.fail("commit_many", *[StoreUnavailable("down")] * 100)
    run.cancel()
    with caplog.at_level(logging.WARNING, "stroma"), pytest.raises(asyncio.CancelledError):
        await run
    assert "its store could not be told" in caplog.text


async def test_a_node_that_hides_the_cancellation_is_cut_all_the_same(calls: Calls) -> None:
    inside = asyncio.Event()

    @node
    async def hiding(state: Number) -> Number:
        calls.made["hiding"] += 1
        inside.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            raise ConnectionError("closed") from None
        return state

    run = asyncio.create_task(make_runner().run([hiding], Number()))
    await inside.wait()
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert calls["hiding"] == 1


@pytest.mark.parametrize("where", ["sequence", "fan_out"])
async def test_nothing_begins_after_a_node_that_hides_the_cancellation(
    store: Any, calls: Calls, where: str
) -> None:
    inside = asyncio.Event()

    @node(id="hiding", input=Number, output=Number)
    async def hiding(state: Number) -> Any:
        calls.made["hiding"] += 1
        inside.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        return {"value": 7}, 5

    items = fan_out(hiding, over="items", into="items", max_concurrency=1, input=Batch)
    nodes = [items] if where == "fan_out" else [hiding, calls.node("next")]
    given = Batch() if where == "fan_out" else Number()
    run = asyncio.create_task(make_runner(store).run(nodes, given, run_id="r"))
    await inside.wait()
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert (calls["hiding"], calls["next"]) == (1, 0)
    found = await stored(store, "r")
    assert (found.run.status, found.run.spend.tokens) == (RunStatus.CANCELLED, 5)
    assert [(h.kind, h.contract_id) for h in found.headers] == [("result", "hiding")]


async def test_no_item_begins_after_a_sibling_failed_though_a_node_hides_it(calls: Calls) -> None:
    @node(id="w", input=Number, output=Number)
    async def work(state: Number) -> Number:
        calls.made["w"] += 1
        if state.value == 1:
            raise TypeError("bug")
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        return state

    items = fan_out(work, over="items", into="items", max_concurrency=2)
    batch = Batch(items=[Number(value=2), Number(value=1), *[Number(value=3)] * 5])
    result = await make_runner().run([items], batch)
    assert (result.status, calls["w"]) == (RunStatus.FAILED, 2)


async def test_an_earlier_cancellation_of_the_task_does_not_count(calls: Calls) -> None:
    async def body() -> Any:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            return await make_runner().run([calls.node("a", RuntimeError("odd"))], Number())

    task = asyncio.create_task(body())
    await asyncio.sleep(0)
    task.cancel()
    result = await task
    assert (result.status, calls["a"]) == (RunStatus.FAILED, 2)


async def test_a_node_may_clean_up_when_it_is_cut(store: Any) -> None:
    log: list[str] = []
    inside = asyncio.Event()

    @node
    async def slow(state: Number) -> Number:
        inside.set()
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0)
            log.append("cleaned up")
        return state

    run = asyncio.create_task(make_runner(store).run([parallel(slow)], Number()))
    await inside.wait()
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert log == ["cleaned up"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("shape", ["sequence", "parallel"])
def test_the_end_of_the_process_is_never_recorded_as_an_outcome(
    error: type[BaseException], shape: str
) -> None:
    from stroma import InMemoryStore

    store = InMemoryStore()

    @node
    async def a(state: Number) -> Number:
        raise error

    ends: list[Any] = []
    runner = make_runner(store, hooks=NodeHooks(on_run_end=ends.append))
    nodes = [a] if shape == "sequence" else [parallel(a, Calls().node("b"))]
    with pytest.raises(error):
        runner.run_sync(nodes, Number(), run_id="r")
    found = store.inspect("r")
    assert found is not None
    assert found.run.status not in (RunStatus.FAILED, RunStatus.PARTIAL, RunStatus.COMPLETED)
    assert found.run.owner == ""
    assert not [h for h in found.headers if h.path == "a"]
    assert ends == []


async def test_an_end_that_is_recorded_stays(calls: Calls) -> None:
    """The last save has ended the run when the cancellation comes."""
    store = FaultyStore()
    runner = make_runner(store)
    run = asyncio.create_task(runner.run([calls.node("a")], Number(), run_id="r"))
    while store.calls["commit_many"] == 0:
        await asyncio.sleep(0)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert (await stored_run(store, "r")).status is RunStatus.COMPLETED
    assert (await runner.run([calls.node("a")], Number(), run_id="r")).is_complete
    assert calls["a"] == 1


async def test_the_wait_for_what_must_not_be_cut_has_an_end() -> None:
    never: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    waiting = asyncio.create_task(_finish(never))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert not never.cancelled()


async def _finish(work: asyncio.Future[None]) -> None:
    await finish(work, grace_seconds=0.01)


async def test_what_must_not_be_cut_may_be_cancelled_by_others() -> None:
    work: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    waiting = asyncio.create_task(_finish(work))
    await asyncio.sleep(0)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


@pytest.mark.skipif(sys.version_info < (3, 12), reason="tasks begin in the next turn there")
async def test_what_must_not_be_cut_has_begun_when_its_caller_waits() -> None:
    """So a claim is on its way at once."""
    happened: list[str] = []

    async def work() -> str:
        happened.append("began")
        await asyncio.sleep(0)
        return "done"

    asyncio.get_running_loop().call_soon(happened.append, "a turn of the loop")
    assert await uncut(work()) == "done"
    assert happened == ["began", "a turn of the loop"]


async def test_a_loop_that_makes_its_own_tasks_makes_those_that_must_not_be_cut() -> None:
    """As one that traces tasks, or looks after them, does."""
    made: list[object] = []

    def factory(
        loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Any], **options: Any
    ) -> asyncio.Task[Any]:
        made.append(work)
        return asyncio.Task(work, loop=loop, **options)

    loop = asyncio.get_running_loop()
    loop.set_task_factory(factory)
    try:
        assert await uncut(asyncio.sleep(0, "done")) == "done"
    finally:
        loop.set_task_factory(None)
    assert len(made) == 1


async def test_what_must_not_be_cut_and_is_cancelled_by_others_before_it_began() -> None:
    """As a loop that ends cancels all of its tasks."""
    waiting = asyncio.create_task(uncut(asyncio.sleep(60)))
    await asyncio.sleep(0)
    for task in asyncio.all_tasks() - {asyncio.current_task(), waiting}:
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_a_failure_during_a_cancellation_is_not_reported_as_lost(
    caplog: pytest.LogCaptureFixture,
) -> None:
    begun, fails = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        begun.set()
        await fails.wait()
        raise OSError("the disk is full")

    waiting = asyncio.create_task(uncut(work()))
    await begun.wait()
    waiting.cancel()
    fails.set()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    gc.collect()
    assert "disk" not in caplog.text


async def test_a_claim_that_lands_after_the_cancellation_is_given_back(calls: Calls) -> None:
    """Nobody can call back what has been sent: only its answer tells that it has to be undone."""
    store, sent, lands = FaultyStore(), asyncio.Event(), asyncio.Event()
    claim = store.open_run

    async def late(*args: Any) -> Any:
        store.open_run = claim  # type: ignore[method-assign]
        sent.set()

        async def land() -> Any:
            await lands.wait()
            return await claim(*args)

        return await asyncio.shield(asyncio.ensure_future(land()))

    store.open_run = late  # type: ignore[method-assign]
    run = asyncio.create_task(make_runner(store).run([calls.node("a")], Number(), run_id="r"))
    await sent.wait()
    run.cancel()
    await _steps(50)
    lands.set()
    with pytest.raises(asyncio.CancelledError):
        await run
    await _steps(50)
    record = await stored_run(store.inner, "r")
    assert (record.status, record.owner) == (RunStatus.CANCELLED, "")
    assert calls["a"] == 0


def test_a_loop_that_ends_during_a_claim_gives_it_back(calls: Calls) -> None:
    """It cuts the claim, and nobody knows whether that has landed."""
    store = FaultyStore()
    claim = store.open_run

    async def main() -> None:
        landed = asyncio.Event()

        async def cut(*args: Any) -> Any:
            await claim(*args)
            landed.set()
            await asyncio.Event().wait()

        store.open_run = cut  # type: ignore[method-assign]
        run = asyncio.create_task(make_runner(store).run([calls.node("a")], Number(), run_id="r"))
        await landed.wait()
        assert not run.done()

    asyncio.run(main())
    record = asyncio.run(stored_run(store.inner, "r"))
    assert (record.status, record.owner) == (RunStatus.CANCELLED, "")
    assert calls["a"] == 0


async def test_a_claim_whose_answer_is_lost_during_a_cancellation_is_given_back(
    calls: Calls,
) -> None:
    store, landed, is_cancelled = FaultyStore(), asyncio.Event(), asyncio.Event()
    claim = store.open_run

    async def lost(*args: Any) -> Any:
        await claim(*args)
        landed.set()
        await is_cancelled.wait()
        raise OutcomeUnknown("the server said nothing")

    store.open_run = lost  # type: ignore[method-assign]
    run = asyncio.create_task(make_runner(store).run([calls.node("a")], Number(), run_id="r"))
    await landed.wait()
    run.cancel()
    await asyncio.sleep(0)
    is_cancelled.set()
    with pytest.raises(asyncio.CancelledError):
        await run
    record = await stored_run(store.inner, "r")
    assert (record.status, record.owner) == (RunStatus.CANCELLED, "")


@pytest.mark.parametrize("ends_with", ["a claim", "a failure"])
async def test_a_claim_that_ends_after_the_grace(
    calls: Calls, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, ends_with: str
) -> None:
    """Its caller has gone: the run is given back, and no failure is reported as lost."""
    monkeypatch.setattr(opening, "SAVE_GRACE_SECONDS", 0.01)
    store, sent, lands, ended = FaultyStore(), asyncio.Event(), asyncio.Event(), asyncio.Event()
    claim, commit_many = store.open_run, store.commit_many

    async def late(*args: Any) -> Any:
        sent.set()
        await lands.wait()
        if ends_with == "a failure":
            ended.set()
            raise StoreUnavailable("the server has gone")
        return await claim(*args)

    async def noted(*args: Any) -> Any:
        outcomes = await commit_many(*args)
        if outcomes == [None]:
            ended.set()
        return outcomes

    store.open_run, store.commit_many = late, noted  # type: ignore[method-assign]
    run = asyncio.create_task(make_runner(store).run([calls.node("a")], Number(), run_id="r"))
    await sent.wait()
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    lands.set()
    async with asyncio.timeout(10):
        await ended.wait()
    await _steps(5)
    gc.collect()
    assert "never retrieved" not in caplog.text
    if ends_with == "a claim":
        record = await stored_run(store.inner, "r")
        assert (record.status, record.owner) == (RunStatus.CANCELLED, "")


@pytest.mark.parametrize("operation", ["open_run", "commit_many", "commit_many of an attempt"])
async def test_a_store_that_never_answers_does_not_hold_a_cancelled_run(
    calls: Calls, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    for module in (attempts, batching, driver, opening):
        monkeypatch.setattr(module, "SAVE_GRACE_SECONDS", 0.01)
    asked = asyncio.Event()

    async def never(*args: Any) -> Any:
        asked.set()
        await asyncio.Event().wait()

    @node(id="a", input=Number, output=Number)
    async def paying(state: Number) -> Number:
        report_usage(input_tokens=5)
        asked.set()
        await asyncio.sleep(60)
        return state

    store = FaultyStore()
    setattr(store, operation.split(maxsplit=1)[0], never)
    nodes = [paying if "attempt" in operation else calls.node("a")]
    run = asyncio.create_task(make_runner(store).run(nodes, Number(), run_id="r"))
    await asked.wait()
    run.cancel()
    done, _ = await asyncio.wait({run}, timeout=5)
    assert done
    assert run.cancelled()
