"""A clock that stands still until a test turns it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import Final

START: Final = 1_700_000_000.0


class FakeClock:
    """A `stroma.clock.Clock` whose time passes when a test says so.

    Give it to a store (``SQLiteStore(path, clock=clock)``) or to a runner
    (``runner.with_options(clock=clock)``). It may be used from several threads and event loops.

    Args:
        start: seconds since the epoch to begin at.
        auto_advance: `sleep` moves the time on by itself and returns at once, so that retries
            take no time. Otherwise it returns when the time was moved on far enough.

    Attributes:
        slept: the seconds that each call of `sleep` asked for, in order.
    """

    def __init__(self, start: float = START, *, auto_advance: bool = False) -> None:
        self._now = start
        self._start = start
        self._auto_advance = auto_advance
        self._lock = threading.Lock()
        self._sleepers: list[tuple[float, asyncio.AbstractEventLoop, asyncio.Future[None]]] = []
        self.slept: list[float] = []

    def now(self) -> float:
        """Return seconds since the epoch."""
        return self._now

    def monotonic(self) -> float:
        """Return seconds since the clock was made."""
        return self._now - self._start

    def advance(self, seconds: float) -> None:
        """Move the time on, and wake those that slept until then.

        Raises:
            ValueError: the time would go back.
        """
        if seconds < 0:
            raise ValueError(f"a clock does not go back: advance({seconds!r})")
        with self._lock:
            self._now += seconds
            woken = [sleeper for sleeper in self._sleepers if sleeper[0] <= self._now]
            self._sleepers = [sleeper for sleeper in self._sleepers if sleeper[0] > self._now]
        for _, loop, waiter in woken:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody sleeps any more
                loop.call_soon_threadsafe(_wake, waiter)

    async def sleep(self, seconds: float, /) -> None:
        """Return when the time was moved on by this many seconds."""
        self.slept.append(seconds)
        if self._auto_advance:
            self.advance(max(0.0, seconds))
            await asyncio.sleep(0)
            return
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        with self._lock:
            self._sleepers.append((self._now + seconds, loop, waiter))
        await waiter

    @property
    def sleepers(self) -> int:
        """How many calls of `sleep` are waiting."""
        with self._lock:
            self._sleepers = [each for each in self._sleepers if not each[2].done()]
            return len(self._sleepers)

    async def until_asleep(self, count: int = 1) -> None:
        """Return when this many calls of `sleep` are waiting, so that `advance` finds them.

        Bound it with `asyncio.timeout` where they may never come.
        """
        while self.sleepers < count:  # noqa: ASYNC110 - advance() may come from any thread
            await asyncio.sleep(0)


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
