"""Clauses about kills: an operation is done wholly or not at all, wherever its process dies."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from stroma.cost import NO_USAGE
from stroma.records import (
    CLAIMABLE,
    CheckpointRecord,
    ClaimQuery,
    RunQuery,
    RunStatus,
    RunUpdate,
)
from stroma.testing._checks import written
from stroma.testing._claimable import claimable_in_pages
from stroma.testing._clauses import clauses, if_outlives
from stroma.testing._kit import Driven, Kit
from stroma.testing._listing import finished, ids_of
from stroma.testing._processes import IoPoints, fork, kill_this_process
from stroma.testing._values import Note, commit, key, record, request

Operation = Callable[[Driven, str], object]
"""What a process does to a run when it is killed."""


def sampled(count: int, at_most: int) -> list[int]:
    """Return numbers below a count: all of them, or some at equal distances with both ends."""
    if count <= at_most:
        return list(range(count))
    return sorted({round(i * (count - 1) / (at_most - 1)) for i in range(at_most)})


def killed_at_each_point(
    kit: Kit, at_most: int, prepare: Callable[[str], object], operation: Operation
) -> Iterator[str]:
    """Do an operation in processes that are killed at their k-th point, for every k.

    Yields:
        The id of the run that each was about; where no point was found, nothing was killed.
    """
    prepare("counted")
    count = _in_process(kit, "counted", operation, None)
    assert isinstance(count, int)
    if count == 0:
        pytest.skip("kills: no I/O call of the operation is seen from Python")
    yield "counted"
    for point in sampled(count, at_most):
        run_id = f"killed at {point}"
        prepare(run_id)
        _in_process(kit, run_id, operation, point)
        yield run_id


def _in_process(kit: Kit, run_id: str, operation: Operation, kill_at: int | None) -> object:
    def body(say: Callable[[object], None]) -> object:
        kit.forget()
        points = IoPoints(kill_at, kill_this_process)
        points.watch()
        store = kit.another()
        store.load("stroma-kit", "connects")
        points.is_armed = True
        operation(store, run_id)
        points.is_armed = False
        return points.count

    return fork(body).wait()


def pair_of(run_id: str) -> tuple[CheckpointRecord, ...]:
    """Return the same two records each time, with the same commit ids."""
    return tuple(
        record(run_id, path, position=i, commit_id=f"{run_id}-{path}", usage=NO_USAGE)
        for i, path in enumerate(("a", "b"))
    )


@clauses("kills", if_outlives)
class KillClauses:
    """SIGKILL before and after each I/O call of an operation.

    Attributes:
        kill_points: how many of an operation's points are tried; all, if it has no more.
    """

    kill_points = 24

    def test_a_killed_save_is_whole_or_not_there(self, kit: Kit) -> None:
        """After a kill, the state before or the new one is loaded, and a save works."""

        def prepare(run_id: str) -> None:
            kit.store.save(run_id, "node", Note(text="before"))

        def save(store: Driven, run_id: str) -> None:
            store.save(run_id, "node", Note(text="after" * 10_000))

        for run_id in killed_at_each_point(kit, self.kill_points, prepare, save):
            try:
                found = kit.store.load(run_id, "node")
            except Exception as exc:
                raise AssertionError(f"{run_id}, a save left what cannot be read: {exc!r}") from exc
            assert found in (Note(text="before"), Note(text="after" * 10_000)), (
                f"{run_id}, a save left {found!r:.200}: half a state, or none"
            )
            assert _is_usable(kit, run_id), f"{run_id}: not usable"

    def test_a_killed_delete_can_be_repeated(self, kit: Kit) -> None:
        """After a kill, each state is as it was or gone, and `delete` removes the rest."""

        def prepare(run_id: str) -> None:
            for node_id in ("a", "b"):
                kit.store.save(run_id, node_id, Note(text=node_id))

        def delete(store: Driven, run_id: str) -> None:
            store.delete(run_id)

        for run_id in killed_at_each_point(kit, self.kill_points, prepare, delete):
            for node_id in ("a", "b"):
                found = kit.store.load(run_id, node_id)
                assert found in (None, Note(text=node_id)), f"{run_id}, a delete left {found!r}"
            kit.store.delete(run_id)
            left = [n for n in ("a", "b") if kit.store.load(run_id, n) is not None]
            assert not left, f"{run_id}, a delete that was repeated left the states {left}"

    def test_a_killed_claim_is_whole_or_not_there(self, kit: Kit) -> None:
        """After a kill, the run is new, or claimed with all its columns; its lease ends."""
        _only_level_1(kit)
        seconds = kit.lease_seconds
        columns: dict[str, Any] = {
            "pipeline": "p",
            "tags": ("t",),
            "plan": b"[1]",
            "input_payload": b"2",
        }

        def claim(store: Driven, run_id: str) -> None:
            store.open_run(request(run_id, "dead", lease_seconds=seconds, **columns))

        tried = list(killed_at_each_point(kit, self.kill_points, lambda run_id: None, claim))
        for run_id in tried:
            if kit.store.exists(run_id):
                run = kit.store.inspect(run_id).run
                kept = {name: getattr(run, name) for name in columns}
                assert (kept, run.status, run.owner) == (columns, RunStatus.RUNNING, "dead"), (
                    f"{run_id}, a claim left half a run: {run}"
                )
        _are_claimable_if_unfinished(kit, tried, "a claim")
        for run_id in tried:
            opened = kit.take_over(request(run_id, "bob", **columns))
            assert (opened.is_claimed, list(opened.headers)) == (True, [])
            assert {name: getattr(opened.run, name) for name in columns} == columns
            written(kit.store, record(run_id), token="bob")
        listed = {run.run_id for run in kit.store.runs(RunQuery(limit=500)).runs}
        assert listed == {*tried}, f"not listed, or listed and not there: {listed ^ {*tried}}"

    def test_a_killed_commit_is_whole_or_not_there(self, kit: Kit) -> None:
        """After a kill, both records and the update are there or nothing; repeating completes."""
        _only_level_1(kit)
        update = RunUpdate(status=RunStatus.PARTIAL, stop_reason="why")

        def prepare(run_id: str) -> None:
            kit.store.open_run(request(run_id))

        def write(store: Driven, run_id: str) -> None:
            outcome = store.commit(commit(*pair_of(run_id), update=update))
            assert outcome is None, f"a good commit was refused: {outcome!r}"

        for run_id in killed_at_each_point(kit, self.kill_points, prepare, write):
            found = kit.store.inspect(run_id)
            state = (len(found.headers), found.run.status, found.run.stop_reason)
            assert state in ((0, RunStatus.RUNNING, ""), (2, RunStatus.PARTIAL, "why")), (
                f"{run_id}, a commit of two records and an update left {state}: it is not atomic"
            )
            again = kit.store.commit(commit(*pair_of(run_id), update=update))
            assert again is None, f"{run_id}, a commit that was repeated was refused: {again!r}"
            found = kit.store.inspect(run_id)
            assert [header.path for header in found.headers] == ["a", "b"], f"{run_id}: {found}"
            assert found.run.status is RunStatus.PARTIAL

    def test_a_killed_claim_of_a_run_that_ended_is_listed(self, kit: Kit) -> None:
        """After a kill, a run that had ended is as it was, or listed after its claimant's lease."""
        _only_level_1(kit)
        seconds = kit.lease_seconds

        def claim(store: Driven, run_id: str) -> None:
            store.open_run(request(run_id, "dead", lease_seconds=seconds, reopen=True))

        def prepare(run_id: str) -> None:
            finished(kit, run_id)

        tried = list(killed_at_each_point(kit, self.kill_points, prepare, claim))
        _are_claimable_if_unfinished(kit, tried, "a claim of a run that had ended")

    @pytest.mark.parametrize("status", [RunStatus.COMPLETED, RunStatus.PENDING])
    def test_a_killed_end_is_whole_or_not_there(self, kit: Kit, status: RunStatus) -> None:
        """After a kill, the last commit ended or submitted, and released the run, or nothing."""
        _only_level_1(kit)
        seconds = kit.lease_seconds
        done = RunUpdate(status=status, release=True)

        def prepare(run_id: str) -> None:
            kit.store.open_run(request(run_id, lease_seconds=seconds))

        def end(store: Driven, run_id: str) -> None:
            store.commit(commit(record(run_id), update=done))

        tried = list(killed_at_each_point(kit, self.kill_points, prepare, end))
        for run_id in tried:
            found = kit.store.inspect(run_id)
            state = (len(found.headers), found.run.status, found.run.owner)
            assert state in ((0, RunStatus.RUNNING, "alice"), (1, status, "")), (
                f"{run_id}, the last commit of a run left {state}"
            )
        _are_claimable_if_unfinished(kit, tried, "the last commit of a run")
        for run_id in tried:
            opened = kit.take_over(request(run_id, "bob", reopen=True))
            assert opened.is_claimed

    def test_a_killed_removal_leaves_no_half_run(self, kit: Kit) -> None:
        """After a kill of `delete` or `purge`, the run is whole or gone, and can be removed."""
        _only_level_1(kit)
        for name in ("delete", "purge"):

            def prepare(run_id: str, name: str = name) -> None:
                run_id = f"{name} {run_id}"
                kit.store.open_run(request(run_id, pipeline=run_id))
                assert kit.store.commit(commit(*pair_of(run_id))) is None
                kit.store.save(run_id, "plain", Note())
                kit.store.release(run_id, "alice")

            def remove(store: Driven, run_id: str, name: str = name) -> None:
                run_id = f"{name} {run_id}"
                if name == "delete":
                    store.delete(run_id)
                else:
                    store.purge(RunQuery(pipeline=run_id))

            for tried in killed_at_each_point(kit, self.kill_points, prepare, remove):
                run_id = f"{name} {tried}"
                if kit.store.exists(run_id):
                    found = kit.store.inspect(run_id)
                    paths = [header.path for header in found.headers]
                    assert paths == ["a", "b"], f"{run_id}: half a run is left, with {paths}"
                    assert None not in kit.store.fetch(run_id, key(run_id, "a"), key(run_id, "b"))
                else:
                    _begins_anew(kit, run_id)
                kit.store.delete(run_id)
                keys = (key(run_id, "a"), key(run_id, "b"), key(run_id, "plain", None))
                assert kit.store.fetch(run_id, *keys) == [None] * 3, (
                    f"{run_id}: deleted again, and records are left"
                )
                again = kit.store.open_run(request(run_id, "bob"))
                assert (again.is_new, list(again.headers)) == (True, []), f"{run_id} came back"
                kit.store.delete(run_id)

    def test_a_killed_renewal_and_release_leave_a_run_that_can_be_claimed(self, kit: Kit) -> None:
        """After a kill of `renew` or `release`, the owner is who it was or nobody."""
        _only_level_1(kit)

        def prepare(run_id: str) -> None:
            kit.store.open_run(request(run_id))

        def renew(store: Driven, run_id: str) -> None:
            store.renew([(run_id, "alice")], 9000)

        def release(store: Driven, run_id: str) -> None:
            store.release(run_id, "alice")

        for operation in (renew, release):
            for run_id in killed_at_each_point(kit, self.kill_points, prepare, operation):
                run = kit.store.inspect(run_id).run
                is_free = (run.owner, run.holder, run.lease_expires_at) == ("", "", 0.0)
                assert run.owner == "alice" or is_free, f"{run_id}: half released: {run}"
                assert kit.store.open_run(request(run_id)).is_claimed
                kit.store.release(run_id, "alice")
                kit.store.delete(run_id)


