"""Callbacks at the boundaries of runs, nodes and attempts: they never change a run."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from typing import Any

import pytest

from stroma import (
    ConfigError,
    ExecutionResult,
    FailureClass,
    NodeHooks,
    RunStart,
    RunStatus,
    fan_out,
    node,
    parallel,
)
from tests.core.helpers import Calls, Number, make_runner, stored

VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("VARIABLE", default="unset")
EVENTS = [
    "on_run_start",
    "on_node_start",
    "on_node_success",
    "on_node_failure",
    "on_retry",
    "on_budget",
    "on_run_end",
]


class Counting(NodeHooks):
    """Methods instead of arguments."""

    def __init__(self) -> None:
        super().__init__(name="counting")
        self.started: list[str] = []

    async def on_node_start(self, run_id: str, node_id: str, state: dict[str, Any]) -> None:
        self.started.append(node_id)


async def test_methods_of_a_subclass_are_callbacks(calls: Calls) -> None:
    hooks = Counting()
    await make_runner(hooks=hooks).run([calls.node("a"), calls.node("b")], Number())
    assert hooks.started == ["a", "b"]


async def test_a_run_is_told_from_start_to_end(calls: Calls) -> None:
    told: list[tuple[Any, ...]] = []
    error = RuntimeError("odd")
    hooks = NodeHooks(
        on_run_start=lambda start: told.append(("run start", start.run_id)),
        on_node_start=lambda run, node_id, state: told.append(("start", run, node_id, state)),
        on_node_failure=lambda run, node_id, exc, cls: told.append(("failure", node_id, exc, cls)),
        on_retry=lambda details: told.append(("retry", details.attempt)),
        on_node_success=lambda run, node_id, state, tokens: told.append(
            ("success", run, node_id, state, tokens)
        ),
        on_run_end=lambda result: told.append(("run end", result.status)),
    )
    nodes = [calls.node("a", error, ({"value": 2}, 7))]
    await make_runner(hooks=hooks).run(nodes, Number(value=1), run_id="r")
    assert told == [
        ("run start", "r"),
        ("start", "r", "a", {"value": 1}),
        ("failure", "a", error, FailureClass.AMBIGUOUS),
        ("retry", 1),
        ("start", "r", "a", {"value": 1}),
        ("success", "r", "a", {"value": 2}, 7),
        ("run end", RunStatus.COMPLETED),
    ]


async def test_hooks_may_be_coroutines(calls: Calls) -> None:
    told: list[str] = []

    async def start(run_id: str, node_id: str, state: dict[str, Any]) -> None:
        await asyncio.sleep(0)
        told.append(node_id)

    await make_runner(hooks=NodeHooks(on_node_start=start)).run([calls.node("a")], Number())
    assert told == ["a"]


async def test_several_hooks_are_called_in_their_order(calls: Calls) -> None:
    told: list[int] = []
    hooks = [NodeHooks(on_node_start=lambda *a, n=n: told.append(n)) for n in range(3)]
    await make_runner().with_hooks(hooks).run([calls.node("a")], Number())
    assert told == [0, 1, 2]


async def test_success_is_told_after_the_commit(store: Any, calls: Calls) -> None:
    recorded: list[list[str]] = []

    async def success(run_id: str, node_id: str, state: Any, tokens: int) -> None:
        recorded.append([h.path for h in (await stored(store, run_id)).headers])

    runner = make_runner(store, hooks=NodeHooks(on_node_success=success))
    await runner.run([calls.node("a"), calls.node("b")], Number(), run_id="r")
    assert recorded == [["a"], ["a", "b"]]


async def test_a_run_start_tells_what_is_recorded(store: Any, calls: Calls) -> None:
    told: list[RunStart] = []
    runner = make_runner(store, hooks=NodeHooks(on_run_start=told.append))
    nodes = [calls.node("a"), calls.node("b", TypeError(), {"value": 1})]
    await runner.run(nodes, Number(), run_id="r")
    await runner.run(nodes, Number(), run_id="r")
    await runner.run(nodes, Number(), run_id="r", resume_from="b")
    assert [start.recorded for start in told] == [(), ("a",), ("a",)]
    assert [start.epoch for start in told] == [0, 0, 1]
    assert told[0].node_ids == ("a", "b")


@pytest.mark.parametrize("event", EVENTS)
async def test_what_a_hook_raises_changes_nothing_and_is_logged_once(
    calls: Calls, caplog: pytest.LogCaptureFixture, event: str, store: Any
) -> None:
    def broken(*args: object) -> None:
        raise ValueError("hook is broken")

    runner = make_runner(store, hooks=NodeHooks(**{event: broken}, name="metrics"))
    runner.with_budget(tokens=5)
    nodes = [
        calls.node("a", RuntimeError(), {"value": 1}),
        calls.node("b", TimeoutError(), ({"value": 2}, 10)),
        parallel(calls.node("c"), calls.node("d")),
    ]
    with caplog.at_level(logging.WARNING, "stroma"):
        result = await runner.run(nodes, Number())
    assert (result.status, result.final_state) == (RunStatus.PARTIAL, Number(value=2))
    assert (calls["a"], calls["b"]) == (2, 2)
    assert caplog.text.count(f"hook metrics raised in {event}") == 1


async def test_a_hook_that_waits_for_something_cancelled_changes_nothing(
    calls: Calls, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(*args: object) -> None:
        inner = asyncio.ensure_future(asyncio.sleep(60))
        asyncio.get_running_loop().call_soon(inner.cancel)
        await inner

    runner = make_runner(hooks=NodeHooks(on_node_start=broken, on_run_end=broken))
    result = await runner.run([calls.node("a")], Number())
    assert result.status is RunStatus.COMPLETED
    assert "broken raised in on_node_start" in caplog.text


async def test_a_variable_set_at_the_start_of_a_node_is_seen_inside_it() -> None:
    seen: dict[str, str] = {}

    def start(run_id: str, node_id: str, state: dict[str, Any]) -> None:
        VARIABLE.set(node_id)

    def child(node_id: str, *, sync: bool = False) -> Any:
        def look(state: Number) -> Number:
            seen[node_id] = VARIABLE.get()
            return state

        async def alook(state: Number) -> Number:
            await asyncio.sleep(0)
            return look(state)

        return node(id=node_id, input=Number, output=Number)(look if sync else alook)

    both = parallel(child("a"), child("b"), child("c", sync=True))
    await make_runner(hooks=NodeHooks(on_node_start=start)).run([both], Number())
    assert seen == {"a": "a", "b": "b", "c": "c"}


async def test_states_are_dicts_that_belong_to_the_hook(calls: Calls) -> None:
    def start(run_id: str, node_id: str, state: dict[str, Any]) -> None:
        state["value"] = 99

    runner = make_runner(
        hooks=NodeHooks(on_node_start=start, on_node_success=lambda *a: start(*a[:3]))
    )
    result = await runner.run([calls.node("a")], Number(value=1))
    assert result.final_state == Number(value=2)


async def test_the_end_is_told_whatever_the_status(calls: Calls) -> None:
    ends: list[ExecutionResult] = []
    runner = make_runner(hooks=NodeHooks(on_run_end=ends.append))
    results = [
        await runner.run([calls.node("ok")], Number()),
        await runner.run([calls.node("slow", TimeoutError())], Number()),
        await runner.run([calls.node("bug", TypeError())], Number()),
        await runner.run([calls.node("bad input")], {"value": "x"}),
    ]
    assert ends == results
    assert [result.status for result in ends] == ["COMPLETED", "PARTIAL", "FAILED", "FAILED"]


async def test_hooks_of_items_name_the_item(calls: Calls) -> None:
    from tests.core.test_fan_out import Batch

    told: list[str] = []
    hooks = NodeHooks(on_node_success=lambda run, node_id, state, tokens: told.append(node_id))
    each = fan_out(calls.node("w"), over="items", into="done", max_concurrency=1)
    await make_runner(hooks=hooks).run([each], Batch(items=[Number()] * 2))
    assert told == ["w[0]", "w[1]"]


@pytest.mark.parametrize(
    "hooks", ["x", [1], {"on_node_start": print}, [NodeHooks(), None]], ids=repr
)
def test_what_are_no_hooks_is_refused(hooks: Any) -> None:
    with pytest.raises(ConfigError, match=r"hooks: .*NodeHooks"):
        make_runner().with_hooks(hooks)


def test_a_hook_that_cannot_be_called_is_refused() -> None:
    with pytest.raises(ConfigError, match="on_node_start"):
        make_runner().with_hooks(NodeHooks(on_node_start="print"))  # type: ignore[arg-type]
