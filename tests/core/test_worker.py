"""A worker takes up what comes, for as long as it is not asked to stop; then it gives back."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from stroma import (
    ConfigError,
    FailurePolicy,
    InMemoryStore,
    Pipeline,
    RunStatus,
    SQLiteStore,
    StoreUnavailable,
    StoreUnusable,
    StromaRunner,
    Worker,
    fan_out,
    node,
    parallel,
    recover,
)
from stroma.records import ClaimQuery, OpenRequest, RunPage, UnreadableRun
from tests.core.helpers import Calls, FaultyStore, Number, make_runner, stored, stored_run

POLL = 0.02


@asynccontextmanager
async def working(*pipelines: Pipeline, **options: Any) -> AsyncIterator[Worker]:
    """Run a worker beside a test, and stop it afterwards."""
    worker = Worker(*pipelines, poll_seconds=options.pop("poll_seconds", POLL), **options)
    task = asyncio.create_task(worker.run())
    try:
        yield worker
    finally:
        worker.stop()
        await asyncio.wait_for(task, 10)


async def until(is_so: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(10):
        while not await is_so():
            await asyncio.sleep(0.005)


async def submit(
    store: Any, pipeline: Pipeline, run_id: str, input: BaseModel | None = None
) -> None:
    runner = StromaRunner.quick(store=store)
    await pipeline.submit(Number() if input is None else input, run_id=run_id, runner=runner)


def has_status(store: Any, run_id: str, status: RunStatus) -> Callable[[], Awaitable[bool]]:
    async def check() -> bool:
        run = await stored_run(store, run_id)
        return run is not None and run.status is status

    return check


class Gate:
    """A node that tells when it is called, and returns when it is let."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.opened = asyncio.Event()

    def node(self, node_id: str) -> Any:
        @node(id=node_id)
        async def gated(state: Number) -> Number:
            self.entered.set()
            await self.opened.wait()
            return Number(value=state.value + 1)

        return gated


# -- taking up -------------------------------------------------------------------------------


async def test_what_is_submitted_while_it_works_is_run(store: Any, calls: Calls) -> None:
    pipeline = Pipeline("adding", [calls.node("a")])
    async with working(pipeline, store=store):
        for run_id in "123":
            await submit(store, pipeline, run_id)
            await until(has_status(store, run_id, RunStatus.COMPLETED))
    assert calls["a"] == 3


async def test_a_backlog_is_worked_off_without_waiting_for_the_next_look(calls: Calls) -> None:
    store, pipeline = InMemoryStore(), Pipeline("adding", [calls.node("a")])
    for i in range(120):
        await submit(store, pipeline, str(i))
    async with working(pipeline, store=store, poll_seconds=30, concurrency=2):
        await until(has_status(store, "119", RunStatus.COMPLETED))
        await asyncio.sleep(0.05)
    assert calls["a"] == 120


async def test_workers_side_by_side_run_each_run_once(store: Any, calls: Calls) -> None:
    pipeline = Pipeline("adding", [calls.node("a"), calls.node("b")])
    async with (
        working(pipeline, store=store, concurrency=2),
        working(pipeline, store=store, concurrency=2),
        working(pipeline, store=store, concurrency=2),
    ):
        for i in range(40):
            await submit(store, pipeline, str(i))
        for i in range(40):
            await until(has_status(store, str(i), RunStatus.COMPLETED))
    assert (calls["a"], calls["b"]) == (40, 40)


async def test_a_run_whose_lease_ends_is_taken_over(calls: Calls) -> None:
    store, pipeline = InMemoryStore(), Pipeline("adding", [calls.node("a")])
    await submit(store, pipeline, "1")
    store.open_run(OpenRequest("1", "token", "a worker that dies", 100))
    async with working(pipeline, store=store):
        await until(has_status(store, "1", RunStatus.COMPLETED))


