"""Clauses about removals beside other work: a run is gone or wholly there, in whatever order."""

from __future__ import annotations

from typing import Any

from stroma.errors import OutcomeUnknown, RunLocked, StaleOwner, StoreUnavailable
from stroma.records import RunQuery, RunStatus, RunUpdate
from stroma.testing._clauses import always, clauses, if_fencing
from stroma.testing._kills import pair_of
from stroma.testing._kit import Kit
from stroma.testing._pauses import Call, interleaved
from stroma.testing._values import Note, commit, key, record, request

_UPDATE = RunUpdate(status=RunStatus.PARTIAL, stop_reason="why")
_LONG = "long" * 100_000
_PASSING = (StoreUnavailable, OutcomeUnknown)


class _Points:
    """How much is tried.

    Attributes:
        pause_points: at how many of an operation's I/O calls another one comes between, at most.
    """

    pause_points = 12


@clauses("states", always)
class StatesBesideWorkClauses(_Points):
    """Saving what is saved or deleted at the same time."""

    def test_a_save_beside_a_delete(self, kit: Kit) -> None:
        """A state that is saved during `delete` is kept or gone, and neither of them fails."""

        def prepare(run_id: str) -> None:
            for node_id in ("a", "b"):
                kit.store.save(run_id, node_id, Note(text="before"))

        for first, second in ((_delete, _save), (_save, _delete)):
            tried = interleaved(kit, self.pause_points, prepare, first, second)
            for run_id, *answers in tried:
                is_certain = not _failed(run_id, answers, kit)
                try:
                    found = [kit.store.load(run_id, node_id) for node_id in ("a", "b")]
                except Exception as exc:
                    raise AssertionError(f"{run_id} left what cannot be read: {exc!r}") from exc
                allowed = [(None, Note(text="after")), (None,)]
                if not is_certain:
                    allowed = [(*each, Note(text="before")) for each in allowed]
                for node_id, state, states in zip(("a", "b"), found, allowed, strict=True):
                    assert state in states, f"{run_id}: node {node_id} has {state!r} after it"
                kit.store.save(run_id, "a", Note(text="again"))
                assert kit.store.load(run_id, "a") == Note(text="again"), f"{run_id}: not usable"

    def test_saves_of_one_node_beside_each_other(self, kit: Kit) -> None:
        """Of two saves of one node at the same time one stays, whole, and neither fails."""
        for run_id, *answers in interleaved(
            kit, self.pause_points, lambda run_id: None, _save_at_length, _save
        ):
            _failed(run_id, answers, kit)
            try:
                found = kit.store.load(run_id, "a")
            except Exception as exc:
                raise AssertionError(f"{run_id} left what cannot be read: {exc!r}") from exc
            assert found in (Note(text="after"), Note(text=_LONG)), (
                f"{run_id}: two saves of one node were mixed up: {found!r:.200}"
            )


@clauses("retention", if_fencing)
class RemovalBesideWorkClauses(_Points):
    """`delete` and `purge` of a run that somebody claims or writes to at the same time."""

    def test_a_claim_beside_a_delete(self, kit: Kit) -> None:
        """A claim gets the whole run, which is deleted then, or a new one, which stays."""
        for first, second in ((_delete, _claim), (_claim, _delete)):
            tried = interleaved(kit, self.pause_points, lambda r: _free(kit, r), first, second)
            for run_id, *answers in tried:
                if not _failed(run_id, answers, kit):
                    opened = answers[1] if second is _claim else answers[0]
                    exists = kit.store.exists(run_id)
                    assert exists is opened.is_new, (
                        f"{run_id}: the claim found {'no run' if opened.is_new else 'the run'}, "
                        f"and afterwards the run {'is there' if exists else 'is gone'}"
                    )
                    _is_whole(kit, run_id, opened)
                _can_begin_anew(kit, run_id)

    def test_a_commit_beside_a_delete(self, kit: Kit) -> None:
        """A commit to a run that is being deleted leaves nothing of it behind."""

        def prepare(run_id: str) -> None:
            kit.store.open_run(request(run_id))
            kit.store.commit(commit(record(run_id, "early")))

        for first, second in ((_delete, _commit), (_commit, _delete)):
            tried = interleaved(kit, self.pause_points, prepare, first, second)
            for run_id, *answers in tried:
                if not _failed(run_id, answers, kit):
                    (outcome,) = answers[1] if second is _commit else answers[0]
                    assert outcome is None or isinstance(outcome, (StaleOwner, *_PASSING)), (
                        f"{run_id}: the commit ended in {outcome!r}; its run is gone, which is "
                        "StaleOwner"
                    )
                    keys = [key(run_id, path) for path in ("early", "a", "b")]
                    left = [r.header.path for r in kit.store.fetch(run_id, *keys) if r is not None]
                    assert not kit.store.exists(run_id), f"{run_id}: the deleted run is there again"
                    assert not left, f"{run_id}: the run is gone, and its records {left} are left"
                _can_begin_anew(kit, run_id)

    def test_a_claim_beside_a_purge(self, kit: Kit) -> None:
        """A run that was claimed before `purge` came to it stays, and takes commits."""
        for first, second in ((_purge, _claim), (_claim, _purge)):
            tried = interleaved(kit, self.pause_points, lambda r: _free(kit, r), first, second)
            for run_id, *answers in tried:
                if not _failed(run_id, answers, kit):
                    opened = answers[1] if second is _claim else answers[0]
                    assert kit.store.exists(run_id), (
                        f"{run_id}: purge removed a run that a worker had claimed meanwhile: look "
                        "again whether it is owned, in the step that removes it"
                    )
                    _is_whole(kit, run_id, opened)
                _can_begin_anew(kit, run_id)


