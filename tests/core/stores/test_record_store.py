"""What every store does: claims, fencing, write-once records, listing, removal."""

from __future__ import annotations

import asyncio
from decimal import Decimal

import pytest

from stroma.cost import NO_USAGE, Usage
from stroma.errors import AlreadyCommitted, ConfigError, RunLocked, StaleOwner, UnknownSchema
from stroma.records import (
    PLAIN_EPOCH,
    Epoch,
    RecordKey,
    RunQuery,
    RunStatus,
    RunUpdate,
)
from tests.core.stores.support import (
    HOSTILE_IDS,
    Awaited,
    ManualClock,
    Note,
    commit,
    record,
    request,
)

DONE = RunUpdate(status=RunStatus.COMPLETED, release=True)


async def finished(store: Awaited, run_id: str, clock: ManualClock, **columns: object) -> None:
    """Run a run of no nodes to its end; each takes a second."""
    await store.open_run(request(run_id, **columns))
    clock.time += 1
    assert await store.commit_many([commit(run_id=run_id, update=DONE)]) == [None]


class TestClaims:
    async def test_a_new_run_is_created_and_claimed(
        self, store: Awaited, clock: ManualClock
    ) -> None:
        columns = {
            "pipeline": "digest",
            "version": "3",
            "tags": ("nightly", 'a"b'),
            "input_payload": b'{"a":1}',
            "input_fingerprint": "ab",
            "plan": b'{"node_ids":["a"]}',
            "trace_parent": "00-x",
        }
        opened = await store.open_run(request(**columns))
        assert opened.is_new
        assert opened.is_claimed
        assert (list(opened.headers), opened.last) == ([], None)
        assert opened.run.status is RunStatus.RUNNING
        assert (opened.run.owner, opened.run.holder) == ("alice", "worker alice")
        assert opened.run.lease_expires_at == clock.time + 60
        assert opened.run.created_at == opened.run.updated_at == clock.time
        assert {name: getattr(opened.run, name) for name in columns} == columns
        (listed,) = (await store.runs(RunQuery())).runs
        assert listed == opened.run

    async def test_a_run_that_must_exist_and_does_not(self, store: Awaited) -> None:
        assert await store.open_run(request(must_exist=True)) is None
        assert (await store.runs(RunQuery())).runs == ()

    async def test_a_run_that_somebody_owns_is_refused(
        self, store: Awaited, clock: ManualClock
    ) -> None:
        await store.open_run(request(token="alice"))
        clock.time += 20
        with pytest.raises(RunLocked, match="worker alice") as refused:
            await store.open_run(request(token="bob"))
        assert refused.value.holder == "worker alice"
        assert refused.value.until_seconds == pytest.approx(40)

    async def test_the_owner_may_claim_again(self, store: Awaited) -> None:
        await store.open_run(request())
        again = await store.open_run(request())
        assert again.is_claimed
        assert not again.is_new

    async def test_an_ended_lease_is_taken_over(self, store: Awaited, clock: ManualClock) -> None:
        await store.open_run(request(token="alice"))
        clock.time += 61
        taken = await store.open_run(request(token="bob"))
        assert (taken.is_claimed, taken.run.owner) == (True, "bob")
        (refused,) = await store.commit_many([commit(record(), token="alice")])
        assert isinstance(refused, StaleOwner)
        assert "worker bob" in str(refused)
        assert await store.fetch("run", [record().header.key]) == [None]

    async def test_an_ended_lease_that_nobody_took_does_not_stop_its_owner(
        self, store: Awaited, clock: ManualClock
    ) -> None:
        await store.open_run(request())
        clock.time += 3600
        assert await store.commit_many([commit(record())]) == [None]

    async def test_a_released_run_is_free(self, store: Awaited) -> None:
        await store.open_run(request(token="alice"))
        await store.release("run", "bob")
        with pytest.raises(RunLocked):
            await store.open_run(request(token="bob"))
        await store.release("run", "alice")
        assert (await store.open_run(request(token="bob"))).is_claimed

    async def test_a_completed_run_is_shown_and_not_claimed(
        self, store: Awaited, clock: ManualClock
    ) -> None:
        await finished(store, "run", clock)
        shown = await store.open_run(request(token="bob"))
        assert not shown.is_claimed
        assert (shown.run.status, shown.run.owner) == (RunStatus.COMPLETED, "")
        reopened = await store.open_run(request(token="bob", reopen=True))
        assert (reopened.is_claimed, reopened.run.status) == (True, RunStatus.RUNNING)

    async def test_renewal_is_the_owners(self, store: Awaited, clock: ManualClock) -> None:
        await store.open_run(request("a", "alice"))
        await store.open_run(request("b", "bob"))
        clock.time += 50
        claims = [("a", "alice"), ("b", "alice"), ("none", "alice"), ("b", "")]
        assert await store.renew(claims, 60_000) == [True, False, False, False]
        clock.time += 20
        with pytest.raises(RunLocked) as refused:
            await store.open_run(request("a", "bob"))
        assert refused.value.until_seconds == pytest.approx(40)
        assert (await store.open_run(request("b", "alice"))).is_claimed

    async def test_a_commit_extends_the_lease(self, store: Awaited, clock: ManualClock) -> None:
        await store.open_run(request())
        clock.time += 50
        await store.commit_many([commit(record(), lease_ms=60_000)])
        (run,) = (await store.runs(RunQuery())).runs
        assert run.lease_expires_at == clock.time + 60
        await store.commit_many([commit(lease_ms=1_000)])
        assert (await store.runs(RunQuery())).runs == (run,)

    async def test_of_many_claimants_one_wins(self, store: Awaited) -> None:
        claims = [store.open_run(request(token=f"w{i}")) for i in range(20)]
        results = await asyncio.gather(*claims, return_exceptions=True)
        assert sum(not isinstance(r, RunLocked) for r in results) == 1


