"""What a run needs of its store, whatever the store can do."""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

from pydantic import BaseModel

from stroma.clock import Clock, Random
from stroma.cost import Usage
from stroma.errors import OutcomeUnknown, StoreError, StoreUnavailable
from stroma.failures import FailurePolicy
from stroma.plan import Leaf, Step
from stroma.records import RunRecord, RunStatus
from stroma.result import InDoubt

logger = logging.getLogger("stroma")

_warned: weakref.WeakSet[type] = weakref.WeakSet()

CANCELLED = "cancelled by its caller"
"""Why a cancelled run stopped."""

CUT = "its worker ended before it did"
"""Why a run stopped that a worker had taken up, and that was cancelled."""


class Stop(NamedTuple):
    """How a run ended, for its record.

    Attributes:
        status: the new status, or None to leave it: the process is going down.
        reason: why, or "".
        spend: what the run has spent.
    """

    status: RunStatus | None
    reason: str
    spend: Usage


class Standing(NamedTuple):
    """How a run stands in its store, whoever owns it.

    Attributes:
        run: its record, or None if it does not exist.
        written: paths of the results that this start has written, as far as they are there.
    """

    run: RunRecord | None
    written: frozenset[str]


class JournalSettings(NamedTuple):
    """What a journal needs to know of a run's configuration.

    Attributes:
        clock: where times are from.
        random: for the delay between two tries of a save.
        save_policy: how often and after what delay a failed save is tried again.
        lease_seconds: how long a claim holds without a commit.
        tags: the caller's words for listing.
        document: what is to run, as `PlanDocument` JSON.
        trace_parent: returns the W3C traceparent of what happens now, or ""; None if nobody
            keeps one.
    """

    clock: Clock
    random: Random
    save_policy: FailurePolicy
    lease_seconds: float
    tags: tuple[str, ...] = ()
    document: bytes = b"{}"
    trace_parent: Callable[[], str] | None = None


class Journal(Protocol):
    """One run in its store.

    Attributes:
        run_id: the run.
        epoch: number of the current epoch.
        position: index of the first node to run.
        is_continued: anything may be recorded already.
        is_complete: the run was COMPLETED before: its result is only read.
        trace_parent: the W3C traceparent that the run was created with, or "".
    """

    run_id: str
    epoch: int
    position: int
    is_continued: bool
    is_complete: bool
    trace_parent: str

    def keep(self, lost: Callable[[], None]) -> Callable[[], None]:
        """Keep the run this worker's until what is returned is called.

        Args:
            lost: called in the running loop when another worker owns the run.
        """
        ...

    async def initial_state(self, given: BaseModel | None) -> BaseModel:
        """Return the state that the first node to run gets.

        Raises:
            ResumeError: it is missing or does not fit.
        """
        ...

    async def recall(self, step: Step, paths: Sequence[str]) -> list[BaseModel | None]:
        """Return the recorded result of a step at each of some paths, or None."""
        ...

    async def refused_output(self, step: Leaf, path: str) -> tuple[object] | None:
        """Return the recorded output that did not fit the contract, in a tuple, or None.

        Raises:
            ContractViolation: it holds what JSON does not have, and was recorded for people only.
        """
        ...

    def result(
        self,
        step: Step,
        path: str,
        position: int,
        state: BaseModel,
        payload: bytes,
        digest: str,
        usage: Usage,
        stop: Stop | None,
    ) -> Awaitable[None] | None:
        """Save a result, and the end of the run with it if it is the last one.

        Returns:
            None if it is saved, or else what to await.

        Raises:
            StoreError: the store does not take it, after every try.
        """
        ...

    async def reserve(self, step: Leaf, path: str, usage: Usage) -> int:
        """Record that a call is about to be made, and the most that it may use.

        Returns:
            The number of the call, for `attempt`; 0 where none are kept. A `result` settles it
            by itself.

        Raises:
            StoreError: the store does not take it: the call must not be made.
        """
        ...

    async def spent_beside(self, step: Leaf, path: str, usage: Usage) -> None:
        """Record what was used for a place without calling its node."""
        ...

    def next_call(self, path: str) -> int:
        """Return the number of a call of this place that was not reserved, over all starts."""
        ...

    async def attempt(
        self,
        step: Leaf,
        path: str,
        number: int,
        usage: Usage,
        error: BaseException,
        failure_class: str,
        *,
        is_reserved: bool = False,
        doubt: str = "",
    ) -> None:
        """Record a failed attempt.

        At once if it used anything, was reserved or is in doubt, else with what comes next.

        Args:
            step: the node.
            path: its place.
            number: what `reserve` returned for it, or `next_call`.
            usage: what the run is charged for it.
            error: what it failed with.
            failure_class: its class, as text.
            is_reserved: it was reserved.
            doubt: why nobody knows what became of the call, or "".
        """
        ...

    async def stop(self, stop: Stop) -> Sequence[str]:
        """Record how the run ended, and give it up.

        Returns:
            The paths of results that failed to be saved at first, or whose save was cut, and
            that are saved by now.
        """
        ...

    async def look(self) -> Standing:
        """Look at how the run stands in its store.

        Raises:
            StoreError: the store does not say.
        """
        ...

    def carried(self) -> Mapping[str, Sequence[Usage]]:
        """Return what earlier starts used, by node id."""
        ...

    def doubts(self, path: str | None = None) -> tuple[InDoubt, ...]:
        """Return the calls of earlier starts that are in doubt.

        Args:
            path: only those of this place, in this epoch: what was left behind on purpose is
                nobody's question any more.
        """
        ...

    def refusals(self, path: str) -> int:
        """Return how many outputs of this place earlier starts refused, in this epoch."""
        ...

    def carried_ms(self) -> float:
        """Return the active time of earlier starts, in milliseconds."""
        ...

    def digest(self, path: str) -> str:
        """Return the digest of a recorded result, or ""."""
        ...


async def persist(
    save: Callable[[], Awaitable[StoreError | None]],
    failed: StoreError,
    settings: JournalSettings,
) -> None:
    """Repeat a save that failed until the store takes it or the policy is out of tries.

    Only the save is repeated, never the node. Commits are idempotent, so that an unknown
    outcome is settled by sending the same one again. A cancellation meanwhile gives the save
    one more try, and is raised then.

    Args:
        save: returns None when it is saved, or what the store said.
        failed: what the store said the first time.
        settings: the policy, the clock and the random source.

    Raises:
        StoreError: what the store said last.
    """
    retry = 0
    error: StoreError | None = failed
    cancelled: asyncio.CancelledError | None = None
    while error is not None:
        retry += 1
        may_pass = isinstance(error, StoreUnavailable | OutcomeUnknown)
        if not may_pass or retry > settings.save_policy.max_retries:
            raise error
        delay = settings.save_policy.delay_seconds(retry, settings.random)
        logger.warning("a save failed and is tried again in %.2f s: %s", delay, error)
        try:
            await settings.clock.sleep(delay)
        except asyncio.CancelledError as exc:
            cancelled = exc
        error = await save()
        if cancelled is not None:
            raise cancelled


def warn_once(kind: type, message: str) -> None:
    """Say what a kind of store cannot do, the first time that it is used.

    Args:
        kind: the store's class.
        message: with ``%s`` where its name belongs.
    """
    if kind not in _warned:
        _warned.add(kind)
        logger.warning(message, kind.__name__)
