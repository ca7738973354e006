"""Groups what concurrent runs commit to one store into few round trips."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias

from stroma._aio import UncutFuture, call_store, settled
from stroma.errors import OutcomeUnknown, StoreError, StoreUnavailable, StoreUnusable
from stroma.records import Commit

MAX_BATCH = 500
SAVE_GRACE_SECONDS = 60.0
"""How long a cancelled run waits for the save under way."""


Outcomes: TypeAlias = Sequence[StoreError | None]
"""For each commit None, or what it was refused with."""
Answer: TypeAlias = Outcomes | Awaitable[Outcomes]
CommitMany: TypeAlias = Callable[[Sequence[Commit]], Answer]
"""`RecordStore.commit_many` of one store."""


class CommitBatcher:
    """The commits of one store in one event loop.

    Args:
        commit_many: the store's operation.

    A commit that finds nothing under way leaves at once; those that arrive meanwhile leave
    together when it has returned.
    """

    def __init__(self, commit_many: CommitMany) -> None:
        self._commit_many = commit_many
        self._waiting: list[tuple[Commit, asyncio.Future[StoreError | None]]] = []
        self._flusher: asyncio.Task[None] | None = None

    async def commit(self, commit: Commit) -> Outcomes:
        """Return the outcome of one commit, when it is stored or refused.

        It is not cut when the caller is cancelled: the cancellation is raised afterwards.
        """
        loop = asyncio.get_running_loop()
        outcome: UncutFuture[StoreError | None] = UncutFuture(SAVE_GRACE_SECONDS, loop=loop)
        self._waiting.append((commit, outcome))
        if self._flusher is None or self._flusher.done():  # an eager task ends before it is set
            self._flusher = loop.create_task(self._flush())
        return [await outcome]

    async def _flush(self) -> None:
        batch: list[tuple[Commit, asyncio.Future[StoreError | None]]] = []
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:MAX_BATCH], self._waiting[MAX_BATCH:]
                answer = ask(self._commit_many, [commit for commit, _ in batch])
                outcomes = await outcomes_of(answer, len(batch))
                for (_, waiter), outcome in zip(batch, outcomes, strict=True):
                    if not waiter.done():
                        waiter.set_result(outcome)
        except BaseException:
            self._give_up(batch)
            raise
        finally:
            self._flusher = None

    def _give_up(self, batch: list[tuple[Commit, asyncio.Future[StoreError | None]]]) -> None:
        """Answer those that wait when the loop ends under them."""
        for _, waiter in [*batch, *self._waiting]:
            if not waiter.done():
                waiter.set_result(OutcomeUnknown("the event loop ended during the save"))
        self._waiting = []


class EagerBatcher:
    """The commits of one store in one event loop, for a store that can bear to be cut.

    Most commits come alone. Those leave in the task of their caller, which saves a task, two
    futures and two turns of the loop, and that is more than a quick server takes. What comes
    meanwhile leaves together. Commits end even when their caller is cancelled: one that was cut
    is sent again, as doing it twice does no harm.

    Args:
        commit_many: sends some commits, and returns the outcome of each.
        commit_alone: sends one; by default by ``commit_many``.
    """

    def __init__(
        self,
        commit_many: Callable[[Sequence[Commit]], Awaitable[list[StoreError | None]]],
        commit_alone: Callable[[Commit], Awaitable[StoreError | None]] | None = None,
    ) -> None:
        self._commit_many = commit_many
        self._commit_alone = commit_alone or self._alone
        self._batcher = CommitBatcher(commit_many)
        self._is_busy = False

    async def commit_many(self, commits: Sequence[Commit]) -> list[StoreError | None]:
        """See `RecordStore.commit_many`."""
        if len(commits) != 1 or self._is_busy:
            together = await asyncio.gather(*map(self._batcher.commit, commits))
            return [outcome for outcomes in together for outcome in outcomes]
        self._is_busy = True
        try:
            return [await self._commit_alone(commits[0])]
        except asyncio.CancelledError:
            await self._batcher.commit(commits[0])
            raise
        finally:
            self._is_busy = False

    async def _alone(self, commit: Commit) -> StoreError | None:
        (outcome,) = await self._commit_many((commit,))
        return outcome


def ask(commit_many: CommitMany, commits: Sequence[Commit]) -> Answer:
    """Call the store's operation; what it raises is the outcome of all of them."""
    try:
        return commit_many(commits)
    except Exception as exc:
        return [_store_error(exc)] * len(commits)


async def outcomes_of(answer: Answer, count: int) -> Outcomes:
    """Return the outcomes of ``count`` commits, when the store has answered."""
    try:
        outcomes = await settled(answer)
    except Exception as exc:
        return [_store_error(exc)] * count
    if len(outcomes) == count:
        return outcomes
    problem = f"the store gave {len(outcomes)} outcomes for {count} commits"
    return [StoreUnusable(problem)] * count


async def call_operation(store: object, operation: str, *args: object) -> object:
    """Call an operation; a driver's exception that a store lets through never leaks."""
    try:
        return await call_store(store, operation, *args)
    except StoreError:
        raise
    except Exception as exc:
        raise StoreUnavailable(f"{type(store).__name__} failed in {operation}: {exc}") from exc


def _store_error(exc: Exception) -> StoreError:
    """Return what a store raised; one that lets its driver's error through is unavailable."""
    if isinstance(exc, StoreError):
        return exc
    error = StoreUnavailable(f"the store failed in commit_many: {type(exc).__name__}: {exc}")
    error.__cause__ = exc
    return error
