"""Anyone's store: `save`, `load` and `delete` of models, sync or async, and nothing else."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Any

import pytest
from pydantic import BaseModel

from stroma import (
    AsyncCheckpointStore,
    CheckpointManager,
    CheckpointNotFound,
    CheckpointStore,
    ConfigError,
    RunNotFound,
    RunStatus,
    SchemaMismatch,
    StoreUnavailable,
    StromaRunner,
    fan_out,
    journal,
    node,
    parallel,
)
from tests.core.helpers import Calls, Number, Text, make_runner
from tests.core.test_fan_out import Batch


class SyncPlain:
    """What a reader of the extension guide would write."""

    def __init__(self) -> None:
        self.states: dict[tuple[str, str], BaseModel] = {}
        self.saved: list[str] = []
        self.faults: list[Exception | None] = []

    def _fail(self) -> None:
        fault = self.faults.pop(0) if self.faults else None
        if fault is not None:
            raise fault

    def save(self, run_id: str, node_id: str, state: BaseModel) -> None:
        self._fail()
        self.saved.append(node_id)
        self.states[run_id, node_id] = state.model_copy(deep=True)

    def load(self, run_id: str, node_id: str) -> BaseModel | None:
        self._fail()
        return self.states.get((run_id, node_id))

    def delete(self, run_id: str) -> None:
        self._fail()
        for key in [key for key in self.states if key[0] == run_id]:
            del self.states[key]


class TypedPlain(SyncPlain):
    """With the optional methods: JSON inside."""

    def save_typed(
        self, run_id: str, node_id: str, state: BaseModel, schema: type[BaseModel]
    ) -> None:
        self.save(run_id, node_id, schema.model_validate(state.model_dump()))

    def load_typed(self, run_id: str, node_id: str, schema: type[BaseModel]) -> BaseModel | None:
        found = self.load(run_id, node_id)
        return None if found is None else schema.model_validate_json(found.model_dump_json())


class AsyncPlain:
    def __init__(self) -> None:
        self.inner = SyncPlain()

    async def save(self, run_id: str, node_id: str, state: BaseModel) -> None:
        await asyncio.sleep(0)
        self.inner.save(run_id, node_id, state)

    async def load(self, run_id: str, node_id: str) -> BaseModel | None:
        await asyncio.sleep(0)
        return self.inner.load(run_id, node_id)

    async def delete(self, run_id: str) -> None:
        await asyncio.sleep(0)
        self.inner.delete(run_id)


class Threaded(SyncPlain):
    run_in_thread = True

    def save(self, run_id: str, node_id: str, state: BaseModel) -> None:
        assert threading.current_thread() is not threading.main_thread()
        super().save(run_id, node_id, state)


@pytest.fixture(params=[SyncPlain, TypedPlain, AsyncPlain, Threaded])
def plain(request: pytest.FixtureRequest) -> Any:
    return request.param()


def test_no_base_class_is_needed() -> None:
    assert isinstance(SyncPlain(), CheckpointStore)
    assert isinstance(AsyncPlain(), AsyncCheckpointStore)


async def test_a_run_is_continued(plain: Any, calls: Calls) -> None:
    runner = make_runner(plain)
    nodes = [calls.node("a"), calls.node("b", TypeError(), {"value": 9}), calls.node("c")]
    assert (await runner.run(nodes, Number(), run_id="r")).status is RunStatus.FAILED
    result = await runner.run(nodes, Number(), run_id="r")
    assert (result.status, result.final_state) == (RunStatus.RESUMED, Number(value=10))
    assert (calls["a"], calls["b"], calls["c"]) == (1, 2, 1)


@pytest.mark.parametrize("failures", [1, 2])
async def test_a_save_that_fails_while_the_run_is_cut_is_tried_once_more(
    calls: Calls, caplog: pytest.LogCaptureFixture, failures: int
) -> None:
    saving = asyncio.Event()

    class Waiting(AsyncPlain):
        async def save(self, run_id: str, node_id: str, state: BaseModel) -> None:
            saving.set()
            await super().save(run_id, node_id, state)

    plain = Waiting()
    plain.inner.faults = [None, *[OSError("down")] * failures]  # the first is of a load
    run = asyncio.create_task(make_runner(plain).run([calls.node("a")], Number(), run_id="r"))
    await saving.wait()
    run.cancel()
    with caplog.at_level(logging.WARNING, "stroma"), pytest.raises(asyncio.CancelledError):
        await run
    assert plain.inner.saved == ["a"][: failures == 1]
    assert ("'a' is not saved" in caplog.text) is (failures == 2)


async def test_a_first_node_that_is_not_finished_is_continued(plain: Any, calls: Calls) -> None:
    runner = make_runner(plain)
    both = parallel(calls.node("a"), calls.node("b", TypeError(), {"value": 9}))
    await runner.run([both], Number(), run_id="r")
    with pytest.raises(CheckpointNotFound, match="its input is not recorded: give it"):
        await runner.run([both], run_id="r", resume=True)
    result = await runner.run([both], Number(), run_id="r", resume=True)
    assert (result.status, calls["a"]) == (RunStatus.RESUMED, 1)


async def test_the_tutorials_way_of_continuing_works(plain: Any, calls: Calls) -> None:
    manager = CheckpointManager(plain)
    nodes = [calls.node("a"), calls.node("b", TypeError(), {"value": 9})]
    first = StromaRunner(None, manager, make_runner(run_id="r").config)
    await first.run(nodes, Number())
    second = StromaRunner(None, manager, make_runner(run_id="r", resume_from="b").config)
    result = await second.run(nodes, Number())
    assert (result.status, calls["a"], calls["b"]) == (RunStatus.RESUMED, 1, 2)


async def test_a_complete_run_is_returned(plain: Any, calls: Calls) -> None:
    runner, nodes = make_runner(plain), [calls.node("a"), calls.node("b")]
    await runner.run(nodes, Number(), run_id="r")
    result = await runner.run(nodes, run_id="r")
    assert (result.status, result.final_state, calls["a"]) == (
        RunStatus.RESUMED,
        Number(value=2),
        1,
    )


async def test_finished_children_and_items_are_not_run_again(plain: Any, calls: Calls) -> None:
    both = parallel(calls.node("a"), calls.node("b", TypeError(), {"value": 2}))
    runner = make_runner(plain)
    await runner.run([both, calls.node("c")], Number(), run_id="r")
    result = await runner.run([both, calls.node("c")], Number(), run_id="r")
    assert (result.is_complete, calls["a"], calls["b"]) == (True, 1, 2)

    def work(state: Number) -> Any:
        if state.value == 2 and calls["w"] <= 3:
            raise TypeError("bug")
        return {"value": state.value}

    each = fan_out(calls.node("w", work), over="items", into="done", max_concurrency=1)
    batch = Batch(items=[Number(value=n) for n in range(4)])
    await runner.run([each], batch, run_id="s")
    result = await runner.run([each], batch, run_id="s")
    assert [n.value for n in result.final_state.done] == [0, 1, 2, 3]  # type: ignore[union-attr]
    assert calls["w"] == 5
    again = await runner.run([each], batch, run_id="s")
    assert (again.final_state, calls["w"]) == (result.final_state, 5)


async def test_restart_forgets(plain: Any, calls: Calls) -> None:
    runner, nodes = make_runner(plain), [calls.node("a")]
    await runner.run(nodes, Number(), run_id="r")
    result = await runner.run(nodes, Number(), run_id="r", restart=True)
    assert (result.status, calls["a"]) == (RunStatus.COMPLETED, 2)


async def test_going_on_before_what_is_recorded_is_refused(plain: Any, calls: Calls) -> None:
    runner, nodes = make_runner(plain), [calls.node("a"), calls.node("b")]
    await runner.run(nodes, Number(), run_id="r")
    with pytest.raises(ConfigError, match="cannot tell old results from new ones"):
        await runner.run(nodes, Number(), run_id="r", resume_from="a")
    assert calls["a"] == 1


async def test_nothing_goes_on_in_silence_where_nothing_is_recorded(
    plain: Any, calls: Calls
) -> None:
    runner, nodes = make_runner(plain), [calls.node("a"), calls.node("b"), calls.node("c")]
    with pytest.raises(RunNotFound):
        await runner.run(nodes, Number(), run_id="r", resume=True)
    with pytest.raises(CheckpointNotFound, match="'b': the result of 'a' is not recorded"):
        await runner.run(nodes, Number(), run_id="r", resume_from="b")
    await runner.run(nodes[:1], Number(), run_id="r")
    with pytest.raises(CheckpointNotFound, match="'c': the result of 'b'"):
        await runner.run(nodes, Number(), run_id="r", resume_from="c")
    with pytest.raises(ConfigError, match="no initial state"):
        await runner.run(nodes, run_id="other")
    assert (calls["a"], calls["b"]) == (1, 0)


async def test_what_it_lacks_is_said_once(
    plain: Any, calls: Calls, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "_warned", type(journal._warned)())
    runner, nodes = make_runner(plain), [calls.node("a")]
    with caplog.at_level(logging.WARNING, "stroma"):
        for run_id in "rst":
            await runner.run(nodes, Number(), run_id=run_id)
    assert caplog.text.count(f"{type(plain).__name__} has only save, load and delete") == 1


# -- failures of the store -------------------------------------------------------------------


async def test_a_save_that_raises_is_repeated_and_the_node_called_once(calls: Calls) -> None:
    store = SyncPlain()
    store.faults = [None, OSError("reset"), RuntimeError("again")]  # the first one is a load
    result = await make_runner(store).run([calls.node("a")], Number(), run_id="r")
    assert (result.status, calls["a"], store.saved) == (RunStatus.COMPLETED, 1, ["a"])


async def test_a_save_that_goes_on_raising_leaves_the_output_in_the_result(calls: Calls) -> None:
    store = SyncPlain()
    error = OSError("disk full")
    store.faults = [error] * 100
    result = await make_runner(store).run([calls.node("a")], Number())
    assert (result.status, result.unsaved) == (RunStatus.PARTIAL, {"a": Number(value=1)})
    assert isinstance(result.error, StoreUnavailable)
    assert result.error.__cause__ is error
    assert "SyncPlain failed in save: disk full" in result.stop_reason


@pytest.mark.parametrize("restart", [False, True])
async def test_a_store_that_is_down_at_the_start_is_a_result(calls: Calls, restart: bool) -> None:
    store = SyncPlain()
    store.faults = [OSError("refused")]
    result = await make_runner(store).run([calls.node("a")], Number(), run_id="r", restart=restart)
    assert (result.status, calls["a"]) == (RunStatus.PARTIAL, 0)
    assert result.stop_reason.startswith("nothing was run: SyncPlain failed in ")


async def test_a_state_of_another_model_is_refused(calls: Calls) -> None:
    store = SyncPlain()
    store.save("r", "a", Text(text="x"))
    with pytest.raises(SchemaMismatch, match="the result of 'a' does not fit Number"):
        await make_runner(store).run([calls.node("a")], Number(), run_id="r")
    typed = TypedPlain()
    typed.save("r", "a", Text(text="x"))

    @node(id="a", input=Number, output=Batch)
    async def a(state: Number) -> Batch:
        raise AssertionError("never called")

    with pytest.raises(SchemaMismatch, match="does not fit Batch"):
        await make_runner(typed).run([a], Number(), run_id="r")


async def test_a_state_before_a_fan_out_that_does_not_fit_is_refused(calls: Calls) -> None:
    class Loose(BaseModel):
        items: Any = None

    store = SyncPlain()
    each = fan_out(calls.node("w"), over="items", into="done", input=Loose)
    with pytest.raises(SchemaMismatch, match=r"the state before 'fan_out\(w\)' does not fit"):
        await make_runner(store).run([each], Loose(items=3), run_id="r")


async def test_a_cancelled_run_finishes_its_save(calls: Calls) -> None:
    saving, go_on = asyncio.Event(), asyncio.Event()

    class Slow(AsyncPlain):
        async def save(self, run_id: str, node_id: str, state: BaseModel) -> None:
            saving.set()
            await go_on.wait()
            await super().save(run_id, node_id, state)

    store = Slow()
    run = asyncio.create_task(make_runner(store).run([calls.node("a")], Number(), run_id="r"))
    await saving.wait()
    run.cancel()
    await asyncio.sleep(0)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert store.inner.states == {("r", "a"): Number(value=1)}


# -- the manager -----------------------------------------------------------------------------


async def test_the_manager_hides_whether_a_store_is_sync(plain: Any) -> None:
    manager = CheckpointManager(plain)
    assert await manager.resume("r", "a", Number) is None
    await manager.checkpoint("r", "a", Number(value=3))
    assert await manager.resume("r", "a", Number) == Number(value=3)
    await manager.clear("r")
    assert await manager.resume("r", "a", Number) is None


async def test_the_manager_refuses_another_type_where_the_store_cannot_coerce() -> None:
    manager = CheckpointManager(SyncPlain())
    await manager.checkpoint("r", "a", Number(value=3))
    with pytest.raises(TypeError, match="SyncPlain loaded Number, and Text was asked for"):
        await manager.resume("r", "a", Text)


async def test_the_manager_works_with_our_stores(store: Any) -> None:
    manager = CheckpointManager(store)
    await manager.checkpoint("r", "a", Number(value=3))
    assert await manager.resume("r", "a", Number) == Number(value=3)
    await manager.clear("r")
    assert await manager.resume("r", "a", Number) is None


async def test_our_stores_alone_keep_states_of_any_model(store: Any) -> None:
    await _settled(store.save("r", "a", Text(text="x")))
    assert await _settled(store.load("r", "a")) == Text(text="x")
    await _settled(store.save("r", "a", Text(text="y")))  # replaces
    assert await _settled(store.load_typed("r", "a", Text)) == Text(text="y")
    await _settled(store.save_typed("r", "b", Text(text="z"), Number))
    assert await _settled(store.load("r", "b")) == Number()
    assert await _settled(store.load("r", "c")) is None
    with pytest.raises(SchemaMismatch, match="does not fit Batch: items: Field required"):
        await _settled(store.load_typed("r", "a", Batch))
    with pytest.raises(ConfigError, match="node id"):
        await _settled(store.save("r", "a\0", Number()))


async def test_our_stores_alone_read_the_results_of_runs(store: Any, calls: Calls) -> None:
    runner, nodes = make_runner(store), [calls.node("a", {"value": 1}, {"value": 2})]
    await runner.run(nodes, Number(), run_id="r")
    assert await _settled(store.load("r", "a")) == Number(value=1)
    await runner.run(nodes, Number(), run_id="r", resume_from="a")
    assert await _settled(store.load("r", "a")) == Number(value=2)  # of the newest epoch
    await _settled(store.delete("r"))
    assert await _settled(store.load("r", "a")) is None


async def _settled(value: Any) -> Any:
    return await value if asyncio.iscoroutine(value) else value


@pytest.mark.parametrize("thing", [object(), {}, "redis://", SyncPlain])
def test_what_is_no_store_is_refused(thing: Any) -> None:
    if thing is SyncPlain:
        thing = type("Half", (), {"save": lambda *a: None, "load": lambda *a: None})()
    with pytest.raises(ConfigError, match=r"is no checkpoint store: it has no .*delete"):
        CheckpointManager(thing)


async def test_closing_closes_what_can_be_closed() -> None:
    closed: list[str] = []

    class Closing(SyncPlain):
        def close(self) -> None:
            closed.append("close")

    class AsyncClosing(AsyncPlain):
        async def aclose(self) -> None:
            closed.append("aclose")

    for store in (SyncPlain(), Closing(), AsyncClosing()):
        await CheckpointManager(store).aclose()
    assert closed == ["close", "aclose"]


async def test_a_save_that_outlives_the_failure_of_a_sibling_is_no_unsaved_output() -> None:
    saving, failing = asyncio.Event(), asyncio.Event()

    class Slow(AsyncPlain):
        async def save(self, run_id: str, node_id: str, state: BaseModel) -> None:
            saving.set()
            await failing.wait()
            await asyncio.sleep(0)
            await super().save(run_id, node_id, state)

    @node(id="failing", input=Number, output=Number)
    async def fails(state: Number) -> Number:
        await saving.wait()
        failing.set()
        raise TypeError("bug")

    nodes = [parallel(Calls().node("a"), fails)]
    store = Slow()
    result = await make_runner(store).run(nodes, Number(), run_id="r")
    assert result.status is RunStatus.FAILED
    assert store.inner.saved == ["a"]
    assert result.unsaved == {}
