"""Clauses for level 1: runs are opened, and records are written once, all or nothing."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from stroma.cost import NO_USAGE, Usage
from stroma.errors import AlreadyCommitted, StaleOwner, UnknownSchema
from stroma.records import PLAIN_EPOCH, CheckpointRecord, Epoch, RunRecord, RunStatus, RunUpdate
from stroma.testing._clauses import clauses, if_records
from stroma.testing._kit import Driven, Kit
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

ODD_TEXT = 'Gr\u00fc\u00dfe \N{EURO SIGN} \N{GRINNING FACE} "quoted" \\ \' ; \n %s {0} \x1f'

COLUMNS: dict[str, Any] = {
    "pipeline": f"digest {ODD_TEXT}",
    "version": "3",
    "tags": ("nightly", 'a"b', "", "a,b", "[x]", "\u00e9"),
    "input_payload": b'{"a":1,"b":"\xc3\xa9"}',
    "input_fingerprint": "ab",
    "plan": b'{"node_ids":["a"]}',
    "trace_parent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
}


def outcome_is(outcome: object, kind: type, what: str) -> None:
    """Check how a commit was refused."""
    assert isinstance(outcome, kind), (
        f"{what} must be refused with {kind.__name__}, not {outcome!r}"
    )


def written(store: Driven, one: CheckpointRecord, *, token: str = "alice") -> None:
    """Commit a record that must be taken."""
    outcome = store.commit(commit(one, token=token))
    assert outcome is None, f"a commit by the run's owner was refused: {outcome!r}"


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
        opened = kit.store.open_run(request()._replace(holder=f"host {odd}"))
        assert opened.run.owner == "alice"
        update = RunUpdate(status=RunStatus.PARTIAL, stop_reason=f"error: {odd}")
        outcome = kit.store.commit(commit(update=update))
        assert outcome is None, f"a stop reason with NUL and a lone surrogate: {outcome!r}"
        run = kit.store.inspect("run").run
        assert run.stop_reason.startswith("error: a"), f"the stop reason is {run.stop_reason!r}"
        assert "\N{GRINNING FACE}" in run.stop_reason
        assert run.holder.startswith("host a")

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
        assert kit.store.commit(commit(record(), lease_seconds=7200)) is None
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


@clauses("records", if_records)
class RecordClauses:
    """What is committed, and what comes back."""

    def test_a_record_comes_back_as_it_was(self, kit: Kit) -> None:
        """Every column of a record and its payload come back, by any object."""
        one = record(
            path="extract[17]",
            kind="attempt",
            attempt=2,
            position=-1,
            payload=b'{"text":"\xc3\xa9 \\u0000 \\ud83d"}',
            usage=Usage(2**40, 3, Decimal("0.000000000000000000123456789"), ODD_TEXT, "table"),
        )
        kit.store.open_run(request())
        written(kit.store, one)
        for store in (kit.store, kit.another()):
            (found,) = store.fetch("run", one.header.key)
            assert found is not None, "a commit returned, and fetch does not find its record"
            wrong = [
                f"{name}: {a!r} came back as {b!r}"
                for name, a, b in zip(one.header._fields, one.header, found.header, strict=True)
                if a != b
            ]
            assert not wrong, "; ".join(wrong)
            assert found.payload == one.payload, "the payload came back changed"
            assert str(found.header.usage.cost_usd) == str(one.header.usage.cost_usd)
        (header,) = kit.store.inspect("run").headers
        assert header == one.header, "the header that inspect shows is not the one that fetch has"

    def test_payloads_are_bytes(self, kit: Kit) -> None:
        """Bytes that are no UTF-8, or empty, come back as they are."""
        kit.store.open_run(request())
        for i, payload in enumerate((b"", b"\x00\xff\xfe", b"\r\n", bytes(range(256)))):
            one = record(path=f"n{i}", payload=payload)
            written(kit.store, one)
            (found,) = kit.store.fetch("run", one.header.key)
            assert found == one, f"the payload {payload[:8]!r}… came back as {found!r:.200}"

    def test_an_unknown_price_comes_back_unknown(self, kit: Kit) -> None:
        """A usage whose cost is None is read so, and no usage as the one object of that name."""
        priced, free = record(path="a", usage=Usage(1, 2, None, "odd", "")), record(path="b")
        kit.store.open_run(request())
        written(kit.store, priced)
        written(kit.store, free)
        first, second = kit.store.inspect("run").headers
        assert first.usage == Usage(1, 2, None, "odd", ""), (
            f"a cost of None came back as {first.usage.cost_usd!r}: a budget in USD would vanish"
        )
        assert second.usage == NO_USAGE

    def test_the_same_commit_again_is_success(self, kit: Kit) -> None:
        """A commit that is repeated with its commit id is success, and there is one record."""
        one = record()
        kit.store.open_run(request())
        for attempt in range(3):
            outcome = kit.store.commit(commit(one))
            assert outcome is None, (
                f"the same commit, sent for the {attempt + 1}. time, was refused: {outcome!r}; a "
                "lost reply would stop the run. Compare the commit id that is stored"
            )
        assert len(kit.store.inspect("run").headers) == 1, "a repeated commit made two records"

    def test_the_same_commit_in_part_is_completed(self, kit: Kit) -> None:
        """A commit whose first record is stored already under its id writes the others."""
        first, second = record(path="a"), record(path="b")
        kit.store.open_run(request())
        written(kit.store, first)
        assert kit.store.commit(commit(first, second)) is None
        assert kit.store.fetch("run", first.header.key, second.header.key) == [first, second]

    def test_another_commit_on_a_key_is_refused(self, kit: Kit) -> None:
        """Records are written once: another commit id on the key is refused, nothing changes."""
        first, second = record(payload=b"1"), record(payload=b"2")
        kit.store.open_run(request())
        written(kit.store, first)
        refused = kit.another().commit(commit(second))
        outcome_is(refused, AlreadyCommitted, "another commit on a key that is taken")
        assert "'run'" in str(refused) and "'node'" in str(refused), (
            f"the refusal names neither run nor node: {refused}"
        )
        assert kit.store.fetch("run", first.header.key) == [first], "it replaced the first one"

    def test_kinds_attempts_and_epochs_are_parts_of_the_key(self, kit: Kit) -> None:
        """Results, attempts by number and epochs of one node are records of their own."""
        kit.store.open_run(request())
        all_of_them = [
            record(),
            record(kind="once"),
            record(kind="attempt", attempt=1, position=-1),
            record(kind="attempt", attempt=11, position=-1),
            record(epoch=1),
            record(epoch=11),
            record(epoch=1, kind="attempt", attempt=1, position=-1),
        ]
        for one in all_of_them:
            written(kit.store, one)
        assert kit.store.fetch("run", *(r.header.key for r in all_of_them)) == all_of_them

    def test_a_commit_is_all_or_nothing(self, kit: Kit) -> None:
        """A refused commit leaves no record, no update and no longer lease."""
        taken, fresh, other = record(path="taken"), record(path="fresh"), record(path="taken")
        kit.store.open_run(request())
        written(kit.store, taken)
        before = kit.store.inspect("run").run
        kit.tick()
        refused = kit.store.commit(commit(fresh, other, update=DONE, lease_seconds=90_000))
        outcome_is(refused, AlreadyCommitted, "a commit with one record whose key is taken")
        assert kit.store.fetch("run", fresh.header.key) == [None], (
            "a commit that was refused for its second record wrote its first one"
        )
        same_run(kit, kit.store.inspect("run").run, before, "a refused commit changed the run")

    def test_two_records_of_one_key_in_one_commit_are_refused(self, kit: Kit) -> None:
        """Two different commits of one key inside one Commit write nothing."""
        kit.store.open_run(request())
        refused = kit.store.commit(commit(record(), record(), record(path="other")))
        outcome_is(refused, AlreadyCommitted, "a commit with two records of one key")
        assert kit.store.fetch("run", key(), key(path="other")) == [None, None]

    def test_a_commit_of_many_records_is_whole(self, kit: Kit) -> None:
        """Records and the update of one commit come together, in their order."""
        kit.store.open_run(request())
        many = [record(path=f"n{i}", position=i) for i in range(25)]
        assert kit.store.commit(commit(*many, update=DONE)) is None
        found = kit.store.inspect("run")
        assert list(found.headers) == [one.header for one in many]
        assert (found.run.status, found.last) == (RunStatus.COMPLETED, many[-1])

    def test_one_refused_commit_harms_no_other(self, kit: Kit) -> None:
        """Each commit of a batch is taken or refused by itself, in the order of the batch."""
        kit.store.open_run(request("a"))
        kit.store.open_run(request("b"))
        written(kit.store, record("b", "taken"))
        outcomes = kit.store.commit_many(
            [
                commit(record("a", "x")),
                commit(record("b", "taken")),
                commit(record("a", "x")),
                commit(record("b", "fresh"), record("b", "taken")),
                commit(record("a", "y"), update=RunUpdate(stop_reason="later")),
                commit(record("c", "plain", epoch=PLAIN_EPOCH), token=""),
            ]
        )
        kinds = [type(outcome).__name__ for outcome in outcomes]
        bad = "AlreadyCommitted"
        assert kinds == ["NoneType", bad, bad, bad, "NoneType", "NoneType"], (
            f"a batch in which three of six commits are bad ended as {kinds}"
        )
        kept = [header.path for header in kit.store.inspect("a").headers]
        assert kept == ["x", "y"], f"of the good commits, {kept} are stored"
        assert [h.path for h in kit.store.inspect("b").headers] == ["taken"]
        assert kit.store.inspect("a").run.stop_reason == "later"

    def test_a_large_batch_is_written(self, kit: Kit) -> None:
        """500 commits of 50 runs in one call are each answered, in order."""
        for i in range(50):
            kit.store.open_run(request(f"r{i}"))
        batch = [commit(record(f"r{i % 50}", f"n{i // 50}", position=i // 50)) for i in range(500)]
        outcomes = list(kit.store.commit_many(batch))
        refused = [outcome for outcome in outcomes if outcome is not None]
        assert not refused, f"{len(refused)} of 500 good commits were refused: {refused[0]!r}"
        for i in range(50):
            paths = [header.path for header in kit.store.inspect(f"r{i}").headers]
            assert paths == [f"n{j}" for j in range(10)], f"run r{i} has the records {paths}"

    def test_an_empty_batch_is_nothing(self, kit: Kit) -> None:
        """No commits, keys or claims are no error."""
        kit.store.open_run(request())
        assert list(kit.store.commit_many([])) == []
        assert kit.store.fetch("run") == []
        assert kit.store.renew([], 60) == []

    def test_headers_are_oldest_first(self, kit: Kit) -> None:
        """Headers come in the order in which their commits were written, plain ones left out."""
        kit.store.save("run", "plain", Note())
        kit.store.open_run(request())
        order = ("z", "b", "a", "c[10]", "c[9]", "m")
        for i, path in enumerate(order):
            written(kit.store if i % 2 else kit.another(), record(path=path, position=i))
        found = tuple(header.path for header in kit.store.inspect("run").headers)
        assert found == order, f"records written as {order} are shown as {found}"
        claimed = kit.store.open_run(request())
        assert tuple(header.path for header in claimed.headers) == order

    def test_last_is_the_furthest_result(self, kit: Kit) -> None:
        """The last result is the one with the highest position, whatever was written after it."""
        kit.store.open_run(request())
        furthest = record(path="b", position=10, payload=b'"b"')
        for one in (
            record(path="a", position=9),
            furthest,
            record(path="c[0]", position=-1),
            record(path="a2", position=2),
            record(path="d", kind="attempt", attempt=1, position=-1),
        ):
            written(kit.store, one)
        opened = kit.store.open_run(request())
        assert opened.last == furthest, f"the last result is {opened.last!r:.300}"
        assert kit.store.inspect("run").last == furthest

    def test_last_is_of_the_newest_epoch_that_has_any(self, kit: Kit) -> None:
        """A result of a newer epoch comes before any of an older one; 10 is newer than 9."""
        kit.store.open_run(request())
        for epoch, position in ((0, 5), (10, 0), (9, 3)):
            written(kit.store, record(epoch=epoch, position=position, payload=b"%d" % epoch))
        last = kit.store.open_run(request()).last
        assert last is not None
        assert last.header.epoch == 10, f"the last result is of epoch {last.header.epoch}, not 10"

    def test_without_any_result_there_is_no_last(self, kit: Kit) -> None:
        """Attempts, children, items and plain states are no last result."""
        kit.store.open_run(request())
        written(kit.store, record(kind="attempt", attempt=1, position=-1))
        written(kit.store, record(path="c[0]", position=-1))
        kit.store.save("run", "node", Note())
        assert kit.store.open_run(request()).last is None

    def test_fetch_keeps_the_order_of_its_keys(self, kit: Kit) -> None:
        """`fetch` answers each key in its place: a record, or None."""
        kit.store.open_run(request())
        a, b = record(path="a"), record(path="b")
        assert kit.store.commit(commit(a, b)) is None
        keys = (b.header.key, key(path="c"), a.header.key, b.header.key)
        assert kit.store.fetch("run", *keys) == [b, None, a, b]
        assert kit.store.fetch("other", *keys) == [None] * 4, "fetch found records of another run"

    def test_fetch_without_epoch_prefers_the_plain_record(self, kit: Kit) -> None:
        """Without an epoch, the plain record is read, or else the newest epoch's; 10 after 9."""
        kit.store.open_run(request())
        asked = key(epoch=None)
        assert kit.store.fetch("run", asked) == [None]
        newest = record(epoch=10)
        for one in (record(epoch=9), newest, record(epoch=0)):
            written(kit.store, one)
        found = kit.store.fetch("run", asked)
        assert found == [newest], f"the newest epoch is 10, and fetch gave {found!r:.300}"
        plain = record(epoch=PLAIN_EPOCH)
        assert kit.store.commit(commit(plain, token="")) is None
        assert kit.store.fetch("run", asked) == [plain], "the plain record does not come first"

    def test_plain_states_are_outside_of_runs(self, kit: Kit) -> None:
        """`save` needs no run, makes none, and its records are not a run's."""
        kit.store.save("run", "node", Note(text="1"))
        assert not kit.store.exists("run"), "save made a run"
        assert kit.store.runs().runs == (), "a plain state is listed as a run"
        assert kit.store.find_run(request(must_exist=True)) is None
        opened = kit.store.open_run(request())
        assert opened.is_new, "a plain state was taken for a run"
        assert (list(opened.headers), opened.last) == ([], None), (
            "the plain records of a run id are counted among its headers"
        )
        assert kit.store.load("run", "node") == Note(text="1")
        written(kit.store, record())
        assert kit.store.load("run", "node") == Note(text="1"), "a result replaced a plain state"

    def test_a_save_touches_no_owner(self, kit: Kit) -> None:
        """`save` under the id of an owned run leaves the run and its owner as they are."""
        before = kit.store.open_run(request()).run
        kit.tick()
        kit.store.save("run", "node", Note())
        same_run(kit, kit.store.inspect("run").run, before, "save changed an owned run")
        written(kit.store, record())

    def test_load_falls_back_to_a_runs_result(self, kit: Kit) -> None:
        """`load` reads a run's newest result where there is no plain state."""
        kit.store.open_run(request())
        written(kit.store, record(payload=b'{"text":"of the run"}'))
        assert kit.store.load_typed("run", "node", Note) == Note(text="of the run")

    def test_an_unknown_schema_is_an_error(self, kit: Kit) -> None:
        """`load` of a state whose model nobody registered raises UnknownSchema."""
        kit.store.open_run(request())
        written(kit.store, record(schema_ref="no_such_module:Model"))
        with pytest.raises(UnknownSchema):
            kit.store.load("run", "node")

    def test_a_deleted_run_takes_no_commits(self, kit: Kit) -> None:
        """After `delete` its worker can write nothing, and a new run of that id is empty."""
        kit.store.open_run(request())
        written(kit.store, record())
        kit.store.save("run", "plain", Note())
        kit.store.delete("run")
        assert not kit.store.exists("run"), "delete left the run"
        assert kit.store.fetch("run", key(), key(path="plain", epoch=None)) == [None, None]
        late = kit.store.commit(commit(record(path="late")))
        if kit.capabilities.refuses_stale_commits:
            outcome_is(late, StaleOwner, "a commit to a run that was deleted")
        again = kit.store.open_run(request(token="bob"))
        assert again.is_new, "a commit after delete brought the run back"
        assert (list(again.headers), again.last) == ([], None), "a deleted run's records are back"

    def test_delete_leaves_other_runs(self, kit: Kit) -> None:
        """`delete` removes one run with its records, and nothing of runs with similar ids."""
        ids = ("a", "aa", "a:b", "a/b", "*", "A", "b")
        for run_id in ids:
            kit.store.open_run(request(run_id))
            written(kit.store, record(run_id))
            kit.store.save(run_id, "plain", Note(text=run_id))
        kit.store.delete("a")
        kit.store.delete("*")
        left = sorted(run.run_id for run in kit.store.runs().runs)
        assert left == sorted({*ids} - {"a", "*"}), f"after deleting 'a' and '*', {left} are left"
        for run_id in left:
            assert len(kit.store.inspect(run_id).headers) == 1, f"records of {run_id!r} are gone"
            assert kit.store.load(run_id, "plain") == Note(text=run_id)
            written(kit.store, record(run_id, "later"))


def same_run(kit: Kit, found: RunRecord, expected: RunRecord, problem: str) -> None:
    """Check that two run records are equal, name what differs."""
    wrong = [
        f"{name}: {b!r} became {a!r}"
        for name, a, b in zip(found._fields, found, expected, strict=True)
        if a != b and not _is_same_time(name, a, b)
    ]
    assert not wrong, f"{problem}: {'; '.join(wrong)}"


def _is_same_time(name: str, a: object, b: object) -> bool:
    # Columns of time may be kept in whole microseconds.
    return name.endswith("_at") and abs(float(str(a)) - float(str(b))) < 2e-6
