"""Clauses about what is removed: what was asked for, and nothing that somebody owns."""

from __future__ import annotations

from stroma.records import RunQuery, RunStatus, RunUpdate
from stroma.testing._checks import written
from stroma.testing._clauses import clauses, if_records
from stroma.testing._kit import Kit
from stroma.testing._listing import finished, ids_of
from stroma.testing._values import Note, key, record, request


@clauses("retention", if_records)
class RetentionClauses:
    """`purge`, and `delete` of runs that are listed."""

    def test_old_runs_go_with_all_they_have(self, kit: Kit) -> None:
        """`purge` removes runs with their records and plain states, and says how many."""
        kit.store.open_run(request("old"))
        written(kit.store, record("old"))
        kit.store.save("old", "plain", Note())
        kit.store.release("old", "alice")
        kit.tick()
        young = finished(kit, "young")
        kit.store.save("young", "plain", Note())
        removed = kit.store.purge(RunQuery(updated_before=young.updated_at))
        assert removed == 1, f"purge of one run says {removed}"
        assert not kit.store.exists("old"), "purge left the run"
        left = kit.store.fetch("old", key("old"), key("old", "plain", None))
        assert left == [None, None], "purge left records of a run that it removed"
        assert ids_of(kit.store.runs()) == ["young"]
        assert kit.store.load("young", "plain") == Note(), "purge removed states of another run"
        assert kit.store.open_run(request("old")).is_new

    def test_plain_states_without_a_run_stay(self, kit: Kit) -> None:
        """`purge` is about runs: a state that `save` kept outside of any is left alone."""
        kit.store.save("alone", "node", Note(text="kept"))
        finished(kit, "run")
        assert kit.store.purge(RunQuery()) == 1
        assert kit.store.load("alone", "node") == Note(text="kept")

    def test_owned_runs_stay_until_their_lease_ends(self, kit: Kit) -> None:
        """`purge` leaves a run that somebody owns, and takes it when the lease has ended."""
        kit.store.open_run(request("short", lease_seconds=kit.lease_seconds))
        kit.store.open_run(request("long"))
        removed = kit.store.purge(RunQuery())
        assert removed == 0, f"purge removed {removed} runs that workers own"
        written(kit.store, record("short"))
        kit.outlast(kit.lease_seconds)
        removed = kit.store.purge(RunQuery())
        assert removed == 1, f"of a dead worker's run and a live one's, purge removed {removed}"
        assert ids_of(kit.store.runs()) == ["long"]
        written(kit.store, record("long"))

    def test_the_limit_counts_what_is_removed(self, kit: Kit) -> None:
        """`purge` goes on past runs that somebody owns until its limit is reached."""
        for i in range(130):
            finished(kit, f"r{i}")
        for i in range(5):
            kit.store.open_run(request(f"owned{i}"))
        assert kit.store.purge(RunQuery(limit=120)) == 120
        assert len(kit.store.runs(RunQuery(limit=500)).runs) == 15
        assert kit.store.purge(RunQuery(limit=120)) == 10
        assert sorted(ids_of(kit.store.runs())) == [f"owned{i}" for i in range(5)]
        assert [kit.store.purge(RunQuery(limit=limit)) for limit in (0, -1, -5)] == [0, 0, 0]

    def test_only_what_a_query_finds_is_removed(self, kit: Kit) -> None:
        """`purge` keeps to the statuses, pipeline and tag of its query."""
        finished(kit, "done", pipeline="p")
        finished(kit, "other", pipeline="q")
        failed = RunUpdate(status=RunStatus.FAILED, release=True)
        finished(kit, "failed", failed, pipeline="p", tags=("keep",))
        done = RunQuery(statuses=(RunStatus.COMPLETED,), pipeline="p")
        assert kit.store.purge(done) == 1
        assert sorted(ids_of(kit.store.runs())) == ["failed", "other"]
        assert kit.store.purge(RunQuery(tag="none")) == 0
        assert kit.store.purge(RunQuery(tag="keep")) == 1
        assert ids_of(kit.store.runs()) == ["other"]

    def test_what_was_purged_may_be_run_again(self, kit: Kit) -> None:
        """A run under the id of one that was purged is new and empty."""
        kit.store.open_run(request(token="alice"))
        written(kit.store, record())
        kit.store.release("run", "alice")
        assert kit.store.purge(RunQuery()) == 1
        again = kit.store.open_run(request(token="bob"))
        assert (again.is_new, list(again.headers), again.last) == (True, [], None)
        written(kit.store, record(), token="bob")
