"""A task goes on in the turn of the loop in which its reply is heard."""

from __future__ import annotations

import asyncio
import contextvars

import pytest

from stroma_redis._prompt import PromptFuture

name: contextvars.ContextVar[str] = contextvars.ContextVar("name", default="nobody")


class Waiting:
    """A task that awaits a future, and what has happened, in order."""

    def __init__(self) -> None:
        self.future: PromptFuture[str] = PromptFuture(asyncio.get_running_loop())
        self.happened: list[str] = []
        self.task = asyncio.create_task(self._wait())

    async def _wait(self) -> str:
        name.set("the task")
        result = await self.future
        self.happened.append(f"{name.get()} goes on with {result}")
        return result

    def hear(self, result: str) -> None:
        """Set the result, as a protocol does that the loop calls."""
        self.happened.append("heard")
        self.future.set_result(result)
        self.happened.append("done")


@pytest.fixture
async def waiting() -> Waiting:
    waiting = Waiting()
    await asyncio.sleep(0)
    return waiting


async def test_the_task_goes_on_before_the_result_is_set(waiting: Waiting) -> None:
    asyncio.get_running_loop().call_soon(waiting.hear, "1")
    assert await waiting.task == "1"
    assert waiting.happened == ["heard", "the task goes on with 1", "done"]
    assert name.get() == "nobody"


async def test_a_task_that_sets_the_result_is_not_entered(waiting: Waiting) -> None:
    waiting.hear("1")
    assert waiting.happened == ["heard", "done"]
    assert await waiting.task == "1"
    assert waiting.happened[2:] == ["the task goes on with 1"]


async def test_a_result_that_is_there_already() -> None:
    waiting = Waiting()
    waiting.future.set_result("1")
    assert await waiting.task == "1"


async def test_a_task_that_is_cancelled(waiting: Waiting) -> None:
    waiting.task.cancel("enough")
    with pytest.raises(asyncio.CancelledError, match="enough"):
        await waiting.task
    assert waiting.future.done()
    assert not waiting.future.cancel()
    assert waiting.happened == []


async def test_a_cancellation_that_comes_with_the_result(waiting: Waiting) -> None:
    """The result is there, and the task has not heard of it: it is cancelled all the same."""
    waiting.hear("1")
    waiting.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting.task
    assert waiting.future.result() == "1"


async def test_no_result_yet() -> None:
    future: PromptFuture[str] = PromptFuture(asyncio.get_running_loop())
    with pytest.raises(asyncio.InvalidStateError, match="no result yet"):
        future.result()


async def test_an_interrupt_leaves_by_who_sets_the_result() -> None:
    """As it leaves a callback of the loop, which then ends."""
    future: PromptFuture[str] = PromptFuture(asyncio.get_running_loop())
    left: list[BaseException] = []

    async def wait() -> None:
        await future
        raise KeyboardInterrupt

    def hear() -> None:
        try:
            future.set_result("1")
        except BaseException as exc:
            left.append(exc)

    task = asyncio.ensure_future(wait())
    await asyncio.sleep(0)
    asyncio.get_running_loop().call_soon(hear)
    await asyncio.wait({task})
    assert [type(exc) for exc in (*left, task.exception())] == [KeyboardInterrupt] * 2
