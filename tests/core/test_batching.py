"""Commits of concurrent runs share round trips, and none is harmed by another."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from typing import Any

import pytest

from stroma import OutcomeUnknown, StoreError, StoreUnavailable, StoreUnusable
from stroma.batching import MAX_BATCH, CommitBatcher, EagerBatcher
from stroma.records import Commit


class Recorder:
    """A `commit_many` that answers when it is told to."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.gate = asyncio.Event()
        self.bad: dict[str, StoreError] = {}

    async def __call__(self, commits: Sequence[Commit]) -> list[StoreError | None]:
        self.batches.append([commit.run_id for commit in commits])
        await self.gate.wait()
        return [self.bad.get(commit.run_id) for commit in commits]


def _send(batcher: CommitBatcher, *names: str) -> list[asyncio.Task[Any]]:
    return [asyncio.create_task(batcher.commit(Commit(name, "token"))) for name in names]


async def _outcomes(tasks: list[asyncio.Task[Any]]) -> list[StoreError | None]:
    return [outcomes[0] for outcomes in await asyncio.gather(*tasks)]


async def _settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_commit_that_finds_nothing_under_way_leaves_at_once() -> None:
    store = Recorder()
    tasks = _send(CommitBatcher(store), "a")
    await _settle()
    assert store.batches == [["a"]]
    store.gate.set()
    assert await _outcomes(tasks) == [None]


async def test_those_that_arrive_meanwhile_leave_together() -> None:
    store = Recorder()
    batcher = CommitBatcher(store)
    tasks = _send(batcher, "a")
    await _settle()
    tasks += _send(batcher, "b", "c", "d")
    await _settle()
    assert store.batches == [["a"]]
    store.gate.set()
    assert await _outcomes(tasks) == [None] * 4
    assert store.batches == [["a"], ["b", "c", "d"]]


async def test_a_batch_is_bounded() -> None:
    store = Recorder()
    store.gate.set()
    tasks = _send(CommitBatcher(store), *(str(i) for i in range(MAX_BATCH + 7)))
    await _outcomes(tasks)
    assert max(len(batch) for batch in store.batches) <= MAX_BATCH
    assert sum(len(batch) for batch in store.batches) == MAX_BATCH + 7


async def test_a_bad_commit_harms_no_other() -> None:
    store = Recorder()
    store.gate.set()
    store.bad["b"] = error = StoreError("bad")
    outcomes = await _outcomes(_send(CommitBatcher(store), "a", "b", "c"))
    assert outcomes == [None, error, None]


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (StoreUnavailable("down"), StoreUnavailable),
        (OutcomeUnknown("no reply"), OutcomeUnknown),
        (OSError("reset"), StoreUnavailable),
    ],
)
async def test_what_the_store_raises_is_the_outcome_of_all(
    raised: Exception, expected: type[StoreError]
) -> None:
    async def broken(commits: Sequence[Commit]) -> list[StoreError | None]:
        raise raised

    outcomes = await _outcomes(_send(CommitBatcher(broken), "a", "b"))
    assert [type(outcome) for outcome in outcomes] == [expected, expected]


@pytest.mark.parametrize("count", [0, 1, 3])
async def test_a_store_that_gives_another_number_of_outcomes_leaves_nobody_waiting(
    count: int,
) -> None:
    async def wrong(commits: Sequence[Commit]) -> list[StoreError | None]:
        return [None] * count if len(commits) == 2 else [None] * len(commits)

    batcher = CommitBatcher(wrong)
    async with asyncio.timeout(5):
        outcomes = await _outcomes(_send(batcher, "a", "b"))
        assert [type(outcome) for outcome in outcomes] == [StoreUnusable, StoreUnusable]
        assert await _outcomes(_send(batcher, "c")) == [None]


async def test_a_sync_store_is_fine() -> None:
    outcomes = await _outcomes(
        _send(CommitBatcher(lambda commits: [None] * len(commits)), "a", "b")
    )
    assert outcomes == [None, None]


