"""Time and randomness, so that tests can inject both."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from typing import Protocol, cast

from stroma.errors import ConfigError


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


def check_clock(value: object) -> Clock:
    """Return a clock.

    Raises:
        ConfigError: it lacks a method.
    """
    if not all(callable(getattr(value, name, None)) for name in ("now", "monotonic", "sleep")):
        raise ConfigError(f"a clock has now(), monotonic() and sleep(), which {value!r} has not")
    return cast(Clock, value)


def check_random(value: object) -> Random:
    """Return what gives numbers from 0 up to 1.

    Raises:
        ConfigError: it cannot be called.
    """
    if not callable(value):
        raise ConfigError(f"a source of random numbers is a function, not {value!r}")
    return cast(Random, value)
