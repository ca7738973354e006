"""Clients of servers belong to one event loop of one process: one for each, made when asked for."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import weakref
from collections.abc import Awaitable, Callable
from typing import Any, Final, Generic, TypeVar

T = TypeVar("T")


class PerLoop(Generic[T]):
    """Keeps one thing, such as a client or a pool, for each event loop that asks for it.

    For authors of stores, whose objects serve several loops and survive a fork: a connection
    that another loop or the parent process uses as well breaks both.

    Args:
        make: makes one for the running loop. It should not connect yet.
        close: closes one in the loop that it was made for.
        abandon: lets go of one whose loop is closed, so that its sockets do not stay open; it
            must not await anything. Not called for those that a fork inherited: what closes a
            connection politely would close the parent's. None does nothing.
    """

    def __init__(
        self,
        make: Callable[[], T],
        close: Callable[[T], Awaitable[object]],
        abandon: Callable[[T], object] | None = None,
    ) -> None:
        self._make = make
        self._close = close
        self._abandon = abandon
        self._guard = threading.Lock()
        self._kept: dict[asyncio.AbstractEventLoop, T] = {}
        self._is_closed = False
        _all.add(self)

    @property
    def is_closed(self) -> bool:
        """`aclose` was called."""
        return self._is_closed

    def get(self) -> T:
        """Return the running loop's own; made now if this is the first time.

        Raises:
            RuntimeError: no loop is running.
        """
        loop = asyncio.get_running_loop()
        found = self._kept.get(loop)
        return self._make_for(loop) if found is None else found

    def _make_for(self, loop: asyncio.AbstractEventLoop) -> T:
        with self._guard:
            self._drop_closed_loops()
            made = self._kept[loop] = self._make()
            return made

    def discard(self, thing: T) -> bool:
        """Forget the running loop's own if it is this one; the caller closes it.

        Returns:
            Whether it was.
        """
        loop = asyncio.get_running_loop()
        with self._guard:
            if self._kept.get(loop) is not thing:
                return False
            del self._kept[loop]
            return True

    async def aclose(self) -> None:
        """Close the running loop's own, and let go of the others.

        One that another running loop uses is closed there.
        """
        here = asyncio.get_running_loop()
        with self._guard:
            self._is_closed = True
            kept, self._kept = self._kept, {}
        mine = kept.pop(here, None)
        for loop, thing in kept.items():
            if loop.is_closed():
                self._let_go(thing)
                continue
            with contextlib.suppress(RuntimeError):  # it was closed just now
                loop.call_soon_threadsafe(_close_in, loop, self._close, thing)
        if mine is not None:
            await self._close(mine)

    def _drop_closed_loops(self) -> None:
        for loop in [loop for loop in self._kept if loop.is_closed()]:
            self._let_go(self._kept.pop(loop))

    def _let_go(self, thing: T) -> None:
        if self._abandon is not None:
            self._abandon(thing)

    def forget_inherited(self) -> None:
        """Begin anew in a forked process, leaving the parent's connections as they are."""
        self._guard = threading.Lock()  # another thread of the parent may have held it
        if self._kept:
            _inherited.append(self._kept)  # never collected: a finalizer would close them
            self._kept = {}


_all: Final[weakref.WeakSet[PerLoop[Any]]] = weakref.WeakSet()
_inherited: Final[list[object]] = []
_closing: Final[set[asyncio.Future[object]]] = set()


def _close_in(
    loop: asyncio.AbstractEventLoop, close: Callable[[T], Awaitable[object]], thing: T
) -> None:
    async def body() -> object:
        return await close(thing)

    task = loop.create_task(body())
    _closing.add(task)  # a loop keeps only weak references to its tasks
    task.add_done_callback(_closing.discard)


def _after_fork() -> None:
    for each in list(_all):
        each.forget_inherited()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