class TestCommits:
    async def test_a_commit_is_read_by_the_next_load(self, store: Awaited) -> None:
        usage = Usage(10, 20, Decimal("0.000123400"), "gpt-x", "table of May")
        written = record(usage=usage, payload='{"a":"\N{SNOWMAN}"}'.encode())
        await store.open_run(request())
        assert await store.commit_many([commit(written)]) == [None]
        assert await store.fetch("run", [written.header.key]) == [written]

    async def test_an_unknown_price_comes_back_unknown(self, store: Awaited) -> None:
        written = record(usage=Usage(1, 2, None, "odd"))
        await store.open_run(request())
        await store.commit_many([commit(written)])
        (found,) = await store.fetch("run", [written.header.key])
        assert found.header.usage == Usage(1, 2, None, "odd")

    async def test_the_same_commit_again_is_success(self, store: Awaited) -> None:
        written = record(commit_id="c1")
        await store.open_run(request())
        for _ in range(2):
            assert await store.commit_many([commit(written)]) == [None]
        assert len((await store.open_run(request())).headers) == 1

    async def test_another_commit_on_the_key_is_refused(self, store: Awaited) -> None:
        first, second = record(commit_id="c1", payload=b"1"), record(commit_id="c2", payload=b"2")
        await store.open_run(request())
        await store.commit_many([commit(first)])
        (refused,) = await store.commit_many([commit(second)])
        assert isinstance(refused, AlreadyCommitted)
        assert "'node'" in str(refused)
        assert await store.fetch("run", [first.header.key]) == [first]

    async def test_a_refused_commit_leaves_nothing(
        self, store: Awaited, clock: ManualClock
    ) -> None:
        taken, fresh, other = record(path="taken"), record(path="fresh"), record(path="taken")
        await store.open_run(request())
        await store.commit_many([commit(taken)])
        before = (await store.runs(RunQuery())).runs
        clock.time += 5
        (refused,) = await store.commit_many([commit(fresh, other, update=DONE, lease_ms=90_000)])
        assert isinstance(refused, AlreadyCommitted)
        assert await store.fetch("run", [fresh.header.key]) == [None]
        assert (await store.runs(RunQuery())).runs == before

    async def test_two_of_a_key_in_one_commit_are_refused(self, store: Awaited) -> None:
        await store.open_run(request())
        (refused,) = await store.commit_many([commit(record(), record())])
        assert isinstance(refused, AlreadyCommitted)
        assert await store.fetch("run", [record().header.key]) == [None]

    async def test_one_bad_commit_harms_no_other(self, store: Awaited) -> None:
        await store.open_run(request("a"))
        await store.open_run(request("b", "bob"))
        outcomes = await store.commit_many(
            [
                commit(record("a", "x")),
                commit(record("b", "x"), token="alice"),
                commit(record("none", "x")),
                commit(record("a", "x")),
                commit(record("a", "y")),
            ]
        )
        kinds = [type(outcome) for outcome in outcomes]
        assert kinds == [type(None), StaleOwner, StaleOwner, AlreadyCommitted, type(None)]
        assert len((await store.open_run(request("a"))).headers) == 2

    async def test_a_stale_commit_says_so_even_when_the_key_is_taken(
        self, store: Awaited, clock: ManualClock
    ) -> None:
        await store.open_run(request(token="alice"))
        await store.commit_many([commit(record(), token="alice")])
        clock.time += 100
        await store.open_run(request(token="bob"))
        (refused,) = await store.commit_many([commit(record(), token="alice")])
        assert isinstance(refused, StaleOwner)

    async def test_a_deleted_run_takes_no_commits(self, store: Awaited) -> None:
        await store.open_run(request())
        await store.delete("run")
        (refused,) = await store.commit_many([commit(record())])
        assert isinstance(refused, StaleOwner)
        assert "does not exist" in str(refused)

    async def test_what_an_update_names_is_changed(
        self, store: Awaited, clock: ManualClock
    ) -> None:
        opened = await store.open_run(request(plan=b'{"node_ids":["a"]}', version="1"))
        clock.time += 1
        update = RunUpdate(
            status=RunStatus.PARTIAL,
            stop_reason="budget \N{EURO SIGN}",
            epochs=(Epoch(0, 0, False), Epoch(1, 2, True)),
            version="2",
            plan=b'{"node_ids":["b"]}',
            spend=Usage(1, 2, None, "m", "s"),
            active_ms=12.5,
        )
        assert await store.commit_many([commit(update=update)]) == [None]
        (run,) = (await store.runs(RunQuery())).runs
        assert run == update.apply(opened.run, clock.time)
        clock.time += 1
        await store.commit_many([commit(update=RunUpdate(release=True))])
        (released,) = (await store.runs(RunQuery())).runs
        assert released == run._replace(
            owner="", holder="", lease_expires_at=0.0, updated_at=clock.time
        )

    async def test_updated_at_is_of_the_last_change_of_the_run(
        self, store: Awaited, clock: ManualClock
    ) -> None:
        opened = await store.open_run(request())
        clock.time += 1
        await store.commit_many([commit(record(), lease_ms=1000)])
        await store.renew([("run", "alice")], 1000)
        (run,) = (await store.runs(RunQuery())).runs
        assert run.updated_at == opened.run.updated_at


