"""Clauses for level 1: what a run's record holds."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from stroma.cost import Usage
from stroma.errors import StoreError
from stroma.records import Epoch, RunRecord, RunStatus, RunUpdate
from stroma.testing._checks import ODD_TEXT, same_run, written
from stroma.testing._clauses import clauses, if_records
from stroma.testing._kit import Kit
from stroma.testing._values import (
    DONE,
    HOSTILE_IDS,
    SPLIT_PAIRS,
    Note,
    commit,
    key,
    record,
    request,
)

COLUMNS: dict[str, Any] = {
    "pipeline": f"digest {ODD_TEXT}",
    "version": "3",
    "tags": ("nightly", 'a"b', "", "a,b", "[x]", "\u00e9"),
    "input_payload": b'{"a":1,"b":"\xc3\xa9"}',
    "input_fingerprint": "ab",
    "plan": b'{"node_ids":["a"]}',
    "trace_parent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
}


@clauses("runs", if_records)
class RunClauses:
    """What a run's record holds."""

    def test_setup_may_be_repeated(self, kit: Kit) -> None:
        """`setup` again, by another object too, loses nothing; `health` says that all is well."""
        kit.store.save("run", "node", Note(text="kept"))
        kit.store.setup()
        kit.another().setup()
        kit.store.health()
        assert kit.store.load("run", "node") == Note(text="kept"), "setup removed what was there"

    def test_a_new_run_is_created_with_its_columns(self, kit: Kit) -> None:
        """`open_run` creates and claims a run in one step, and keeps every column."""
        opened = kit.store.open_run(request(**COLUMNS))
        assert (opened.is_new, opened.is_claimed, opened.status_before) == (True, True, None)
        assert (list(opened.headers), opened.last) == ([], None), "a new run has records"
        assert opened.run.status is RunStatus.RUNNING
        assert (opened.run.owner, opened.run.holder) == ("alice", "worker alice")
        kept = {name: getattr(opened.run, name) for name in COLUMNS}
        assert kept == COLUMNS, "columns of a new run were changed"
        (listed,) = kit.store.runs().runs
        same_run(kit, listed, opened.run, "the run as it is listed is not as it was opened")
        same_run(kit, kit.another().inspect("run").run, opened.run, "another object reads it so")

    def test_a_new_runs_times_are_the_stores(self, kit: Kit) -> None:
        """A new run was created and updated now, and its lease ends when it says."""
        run = kit.store.open_run(request(lease_seconds=50)).run
        assert run.created_at == run.updated_at, "a new run was created and updated at two times"
        length = run.lease_expires_at - run.updated_at
        assert abs(length - 50) <= kit.grain_seconds, f"a lease of 50 s is one of {length} s"
        if kit.subject.clock:
            now = kit.subject.clock.now()
            assert abs(run.created_at - now) < 0.001, "the time is not that of the store's clock"

    def test_a_creation_time_that_is_given_is_kept(self, kit: Kit) -> None:
        """A run that was submitted earlier keeps its creation time when it is opened."""
        assert kit.store.open_run(request(created_at=12345.5)).run.created_at == 12345.5

    def test_a_run_that_must_exist_and_does_not_is_none(self, kit: Kit) -> None:
        """`open_run` without a record to create returns None and creates nothing."""
        assert kit.store.find_run(request(must_exist=True)) is None
        assert not kit.store.exists("run"), "open_run without `new` created a run"
        assert kit.store.runs().runs == ()

    def test_inspect_changes_nothing(self, kit: Kit) -> None:
        """`inspect` shows what `open_run` would, and claims and changes nothing."""
        assert not kit.store.exists("run")
        opened = kit.store.open_run(request())
        one = record()
        written(kit.store, one)
        kit.tick()
        found = kit.store.inspect("run")
        same_run(kit, found.run, opened.run, "inspect changed the run")
        assert (found.is_new, found.is_claimed) == (False, False), "inspect claims the run"
        assert (list(found.headers), found.last) == ([one.header], one)
        same_run(kit, kit.store.inspect("run").run, opened.run, "inspect changed the run")
        written(kit.store, record(path="later"))

    def test_ids_of_runs_are_data(self, kit: Kit) -> None:
        """Runs and records under hostile ids are kept apart."""
        for run_id in HOSTILE_IDS:
            kit.store.open_run(request(run_id))
            one = record(run_id, run_id, payload=repr(run_id).encode())
            outcome = kit.store.commit(commit(one))
            assert outcome is None, f"a record of run and node {run_id!r} is refused: {outcome!r}"
        for run_id in HOSTILE_IDS:
            found = kit.store.inspect(run_id)
            assert found.run.run_id == run_id, f"run {run_id!r} came back as {found.run.run_id!r}"
            paths = [header.path for header in found.headers]
            assert paths == [run_id], f"run {run_id!r} has the records of {paths}"
            assert found.last is not None
            assert found.last.payload == repr(run_id).encode()

    def test_paths_of_records_are_data(self, kit: Kit) -> None:
        """Records of one run under hostile paths are kept apart."""
        kit.store.open_run(request())
        all_of_them = [record(path=path, payload=repr(path).encode()) for path in HOSTILE_IDS]
        assert kit.store.commit(commit(*all_of_them)) is None
        found = kit.store.fetch("run", *(one.header.key for one in all_of_them))
        wrong = [
            one.header.path for one, back in zip(all_of_them, found, strict=True) if one != back
        ]
        assert not wrong, f"records of the nodes {wrong[:5]!r} are mixed up"

    def test_run_id_and_path_are_not_joined(self, kit: Kit) -> None:
        """Records of ('a:b', 'c') and ('a', 'b:c') are two, whatever the mark between."""
        for run_id in dict.fromkeys(run_id for run_id, _ in SPLIT_PAIRS):
            kit.store.open_run(request(run_id))
        for pair in SPLIT_PAIRS:
            one = record(*pair, payload=repr(pair).encode())
            outcome = kit.store.commit(commit(one))
            assert outcome is None, f"run id and path are joined: {pair} was refused: {outcome!r}"
        for pair in SPLIT_PAIRS:
            (found,) = kit.store.fetch(pair[0], key(*pair))
            assert found is not None
            assert found.payload == repr(pair).encode(), (
                f"{pair} has the payload of {found.payload!r}"
            )

    def test_free_text_of_any_kind_is_kept(self, kit: Kit) -> None:
        """Reasons and holders of any script, with NUL or lone surrogates even, do no harm."""
        odd = "a\0b \ud800 \N{GRINNING FACE}"
        assert _claimed_by(kit, f"host {odd}").owner == "alice"
        update = RunUpdate(status=RunStatus.PARTIAL, stop_reason=f"error: {odd}")
        outcome = kit.store.commit(commit(update=update))
        assert outcome is None, f"a stop reason with NUL and a lone surrogate: {outcome!r}"
        run = kit.store.inspect("run").run
        assert run.stop_reason.startswith("error: a"), f"the stop reason is {run.stop_reason!r}"
        assert "\N{GRINNING FACE}" in run.stop_reason
        assert run.holder.startswith("host a")
        assert _claimed_by(kit, f"other {odd}").holder.startswith("other a")

    def test_names_of_models_of_any_kind_are_kept(self, kit: Kit) -> None:
        """A model's name and a price's source, from a node, never cost the answer paid for."""
        odd = "a\0b \ud800 \N{GRINNING FACE}"
        kit.store.open_run(request())
        usage = Usage(1, 2, Decimal("0.5"), f"model {odd}", f"source {odd}")
        result = record(usage=usage)
        update = RunUpdate(status=RunStatus.COMPLETED, spend=usage, release=True)
        outcome = kit.store.commit(commit(result, update=update))
        assert outcome is None, (
            f"a model's name with NUL and a lone surrogate: {outcome!r}; the result that was paid "
            "for is lost, and bought again by every start. Keep such text as `storable` has it"
        )
        found = kit.store.inspect("run")
        for kept in (found.headers[0].usage, found.run.spend):
            assert kept[:3] == usage[:3], f"{usage} came back as {kept}"
            assert kept.model.startswith("model a"), f"the model is {kept.model!r}"
            assert kept.price_source.startswith("source a")
            assert "\N{GRINNING FACE}" in kept.model
        assert found.last is not None and found.last.payload == result.payload

    def test_an_update_changes_what_it_names(self, kit: Kit) -> None:
        """An update sets the columns that it names, leaves the others, and says when."""
        before = kit.store.open_run(request(**COLUMNS)).run
        kit.tick()
        update = RunUpdate(
            status=RunStatus.PARTIAL,
            stop_reason=ODD_TEXT,
            epochs=(Epoch(0, 0, False), Epoch(1, 2, True)),
            version="4",
            plan=b'{"node_ids":["b"]}',
            spend=Usage(2**40, 2, Decimal("0.10"), "m", "s"),
            active_ms=12.5,
        )
        assert kit.store.commit(commit(update=update)) is None
        run = kit.store.inspect("run").run
        same_run(kit, run, update.apply(before, run.updated_at), "an update is not kept as it was")
        assert str(run.spend.cost_usd) == "0.10", f"0.10 USD came back as {run.spend.cost_usd}"
        assert run.updated_at > before.updated_at, "updated_at does not change with an update"

    def test_an_update_may_empty_a_column(self, kit: Kit) -> None:
        """Empty text, no bytes and zero are values: only None leaves a column as it is."""
        full = RunUpdate(stop_reason="why", version="3", plan=b"[1]", active_ms=1.5)
        empty = RunUpdate(stop_reason="", version="", plan=b"", active_ms=0.0)
        kit.store.open_run(request())
        for update in (full, empty):
            assert kit.store.commit(commit(update=update)) is None
        run = kit.store.inspect("run").run
        found = (run.stop_reason, run.version, run.plan, run.active_ms)
        assert found == ("", "", b"", 0.0), f"an update to nothing left {found}"

    def test_a_claim_keeps_what_a_run_has(self, kit: Kit) -> None:
        """A claim changes owner, lease, status and time; the rest is left, whatever it asks."""
        kit.store.open_run(request(**COLUMNS))
        update = RunUpdate(
            status=RunStatus.PARTIAL,
            stop_reason="why",
            epochs=(Epoch(0, 0, False), Epoch(1, 2, True)),
            spend=Usage(7, 2, Decimal("0.10"), "m", "s"),
            active_ms=12.5,
        )
        assert kit.store.commit(commit(update=update)) is None
        before = kit.store.inspect("run").run
        kit.tick()
        other: dict[str, Any] = {name: type(value)() for name, value in COLUMNS.items()}
        again = kit.store.open_run(request(**other)).run
        kit.store.release("run", "alice")
        kit.tick()
        taken = kit.another().open_run(request(token="bob", **other)).run
        for run, token in ((again, "alice"), (taken, "bob")):
            expected = before._replace(
                status=RunStatus.RUNNING,
                owner=token,
                holder=f"worker {token}",
                lease_expires_at=run.lease_expires_at,
                updated_at=run.updated_at,
            )
            same_run(kit, run, expected, f"a claim by {token} changed what the run has")
        same_run(kit, kit.store.inspect("run").run, taken, "what a claim returned is not stored")

    def test_an_update_without_records_is_written(self, kit: Kit) -> None:
        """A commit that only updates the run is a commit."""
        kit.store.open_run(request())
        assert kit.store.commit(commit(update=DONE)) is None
        run = kit.store.inspect("run").run
        assert (run.status, run.owner, run.holder, run.lease_expires_at) == (
            RunStatus.COMPLETED,
            "",
            "",
            0.0,
        ), f"a commit without records left the run as {run}"

    def test_updated_at_is_of_the_last_change_of_the_run(self, kit: Kit) -> None:
        """Records and renewals leave `updated_at`; claims, updates and releases change it."""
        opened = kit.store.open_run(request())
        kit.tick()
        assert kit.store.commit(commit(record())) is None
        assert kit.store.renew([("run", "alice")], 7200) == [True]
        after_records = kit.store.inspect("run").run.updated_at
        assert after_records == opened.run.updated_at, (
            "updated_at changed with a record or a renewal: listings by age would be wrong, and "
            "every commit would move the run in the index"
        )
        again = kit.store.open_run(request()).run.updated_at
        assert again > after_records, "updated_at does not change with a claim"
        kit.tick()
        kit.store.release("run", "alice")
        assert kit.store.inspect("run").run.updated_at > again, "nor with a release"

    def test_spend_that_cannot_be_priced_stays_unknown(self, kit: Kit) -> None:
        """A cost of None comes back as None, and not as zero."""
        kit.store.open_run(request())
        kit.store.commit(commit(update=RunUpdate(spend=Usage(1, 2, None, "odd", ""))))
        assert kit.store.inspect("run").run.spend == Usage(1, 2, None, "odd", "")


def _claimed_by(kit: Kit, holder: str) -> RunRecord:
    """Claim the run for a worker of this description."""
    try:
        return kit.store.open_run(request()._replace(holder=holder)).run
    except StoreError as exc:
        raise AssertionError(f"a worker called {holder!r} could not claim a run: {exc}") from exc
