"""A sync node cannot be cut: a cancelled run waits for it, and keeps what it paid for."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

import stroma
from stroma import calling
from tests.core.helpers import Number, make_runner


class Slow:
    """A sync node that returns when it is told to."""

    def __init__(self) -> None:
        self.started = threading.Event()
        self.go_on = threading.Event()
        self.calls = 0

        @stroma.node(id="slow", input=Number, output=Number)
        def slow(state: Number) -> Number:
            self.calls += 1
            self.started.set()
            assert self.go_on.wait(10)
            return Number(value=state.value + 1)

        self.node = slow


async def started(slow: Slow) -> None:
    while not slow.started.is_set():
        await asyncio.sleep(0.001)


async def test_what_a_sync_node_returns_after_a_cancellation_is_recorded(store: Any) -> None:
    slow, runner = Slow(), make_runner(store)
    run = asyncio.create_task(runner.run([slow.node], Number(value=1), run_id="job"))
    await started(slow)

    run.cancel()
    await asyncio.sleep(0.01)
    slow.go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await run

    result = await runner.run([slow.node], Number(value=1), run_id="job")
    assert (result.final_state, slow.calls) == (Number(value=2), 1)


async def test_a_sync_node_that_does_not_return_is_given_up_after_a_while(
    store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calling, "THREAD_GRACE_SECONDS", 0.01)
    slow, runner = Slow(), make_runner(store)
    run = asyncio.create_task(runner.run([slow.node], Number(value=1), run_id="job"))
    await started(slow)

    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    slow.go_on.set()

    result = await runner.run([slow.node], Number(value=1), run_id="job")
    assert (result.final_state, slow.calls) == (Number(value=2), 2)


async def test_a_timeout_does_not_wait_for_a_sync_node(store: Any) -> None:
    slow = Slow()
    runner = make_runner(store, node_timeouts={"slow": 20}, policy_map={})
    result = await runner.run([slow.node], Number(value=1))
    slow.go_on.set()

    assert "timeout of 20 ms" in result.stop_reason
    assert [doubt.reason for doubt in result.in_doubt] == ["timeout"] * slow.calls


async def test_an_output_that_does_not_fit_is_not_bought_again_after_a_cancellation(
    store: Any,
) -> None:
    started, go_on = threading.Event(), threading.Event()
    calls: list[int] = []

    @stroma.node(id="slow", input=Number, output=Number)
    def slow(state: Number) -> Any:
        calls.append(1)
        started.set()
        assert go_on.wait(10)
        return {"value": "many"}, 5

    runner = make_runner(store)
    run = asyncio.create_task(runner.run([slow], Number(), run_id="job"))
    while not started.is_set():
        await asyncio.sleep(0.001)
    run.cancel()
    await asyncio.sleep(0.01)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await run

    result = await runner.run([slow], Number(), run_id="job")
    assert "is paid for and still does not fit" in result.stop_reason
    assert (result.tokens, len(calls)) == (5, 1)
