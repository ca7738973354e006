"""Clauses about cancelled operations of sync stores: nobody waits for their threads any more."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from stroma._aio import in_daemon_thread
from stroma.records import RunStatus, RunUpdate
from stroma.testing._checks import written
from stroma.testing._clauses import clauses
from stroma.testing._kills import pair_of
from stroma.testing._kit import Kit
from stroma.testing._pauses import Call, Pause, points_of
from stroma.testing._values import Note, commit, record, request

_POLL_SECONDS = 0.001
_UPDATE = RunUpdate(status=RunStatus.PARTIAL, stop_reason="why")


def _if_in_thread(kit: Kit) -> str | None:
    if kit.is_async:
        return "it is async: it is cancelled at its own await points"
    if not getattr(kit.store.inner, "run_in_thread", False):
        return "it is sync without run_in_thread: a cancellation waits until an operation is done"
    return None


@clauses("cancellation", _if_in_thread)
class ThreadCancellationClauses:
    """A task is cancelled while the thread of its operation is at an I/O call, and works on.

    Attributes:
        thread_points: at how many of an operation's I/O calls its task is cancelled, at most.
    """

    thread_points = 12

    def _works_on(
        self, kit: Kit, prepare: Callable[[str], object], call: Callable[[str], Call]
    ) -> Iterator[tuple[str, Pause]]:
        kit.store.save("other", "node", Note(text="other"))
        prepare("counted")
        for point in points_of(kit, self.thread_points, call("counted")):
            run_id = f"cancelled at {point}"
            prepare(run_id)
            pause = Pause(point)
            kit.run(_cancel(kit, pause, call(run_id)))
            found = kit.bounded(kit.store, "load", "other", "node")
            assert found == Note(text="other"), (
                f"{run_id}: beside the thread of a cancelled operation, load gave {found!r}"
            )
            yield run_id, pause

    def test_a_save_whose_thread_works_on(self, kit: Kit) -> None:
        """The state before or the new one is loaded at any time, and saving goes on."""

        def prepare(run_id: str) -> None:
            kit.store.save(run_id, "node", Note(text="before"))

        def save(run_id: str) -> Call:
            return "save", (run_id, "node", Note(text="after"))

        for run_id, pause in self._works_on(kit, prepare, save):
            found = kit.store.load(run_id, "node")
            assert found in (Note(text="before"), Note(text="after")), f"{run_id}: {found!r}"
            pause.wait_for_end()
            kit.store.save(run_id, "node", Note(text="again"))
            assert kit.store.load(run_id, "node") == Note(text="again"), f"{run_id}: not usable"

    def test_a_commit_whose_thread_works_on(self, kit: Kit) -> None:
        """The commit is wholly there or not at any time, and can be repeated meanwhile."""
        _only_level_1(kit)

        def prepare(run_id: str) -> None:
            kit.store.open_run(request(run_id))

        def pair(run_id: str) -> Any:
            return commit(*pair_of(run_id), update=_UPDATE)

        reader = kit.another()
        for run_id, pause in self._works_on(
            kit, prepare, lambda run_id: ("commit_many", ([pair(run_id)],))
        ):
            found = reader.inspect(run_id)
            state = (len(found.headers), found.run.stop_reason)
            assert state in ((0, ""), (2, "why")), f"{run_id}, a commit is half there: {state}"
            again = kit.store.commit(pair(run_id))
            assert again is None, f"{run_id}, the repeated commit was refused: {again!r}"
            pause.wait_for_end()
            paths = [header.path for header in reader.inspect(run_id).headers]
            assert paths == ["a", "b"], (
                f"{run_id}: a commit was repeated beside its own thread, and left {paths}"
            )

    def test_a_claim_whose_thread_works_on(self, kit: Kit) -> None:
        """The token may claim again meanwhile, write, and release the run for others."""
        _only_level_1(kit)

        def claim(run_id: str) -> Call:
            return "open_run", (request(run_id or "-"),)

        for run_id, pause in self._works_on(kit, lambda run_id: None, claim):
            assert kit.store.open_run(request(run_id)).is_claimed
            pause.wait_for_end()
            written(kit.store, record(run_id))
            kit.store.release(run_id, "alice")
            assert kit.store.open_run(request(run_id, "bob")).is_claimed


async def _cancel(kit: Kit, pause: Pause, call: Call) -> None:
    """Do an operation in a thread, as the runner does; cancel its task at a point of it."""
    operation, args = call

    def body() -> object:
        with pause.armed():
            return getattr(kit.store.inner, operation)(*args)

    async def work() -> object:
        return await in_daemon_thread(body)

    with pause.points.watching():
        task = asyncio.ensure_future(work())
        while not pause.is_waiting():  # noqa: ASYNC110 - a thread, which has no loop
            await asyncio.sleep(_POLL_SECONDS)
    task.cancel()
    await asyncio.wait({task})
    pause.let_go()


def _only_level_1(kit: Kit) -> None:
    if not kit.keeps_records:
        pytest.skip("cancellation: level 1 only")
