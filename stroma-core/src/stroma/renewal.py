"""Keeps the claims of this process alive: one daemon thread with an event loop of its own.

A node that blocks the caller's loop, or takes longer than a lease, does not lose its run: the
thread goes on renewing. When it learns that another worker took a run over, it says so.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from stroma.batching import call_operation
from stroma.errors import StoreError
from stroma.ownership import Claim

logger = logging.getLogger("stroma")

RENEWALS_PER_LEASE: Final = 3
"""Two may fail before a lease ends."""
RETRIES_PER_RENEWAL: Final = 4
"""A renewal that failed is tried again after this share of the time between two."""
_IDLE_SECONDS: Final = 1.0
"""How long the thread stays when no run is left, since another one may begin."""
_SHORTEST_SECONDS: Final = 0.005
_EXIT_SECONDS: Final = 2.0


class Watch:
    """A claim that is renewed until `end`.

    Attributes:
        store: where the run is.
        claim: what is renewed.
        due: when, on the monotonic clock.
        is_ending: the owner is about to give the run up, and finds out by itself who owns it.
    """

    __slots__ = ("_loop", "_lost", "_renewer", "claim", "due", "is_ending", "store")

    def __init__(
        self, renewer: Renewer, store: object, claim: Claim, lost: Callable[[], None], due: float
    ) -> None:
        self._renewer = renewer
        self._lost = lost
        self._loop = asyncio.get_running_loop()
        self.store = store
        self.claim = claim
        self.due = due
        self.is_ending = False

    @property
    def interval_seconds(self) -> float:
        """Seconds between two renewals."""
        return max(self.claim.lease_ms / 1000 / RENEWALS_PER_LEASE, _SHORTEST_SECONDS)

    @property
    def group(self) -> tuple[int, int]:
        """What claims that can be renewed together have in common."""
        return id(self.store), self.claim.lease_ms

    @property
    def is_orphaned(self) -> bool:
        """The owner's loop was closed under it."""
        return self._loop.is_closed()

    def end(self) -> None:
        """Renew no more; the claim is given up, or lost."""
        self.is_ending = True
        self._renewer.forget(self)

    def tell(self) -> None:
        """Tell the owner, in its own loop, that the run is another worker's."""
        with contextlib.suppress(RuntimeError):  # its loop is closed, and the run with it
            self._loop.call_soon_threadsafe(self._tell_now)

    def _tell_now(self) -> None:
        if not self.is_ending:
            self._lost()


class Renewer:
    """Renews claims in a thread that begins with the first and ends when there are none."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._guard = threading.Lock()
        self._watches: dict[Watch, None] = {}
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._woken = asyncio.Event()
        self._wakes_at = 0.0
        self._is_idle = False

    def watch(self, store: object, claim: Claim, lost: Callable[[], None]) -> Watch:
        """Renew a claim from now on.

        Args:
            store: a level 1 store.
            claim: was made just now.
            lost: called in the running loop when another worker owns the run.
        """
        watch = Watch(self, store, claim, lost, 0.0)
        watch.due = time.monotonic() + watch.interval_seconds
        with self._guard:
            self._watches[watch] = None
            if self._thread is None:
                self._start(watch.due)
            elif watch.due < self._wakes_at:
                self._wake()
        return watch

    def forget(self, watch: Watch) -> None:
        """Renew a claim no more."""
        with self._guard:
            self._watches.pop(watch, None)

    def stop(self) -> None:
        """End the thread, at the exit of the process."""
        with self._guard:
            thread = self._thread
            self._watches.clear()
            self._wake()
        if thread is not None:
            thread.join(_EXIT_SECONDS)

    def reset_after_fork(self) -> None:
        """Begin anew: the thread and the claims are the parent's."""
        self._begin()

    def _start(self, due: float) -> None:
        self._is_idle = False
        self._wakes_at = due
        self._woken = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._serve, args=(self._loop,), name="stroma-renewal", daemon=True
        )
        self._thread.start()

    def _wake(self) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # it has just ended
                self._loop.call_soon_threadsafe(self._woken.set)

    # What follows runs in the thread.

    def _serve(self, loop: asyncio.AbstractEventLoop) -> None:
        runner = asyncio.Runner(loop_factory=lambda: loop)
        try:
            runner.run(self._renew_while_there_are_any())
        finally:
            # To end the threads that have looked up names of hosts, it starts one more, which it
            # cannot at the end of the process. Then it closes the loop all the same.
            with contextlib.suppress(RuntimeError):
                runner.close()

    async def _renew_while_there_are_any(self) -> None:
        under_way: dict[tuple[int, int], asyncio.Task[None]] = {}
        while self._plan_next():
            pause = self._wakes_at - time.monotonic()
            if pause > 0:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._woken.wait(), pause)
            self._woken.clear()
            for group, watches in self._due().items():
                task = under_way.get(group)
                if task is None or task.done():
                    under_way[group] = asyncio.create_task(self._renew(watches))

    def _plan_next(self) -> bool:
        """Set when to wake; end the thread when nothing is left, in one step with who adds."""
        idle_until = time.monotonic() + _IDLE_SECONDS
        with self._guard:
            if not self._watches and self._is_idle:
                self._thread = self._loop = None
                return False
            self._is_idle = not self._watches
            self._wakes_at = min((watch.due for watch in self._watches), default=idle_until)
            self._wakes_at = min(self._wakes_at, idle_until)
            return True

    def _due(self) -> dict[tuple[int, int], list[Watch]]:
        """Return the claims whose time has come, by what can be renewed in one trip.

        Those of the same store that are due soon come along, so that they fall into step.
        """
        now = time.monotonic()
        groups: dict[tuple[int, int], list[Watch]] = {}
        with self._guard:
            for watch in [watch for watch in self._watches if watch.is_orphaned]:
                del self._watches[watch]
            due = {watch.group for watch in self._watches if watch.due <= now}
            for watch in self._watches:
                if watch.group in due and watch.due <= now + watch.interval_seconds / 2:
                    groups.setdefault(watch.group, []).append(watch)
                    watch.due = now + watch.interval_seconds / RETRIES_PER_RENEWAL
        return groups

    async def _renew(self, watches: Sequence[Watch]) -> None:
        began = time.monotonic()
        store, lease_ms = watches[0].store, watches[0].claim.lease_ms
        claims = [(watch.claim.run_id, watch.claim.token) for watch in watches]
        try:
            renewed = await call_operation(store, "renew", claims, lease_ms)
        except StoreError as exc:
            self._warn(watches, exc)
            return  # due again soon
        assert isinstance(renewed, Sequence)
        for watch, is_owner in zip(watches, renewed, strict=True):
            watch.due = began + watch.interval_seconds
            if not is_owner and self._is_watched(watch):
                self.forget(watch)
                watch.tell()

    def _warn(self, watches: Sequence[Watch], exc: StoreError) -> None:
        """Say which leases are not renewed, except of runs that have ended meanwhile."""
        left = [watch for watch in watches if self._is_watched(watch) and not watch.is_ending]
        if len(left) == 1:
            run_id = left[0].claim.run_id
            logger.warning("the lease of run %r is not renewed: %s", run_id, exc)
        elif left:
            logger.warning("the leases of %d runs are not renewed: %s", len(left), exc)

    def _is_watched(self, watch: Watch) -> bool:
        with self._guard:
            return watch in self._watches


RENEWER: Final = Renewer()
"""The renewer of this process."""

atexit.register(RENEWER.stop)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=RENEWER.reset_after_fork)
