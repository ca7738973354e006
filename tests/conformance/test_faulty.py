"""A store that fails on purpose."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

import stroma
from stroma import (
    AsyncCheckpointStore,
    AsyncInMemoryStore,
    CheckpointManager,
    CheckpointStore,
    ConfigError,
    InMemoryStore,
    OutcomeUnknown,
    RunStatus,
    StoreUnavailable,
    StromaRunner,
)
from stroma.checkpoint import is_record_store
from stroma.records import ClaimQuery, RunPage
from stroma.stores.sqlite import SQLiteStore
from stroma.testing import FakeClock, Fault, FaultKind, FaultyStore, Injected


class Text(BaseModel):
    text: str


class DictStore:
    """A level 0 store."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, str], BaseModel] = {}

    def save(self, run_id: str, node_id: str, state: BaseModel) -> None:
        self.kept[run_id, node_id] = state

    def load(self, run_id: str, node_id: str) -> BaseModel | None:
        return self.kept.get((run_id, node_id))

    def delete(self, run_id: str) -> None:
        self.kept = {place: state for place, state in self.kept.items() if place[0] != run_id}


@stroma.node
async def shout(state: Text) -> Text:
    return Text(text=state.text.upper())


def test_a_refused_operation_is_not_done() -> None:
    store = FaultyStore(DictStore(), [Fault("save", FaultKind.REFUSED)])
    with pytest.raises(StoreUnavailable):
        store.save("run", "node", Text(text="1"))
    assert store.load("run", "node") is None
    store.save("run", "node", Text(text="2"))
    assert store.load("run", "node") == Text(text="2")
    assert store.log == [Injected("save", FaultKind.REFUSED, 1)]
    assert store.calls == {"save": 2, "load": 2}


def test_a_lost_operation_is_done() -> None:
    store = FaultyStore(DictStore(), [Fault("save", FaultKind.LOST, call=2)])
    store.save("run", "node", Text(text="1"))
    with pytest.raises(OutcomeUnknown):
        store.save("run", "node", Text(text="2"))
    assert store.load("run", "node") == Text(text="2")


async def test_async_stores_fail_when_they_are_awaited() -> None:
    plan = [Fault("load", FaultKind.REFUSED, 1), Fault("save", FaultKind.LOST, 1)]
    store = FaultyStore(AsyncInMemoryStore(), plan)
    load, save = store.load("run", "node"), store.save("run", "node", Text(text="1"))
    with pytest.raises(StoreUnavailable):
        await load
    with pytest.raises(OutcomeUnknown):
        await save
    assert await store.load("run", "node") == Text(text="1")
    assert not store.plan


def test_a_plan_may_count_all_operations() -> None:
    store = FaultyStore(DictStore(), [Fault("*", FaultKind.REFUSED, call=3)])
    store.save("run", "a", Text(text="1"))
    store.load("run", "a")
    with pytest.raises(StoreUnavailable, match="delete"):
        store.delete("run")
    store.delete("run")


def test_delays_go_by_the_clock() -> None:
    clock = FakeClock()
    plan = [Fault("save", FaultKind.DELAYED)]
    store = FaultyStore(DictStore(), plan, clock=clock, delay_seconds=30)
    store.save("run", "node", Text(text="1"))
    assert clock.monotonic() == 30


async def test_delays_of_async_stores_are_slept() -> None:
    clock = FakeClock()
    plan = [Fault("save", FaultKind.DELAYED), Fault("load", FaultKind.DELAYED)]
    store = FaultyStore(AsyncInMemoryStore(), plan, clock=clock, delay_seconds=30)
    task = asyncio.ensure_future(store.save("run", "node", Text(text="1")))
    await clock.until_asleep()
    assert not task.done()
    clock.advance(30)
    await task
    by_the_machine = FaultyStore(store, [Fault("load", FaultKind.DELAYED)], delay_seconds=0.001)
    assert repr(by_the_machine.seed) in repr(by_the_machine)


