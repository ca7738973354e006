"""Nodes that are plain functions run in threads, which nothing can cut."""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from stroma import NodeTimeout, RunStatus, current, fan_out, node, parallel, report_usage
from stroma.cost import ExecutionBudget
from tests.core.helpers import Calls, Number, make_runner
from tests.core.test_fan_out import Batch


@pytest.fixture
def release() -> Iterator[threading.Event]:
    """Lets blocked threads go at the end."""
    event = threading.Event()
    yield event
    event.set()
    for thread in threading.enumerate():
        if thread.name == "stroma-sync-node":
            thread.join(5)


async def test_a_plain_function_runs_in_a_thread_of_its_own(store: Any) -> None:
    threads: list[threading.Thread] = []

    @node
    def a(state: Number) -> Number:
        threads.append(threading.current_thread())
        return Number(value=state.value + 1)

    result = await make_runner(store).run([a], Number())
    assert (result.status, result.final_state) == (RunStatus.COMPLETED, Number(value=1))
    assert threads[0] is not threading.main_thread()
    assert threads[0].daemon


async def test_the_loop_goes_on_meanwhile(release: threading.Event) -> None:
    @node
    def a(state: Number) -> Number:
        assert release.wait(5)
        return state

    run = asyncio.create_task(make_runner().run([a], Number()))
    await asyncio.sleep(0.01)
    assert not run.done()
    release.set()
    assert (await run).status is RunStatus.COMPLETED


async def test_every_form_of_output_and_failure_is_as_for_coroutines(calls: Calls) -> None:
    @node
    def a(state: Number) -> tuple[Number, int]:
        calls.made["a"] += 1
        if calls["a"] < 3:
            raise TimeoutError("slow")
        return Number(value=1), 5

    result = await make_runner().run([a], Number())
    assert (result.status, result.tokens, calls["a"]) == (RunStatus.COMPLETED, 5, 3)


async def test_it_gets_the_context_and_its_scope() -> None:
    @node
    def a(state: Number, ctx: dict[str, object]) -> Number:
        report_usage(input_tokens=3)
        ctx["seen"] = current().path
        return state

    context: dict[str, object] = {}
    result = await make_runner().with_context(context).run([a], Number())
    assert (result.tokens, context) == (3, {"seen": "a"})


async def test_a_function_that_returns_a_coroutine_is_awaited() -> None:
    async def work(state: Number) -> Number:
        return Number(value=7)

    a = node(id="a", input=Number, output=Number)(lambda state: work(state))  # noqa: PLW0108 - what is under test
    assert (await make_runner().run([a], Number())).final_state == Number(value=7)


async def test_wrapped_and_partial_functions_and_objects_are_told_apart() -> None:
    here: list[bool] = []

    async def work(state: Number, add: int = 1) -> Number:
        here.append(threading.current_thread() is threading.main_thread())
        return Number(value=state.value + add)

    async def plus_one(state: Number) -> Number:
        return await work(state)

    @functools.wraps(plus_one)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return plus_one(*args, **kwargs)

    class Worker:
        async def __call__(self, state: Number) -> Number:
            return await work(state)

    options = {"input": Number, "output": Number}
    nodes = [
        node(id="wrapped", **options)(wrapped),
        node(id="partial", **options)(functools.partial(work, add=5)),
        node(id="object", **options)(Worker()),
    ]
    result = await make_runner().run(nodes, Number())
    assert (result.final_state, here) == (Number(value=7), [True, True, True])


async def test_a_timeout_is_charged_as_in_doubt_and_a_late_result_dropped(
    release: threading.Event, calls: Calls
) -> None:
    @node(timeout_ms=300)  # within which a thread starts on a busy machine, too
    def a(state: Number) -> Number:
        calls.made["a"] += 1
        report_usage(input_tokens=4)
        if calls["a"] == 1:
            release.wait(5)
            return Number(value=-1)
        return Number(value=1)

    result = await make_runner().run([a], Number())
    release.set()
    assert (result.status, result.final_state) == (RunStatus.COMPLETED, Number(value=1))
    assert [(d.path, d.attempt, d.reason) for d in result.in_doubt] == [("a", 1, "timeout")]
    assert result.tokens == 8


async def test_a_timeout_is_recoverable_and_named(calls: Calls, release: threading.Event) -> None:
    async def slow(state: Number) -> Number:
        calls.made["a"] += 1
        await asyncio.sleep(60)
        return state

    a = node(id="a", input=Number, output=Number)(slow)
    result = await make_runner().with_node_timeouts({"a": 5}).run([a], Number())
    assert (result.status, calls["a"]) == (RunStatus.PARTIAL, 4)
    assert isinstance(result.error, NodeTimeout)
    assert isinstance(result.error, TimeoutError)
    assert "a took longer than its timeout of 5 ms" in result.stop_reason
    assert len(result.in_doubt) == 4


async def test_the_latency_budget_cuts_the_wait(release: threading.Event) -> None:
    @node
    def a(state: Number) -> Number:
        release.wait(5)
        return state

    runner = make_runner(budget=ExecutionBudget(latency_ms=20))
    result = await runner.run([a], Number())
    assert result.status is RunStatus.PARTIAL
    assert [d.reason for d in result.in_doubt] == ["latency"]


async def test_stop_iteration_is_a_failure_like_others() -> None:
    @node
    def a(state: Number) -> Number:
        return next(iter(()))

    result = await make_runner().run([a], Number())
    assert result.status is RunStatus.FAILED
    assert "StopIteration" in result.stop_reason


async def test_side_by_side_they_run_in_threads_side_by_side() -> None:
    barrier = threading.Barrier(3, timeout=5)

    def child(node_id: str) -> Any:
        @node(id=node_id, input=Number, output=Number)
        def meet(state: Number) -> Number:
            barrier.wait()
            return state

        return meet

    runner = make_runner()
    result = await runner.run([parallel(*(child(name) for name in "abc"))], Number())
    assert result.status is RunStatus.COMPLETED
    each = fan_out(child("w"), over="items", into="done", max_concurrency=3)
    result = await runner.run([each], Batch(items=[Number()] * 6))
    assert result.status is RunStatus.COMPLETED


async def test_no_thread_is_left_behind() -> None:
    @node
    def a(state: Number) -> Number:
        return state

    before = threading.active_count()
    for _ in range(20):
        await make_runner().run([a], Number())
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        await asyncio.sleep(0.001)
    assert threading.active_count() <= before  # an earlier one may have ended meanwhile


def test_the_exit_of_the_process_is_not_held(tmp_path: Any) -> None:
    import subprocess
    import sys

    program = tmp_path / "held.py"
    program.write_text(
        "import time\n"
        "from pydantic import BaseModel\n"
        "import stroma\n"
        "class N(BaseModel):\n"
        "    value: int = 0\n"
        "@stroma.node(timeout_ms=10, policy=stroma.FailurePolicy(max_retries=0))\n"
        "def stuck(state: N) -> N:\n"
        "    time.sleep(60)\n"
        "    return state\n"
        "print(stroma.StromaRunner().run_sync([stuck], N()).status)\n"
    )
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=30)
    assert (done.stdout, done.stderr, done.returncode) == ("PARTIAL\n", "", 0)