class TestReading:
    async def test_headers_are_oldest_first_and_last_is_the_furthest(self, store: Awaited) -> None:
        await store.save("run", "plain", Note())
        await store.open_run(request())
        written = [
            record(path="a", position=0),
            record(path="b", kind="attempt", attempt=1, position=-1),
            record(path="b", position=1),
            record(path="c[0]", position=-1),
        ]
        for one in written:
            await store.commit_many([commit(one)])
        opened = await store.open_run(request())
        assert list(opened.headers) == [r.header for r in written]
        assert opened.last == written[2]

    async def test_last_is_of_the_newest_epoch_that_has_any(self, store: Awaited) -> None:
        await store.open_run(request())
        old, new = record(position=5), record(epoch=1, position=0)
        await store.commit_many([commit(old), commit(new)])
        assert (await store.open_run(request())).last == new

    async def test_fetch_without_epoch(self, store: Awaited) -> None:
        key = RecordKey("run", None, "node")
        await store.open_run(request())
        assert await store.fetch("run", [key]) == [None]
        first, second = record(epoch=0), record(epoch=2)
        await store.commit_many([commit(second), commit(first)])
        assert await store.fetch("run", [key]) == [second]
        plain = record(epoch=PLAIN_EPOCH)
        await store.commit_many([commit(plain, token="")])
        assert await store.fetch("run", [key]) == [plain]

    async def test_fetch_keeps_the_order_of_its_keys(self, store: Awaited) -> None:
        await store.open_run(request())
        a, b = record(path="a"), record(path="b")
        await store.commit_many([commit(a, b)])
        missing = RecordKey("run", 0, "c")
        keys = [b.header.key, missing, a.header.key]
        assert await store.fetch("run", keys) == [b, None, a]
        assert await store.fetch("other", keys) == [None, None, None]