def _are_claimable_if_unfinished(kit: Kit, tried: Sequence[str], what: str) -> None:
    """Check that workers are shown the runs that go on, once their leases have ended."""
    kit.outlast(kit.lease_seconds)
    expected = {
        run_id
        for run_id in tried
        if kit.store.exists(run_id) and kit.store.inspect(run_id).run.status in CLAIMABLE
    }
    found = set(ids_of(claimable_in_pages(kit.store, ClaimQuery())))
    assert found == expected, (
        f"after kills of {what}, runs that nobody owns are not listed as claimable, or others "
        f"are: {found ^ expected}. An index of unfinished runs may name one too many, if it is "
        "looked at, and never one too few"
    )


def _begins_anew(kit: Kit, run_id: str) -> None:
    """Check that nothing of a run whose removal was killed is in a new run of its id."""
    opened = kit.store.open_run(request(run_id, "new"))
    headers = [*opened.headers, *kit.store.inspect(run_id).headers]
    results = kit.store.fetch(run_id, key(run_id, "a", None), key(run_id, "b", None))
    assert (opened.is_new, headers, results) == (True, [], [None, None]), (
        f"{run_id}: its record was gone after a killed removal, and a new run of that id has "
        "results of the one that was removed: remove the record last, or all in one step"
    )
    found = kit.store.load(run_id, "plain")
    assert found in (None, Note()), f"{run_id}: a killed removal left the state {found!r}"


def _is_usable(kit: Kit, run_id: str) -> bool:
    """Save until it lasts: a server may still be busy with what the dead process had sent."""
    for _ in range(20):
        kit.store.save(run_id, "node", Note(text="again"))
        if kit.store.load(run_id, "node") == Note(text="again"):
            return True
        time.sleep(0.05)
    return False


def _only_level_1(kit: Kit) -> None:
    if not kit.keeps_records:
        pytest.skip("kills: level 1 only")