async def test_what_does_not_fit_is_reported_once(
    calls: Calls, caplog: pytest.LogCaptureFixture
) -> None:
    store = InMemoryStore()
    old = Pipeline("adding", [calls.node("a")], version="1")
    new = Pipeline("adding", [calls.node("a")], version="2")
    changed = Pipeline("changing", [calls.node("z"), calls.node("b")])
    was = Pipeline("changing", [calls.node("a"), calls.node("b", TypeError("bug"))])
    await make_runner(store).run(was, Number(), run_id="changed")
    await was.submit(run_id="changed", runner=make_runner(store))
    await submit(store, old, "old")
    async with working(new, changed, store=store), working(new, changed, store=store):
        await submit(store, new, "new")
        await until(has_status(store, "new", RunStatus.COMPLETED))
        await asyncio.sleep(10 * POLL)
    left = [line for line in caplog.messages if "left alone" in line]
    assert len(left) == 4  # two runs, two workers
    assert (await stored_run(store, "old")).status is RunStatus.PENDING
    assert (await stored_run(store, "changed")).status is RunStatus.PENDING


async def test_a_damaged_run_is_reported_once_and_keeps_no_other_waiting(
    calls: Calls, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    store, pipeline = SQLiteStore(tmp_path / "runs.db"), Pipeline("adding", [calls.node("a")])
    await submit(store, pipeline, "damaged")
    with closing(sqlite3.connect(tmp_path / "runs.db")) as connection, connection:
        connection.execute("UPDATE runs SET epochs = 'junk'")
    async with working(pipeline, store=store):
        for run_id in ("1", "2"):
            await submit(store, pipeline, run_id)
            await until(has_status(store, run_id, RunStatus.COMPLETED))
        await asyncio.sleep(10 * POLL)
    (told,) = [line for line in caplog.messages if "left alone" in line]
    assert "run 'damaged' is left alone: run 'damaged': its row cannot be read: " in told
    assert told.endswith("restore it from a backup, or remove the run with `stroma delete --force`")
    (left,) = (await recover(pipeline, store=store)).left_alone
    assert (left.run_id, left.pipeline, left.version) == ("damaged", "", "")
    await store.delete("damaged")
    assert await recover(pipeline, store=store) == ((), ())
    await store.aclose()


async def test_a_run_of_a_newer_version_is_left_to_newer_programs(
    calls: Calls, caplog: pytest.LogCaptureFixture
) -> None:
    newer = UnreadableRun("new", StoreUnusable("run 'new': format 2: update this program"))

    class Store(InMemoryStore):
        def claimable(self, query: ClaimQuery) -> RunPage:
            return super().claimable(query)._replace(unreadable=(newer,))

    store, pipeline = Store(), Pipeline("adding", [calls.node("a")])
    await submit(store, pipeline, "old")
    done = await recover(pipeline, store=store)
    assert [result.run_id for result in done.results] == ["old"]
    assert [left.reason for left in done.left_alone] == ["run 'new': format 2: update this program"]


async def test_a_run_that_was_left_alone_is_tried_again_when_it_changes(calls: Calls) -> None:
    store = InMemoryStore()
    was = Pipeline("changing", [calls.node("a"), calls.node("b", TypeError("bug"), {})])
    now = Pipeline("changing", [calls.node("z"), calls.node("b")])
    await make_runner(store).run(was, Number(), run_id="1")
    await was.submit(run_id="1", runner=make_runner(store))
    async with working(now, store=store):
        await asyncio.sleep(5 * POLL)
        assert calls["z"] == 0
        store.delete("1")
        await submit(store, now, "1")
        await until(has_status(store, "1", RunStatus.COMPLETED))


async def test_each_line_of_the_log_tells_of_a_run_and_of_no_payload(
    caplog: pytest.LogCaptureFixture, calls: Calls
) -> None:
    caplog.set_level(logging.INFO, "stroma.worker")
    store = InMemoryStore()
    pipeline = Pipeline("adding", [calls.node("a", TypeError("the key is hunter2"))], version="3")
    async with working(pipeline, store=store):
        await submit(store, pipeline, "job\n1")
        await until(has_status(store, "job\n1", RunStatus.FAILED))
    assert caplog.messages == [
        "the worker takes up runs of 'adding', 10 at once",
        "run 'job\\n1' of 'adding', version '3' is taken up",
        "run 'job\\n1' ended as FAILED, for TypeError; 0 tokens, $0",
        "the worker has stopped",
    ]


# -- stopping --------------------------------------------------------------------------------


async def test_a_call_under_way_is_awaited_and_no_other_one_begins(
    store: Any, calls: Calls, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "stroma.worker")
    gate = Gate()
    pipeline = Pipeline("gated", [gate.node("a"), calls.node("b")])
    await submit(store, pipeline, "1")
    async with working(pipeline, store=store) as worker:
        await gate.entered.wait()
        worker.stop()
        await submit(store, pipeline, "2")
        await asyncio.sleep(3 * POLL)
        gate.opened.set()

    run, waiting = await stored_run(store, "1"), await stored_run(store, "2")
    assert (run.status, run.owner, calls["b"]) == (RunStatus.PENDING, "", 0)
    assert "the worker was asked to stop" in run.stop_reason
    assert waiting.status is RunStatus.PENDING
    assert "run '1' is given back, for another worker" in caplog.messages
    async with working(pipeline, store=store):
        await until(has_status(store, "1", RunStatus.COMPLETED))
    assert calls["b"] == 2


async def test_the_last_call_completes_its_run(store: Any) -> None:
    gate = Gate()
    pipeline = Pipeline("gated", [gate.node("a")])
    await submit(store, pipeline, "1")
    async with working(pipeline, store=store) as worker:
        await gate.entered.wait()
        worker.stop()
        gate.opened.set()
    assert (await stored_run(store, "1")).status is RunStatus.COMPLETED


async def test_children_and_items_under_way_are_awaited(store: Any, calls: Calls) -> None:
    gate = Gate()

    class Batch(Number):
        items: list[Number]

    both = parallel(gate.node("slow"), calls.node("failing", TimeoutError()))
    side_by_side = Pipeline("side by side", [both])
    items = fan_out(gate.node("item"), over="items", into="done", input=Batch, max_concurrency=2)
    many = Pipeline("many", [items])
    hour = FailurePolicy(max_retries=9, base_delay_seconds=3600, max_delay_seconds=3600)
    side_by_side.runner = StromaRunner.quick(store=store, node_policies={"failing": hour})
    await side_by_side.submit(Number(), run_id="1")
    await submit(store, many, "2", Batch(items=[Number(value=i) for i in range(5)]))
    async with working(side_by_side, many, store=store) as worker:
        await gate.entered.wait()
        await until(lambda: _is(calls["failing"] == 1))
        await asyncio.sleep(0.05)
        worker.stop()
        await asyncio.sleep(0.05)
        gate.opened.set()

    for run_id, recorded in (("1", ["slow"]), ("2", ["item[0]", "item[1]"])):
        found = await stored(store, run_id)
        results = sorted(h.path for h in found.headers if h.kind == "result")
        assert (found.run.status, results) == (RunStatus.PENDING, recorded)


async def _is(value: bool) -> bool:
    return value


async def test_a_pause_between_two_attempts_is_cut_short(calls: Calls) -> None:
    store = InMemoryStore()
    hour = FailurePolicy(max_retries=9, base_delay_seconds=3600, max_delay_seconds=3600)
    pipeline = Pipeline("failing", [calls.node("a", TimeoutError(), policy=hour)])
    await submit(store, pipeline, "1")
    async with working(pipeline, store=store):
        await until(lambda: _is(calls["a"] == 1))
        await asyncio.sleep(0.02)
    assert (await stored_run(store, "1")).status is RunStatus.PENDING
    assert calls["a"] == 1


@pytest.mark.parametrize("how", ["the drain ends", "it is told twice"])
async def test_what_does_not_end_is_cut_and_waits_for_another_worker(store: Any, how: str) -> None:
    gate = Gate()
    pipeline = Pipeline("gated", [gate.node("a")])
    await submit(store, pipeline, "1")
    drain_seconds = 0.05 if how == "the drain ends" else 600
    async with working(pipeline, store=store, drain_seconds=drain_seconds) as worker:
        await gate.entered.wait()
        worker.stop()
        if how == "it is told twice":
            worker.cancel()
    run = await stored_run(store, "1")
    assert (run.status, run.owner) == (RunStatus.PENDING, "")
    assert run.stop_reason == "its worker ended before it did"


async def test_a_worker_that_is_cancelled_gives_its_runs_back(store: Any) -> None:
    gate = Gate()
    pipeline = Pipeline("gated", [gate.node("a")])
    await submit(store, pipeline, "1")
    task = asyncio.create_task(Worker(pipeline, store=store).run())
    await gate.entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await stored_run(store, "1")).status is RunStatus.PENDING