def _delete(run_id: str) -> Call:
    return "delete", (run_id,)


def _purge(run_id: str) -> Call:
    return "purge", (RunQuery(pipeline=run_id),)


def _save(run_id: str) -> Call:
    return "save", (run_id, "a", Note(text="after"))


def _save_at_length(run_id: str) -> Call:
    return "save", (run_id, "a", Note(text=_LONG))


def _claim(run_id: str) -> Call:
    return "open_run", (request(run_id or "-", "bob", pipeline=run_id),)


def _commit(run_id: str) -> Call:
    return "commit_many", ([commit(*pair_of(run_id or "-"), update=_UPDATE)],)


def _free(kit: Kit, run_id: str) -> None:
    """Leave a run with two records, which nobody owns."""
    kit.store.open_run(request(run_id, pipeline=run_id))
    assert kit.store.commit(commit(*pair_of(run_id))) is None
    kit.store.release(run_id, "alice")


def _failed(run_id: str, answers: list[Any], kit: Kit) -> bool:
    """Say whether one of two operations failed, which it may only in passing."""
    errors = [each for each in answers if isinstance(each, BaseException)]
    wrong = [each for each in errors if not (kit.keeps_records and isinstance(each, _PASSING))]
    assert not wrong, (
        f"{run_id}: beside each other, one ended in {wrong[0]!r}: what others do meanwhile "
        "is no error"
    )
    return bool(errors)


def _is_whole(kit: Kit, run_id: str, opened: Any) -> None:
    """Check that a claimed run has all that its claim showed, or is gone with all of it."""
    paths = [] if opened.is_new else ["a", "b"]
    shown = [header.path for header in opened.headers]
    assert shown == paths, f"{run_id}: the claim showed half a run, with the records {shown}"
    outcome = kit.store.commit(commit(record(run_id, "c"), token="bob"))
    if kit.store.exists(run_id):
        assert outcome is None, (
            f"{run_id}: the run is there, and whoever claimed it is refused: {outcome!r}"
        )
        found = kit.store.inspect(run_id)
        kept = [header.path for header in found.headers]
        assert (kept, found.run.owner) == ([*paths, "c"], "bob"), (
            f"{run_id}: half a run is left, with {kept}, owned by {found.run.owner!r}"
        )
    else:
        left = kit.store.fetch(run_id, key(run_id, "a"), key(run_id, "b"), key(run_id, "c"))
        assert left == [None] * 3, f"{run_id}: the run is gone, and records of it are left"


def _can_begin_anew(kit: Kit, run_id: str) -> None:
    """Check that the run can be deleted and claimed as a new one."""
    kit.store.delete(run_id)
    try:
        opened = kit.store.open_run(request(run_id, "carol"))
    except RunLocked as exc:
        raise AssertionError(f"{run_id}: after a delete, it cannot be claimed: {exc}") from exc
    assert (opened.is_new, list(opened.headers)) == (True, []), f"{run_id} came back"
    kit.store.delete(run_id)