async def test_what_hangs_is_let_go() -> None:
    store = FaultyStore(AsyncInMemoryStore(), [Fault("load", FaultKind.HANGS)])
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await store.load("run", "node")
    store.plan.append(Fault("load", FaultKind.HANGS, 2))
    task = asyncio.ensure_future(store.load("run", "node"))
    await asyncio.sleep(0.01)
    assert not task.done()
    store.let_go()
    with pytest.raises(StoreUnavailable):
        await task


def test_a_sync_store_hangs_its_thread() -> None:
    store = FaultyStore(DictStore(), [Fault("load", FaultKind.HANGS)])
    errors: list[BaseException] = []

    def load() -> None:
        try:
            store.load("run", "node")
        except StoreUnavailable as exc:
            errors.append(exc)

    thread = threading.Thread(target=load)
    thread.start()
    thread.join(0.02)
    assert thread.is_alive()
    store.let_go()
    thread.join(5)
    assert len(errors) == 1


def failures(seed: int | None) -> tuple[list[Injected], int]:
    store = FaultyStore(DictStore(), rate=0.3, seed=seed, operations=["save"])
    for i in range(50):
        store.load("run", "node")
        try:
            store.save("run", "node", Text(text=str(i)))
        except (StoreUnavailable, OutcomeUnknown):
            continue
    return store.log, store.seed


def test_a_seed_gives_the_same_faults() -> None:
    log, seed = failures(None)
    assert failures(seed)[0] == log
    assert 5 < len(log) < 30
    assert {each.operation for each in log} == {"save"}
    assert {each.kind for each in log} == {FaultKind.REFUSED, FaultKind.LOST}


def test_it_stops() -> None:
    store = FaultyStore(DictStore(), [Fault("load", FaultKind.REFUSED)], rate=1.0)
    store.stop()
    store.save("run", "node", Text(text="1"))
    assert store.load("run", "node") == Text(text="1")


def test_it_is_what_the_inner_store_is() -> None:
    level0, level1 = FaultyStore(DictStore()), FaultyStore(InMemoryStore())
    assert not is_record_store(level0)
    assert is_record_store(level1)
    assert level1.capabilities == InMemoryStore().capabilities
    assert isinstance(level0, CheckpointStore)
    assert isinstance(FaultyStore(AsyncInMemoryStore()), AsyncCheckpointStore)
    assert CheckpointManager(level1).keeps_records
    with pytest.raises(AttributeError):
        _ = level0.open_run
    level1.close()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"plan": [Fault("sav", FaultKind.LOST)]}, "'sav' is no operation"),
        ({"operations": ["close"]}, "'close' is no operation"),
        ({"rate": 2}, "from 0 to 1"),
    ],
)
def test_wrong_plans_are_told(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FaultyStore(DictStore(), **wrong)


async def test_a_look_at_claimable_runs_may_fail() -> None:
    plan = [Fault("claimable", FaultKind.REFUSED)]
    sync, other = FaultyStore(InMemoryStore(), plan), FaultyStore(AsyncInMemoryStore(), plan)
    with pytest.raises(StoreUnavailable, match="claimable"):
        sync.claimable(ClaimQuery())
    with pytest.raises(StoreUnavailable, match="claimable"):
        await other.claimable(ClaimQuery())
    assert sync.claimable(ClaimQuery()) == await other.claimable(ClaimQuery()) == RunPage(())


@pytest.mark.parametrize("kind", [FaultKind.REFUSED, FaultKind.LOST])
async def test_a_run_outlasts_faults(kind: FaultKind, tmp_path: Path) -> None:
    """A save that fails is retried by itself, and no node is called again."""
    inner = SQLiteStore(tmp_path / "runs.db")
    store = FaultyStore(inner, [Fault("commit_many", kind, call) for call in (1, 3)])
    async with StromaRunner.quick(store=store) as runner:
        runner.with_options(clock=FakeClock(auto_advance=True))
        result = await runner.run([shout], Text(text="hello"), run_id="run")
        assert (result.status, result.final_state) == (RunStatus.COMPLETED, Text(text="HELLO"))
    assert [each.kind for each in store.log][:1] == [kind]
    await inner.aclose()
