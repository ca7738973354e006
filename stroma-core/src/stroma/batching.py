"""Groups what concurrent runs commit to one store into few round trips."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias

from stroma._aio import finish, settled
from stroma.errors import OutcomeUnknown, StoreError, StoreUnavailable, StoreUnusable
from stroma.records import Commit

MAX_BATCH = 500
SAVE_GRACE_SECONDS = 60.0
"""How long a cancelled run waits for the save under way."""


CommitMany: TypeAlias = Callable[
    [Sequence[Commit]], Sequence[StoreError | None] | Awaitable[Sequence[StoreError | None]]
]
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

    async def commit(self, commit: Commit) -> StoreError | None:
        """Return None when the commit is stored, or what it was refused with.

        It is not cut when the caller is cancelled: the cancellation is raised afterwards.
        """
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[StoreError | None] = loop.create_future()
        self._waiting.append((commit, outcome))
        if self._flusher is None:
            self._flusher = loop.create_task(self._flush())
        return await finish(outcome, grace_seconds=SAVE_GRACE_SECONDS)

    async def _flush(self) -> None:
        batch: list[tuple[Commit, asyncio.Future[StoreError | None]]] = []
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:MAX_BATCH], self._waiting[MAX_BATCH:]
                outcomes = await send_commits(self._commit_many, [c for c, _ in batch])
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


async def send_commits(
    commit_many: CommitMany, commits: Sequence[Commit]
) -> Sequence[StoreError | None]:
    """Return the outcome of each commit; what the store raises is the outcome of all.

    A store that lets its driver's exception through is taken to be unavailable.
    """
    try:
        answer = commit_many(commits)
        outcomes = answer if isinstance(answer, list | tuple) else await settled(answer)
        if len(outcomes) == len(commits):
            return outcomes
        problem = f"the store gave {len(outcomes)} outcomes for {len(commits)} commits"
        return [StoreUnusable(problem)] * len(commits)
    except StoreError as exc:
        return [exc] * len(commits)
    except Exception as exc:
        error = StoreUnavailable(f"the store failed in commit_many: {type(exc).__name__}: {exc}")
        error.__cause__ = exc
        return [error] * len(commits)
