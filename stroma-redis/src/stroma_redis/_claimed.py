"""What a store remembers of the runs that it has claimed, so that it need not ask the server."""

from __future__ import annotations

import math
import time
from typing import Final

from stroma_redis._lua import SLACK
from stroma_redis._scripts import ADD
from stroma_redis._steps import Request, call
from stroma_redis._wire import framed

_MOST_RUNS: Final = 10_000


class ClaimedRun:
    """A run that this store has claimed.

    Args:
        key: of the run.
        token: of the claim.
    """

    __slots__ = ("_call", "_head", "_young_until", "token")

    def __init__(self, key: bytes, token: str) -> None:
        self.token = token
        self._call = call(ADD, (key,), token.encode())
        self._head = b"*%d\r\n%b" % (len(self._call) + 3, framed(self._call))
        self._young_until = -math.inf

    @property
    def is_ageing(self) -> bool:
        """What is written next has to prolong the run's life."""
        return time.monotonic() >= self._young_until

    def lives_since(self, at: float, ttl_seconds: float) -> None:
        """Note that its life was prolonged; soon after that, it need not be."""
        self._young_until = at + ttl_seconds * SLACK

    def may_have_aged(self) -> None:
        """Note that nobody knows when its life was prolonged."""
        self._young_until = -math.inf

    def adding(self, record: tuple[bytes, bytes, bytes]) -> Request:
        """Return the request that adds a record: of the call, only that is new each time."""
        return Request((self._call + record,), True, self._head + framed(record))


class ClaimedRuns:
    """The runs that a store has claimed; for others, the server is asked for more."""

    def __init__(self) -> None:
        self._runs: dict[str, ClaimedRun] = {}

    def add(self, run_id: str, run: ClaimedRun) -> None:
        """Note a claim."""
        if len(self._runs) >= _MOST_RUNS:
            self._runs.clear()
        self._runs[run_id] = run

    def of(self, run_id: str, token: str) -> ClaimedRun | None:
        """Return a run if it was claimed here with this token."""
        run = self._runs.get(run_id)
        return run if run is not None and run.token == token else None

    def forget(self, run_id: str) -> None:
        """Note that a run is given up, or gone."""
        self._runs.pop(run_id, None)