# -- a store that fails ----------------------------------------------------------------------


class Listing(FaultyStore):
    async def claimable(self, query: Any) -> Any:
        return await self._do("claimable", query)

    async def health(self) -> Any:
        return await self._do("health")


@pytest.mark.parametrize("operation", ["setup", "claimable", "open_run"])
async def test_a_store_that_is_away_is_waited_for_and_told_of_once(
    calls: Calls, caplog: pytest.LogCaptureFixture, operation: str
) -> None:
    caplog.set_level(logging.INFO, "stroma.worker")
    store, pipeline = Listing(), Pipeline("adding", [calls.node("a")])
    await submit(store, pipeline, "1")
    store.fail(operation, *[StoreUnavailable("no route")] * 4)
    async with working(pipeline, store=store, poll_seconds=0.001):
        await until(has_status(store, "1", RunStatus.COMPLETED))
    away = [line for line in caplog.messages if "does not answer" in line]
    assert away == ["the store does not answer, and is asked again: no route"]
    assert "the store answers again" in caplog.messages


async def test_a_worker_waits_longer_while_the_store_is_away(calls: Calls) -> None:
    store, pipeline = Listing(), Pipeline("adding", [calls.node("a")])
    store.fail("claimable", *[StoreUnavailable("no route")] * 8)
    sleeps: list[float] = []

    class Clock:
        def now(self) -> float:
            return 0.0

        def monotonic(self) -> float:
            return 0.0

        async def sleep(self, seconds: float) -> None:
            sleeps.append(seconds)
            if len(sleeps) == 10:
                worker.stop()
            await asyncio.sleep(0)

    worker = Worker(pipeline, store=store, poll_seconds=0.5, clock=Clock(), random=lambda: 0.5)
    await worker.run()
    assert sleeps[:7] == [2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]
    assert sleeps[8:] == [0.5, 0.5]