async def test_a_cancelled_commit_is_finished_before_it_is_told() -> None:
    store = Recorder()
    (task,) = _send(CommitBatcher(store), "a")
    await _settle()
    task.cancel()
    await _settle()
    assert not task.done()
    store.gate.set()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_cancelled_commit_that_waits_is_sent_all_the_same() -> None:
    store = Recorder()
    batcher = CommitBatcher(store)
    first, second = _send(batcher, "a"), []
    await _settle()
    second = _send(batcher, "b")
    await _settle()
    second[0].cancel()
    store.gate.set()
    with pytest.raises(asyncio.CancelledError):
        await second[0]
    await _outcomes(first)
    assert store.batches == [["a"], ["b"]]


def test_a_loop_that_ends_leaves_nobody_waiting() -> None:
    waiters: list[asyncio.Task[Any]] = []

    async def main() -> None:
        waiters.extend(_send(CommitBatcher(Recorder()), "a", "b"))
        await _settle()

    asyncio.run(main())
    assert all(waiter.done() for waiter in waiters)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="tasks are never eager")
async def test_eager_tasks_and_a_sync_store_are_fine() -> None:
    if sys.version_info >= (3, 12):  # told to the type checker
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
    batcher = CommitBatcher(lambda commits: [None] * len(commits))
    assert await _outcomes(_send(batcher, "a", "b")) == [None, None]


async def test_nothing_is_left_running_when_all_is_sent() -> None:
    store = Recorder()
    store.gate.set()
    await _outcomes(_send(CommitBatcher(store), "a", "b"))
    await _settle()
    assert asyncio.all_tasks() == {asyncio.current_task()}


class TestEagerBatcher:
    """For stores that can bear to be cut."""

    async def test_a_commit_that_comes_alone_leaves_in_the_task_of_its_caller(self) -> None:
        tasks: list[asyncio.Task[Any] | None] = []

        async def store(commits: Sequence[Commit]) -> list[StoreError | None]:
            tasks.append(asyncio.current_task())
            return [None] * len(commits)

        batcher = EagerBatcher(store)
        assert await batcher.commit_many([Commit("a", "token")]) == [None]
        assert await batcher.commit_many([Commit("b", "token")]) == [None]
        assert tasks == [asyncio.current_task()] * 2

    async def test_it_may_have_a_way_of_its_own(self) -> None:
        async def alone(commit: Commit) -> StoreError | None:
            return StoreUnavailable(commit.run_id)

        batcher = EagerBatcher(Recorder(), alone)
        (outcome,) = await batcher.commit_many([Commit("a", "token")])
        assert str(outcome) == "a"

    async def test_what_comes_meanwhile_leaves_together(self) -> None:
        store = Recorder()
        store.bad["c"] = StoreUnavailable("bad")
        batcher = EagerBatcher(store)
        tasks = [asyncio.create_task(batcher.commit_many([Commit("a", "token")]))]
        await _settle()
        tasks += [asyncio.create_task(batcher.commit_many([Commit(n, "token")])) for n in "bcd"]
        await _settle()
        store.gate.set()
        assert await _outcomes(tasks) == [None, None, store.bad["c"], None]
        assert store.batches == [["a"], ["b", "c", "d"]]

    async def test_what_it_raises_reaches_the_caller_and_the_next_one_leaves(self) -> None:
        async def broken(commits: Sequence[Commit]) -> list[StoreError | None]:
            raise StoreUnavailable("gone")

        batcher = EagerBatcher(broken)
        for _ in range(2):
            with pytest.raises(StoreUnavailable, match="gone"):
                await batcher.commit_many([Commit("a", "token")])

    async def test_one_that_is_cut_is_sent_again_before_its_caller_is_told(self) -> None:
        store = Recorder()
        batcher = EagerBatcher(store)
        task = asyncio.create_task(batcher.commit_many([Commit("a", "token")]))
        await _settle()
        task.cancel()
        await _settle()
        assert store.batches == [["a"], ["a"]]
        assert not task.done()
        store.gate.set()
        with pytest.raises(asyncio.CancelledError):
            await task
