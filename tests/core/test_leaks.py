"""Runs leave nothing behind: no tasks, threads, connections, descriptors or memory."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import tracemalloc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from stroma import (
    InMemoryStore,
    Pipeline,
    RunStatus,
    SQLiteStore,
    StromaRunner,
    fan_out,
    node,
    parallel,
)
from tests.core.helpers import Calls, FaultyStore, Number, make_runner
from tests.core.test_fan_out import Batch


def _descriptors() -> int:
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir()))


async def _until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not holds() and time.monotonic() < deadline:
        await asyncio.sleep(0.001)
    assert holds()


def _nodes(calls: Calls) -> list[Any]:
    @node(id="make", input=Number, output=Batch)
    async def make(state: Number) -> Batch:
        return Batch(items=[Number(value=n) for n in range(3)])

    @node(id="sync", input=Number, output=Number)
    def sync(state: Number) -> Number:
        return state

    each = fan_out(parallel(calls.node("a"), sync), over="items", into="done", id="each")
    return [make, each]


@pytest.mark.parametrize("how", ["completed", "failed", "cancelled"])
async def test_no_task_is_left(store: Any, calls: Calls, how: str) -> None:
    before = asyncio.all_tasks()

    @node(id="last", input=Batch, output=Number)
    async def last(state: Batch) -> Number:
        if how == "failed":
            raise TypeError("bug")
        if how == "cancelled":
            run.cancel()
            await asyncio.sleep(1)
        return Number()

    run = asyncio.create_task(make_runner(store).run([*_nodes(calls), last], Number()))
    await asyncio.wait([run])
    await _until(lambda: asyncio.all_tasks() == before)
    assert run.cancelled() == (how == "cancelled")


async def test_no_thread_and_no_descriptor_is_left(tmp_path: Path, calls: Calls) -> None:
    async def work() -> None:
        async with StromaRunner.quick(store=f"sqlite:///{tmp_path / 'runs.db'}") as runner:
            assert (await runner.run(_nodes(calls), Number())).is_complete

    await work()
    await _until(lambda: not _stroma_threads())
    descriptors, threads = _descriptors(), threading.active_count()
    for _ in range(10):
        await work()
    await _until(lambda: threading.active_count() <= threads)
    assert _descriptors() <= descriptors


def _stroma_threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("stroma")]


async def test_a_runner_closes_what_it_opened(tmp_path: Path, calls: Calls) -> None:
    async with StromaRunner.quick(
        store="sqlite", store_options={"path": str(tmp_path / "a.db")}
    ) as runner:
        opened = runner.checkpoint_manager.store
        await runner.run([calls.node("a")], Number())
    assert isinstance(opened, SQLiteStore)
    await _until(lambda: not _stroma_threads())


async def test_a_runner_leaves_what_it_was_given_open(tmp_path: Path, calls: Calls) -> None:
    closed: list[str] = []

    class Watched(InMemoryStore):
        def close(self) -> None:
            closed.append("closed")

    async with make_runner(Watched()) as runner:
        await runner.run([calls.node("a")], Number())
        runner.with_store(Watched())
        await runner.run([calls.node("a")], Number())
    assert closed == []


async def test_a_store_that_was_replaced_is_closed_too(tmp_path: Path, calls: Calls) -> None:
    runner = StromaRunner.quick(store=f"sqlite:///{tmp_path / 'a.db'}")
    await runner.run([calls.node("a")], Number())
    runner.with_store(f"sqlite:///{tmp_path / 'b.db'}")
    await runner.run([calls.node("a")], Number())
    await runner.aclose()
    await runner.aclose()  # again does no harm
    await _until(lambda: not _stroma_threads())


async def test_a_runner_may_run_on_after_it_was_closed(tmp_path: Path, calls: Calls) -> None:
    runner = make_runner()
    async with runner:
        pass
    assert (await runner.run([calls.node("a")], Number())).is_complete


def test_each_run_sync_has_a_loop_of_its_own_and_one_store_serves_them_all(
    store_factory: Callable[[], Any], calls: Calls
) -> None:
    store = store_factory()
    runner, nodes = make_runner(store), [calls.node("a"), calls.node("b")]
    for number in range(3):
        assert runner.run_sync(nodes, Number(), run_id=str(number)).status is RunStatus.COMPLETED
        assert runner.run_sync(nodes, Number(), run_id=str(number)).status is RunStatus.RESUMED
    assert calls["a"] == 3
    if hasattr(store, "aclose"):
        asyncio.run(store.aclose())


@pytest.fixture(params=[InMemoryStore, FaultyStore, SQLiteStore])
def store_factory(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Any]:
    if request.param is SQLiteStore:
        return lambda: SQLiteStore(tmp_path / "runs.db")
    return request.param  # type: ignore[no-any-return]


async def test_runs_of_new_functions_do_not_pile_up() -> None:
    runner = make_runner()
    models: list[weakref.ref[type[BaseModel]]] = []

    async def once() -> None:
        class Local(BaseModel):
            value: int = 0

        @node
        async def local(state: Local) -> Local:
            return state

        models.append(weakref.ref(Local))
        await runner.run([local], Local())

    for _ in range(100):
        await once()
    gc.collect()
    alive = sum(model() is not None for model in models)
    assert alive <= 40  # the plans that are kept, and no more


async def test_many_runs_take_no_memory(calls: Calls) -> None:
    class Forgetful(InMemoryStore):
        def commit_many(self, commits: Any) -> Any:
            outcomes = super().commit_many(commits)
            self._entries.clear()
            return outcomes

    runner = make_runner(Forgetful())
    pipeline = Pipeline("p", [calls.node("a")])

    async def work(times: int) -> None:
        for _ in range(times):
            await runner.run(pipeline, Number())

    await work(200)
    calls.order.clear()
    gc.collect()
    tracemalloc.start()
    try:
        await work(50)
        calls.order.clear()
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        await work(500)
        calls.order.clear()
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 20_000


async def test_what_a_long_run_keeps_does_not_grow_with_its_states() -> None:
    class Big(BaseModel):
        text: str

    class Durable(FaultyStore):
        async def commit_many(self, commits: Any) -> Any:
            return [None] * len(commits)

    def grow(node_id: str) -> Any:
        @node(id=node_id, input=Big, output=Big)
        async def grown(state: Big) -> Big:
            return Big(text="x" * 100_000 + node_id)

        return grown

    nodes = [grow(f"n{i}") for i in range(100)]
    runner = make_runner(Durable())
    await runner.run(nodes, Big(text=""))
    gc.collect()
    tracemalloc.start()
    try:
        result = await runner.run(nodes, Big(text=""))
        gc.collect()
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert result.status is RunStatus.COMPLETED
    assert kept < 500_000


async def test_a_run_that_completed_leaves_no_cycle(calls: Calls) -> None:
    """Its states and its trace go with its result, and do not wait for the garbage collector."""
    runner = StromaRunner.quick(store=InMemoryStore())
    nodes = [calls.node("a"), calls.node("b")]
    await runner.run(nodes, Number())
    gc.collect()
    gc.disable()
    try:
        trace = weakref.ref((await runner.run(nodes, Number())).trace)
        assert trace() is None
    finally:
        gc.enable()