async def test_a_store_that_cannot_be_used_ends_the_worker(calls: Calls) -> None:
    store, pipeline = Listing(), Pipeline("adding", [calls.node("a")])
    store.fail("claimable", StoreUnusable("a foreign file"))
    with pytest.raises(StoreUnusable, match="a foreign file"):
        await Worker(pipeline, store=store).run()


# -- health ----------------------------------------------------------------------------------


async def ask(port: int | None, target: str, method: str = "GET") -> tuple[int, str]:
    assert port is not None
    return await send(port, f"{method} {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())


async def send(port: int, request: bytes) -> tuple[int, str]:
    """Return the status and the text of the answer, or 0 where there is none."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answer = ""
    with suppress(ConnectionResetError):  # what the server did not read
        writer.write(request)
        answer = (await reader.read()).decode()
    writer.close()
    head, _, body = answer.partition("\r\n\r\n")
    return (int(head.split(" ")[1]) if head else 0), body.strip()


async def has_port(worker: Worker) -> bool:
    return worker.health_port is not None


async def test_a_supervisor_is_told_how_the_worker_is() -> None:
    gate = Gate()
    store, pipeline = Listing(), Pipeline("gated", [gate.node("a")])
    await submit(store, pipeline, "1")
    async with working(pipeline, store=store, health="127.0.0.1:0") as worker:
        await gate.entered.wait()
        assert await ask(worker.health_port, "/livez") == (200, "ok")
        assert await ask(worker.health_port, "/readyz") == (200, "ok")
        worker.stop()
        assert await ask(worker.health_port, "/livez") == (200, "ok")
        assert await ask(worker.health_port, "/readyz") == (503, "stopping")
        gate.opened.set()


async def test_it_is_not_ready_while_its_store_is_away(calls: Calls) -> None:
    store, pipeline = Listing(), Pipeline("adding", [calls.node("a")])
    store.fail("health", StoreUnavailable("redis://me:secret@example.com does not answer"))
    async with working(pipeline, store=store, health="127.0.0.1:0") as worker:
        await until(lambda: has_port(worker))
        assert await ask(worker.health_port, "/readyz") == (503, "the store does not answer")
        assert await ask(worker.health_port, "/livez") == (200, "ok")


async def test_it_does_not_live_when_it_looks_for_nothing(
    calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, pipeline = Listing(), Pipeline("adding", [calls.node("a")])
    async with working(pipeline, store=store, health="127.0.0.1:0", poll_seconds=50) as worker:
        await until(lambda: has_port(worker))
        worker._beat -= 1000
        assert await ask(worker.health_port, "/livez") == (
            503,
            "the last look for runs was 1000 s ago",
        )


@pytest.mark.parametrize(
    ("request_text", "status"),
    [
        (b"GET /other HTTP/1.1\r\n\r\n", 404),
        (b"POST /livez HTTP/1.1\r\n\r\n", 405),
        (b"HEAD /livez HTTP/1.0\r\n\r\n", 200),
        (b"GET /livez?verbose HTTP/1.1\r\n\r\n", 200),
        (b"nonsense\r\n\r\n", 400),
        (b"\xff\xfe\x00\r\n\r\n", 400),
        (b"GET /livez SMTP\r\n\r\n", 400),
        (b"GET /" + b"x" * 100_000, 400),
    ],
    ids=["path", "method", "head", "query", "nonsense", "bytes", "protocol", "long"],
)
async def test_what_it_is_asked_does_not_hurt_it(
    calls: Calls, request_text: bytes, status: int
) -> None:
    pipeline = Pipeline("adding", [calls.node("a")])
    async with working(pipeline, store=InMemoryStore(), health="127.0.0.1:0") as worker:
        await until(lambda: has_port(worker))
        assert worker.health_port is not None
        answered, _ = await send(worker.health_port, request_text)
        assert answered == status or (answered == 0 and len(request_text) > 8192)
        assert await ask(worker.health_port, "/livez") == (200, "ok")


async def test_slow_clients_are_let_go_and_too_many_turned_away(
    calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stroma.health.REQUEST_SECONDS", 0.2)
    monkeypatch.setattr("stroma.health.MOST_CLIENTS", 3)
    pipeline = Pipeline("adding", [calls.node("a")])
    async with working(pipeline, store=InMemoryStore(), health="127.0.0.1:0") as worker:
        await until(lambda: has_port(worker))
        slow = [await asyncio.open_connection("127.0.0.1", worker.health_port) for _ in range(3)]
        await asyncio.sleep(0.02)
        assert (await ask(worker.health_port, "/livez"))[0] == 0
        for reader, writer in slow:
            writer.write(b"GET")
            with suppress(ConnectionResetError):
                assert await reader.read() == b""
            writer.close()
        assert await ask(worker.health_port, "/livez") == (200, "ok")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"concurrency": 0}, "concurrency must be a whole number from 1, not 0"),
        ({"poll_seconds": 0}, "poll_seconds must be a number of seconds from 0.001, not 0"),
        ({"drain_seconds": -1}, "drain_seconds must be a number of seconds from 0, not -1"),
        ({"drain_seconds": float("inf")}, "drain_seconds must be a number"),
        ({"poll_seconds": "1"}, "poll_seconds must be a number"),
        ({"health": "8080"}, "'8080' is no HOST:PORT"),
        ({"health": "localhost:http"}, "is no HOST:PORT"),
        ({"health": "localhost:70000"}, "is no HOST:PORT"),
    ],
    ids=str,
)
def test_wrong_arguments_are_named(calls: Calls, options: Any, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        Worker(Pipeline("adding", [calls.node("a")]), **options)


async def test_an_address_that_is_taken_is_named(calls: Calls) -> None:
    pipeline = Pipeline("adding", [calls.node("a")])
    async with working(pipeline, store=InMemoryStore(), health="[::1]:0") as worker:
        await until(lambda: has_port(worker))
        other = Worker(pipeline, store=InMemoryStore(), health=f"[::1]:{worker.health_port}")
        with pytest.raises(ConfigError, match="cannot listen on"):
            await other.run()
