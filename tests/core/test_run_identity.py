"""A run id that the caller gives is an idempotency key."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, PrivateAttr

from stroma import (
    ConfigError,
    InMemoryStore,
    Pipeline,
    RunConfig,
    RunInputMismatch,
    RunLocked,
    RunNotFound,
    RunStatus,
    StaleOwner,
    node,
)
from tests.core.helpers import Calls, Number, make_runner, stored_run

# -- which run -------------------------------------------------------------------------------


async def test_an_id_that_is_not_given_is_new_for_each_run(store: Any, calls: Calls) -> None:
    runner, nodes = make_runner(store), [calls.node("a")]
    first = await runner.run(nodes, Number())
    second = await runner.run(nodes, Number())
    assert first.run_id != second.run_id
    assert calls["a"] == 2
    assert (await stored_run(store, first.run_id)).status is RunStatus.COMPLETED


async def test_the_id_in_the_result_continues_the_run(store: Any, calls: Calls) -> None:
    runner = make_runner(store)
    nodes = [calls.node("a"), calls.node("b", TypeError("bug"), {"value": 9})]
    first = await runner.run(nodes, Number())
    again = await runner.run(nodes, Number(), run_id=first.run_id)
    assert (again.status, calls["a"], calls["b"]) == (RunStatus.RESUMED, 1, 2)


async def test_a_job_delivered_twice_is_run_once(store: Any, calls: Calls) -> None:
    runner, nodes = make_runner(store), [calls.node("a", ({"value": 1}, 5)), calls.node("b")]
    first = await runner.run(nodes, Number(), run_id="job")
    second = await runner.run(nodes, Number(), run_id="job")
    assert first.status is RunStatus.COMPLETED
    assert second.status is RunStatus.RESUMED
    assert first.final_state == second.final_state == Number(value=2)
    assert second.skipped == ("a", "b")
    assert second.tokens == second.spent_before.tokens == 5
    assert (calls["a"], calls["b"]) == (1, 1)


async def test_the_recorded_result_is_returned_without_a_claim(store: Any, calls: Calls) -> None:
    runner, nodes = make_runner(store), [calls.node("a")]
    await runner.run(nodes, Number(), run_id="r")
    before = await stored_run(store, "r")
    await runner.run(nodes, Number(), run_id="r")
    assert await stored_run(store, "r") == before
    assert (before.status, before.owner) == (RunStatus.COMPLETED, "")


async def test_the_id_may_be_in_the_configuration(store: Any, calls: Calls) -> None:
    runner, nodes = make_runner(store, run_id="r"), [calls.node("a")]
    assert (await runner.run(nodes, Number())).run_id == "r"
    assert (await runner.run(nodes, Number())).status is RunStatus.RESUMED


async def test_arguments_win_over_the_configuration(store: Any, calls: Calls) -> None:
    runner = make_runner(store, run_id="r", restart=True)
    nodes = [calls.node("a")]
    await runner.run(nodes, Number())
    result = await runner.run(nodes, Number(), restart=False)
    assert (result.run_id, result.status) == ("r", RunStatus.RESUMED)
    assert (await runner.run(nodes, Number(), run_id="s")).run_id == "s"


@pytest.mark.parametrize("run_id", ["*", "a:b", "../x", "a/b", "émoji 🎉", " ", "x" * 512, "[a]"])
async def test_any_text_is_an_id(store: Any, calls: Calls, run_id: str) -> None:
    runner, nodes = make_runner(store), [calls.node(run_id)]
    await runner.run(nodes, Number(), run_id=run_id)
    result = await runner.run(nodes, Number(), run_id=run_id)
    assert (result.run_id, result.status) == (run_id, RunStatus.RESUMED)


@pytest.mark.parametrize("run_id", ["", "a\0b", "x" * 513, "é" * 257, "\ud83d", 7, b"r"], ids=repr)
async def test_an_id_that_not_every_store_keeps_is_refused(calls: Calls, run_id: Any) -> None:
    with pytest.raises(ConfigError, match="run id"):
        await make_runner().run([calls.node("a")], Number(), run_id=run_id)
    with pytest.raises(ValueError, match="run id"):
        RunConfig(run_id=run_id)
    assert calls["a"] == 0


# -- which input -----------------------------------------------------------------------------


async def test_another_input_under_the_same_id_is_refused(store: Any, calls: Calls) -> None:
    runner, nodes = make_runner(store), [calls.node("a"), calls.node("b", TypeError())]
    await runner.run(nodes, Number(value=1), run_id="r")
    with pytest.raises(RunInputMismatch, match="another input: value differs"):
        await runner.run(nodes, Number(value=2), run_id="r")
    run = await stored_run(store, "r")
    assert (run.owner, run.status) == ("", RunStatus.FAILED)  # as it stood before


async def test_additional_fields_that_differ_are_named(store: Any) -> None:
    class Open(BaseModel):
        model_config = ConfigDict(extra="allow")
        kept: int = 0

    @node
    async def a(state: Open) -> Open:
        return state

    runner = make_runner(store)
    await runner.run([a], {"more": 1, "less": 2}, run_id="r")
    with pytest.raises(RunInputMismatch, match="another input: more, less differ"):
        await runner.run([a], {"more": 2}, run_id="r")


async def test_another_input_is_refused_for_a_complete_run_too(store: Any, calls: Calls) -> None:
    runner, nodes = make_runner(store), [calls.node("a")]
    await runner.run(nodes, Number(value=1), run_id="r")
    with pytest.raises(RunInputMismatch):
        await runner.run(nodes, Number(value=2), run_id="r")


async def test_an_equal_input_in_another_form_is_the_same(store: Any, calls: Calls) -> None:
    runner, nodes = make_runner(store), [calls.node("a")]
    await runner.run(nodes, {"value": 1}, run_id="r")
    assert (await runner.run(nodes, Number(value=1), run_id="r")).status is RunStatus.RESUMED


async def test_what_is_not_stored_does_not_make_another_input(store: Any) -> None:
    class Tagged(BaseModel):
        model_config = ConfigDict(ser_json_inf_nan="constants")
        score: float
        _made_at: object = PrivateAttr(default_factory=object)

    @node
    async def a(state: Tagged) -> Number:
        return Number()

    runner = make_runner(store)
    await runner.run([a], Tagged(score=float("nan")), run_id="r")
    result = await runner.run([a], Tagged(score=float("nan")), run_id="r")
    assert result.status is RunStatus.RESUMED


async def test_a_run_that_exists_needs_no_input(store: Any, calls: Calls) -> None:
    runner = make_runner(store)
    nodes = [calls.node("a"), calls.node("b", TypeError(), {"value": 9})]
    await runner.run(nodes, Number(value=1), run_id="r")
    result = await runner.run(nodes, run_id="r")
    assert (result.status, result.final_state) == (RunStatus.RESUMED, Number(value=9))


async def test_the_recorded_input_is_used_when_no_node_is_recorded(
    store: Any, calls: Calls
) -> None:
    runner = make_runner(store)
    nodes = [calls.node("a", TypeError(), lambda state: {"value": state.value * 10})]
    await runner.run(nodes, Number(value=4), run_id="r")
    result = await runner.run(nodes, run_id="r", resume=True)
    assert (result.status, result.final_state) == (RunStatus.COMPLETED, Number(value=40))


async def test_a_run_that_does_not_exist_needs_an_input(store: Any, calls: Calls) -> None:
    with pytest.raises(ConfigError, match="does not exist, and there is no initial state"):
        await make_runner(store).run([calls.node("a")], run_id="r")
    with pytest.raises(ConfigError, match="an input is missing: a new run needs"):
        await make_runner(store).run([calls.node("a")])


# -- resume ----------------------------------------------------------------------------------


async def test_resume_needs_a_run(store: Any, calls: Calls) -> None:
    with pytest.raises(RunNotFound, match="'r' does not exist in this store"):
        await make_runner(store).run([calls.node("a")], Number(), run_id="r", resume=True)
    with pytest.raises(RunNotFound):
        await make_runner(store).run([calls.node("a")], Number(), run_id="r", resume_from="a")
    assert calls["a"] == 0
    assert await stored_run(store, "r") is None


async def test_a_deleted_run_does_not_begin_in_silence(calls: Calls) -> None:
    store = InMemoryStore()
    runner, nodes = make_runner(store), [calls.node("a"), calls.node("b", TypeError())]
    await runner.run(nodes, Number(), run_id="r")
    store.delete("r")
    with pytest.raises(RunNotFound):
        await runner.run(nodes, Number(), run_id="r", resume=True)
    assert calls["a"] == 1


@pytest.mark.parametrize(
    "wish", [{"resume": True}, {"resume_from": "a"}, {"restart": True}], ids=repr
)
async def test_what_is_about_a_run_needs_its_id(calls: Calls, wish: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="run_id"):
        await make_runner().run([calls.node("a")], Number(), **wish)


@pytest.mark.parametrize("wish", [{"resume": True}, {"resume_from": "a"}], ids=repr)
async def test_restart_contradicts_going_on(calls: Calls, wish: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="restart forgets"):
        await make_runner().run([calls.node("a")], Number(), run_id="r", restart=True, **wish)


# -- one owner -------------------------------------------------------------------------------


async def test_a_second_worker_is_told_who_has_the_run(store: Any, calls: Calls) -> None:
    inside, leave = asyncio.Event(), asyncio.Event()

    @node
    async def a(state: Number) -> Number:
        inside.set()
        await leave.wait()
        return state

    runner = make_runner(store)
    first = asyncio.create_task(runner.run([a], Number(), run_id="r"))
    await inside.wait()
    with pytest.raises(
        RunLocked, match=r"owned by process \d+ on .*for at least .* s more, and longer"
    ) as caught:
        await runner.run([a], Number(), run_id="r")
    assert 0 < caught.value.until_seconds <= 900
    leave.set()
    assert (await first).status is RunStatus.COMPLETED
    assert (await runner.run([a], Number(), run_id="r")).status is RunStatus.RESUMED


async def test_two_workers_at_once_call_each_node_once(store: Any, calls: Calls) -> None:
    runner, nodes = make_runner(store), [calls.node("a"), calls.node("b")]
    runs = [runner.run(nodes, Number(), run_id="r") for _ in range(5)]
    outcomes = await asyncio.gather(*runs, return_exceptions=True)
    assert (calls["a"], calls["b"]) == (1, 1)
    finished = [o for o in outcomes if not isinstance(o, RunLocked)]
    assert all(result.final_state == Number(value=2) for result in finished)
    assert finished


async def test_a_worker_that_lost_the_run_makes_nothing_visible(
    calls: Calls, caplog: pytest.LogCaptureFixture
) -> None:
    from tests.core.helpers import FakeClock

    clock = FakeClock()
    store = InMemoryStore(clock=clock)
    inside, leave = asyncio.Event(), asyncio.Event()

    @node(id="a", input=Number, output=Number)
    async def paused(state: Number) -> Number:
        inside.set()
        await leave.wait()
        return Number(value=1)

    slow = asyncio.create_task(
        make_runner(store, lease_seconds=5).run([paused], Number(), run_id="r")
    )
    await inside.wait()
    clock.advance(6)
    quick = await make_runner(store).run([calls.node("a", {"value": 2})], Number(), run_id="r")
    leave.set()
    with caplog.at_level(logging.WARNING, "stroma"), pytest.raises(StaleOwner):
        await slow
    assert quick.final_state == Number(value=2)
    again = await make_runner(store).run([calls.node("a")], Number(), run_id="r")
    assert again.final_state == Number(value=2)
    assert caplog.text == ""


# -- what stands in the record ---------------------------------------------------------------


async def test_the_record_tells_what_ran(store: Any, calls: Calls) -> None:
    digest = Pipeline("digest", [calls.node("a", ({"value": 1}, 7, "m"))], version="3")
    runner = make_runner(store, tags=("nightly", "eu")).with_budget(tokens=100)
    await runner.run(digest, Number(), run_id="r")
    run = await stored_run(store, "r")
    assert (run.pipeline, run.version, run.tags) == ("digest", "3", ("nightly", "eu"))
    assert run.spend.tokens == 7
    assert b'"tokens":"100"' in run.plan.replace(b" ", b"")


async def test_the_record_tells_how_a_stopped_run_stands(store: Any, calls: Calls) -> None:
    result = await make_runner(store).run([calls.node("a", TypeError("bug"))], Number(), run_id="r")
    run = await stored_run(store, "r")
    assert (run.status, run.stop_reason, run.owner) == (RunStatus.FAILED, result.stop_reason, "")
