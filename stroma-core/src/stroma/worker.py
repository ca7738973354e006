"""A worker: takes up runs that wait, for as long as it is not asked to stop."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import AsyncExitStack
from typing import Final

from stroma._aio import first_of
from stroma.backlog import Backlog, open_backlogs
from stroma.batching import call_operation
from stroma.clock import (
    SYSTEM_CLOCK,
    SYSTEM_RANDOM,
    Clock,
    Random,
    check_clock,
    check_random,
)
from stroma.errors import ConfigError, OutcomeUnknown, StoreError, StoreUnavailable
from stroma.health import HealthServer, host_and_port
from stroma.options import finite
from stroma.pipeline import Pipeline
from stroma.recovery import CONCURRENCY, Crew, Outcome, check_count
from stroma.result import ExecutionResult
from stroma.stop_request import StopRequest

logger = logging.getLogger("stroma.worker")

POLL_SECONDS: Final = 1.0
DRAIN_SECONDS: Final = 30.0
_LONGEST_BACKOFF_SECONDS: Final = 30.0
_MOST_DOUBLINGS: Final = 20
_LIVE_SECONDS: Final = 120.0
"""How long ago a worker that lives has looked for runs at most, besides the time between two."""
_PAUSE_PER_SCAN: Final = 4
"""How many times as long as it took to look for runs a worker waits at least before the next."""
_PROBE_SECONDS: Final = 4.0
_PROBED_FOR_SECONDS: Final = 1.0


class Worker:
    """Takes up the runs of some pipelines that wait, the oldest first.

    Any number of workers may run side by side, in one process or in many: each run is taken up by
    one. A run waits when it was submitted, when its owner died, or when a worker gave it back.
    One that does not fit is reported once, and left alone.

    Args:
        *pipelines: the pipelines.
        store: where the runs are: an object, a name or a URL; if not given, the store of each
            pipeline's runner, or else the configured one.
        concurrency: how many runs are under way at once.
        poll_seconds: time between two looks for runs, on the average, while there are none.
        drain_seconds: how long calls under way are awaited after `stop`.
        health: "HOST:PORT" of an HTTP server with /livez and /readyz; None for none.
        clock: how it waits.
        random: numbers from 0 up to 1, so that workers do not look all at once.

    Attributes:
        health_port: where the HTTP server listens, once it does.

    Raises:
        ConfigError: an argument is wrong.
    """

    def __init__(
        self,
        *pipelines: Pipeline,
        store: object = None,
        concurrency: int = CONCURRENCY,
        poll_seconds: float = POLL_SECONDS,
        drain_seconds: float = DRAIN_SECONDS,
        health: str | None = None,
        clock: Clock = SYSTEM_CLOCK,
        random: Random = SYSTEM_RANDOM,
    ) -> None:
        check_count(concurrency, "concurrency")
        _check_seconds(poll_seconds, "poll_seconds", least=0.001)
        _check_seconds(drain_seconds, "drain_seconds", least=0.0)
        self._address = None if health is None else host_and_port(health)
        self._pipelines = pipelines
        self._store = store
        self._concurrency = concurrency
        self._poll_seconds = poll_seconds
        self._drain_seconds = drain_seconds
        self._clock = check_clock(clock)
        self._random = check_random(random)
        self._stop_request = StopRequest()
        self._cut = asyncio.Event()
        self._ended_one = asyncio.Event()
        self._crew = Crew(self._stop_request, self._told)
        self._outage = _Outage()
        self._backlogs: list[Backlog] = []
        self._listed_at = float("-inf")
        self._beat = time.monotonic()
        self._probed: tuple[float, str] = (float("-inf"), "")
        self.health_port: int | None = None

    async def run(self) -> None:
        """Take up runs until `stop` is called, and what is under way has ended.

        Raises:
            ConfigError: wrong use, or a store that cannot keep two workers from one run.
            StoreError: the store cannot be used as it is. While it only does not answer, the
                worker waits for it.
            asyncio.CancelledError: the runs under way wait for another worker.
        """
        async with AsyncExitStack() as stack:
            self._backlogs = await open_backlogs(self._pipelines, self._store, stack)
            await self._serve_health(stack)
            names = ", ".join(dict.fromkeys(repr(p.name) for p in self._pipelines))
            logger.info("the worker takes up runs of %s, %d at once", names, self._concurrency)
            try:
                while not self._stop_request.is_made:
                    self._beat = time.monotonic()
                    await self._stop_request.cut_short(self._turn())
                await self._drain()
            finally:
                self._crew.cancel()
                await self._crew.all_ended()
        logger.info("the worker has stopped")

    def stop(self) -> None:
        """Take up nothing more, begin no node, and await what is under way.

        What is left of the runs waits for other workers. Called in the worker's event loop.
        """
        self._stop_request.make()

    def cancel(self) -> None:
        """Stop, and cut what is under way: those calls may be billed and are not recorded."""
        self.stop()
        self._cut.set()

    # -- looking for runs ------------------------------------------------------------------

    async def _turn(self) -> None:
        """Look for runs once, and wait until it is time to do so again."""
        began = self._clock.monotonic()
        try:
            await self._take_up_what_waits()
        except (StoreUnavailable, OutcomeUnknown) as exc:
            self._outage.failed(exc)
            self._outage.count += 1
        else:
            if not self._crew.size:
                self._outage.ended()
        took = self._clock.monotonic() - began
        seconds = self._poll_seconds * 2 ** min(self._outage.count, _MOST_DOUBLINGS)
        longest = max(_LONGEST_BACKOFF_SECONDS, self._poll_seconds)
        seconds = min(seconds, longest) * (0.5 + self._random())
        pause = self._clock.sleep(max(seconds, took * _PAUSE_PER_SCAN))
        if self._outage.count or self._crew.size < self._concurrency:
            await pause
        else:  # there may be more, for the next one that ends
            self._ended_one.clear()
            await first_of(pause, self._ended_one.wait())

    async def _take_up_what_waits(self) -> None:
        now = self._clock.monotonic()
        is_old = now - self._listed_at > self._poll_seconds
        if is_old:
            self._listed_at = now
        for backlog in self._backlogs:
            if is_old:
                backlog.begin_again()  # others have taken up what was listed
            while self._crew.size < self._concurrency:
                found = await backlog.next()
                if found is None:
                    break
                self._crew.deal_with(found, backlog)
        self._backlogs.append(self._backlogs.pop(0))  # each is the first in its turn

    def _told(self, outcome: Outcome) -> None:
        failed = outcome.error if isinstance(outcome, ExecutionResult) else outcome
        if isinstance(failed, StoreUnavailable | OutcomeUnknown):
            self._outage.failed(failed)
        else:
            self._outage.ended()
        self._ended_one.set()

    # -- stopping --------------------------------------------------------------------------

    async def _drain(self) -> None:
        if self._crew.size:
            logger.info(
                "the worker stops: it awaits what %s under way, for %g s at most",
                _count(self._crew.size),
                self._drain_seconds,
            )
            limit = self._clock.sleep(self._drain_seconds)
            await first_of(self._crew.all_ended(), limit, self._cut.wait())
        if self._crew.size:
            logger.warning(
                "what %s under way is cut: it may be billed, and is not recorded",
                _count(self._crew.size),
            )

    # -- health ----------------------------------------------------------------------------

    async def _serve_health(self, stack: AsyncExitStack) -> None:
        if self._address is None:
            return
        server = HealthServer({"/livez": self._is_alive, "/readyz": self._is_ready})
        await server.start(*self._address)
        stack.push_async_callback(server.aclose)
        self.health_port = server.port
        logger.info("health is told on %s:%d", self._address[0], server.port)

    async def _is_alive(self) -> str:
        age = time.monotonic() - self._beat
        limit = _LIVE_SECONDS + self._poll_seconds
        if self._stop_request.is_made:
            limit += self._drain_seconds
        return "" if age <= limit else f"the last look for runs was {age:.0f} s ago"

    async def _is_ready(self) -> str:
        if self._stop_request.is_made:
            return "stopping"
        at, found = self._probed
        if time.monotonic() - at > _PROBED_FOR_SECONDS:
            found = await self._ask_stores()
            self._probed = time.monotonic(), found
        return found

    async def _ask_stores(self) -> str:
        try:
            async with asyncio.timeout(_PROBE_SECONDS):
                for backlog in list(self._backlogs):
                    await backlog.manager.setup()
                    await call_operation(backlog.manager.store, "health")
        except (StoreError, TimeoutError) as exc:
            logger.debug("the store is not well: %s", exc)
            return "the store does not answer"  # its address is nobody else's business
        return ""


class _Outage:
    """Says once that the store is away, and once that it is back.

    Attributes:
        count: 0 while it answers, or else 1 and how many looks for runs have failed.
    """

    def __init__(self) -> None:
        self.count = 0

    def failed(self, exc: StoreError) -> None:
        if not self.count:
            self.count = 1
            logger.warning("the store does not answer, and is asked again: %s", exc)

    def ended(self) -> None:
        if self.count:
            logger.info("the store answers again")
        self.count = 0


def _count(runs: int) -> str:
    return "one run has" if runs == 1 else f"{runs} runs have"


def _check_seconds(value: object, name: str, *, least: float) -> None:
    number = finite(value)
    if number is None or number < least:
        raise ConfigError(f"{name} must be a number of seconds from {least:g}, not {value!r}")