class TestPlainStates:
    async def test_save_replaces_and_load_reads(self, store: Awaited) -> None:
        await store.save("run", "node", Note(text="1"))
        await store.save("run", "node", Note(text="2"))
        assert await store.load("run", "node") == Note(text="2")
        assert await store.load("run", "other") is None
        assert await store.load_typed("run", "node", Note) == Note(text="2")

    async def test_save_needs_no_run_and_makes_none(self, store: Awaited) -> None:
        await store.save("run", "node", Note(text="1"))
        assert (await store.runs(RunQuery())).runs == ()
        assert await store.open_run(request(must_exist=True)) is None
        opened = await store.open_run(request())
        assert opened.is_new
        assert list(opened.headers) == []
        assert await store.load("run", "node") == Note(text="1")

    async def test_load_falls_back_to_a_runs_result(self, store: Awaited) -> None:
        await store.open_run(request())
        await store.commit_many([commit(record(payload=b'{"text":"of the run"}'))])
        assert await store.load_typed("run", "node", Note) == Note(text="of the run")
        with pytest.raises(UnknownSchema):
            await store.load("run", "node")

    async def test_an_id_that_cannot_be_stored_is_refused(self, store: Awaited) -> None:
        with pytest.raises(ConfigError):
            await store.save("x" * 513, "node", Note())
        with pytest.raises(ConfigError):
            await store.load("run", "a\0b")


class TestIds:
    async def test_ids_are_data(self, store: Awaited) -> None:
        for run_id in HOSTILE_IDS:
            await store.open_run(request(run_id))
            for path in HOSTILE_IDS:
                payload = repr((run_id, path)).encode()
                written = record(run_id, path, payload=payload)
                assert await store.commit_many([commit(written)]) == [None]
        for run_id in HOSTILE_IDS:
            keys = [RecordKey(run_id, 0, path) for path in HOSTILE_IDS]
            found = await store.fetch(run_id, keys)
            assert [r.payload for r in found] == [repr((run_id, p)).encode() for p in HOSTILE_IDS]

    @pytest.mark.parametrize("gone", HOSTILE_IDS)
    async def test_delete_is_exact(self, store: Awaited, gone: str) -> None:
        for run_id in HOSTILE_IDS:
            await store.open_run(request(run_id))
            await store.save(run_id, "node", Note(text=run_id))
        await store.delete(gone)
        assert await store.load(gone, "node") is None
        assert await store.open_run(request(gone, must_exist=True)) is None
        for run_id in HOSTILE_IDS:
            if run_id != gone:
                assert await store.load(run_id, "node") == Note(text=run_id)
        assert len((await store.runs(RunQuery())).runs) == len(HOSTILE_IDS) - 1


