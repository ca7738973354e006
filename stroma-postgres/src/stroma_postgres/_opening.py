"""Opening connections, each in a task that is cut neither with its caller nor by its loop's end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final, Generic, TypeVar

C = TypeVar("C")

_PATIENCE_SECONDS: Final = 1.0
"""How long what is being opened may still take when everything is closed."""

_CUT_SECONDS: Final = 1.0
"""How long it may take to clean up when it is cut."""

_TURNS: Final = 6
"""Turns of the event loop in which what came from the server gets to the driver."""


class Openings(Generic[C]):
    """Connections that are being opened.

    When `asyncpg.connect` is cancelled while the loop makes the transport, the driver leaves a
    future behind whose exception nobody retrieves, and the loop complains of it. So it is left to
    end, and the connection goes to whoever wants it. Whoever makes one of these has it ended
    before the loop is closed.

    Args:
        patience_seconds: how long what is being opened may still take at the end.
    """

    def __init__(self, patience_seconds: float = _PATIENCE_SECONDS) -> None:
        self._patience = patience_seconds
        self._tasks: set[asyncio.Task[C]] = set()

    async def open(
        self, connect: Callable[[], Coroutine[Any, Any, C]], unclaimed: Callable[[C | None], None]
    ) -> C:
        """Return a new connection.

        Args:
            connect: opens it.
            unclaimed: is called when the caller does not get it: with the connection, if the
                caller was cancelled meanwhile, or with None, if there is none.

        Raises:
            Exception: what ``connect`` raises.
        """
        task = uncut_task(connect())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            await asyncio.wait((task,))
        except BaseException:
            task.add_done_callback(lambda done: unclaimed(_connection_of(done)))
            raise
        if _connection_of(task) is None:
            unclaimed(None)
        return task.result()

    async def end(self) -> None:
        """Wait for what is being opened, and cut what takes too long: the server is silent.

        Silence is what the loop has heard: where the loop itself stood still for so long, it first
        takes what has come meanwhile.
        """
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self._patience)
        for _ in range(_TURNS if self._tasks else 0):
            await asyncio.sleep(0)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_CUT_SECONDS)


def uncut_task(work: Coroutine[Any, Any, C]) -> asyncio.Task[C]:
    """Start a task that `asyncio.run` does not cancel at its end: whoever starts it waits for it.

    `asyncio.all_tasks` does not see it:
    https://docs.python.org/3/library/asyncio-extending.html#task-lifetime-support
    """
    task = asyncio.create_task(work)
    asyncio._unregister_task(task)  # pyright: ignore[reportPrivateUsage]
    return task


def _connection_of(task: asyncio.Task[C]) -> C | None:
    """Return what was opened; looking at the exception also tells the loop that it is known."""
    return None if task.cancelled() or task.exception() is not None else task.result()
