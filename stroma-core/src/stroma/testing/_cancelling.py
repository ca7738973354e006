"""Clauses about cancellation: at every await point, once and twice."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Generator, Iterator
from typing import Any, Generic, TypeVar

import pytest

from stroma.errors import StoreError
from stroma.records import PLAIN_EPOCH, RunStatus, RunUpdate
from stroma.testing._checks import written
from stroma.testing._clauses import clauses, if_async
from stroma.testing._kit import Kit
from stroma.testing._values import Note, commit, key, record, request

T = TypeVar("T")

_LATE_SECONDS = 0.002
_LANDED_SECONDS = 0.05
HOW = ("once", "twice", "late")


class Counted(Generic[T]):
    """A piece of work that is cancelled when it waits for the k-th time.

    Args:
        work: what is to be cancelled.
        at: at which suspension, from 0.
        how: "once" as soon as it waits, "twice" in two turns of the loop, or "late", when a
            reply is on its way.
    """

    def __init__(self, work: Awaitable[T], at: int, how: str) -> None:
        self._work = work
        self._at = at
        self._how = how
        self.count = 0

    def __await__(self) -> Generator[Any, Any, T]:
        steps = self._work.__await__()
        error: BaseException | None = None
        while True:
            try:
                waited = steps.send(None) if error is None else steps.throw(error)
            except StopIteration as stop:
                return stop.value  # type: ignore[no-any-return]
            error = None
            if self.count == self._at:
                self._cancel_soon()
            self.count += 1
            try:
                yield waited
            except BaseException as exc:
                error = exc

    def _cancel_soon(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        loop = asyncio.get_running_loop()
        if self._how == "late":
            loop.call_later(_LATE_SECONDS, task.cancel)
            return
        loop.call_soon(task.cancel)
        if self._how == "twice":
            loop.call_soon(lambda: loop.call_soon(task.cancel))


async def _ended(work: Counted[Any], seconds: float) -> bool:
    """Run a piece of work in a task; say whether it came to its end in spite of all."""

    async def body() -> Any:
        return await work

    task = asyncio.ensure_future(body())
    await asyncio.wait({task}, timeout=seconds)
    assert task.done(), f"a cancelled operation did not end within {seconds:g} s"
    if task.cancelled():
        return False
    error = task.exception()
    if error is not None and not isinstance(error, StoreError):
        raise error
    return error is None


@clauses("cancellation", if_async)
class CancellationClauses:
    """An operation whose task is cancelled leaves the store usable.

    Attributes:
        cancel_points: at how many of an operation's suspensions it is cancelled at most.
    """

    cancel_points = 40

    def _cancelled(
        self,
        kit: Kit,
        how: str,
        prepare: Callable[[str], object],
        operation: Callable[[str], Awaitable[Any]],
    ) -> Iterator[str]:
        for point in range(self.cancel_points):
            run_id = f"{how} at {point}"
            prepare(run_id)
            work = Counted(operation(run_id), point, how)
            kit.run(_ended(work, kit.subject.longest_wait_seconds))
            yield run_id
            if work.count <= point:
                return

    @pytest.mark.parametrize("how", HOW)
    def test_a_cancelled_save(self, kit: Kit, how: str) -> None:
        """The state before or the new one is loaded, and the next calls get their own replies."""
        kit.store.save("other", "node", Note(text="other"))

        def prepare(run_id: str) -> None:
            kit.store.save(run_id, "node", Note(text="before"))

        tried: list[str] = []

        def save(run_id: str) -> Awaitable[Any]:
            return kit.store.call("save", run_id, "node", Note(text="after"))

        for run_id in self._cancelled(kit, how, prepare, save):
            _has_its_own_reply(kit, run_id)
            found = kit.store.load(run_id, "node")
            assert found in (Note(text="before"), Note(text="after")), f"{run_id}: {found!r}"
            kit.store.save(run_id, "node", Note(text="again"))
            assert kit.store.load(run_id, "node") == Note(text="again"), (
                f"{run_id}: what was saved after a cancelled save was replaced by the earlier one"
            )
            tried.append(run_id)
        time.sleep(_LANDED_SECONDS)
        replaced = [r for r in tried if kit.store.load(r, "node") != Note(text="again")]
        assert not replaced, (
            f"{replaced[:5]}: a cancelled save wrote after a later one had returned, and replaced "
            "it: a thread that cannot be cancelled has to be waited for"
        )

    @pytest.mark.parametrize("how", HOW)
    def test_a_cancelled_load(self, kit: Kit, how: str) -> None:
        """A load that is cancelled leaves its reply to nobody."""
        kit.store.save("other", "node", Note(text="other"))

        def prepare(run_id: str) -> None:
            kit.store.save(run_id, "node", Note(text=run_id))

        def load(run_id: str) -> Awaitable[Any]:
            return kit.store.call("load", run_id, "node")

        for run_id in self._cancelled(kit, how, prepare, load):
            _has_its_own_reply(kit, run_id)
            assert kit.store.load(run_id, "node") == Note(text=run_id)

    @pytest.mark.parametrize("how", HOW)
    def test_a_cancelled_commit(self, kit: Kit, how: str) -> None:
        """A commit that is cancelled is wholly there or not at all, and can be repeated."""
        _only_level_1(kit)
        kit.store.save("other", "node", Note(text="other"))
        update = RunUpdate(status=RunStatus.PARTIAL, stop_reason="why")

        def pair(run_id: str) -> Any:
            records = [record(run_id, path, commit_id=f"{run_id}-{path}") for path in ("a", "b")]
            return commit(*records, update=update)

        def prepare(run_id: str) -> None:
            kit.store.open_run(request(run_id))

        def write(run_id: str) -> Awaitable[Any]:
            return kit.store.call("commit_many", [pair(run_id)])

        reader = kit.another()
        for run_id in self._cancelled(kit, how, prepare, write):
            _has_its_own_reply(kit, run_id)
            found = reader.inspect(run_id)
            state = (len(found.headers), found.run.stop_reason)
            assert state in ((0, ""), (2, "why")), f"{run_id}, a commit is half there: {state}"
            again = kit.store.commit(pair(run_id))
            assert again is None, f"{run_id}, the repeated commit was refused: {again!r}"
            headers = reader.inspect(run_id).headers
            assert [header.path for header in headers] == ["a", "b"], f"{run_id}: {headers}"

    @pytest.mark.parametrize("how", HOW)
    def test_a_cancelled_claim(self, kit: Kit, how: str) -> None:
        """A claim that is cancelled can be repeated by its token, and is released by it."""
        _only_level_1(kit)
        kit.store.save("other", "node", Note(text="other"))

        def claim(run_id: str) -> Awaitable[Any]:
            return kit.store.call("open_run", request(run_id))

        for run_id in self._cancelled(kit, how, lambda run_id: None, claim):
            _has_its_own_reply(kit, run_id)
            assert kit.store.open_run(request(run_id)).is_claimed
            written(kit.store, record(run_id))
            kit.store.release(run_id, "alice")
            assert kit.store.open_run(request(run_id, "bob")).is_claimed

    def test_cancelled_tasks_side_by_side(self, kit: Kit) -> None:
        """Of many operations at once some are cancelled, and the others get what is theirs."""
        for i in range(20):
            kit.store.save(f"run{i}", "node", Note(text=str(i)))

        async def load(i: int) -> Any:
            return await kit.store.call("load", f"run{i}", "node")

        async def body(steps: int) -> list[Any]:
            tasks = [asyncio.ensure_future(load(i)) for i in range(20)]
            for _ in range(steps):
                await asyncio.sleep(0)
            for task in tasks[::3]:
                task.cancel()
            return await asyncio.gather(*tasks, return_exceptions=True)

        for steps in range(12):
            for i, answer in enumerate(kit.run(body(steps))):
                if isinstance(answer, asyncio.CancelledError):
                    assert i % 3 == 0, f"load {i} was cancelled, and nobody asked for it"
                    continue
                assert answer == Note(text=str(i)), (
                    f"beside operations that were cancelled, the load of {i} gave {answer!r}"
                )


def _has_its_own_reply(kit: Kit, run_id: str) -> None:
    """Check that the next operations are not given what an earlier one asked for."""
    found = kit.store.load("other", "node")
    assert found == Note(text="other"), (
        f"cancelled {run_id}: the next load gave {found!r}, and not its own reply: a connection "
        "with a reply under way was used again"
    )
    if kit.keeps_records:
        (plain,) = kit.store.fetch("other", key("other", "node", PLAIN_EPOCH))
        assert plain is not None
        assert plain.header.run_id == "other", f"the next fetch gave {plain.header.run_id!r}"


def _only_level_1(kit: Kit) -> None:
    if not kit.keeps_records:
        pytest.skip("cancellation: level 1 only")
