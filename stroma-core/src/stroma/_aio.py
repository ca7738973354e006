"""Small asyncio helpers that several layers need."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, TypeVar, cast

T = TypeVar("T")


async def settled(value: T | Awaitable[T]) -> T:
    """Return ``value``, awaited when it is awaitable: how sync and async stores are told apart."""
    if hasattr(value, "__await__"):  # inspect.isawaitable takes as long as a store in memory
        return await value  # pyright: ignore[reportGeneralTypeIssues]
    return value  # pyright: ignore[reportReturnType]


class CancelWatch:
    """Tells whether somebody asked to cancel the current task, since the watch was made.

    A `CancelledError` does not say so, since awaiting something else that was cancelled raises
    it, too; and other exceptions may stand in its place.
    """

    __slots__ = ("_before", "_task")

    def __init__(self) -> None:
        self._task = asyncio.current_task()
        self._before = 0 if self._task is None else self._task.cancelling()

    def is_cancelled(self) -> bool:
        """Say whether the task that calls this is to end."""
        task = asyncio.current_task()
        if task is None:
            return True
        return task.cancelling() > (self._before if task is self._task else 0)


class UncutFuture(asyncio.Future[T]):
    """A future that is waited for even while being cancelled.

    The cancellation of who awaits it is raised when it is done. A plain await and a bare
    `asyncio.shield` both lose a save when the loop shuts down, since nobody waits for it any
    more, and a shield takes a turn of the loop.

    Args:
        grace_seconds: how long to go on waiting after the first cancellation; None waits for
            as long as it takes.
        loop: the running loop.
    """

    def __init__(
        self,
        grace_seconds: float | None = None,
        *,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(loop=loop)
        self._grace_seconds = grace_seconds
        self._end_of_grace: asyncio.TimerHandle | None = None

    def cancel(self, msg: object = None) -> bool:
        """Refuse to be cancelled; asyncio then cancels who awaits this at the end."""
        if self._grace_seconds is not None and self._end_of_grace is None and not self.done():
            give_up = partial(super().cancel, msg)
            self._end_of_grace = self.get_loop().call_later(self._grace_seconds, give_up)
            self.add_done_callback(self._end_grace)
        return False

    def _end_grace(self, _: object) -> None:
        if self._end_of_grace is not None:
            self._end_of_grace.cancel()

    def tell(self, _: object = None) -> None:
        """Say that the end has come; once more does no harm."""
        if not self.done():
            self.set_result(cast(T, None))


async def finish(work: asyncio.Future[T], *, grace_seconds: float | None = None) -> T:
    """Wait for ``work`` even while being cancelled, then raise the cancellation.

    Args:
        work: what must not be cut.
        grace_seconds: see `UncutFuture`.

    Returns:
        The result of ``work``.

    Raises:
        asyncio.CancelledError: cancelled meanwhile; ``work`` is done, or the grace is over.
    """
    end: UncutFuture[None] = UncutFuture(grace_seconds)
    work.add_done_callback(end.tell)
    return await _result_at(end, work)


async def uncut(work: Coroutine[Any, Any, T], *, grace_seconds: float | None = None) -> T:
    """Run a coroutine to its end even while being cancelled: `finish` in a task of its own.

    From Python 3.12 on, it goes as far as it can before this waits: what it sends is under way
    at once. Not so in a loop that makes tasks in a way of its own, which is kept.
    """
    loop = asyncio.get_running_loop()
    end: UncutFuture[None] = UncutFuture(grace_seconds, loop=loop)

    async def run() -> T:
        try:
            return await work
        finally:
            end.tell()  # a callback of the task would take another turn of the loop

    if sys.version_info >= (3, 12) and loop.get_task_factory() is None:
        task = asyncio.Task(run(), loop=loop, eager_start=True)
    else:
        task = loop.create_task(run())
        task.add_done_callback(end.tell)  # cancelled before it began, it says nothing itself
        task.add_done_callback(lambda _: work.close())  # nor does it look at its work
    return await _result_at(end, task)


async def _result_at(end: UncutFuture[None], work: asyncio.Future[T]) -> T:
    try:
        await end
    except asyncio.CancelledError:
        work.add_done_callback(_retrieve)
        raise
    return work.result()


def _retrieve(work: asyncio.Future[Any]) -> None:
    """Look at an exception that nobody waits for, so that the loop does not report it as lost."""
    if not work.cancelled():
        work.exception()


async def uncut_within(work: Coroutine[Any, Any, T], seconds: float) -> T:
    """Run a coroutine to its end even while being cancelled, but not for longer than this.

    Raises:
        TimeoutError: it took longer, and goes on by itself.
        asyncio.CancelledError: cancelled meanwhile; ``work`` is done, or the time is over.
    """
    task, loop = asyncio.ensure_future(work), asyncio.get_running_loop()
    deadline, cancelled = loop.time() + seconds, None
    while not task.done() and (left := deadline - loop.time()) > 0:
        try:
            await asyncio.wait({task}, timeout=left)
        except asyncio.CancelledError as exc:
            cancelled = exc
    if task.done() and not task.cancelled():
        task.exception()  # retrieved, so that the loop does not report it as lost
    if cancelled is not None:
        raise cancelled
    if not task.done():
        raise TimeoutError(f"not done within {seconds:g} s")
    return task.result()


async def first_of(*works: Coroutine[Any, Any, object]) -> None:
    """Run coroutines side by side until one of them ends, and cancel the others.

    Raises:
        Exception: what one that has ended raised.
    """
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in ended:
        task.result()


def in_daemon_thread(call: Callable[[], T]) -> asyncio.Future[T]:
    """Run ``call`` in a thread of its own, with a copy of the current context variables.

    Nothing can cut a thread. A daemon thread per call keeps a call that never returns from
    holding a pool's slot or the exit of the process; a late result is dropped.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()
    context = contextvars.copy_context()

    def deliver(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(cast(T, result))

    def body() -> None:
        result: T | None = None
        error: BaseException | None = None
        try:
            result = context.run(call)
        except StopIteration as exc:  # a future refuses it
            error = RuntimeError("the call raised StopIteration")
            error.__cause__ = exc
        except BaseException as exc:
            error = exc
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(deliver, result, error)

    threading.Thread(target=body, name="stroma-sync-node", daemon=True).start()
    return future


async def call_store(store: object, operation: str, *args: object) -> object:
    """Call an operation of a store: directly, awaited, or in a thread if it asks for one.

    A store asks by an attribute ``run_in_thread`` that is true.
    """
    method = getattr(store, operation)
    if getattr(store, "run_in_thread", False):
        return await in_daemon_thread(lambda: method(*args))
    return await settled(method(*args))
