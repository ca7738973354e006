"""What time it is on the server, learnt from the ``Date`` of its answers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import Final

_RELEARN_SECONDS: Final = 900.0
"""Two good clocks drift apart by some 0.05 s in this time."""


class ServerClock:
    """The server's time, whatever the local clock says.

    ``Date`` has whole seconds (RFC 9110, section 5.6.7). An answer that was asked for at local
    time a, came at local time b and says D was made at a server time between D and D + 1; every
    answer narrows down how far the two clocks are apart. After some answers the error is about
    the time of a round trip; after the first one it is half a second at most. Local time is
    monotonic, so that setting the machine's clock changes nothing.

    Args:
        monotonic: local time in seconds.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._guard = threading.Lock()
        self._bounds: tuple[float, float] | None = None
        self._since = 0.0
        self._last = 0.0

    @property
    def is_set(self) -> bool:
        """Some answer has come."""
        return self._bounds is not None

    def observe(self, date: float, sent: float, received: float) -> None:
        """Take note of an answer.

        Args:
            date: what it says, in seconds since the epoch.
            sent: local time when it was asked for.
            received: local time when it came.
        """
        low, high = date - received, date + 1 - sent
        with self._guard:
            known = self._bounds
            if known is not None and received - self._since < _RELEARN_SECONDS:
                narrowed = max(low, known[0]), min(high, known[1])
                if narrowed[0] <= narrowed[1]:
                    self._bounds = narrowed
                    return
            # The first, or one of the clocks was set, or this machine has slept.
            self._bounds, self._since = (low, high), received

    def now(self) -> float:
        """Return the server's time in seconds since the epoch; never twice the same.

        Before any answer has come, it is the local clock's.
        """
        with self._guard:
            if self._bounds is None:
                return time.time()
            now = self._monotonic() + (self._bounds[0] + self._bounds[1]) / 2
            # A better estimate must not order what is done now before what was done.
            self._last = max(now, self._last + 1e-6) if now > self._last - 1 else now
            return self._last


def seconds_of(date: str) -> float | None:
    """Return the time that a ``Date`` header says, in seconds since the epoch."""
    try:
        return parsedate_to_datetime(date).timestamp()
    except (ValueError, TypeError):
        return None
