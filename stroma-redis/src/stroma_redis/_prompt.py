"""A future whose task goes on at once, and not in the next turn of the loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from contextvars import Context
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class PromptFuture(Generic[T]):
    """What one task awaits, and goes on with inside `set_result`.

    asyncio's own future has its task called in the next turn of the loop. A turn takes as long as
    a quick server takes to answer. Nothing else is left out: what sets the result is called by
    the loop itself, as the task would be. If a task calls it, it takes that turn all the same,
    as a task cannot go on inside another one.

    This is the interface that `asyncio.Task` needs of a future, and no more: it is awaited by one
    task, once.

    Args:
        loop: the running loop.
    """

    __slots__ = ("_asyncio_future_blocking", "_call", "_cancelled", "_context", "_loop", "_result")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._asyncio_future_blocking = False
        self._loop = loop
        self._call: Callable[[PromptFuture[T]], object] | None = None
        self._context: Context | None = None
        self._result: tuple[T] | None = None
        self._cancelled: asyncio.CancelledError | None = None

    def done(self) -> bool:
        """Say whether there is a result, or will be none."""
        return self._result is not None or self._cancelled is not None

    def set_result(self, result: T) -> None:
        """Give the result to the task, which goes on before this returns."""
        self._result = (result,)
        if self._call is None:
            return
        if self._context is None or asyncio.current_task(self._loop) is not None:
            self._loop.call_soon(self._call, self, context=self._context)
        else:
            self._context.run(self._call, self)

    def cancel(self, msg: Any = None) -> bool:
        """Note that the task is cancelled; it does so by itself."""
        if self.done():
            return False
        self._cancelled = asyncio.CancelledError() if msg is None else asyncio.CancelledError(msg)
        if self._call is not None:
            self._loop.call_soon(self._call, self, context=self._context)
        return True

    def result(self) -> T:
        """Return the result.

        Raises:
            asyncio.CancelledError: the task is cancelled.
            asyncio.InvalidStateError: there is none yet.
        """
        if self._cancelled is not None:
            raise self._cancelled
        if self._result is None:
            raise asyncio.InvalidStateError("there is no result yet")
        return self._result[0]

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """Return the loop."""
        return self._loop

    def add_done_callback(
        self, call: Callable[[PromptFuture[T]], object], *, context: Context | None = None
    ) -> None:
        """Have the task called when it can go on."""
        self._call, self._context = call, context

    def __await__(self) -> Generator[PromptFuture[T], None, T]:
        if not self.done():
            self._asyncio_future_blocking = True
            yield self
        return self.result()
