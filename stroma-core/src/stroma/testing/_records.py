"""Clauses for level 1: records are written once, all or nothing."""

from __future__ import annotations

from decimal import Decimal

import pytest

from stroma.cost import NO_USAGE, Usage
from stroma.errors import AlreadyCommitted, StaleOwner, UnknownSchema
from stroma.records import PLAIN_EPOCH, RunStatus, RunUpdate
from stroma.testing._checks import ODD_TEXT, outcome_is, same_run, written
from stroma.testing._clauses import clauses, if_records
from stroma.testing._kit import Kit
from stroma.testing._values import (
    DONE,
    Note,
    commit,
    key,
    record,
    request,
)


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
            usage=Usage(2**40, 3, Decimal("0.1000000000000000000000000001"), ODD_TEXT, "table"),
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
        kit.store.open_run(request())
        for attempt in range(3):  # equal each time, and another object, as after a restart
            outcome = kit.store.commit(commit(record(commit_id="c1")))
            assert outcome is None, (
                f"the same commit, sent for the {attempt + 1}. time, was refused: {outcome!r}; a "
                "lost reply would stop the run. Compare the commit id that is stored"
            )
        assert len(kit.store.inspect("run").headers) == 1, "a repeated commit made two records"

    def test_the_same_commit_in_part_is_completed(self, kit: Kit) -> None:
        """A commit whose first record is stored already under its id writes the others."""
        first, second = record(path="a", commit_id="c1"), record(path="b")
        kit.store.open_run(request())
        written(kit.store, record(path="a", commit_id="c1"))
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
            record(kind="reserved", attempt=1, position=-1),
            record(kind="attempt", attempt=1, position=-1),
            record(kind="attempt", attempt=11, position=-1),
            record(epoch=1),
            record(epoch=11),
            record(epoch=1, kind="attempt", attempt=1, position=-1),
        ]
        for one in all_of_them:
            written(kit.store, one)
        assert kit.store.fetch("run", *(r.header.key for r in all_of_them)) == all_of_them

    def test_a_reservation_is_kept_beside_what_came_of_it(self, kit: Kit) -> None:
        """A call's reservation, its failed attempt and its result are three records in order."""
        kit.store.open_run(request())
        reserved = record(kind="reserved", attempt=1, position=-1, payload=b"")
        failed = record(kind="attempt", attempt=1, position=-1, usage=Usage(1, 2, None, "m", ""))
        result = record(attempt=1, payload=b'"paid for"')
        for one in (reserved, failed, result):
            written(kit.store, one)
        again = record(kind="reserved", attempt=1, position=-1)
        refused = kit.store.commit(commit(again))
        outcome_is(refused, AlreadyCommitted, "another reservation of the same call")
        found = kit.another().inspect("run")
        assert [h.kind for h in found.headers] == ["reserved", "attempt", "result"], (
            f"of a reservation, an attempt and a result there are {list(found.headers)}"
        )
        assert found.last == result, "a reservation was taken for the last result"
        assert kit.store.fetch("run", *(r.header.key for r in (reserved, failed, result))) == [
            reserved,
            failed,
            result,
        ]

    def test_a_commit_is_all_or_nothing(self, kit: Kit) -> None:
        """A refused commit leaves no record and no update."""
        taken, fresh, other = record(path="taken"), record(path="fresh"), record(path="taken")
        kit.store.open_run(request())
        written(kit.store, taken)
        before = kit.store.inspect("run").run
        kit.tick()
        refused = kit.store.commit(commit(fresh, other, update=DONE))
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

    def test_a_commit_may_be_twice_in_a_batch(self, kit: Kit) -> None:
        """A commit that is repeated within one batch is success both times, and one record."""
        kit.store.open_run(request())
        twice = [commit(record(commit_id="c1")) for _ in range(2)]
        outcomes = list(kit.store.commit_many(twice))
        assert outcomes == [None, None], f"a commit that is twice in a batch ended as {outcomes}"
        assert len(kit.store.inspect("run").headers) == 1, "it made two records"

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