class TestListing:
    async def test_newest_first_in_pages(self, store: Awaited, clock: ManualClock) -> None:
        for i in range(7):
            await finished(store, f"r{i}", clock)
        seen: list[str] = []
        query = RunQuery(limit=3)
        while True:
            page = await store.runs(query)
            seen += [run.run_id for run in page.runs]
            if not page.cursor:
                break
            query = query._replace(cursor=page.cursor)
        assert seen == [f"r{i}" for i in reversed(range(7))]

    async def test_equal_times_by_run_id(self, store: Awaited) -> None:
        for run_id in ("b", "c", "a", "\N{GRINNING FACE}", "\uffff"):
            await store.open_run(request(run_id))
        first = await store.runs(RunQuery(limit=2))
        rest = await store.runs(RunQuery(limit=10, cursor=first.cursor))
        ids = [run.run_id for run in (*first.runs, *rest.runs)]
        assert ids == ["a", "b", "c", "\uffff", "\N{GRINNING FACE}"]

    async def test_a_page_that_is_just_full_is_the_last(self, store: Awaited) -> None:
        await store.open_run(request("a"))
        assert (await store.runs(RunQuery(limit=1))).cursor == ""
        assert (await store.runs(RunQuery(limit=0))).runs == ()

    async def test_filters(self, store: Awaited, clock: ManualClock) -> None:
        await finished(store, "a", clock, pipeline="p", tags=("x",))
        await finished(store, "b", clock, pipeline="q", tags=('y"x', "z"))
        clock.time += 10
        await store.open_run(request("c", pipeline="p"))

        async def ids(query: RunQuery) -> list[str]:
            return [run.run_id for run in (await store.runs(query)).runs]

        assert await ids(RunQuery(statuses=(RunStatus.COMPLETED,))) == ["b", "a"]
        assert await ids(RunQuery(statuses=(RunStatus.RUNNING, RunStatus.FAILED))) == ["c"]
        assert await ids(RunQuery(pipeline="p")) == ["c", "a"]
        assert await ids(RunQuery(tag="x")) == ["a"]
        assert await ids(RunQuery(tag='y"x')) == ["b"]
        assert await ids(RunQuery(updated_before=clock.time)) == ["b", "a"]
        assert await ids(RunQuery(pipeline="p", tag="x", updated_before=0)) == []

    @pytest.mark.parametrize("cursor", ["junk", "[]", "[1]", "{}", "null", '["x","y"]'])
    async def test_a_cursor_that_is_none(self, store: Awaited, cursor: str) -> None:
        with pytest.raises(ConfigError, match="cursor"):
            await store.runs(RunQuery(cursor=cursor))


class TestPurge:
    async def test_old_runs_go_with_all_they_have(self, store: Awaited, clock: ManualClock) -> None:
        await finished(store, "old", clock)
        await store.save("old", "node", Note())
        cut = clock.time + 1
        clock.time += 10
        await finished(store, "young", clock)
        assert await store.purge(RunQuery(updated_before=cut)) == 1
        assert await store.load("old", "node") is None
        assert [run.run_id for run in (await store.runs(RunQuery())).runs] == ["young"]

    async def test_owned_runs_stay_until_their_lease_ends(
        self, store: Awaited, clock: ManualClock
    ) -> None:
        await store.open_run(request())
        assert await store.purge(RunQuery()) == 0
        clock.time += 61
        assert await store.purge(RunQuery()) == 1

    async def test_the_limit_counts_what_is_removed(
        self, store: Awaited, clock: ManualClock
    ) -> None:
        for i in range(250):
            await store.open_run(request(f"r{i}"))
            await store.release(f"r{i}", "alice")
        clock.time += 1
        await store.open_run(request("owned"))
        assert await store.purge(RunQuery(limit=220)) == 220
        assert await store.purge(RunQuery(limit=220)) == 30
        assert [run.run_id for run in (await store.runs(RunQuery())).runs] == ["owned"]


class TestHousekeeping:
    async def test_setup_again_does_no_harm(self, store: Awaited) -> None:
        await store.setup()
        await store.save("run", "node", Note(text="kept"))
        await store.setup()
        await store.health()
        assert await store.load("run", "node") == Note(text="kept")

    async def test_it_says_what_it_promises(self, store: Awaited) -> None:
        assert store.capabilities.fencing
        assert store.capabilities.durability in ("memory", "fsync")

    async def test_no_usage_is_one_object(self, store: Awaited) -> None:
        await store.open_run(request())
        await store.commit_many([commit(record())])
        (header,) = (await store.open_run(request())).headers
        assert header.usage is NO_USAGE
