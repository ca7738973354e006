"""Time and randomness, so that tests can inject both."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from typing import Protocol


class Clock(Protocol):
    """Where Stroma takes the time from, and how it waits."""

    def now(self) -> float:
        """Return seconds since the epoch, for records that other machines read."""
        ...

    def monotonic(self) -> float:
        """Return seconds that never go back, for durations and deadlines."""
        ...

    async def sleep(self, seconds: float, /) -> None:
        """Return after this many seconds."""
        ...


class SystemClock:
    """The machine's clock."""

    now = staticmethod(time.time)
    monotonic = staticmethod(time.monotonic)
    sleep = staticmethod(asyncio.sleep)


SYSTEM_CLOCK = SystemClock()

Random = Callable[[], float]
"""Returns a number from 0 up to, and without, 1."""

SYSTEM_RANDOM: Random = random.random
