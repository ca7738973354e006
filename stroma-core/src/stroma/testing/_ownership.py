"""Clauses about owners: one at a time, for as long as its lease, and nothing after it."""

from __future__ import annotations

import pytest

from stroma.errors import AlreadyCommitted, RunLocked, StaleOwner, StoreError
from stroma.records import RunStatus, RunUpdate
from stroma.testing._checks import outcome_is, same_run, written
from stroma.testing._clauses import clauses, if_fencing
from stroma.testing._kit import Driven, Kit, in_threads
from stroma.testing._values import DONE, LONG_SECONDS, commit, key, record, request


def refused(store: Driven, token: str, run_id: str = "run") -> RunLocked:
    """Try to claim a run that somebody owns, and return the refusal."""
    try:
        opened = store.find_run(request(run_id, token, reopen=True))
    except RunLocked as exc:
        return exc
    pytest.fail(
        f"{token} could claim run {run_id!r} while another worker owns it (claimed: "
        f"{opened and opened.is_claimed}): both would pay for the same nodes"
    )


def is_stale(kit: Kit, outcome: StoreError | None, what: str) -> None:
    """Check how a commit of a worker that lost its run was answered."""
    if kit.capabilities.refuses_stale_commits:
        outcome_is(outcome, StaleOwner, what)
    else:
        assert outcome is None or isinstance(outcome, StaleOwner), f"{what} ended as {outcome!r}"


def taken_over(kit: Kit) -> tuple[Driven, Driven]:
    """Let Alice claim the run and record `a`, and Bob take it over after her lease."""
    alice, bob = kit.store, kit.another()
    alice.open_run(request(token="alice", lease_seconds=kit.lease_seconds))
    written(alice, record(path="a", position=0))
    kit.take_over(request(token="bob"), bob)
    return alice, bob


@clauses("ownership", if_fencing)
class OwnershipClauses:
    """Claims, leases, renewals, and owners that come back."""

    def test_a_run_that_somebody_owns_is_refused(self, kit: Kit) -> None:
        """The refusal says who owns the run and until when, and changes nothing."""
        before = kit.store.open_run(request(token="alice", lease_seconds=1000)).run
        exc = refused(kit.another(), "bob")
        assert exc.holder == "worker alice", f"RunLocked.holder is {exc.holder!r}"
        assert abs(exc.until_seconds - 1000) < 5 + kit.grain_seconds, (
            f"RunLocked.until_seconds is {exc.until_seconds}, and the lease has 1000 s"
        )
        same_run(kit, kit.store.inspect("run").run, before, "a refused claim changed the run")
        written(kit.store, record())

    def test_a_run_is_owned_whatever_its_status_is(self, kit: Kit) -> None:
        """A run that was updated without a release is its owner's until the lease ends."""
        kit.store.open_run(request())
        for status in (RunStatus.PARTIAL, RunStatus.WAITING, RunStatus.FAILED):
            assert kit.store.commit(commit(update=RunUpdate(status=status))) is None
            refused(kit.another(), "bob")
        written(kit.store, record())

    def test_the_owner_may_claim_again(self, kit: Kit) -> None:
        """The same token claims again, by any object, and its lease begins anew."""
        kit.store.open_run(request(lease_seconds=1000))
        again = kit.another().open_run(request(lease_seconds=5000))
        assert (again.is_claimed, again.is_new) == (True, False)
        length = again.run.lease_expires_at - again.run.updated_at
        assert abs(length - 5000) <= kit.grain_seconds, f"the new lease has {length} s, not 5000"

    def test_of_many_claimants_one_wins(self, kit: Kit) -> None:
        """When many workers claim a run at once, one gets it, and the others are told who."""
        stores = [kit.store, kit.another(), kit.another()]
        for run_id in ("new", "released", "again"):
            if run_id != "new":
                kit.store.open_run(request(run_id, "first"))
                kit.store.release(run_id, "first")
            calls = [(stores[i % 3], "open_run", (request(run_id, f"w{i}"),)) for i in range(20)]
            answers = kit.together(*calls)
            odd = [a for a in answers if isinstance(a, BaseException) and type(a) is not RunLocked]
            assert not odd, f"a claim at the same time as others failed: {odd[0]!r}"
            won = [a for a in answers if not isinstance(a, BaseException)]
            assert len(won) == 1, f"{len(won)} of 20 workers claimed run {run_id!r} at once"
            owner = kit.store.inspect(run_id).run.owner
            assert owner == won[0].run.owner, f"one was told that it owns the run, and {owner} does"

    def test_two_writers_have_one_winner_for_each_record(self, kit: Kit) -> None:
        """Two writers on many keys: each key has one commit, and its loser is told."""
        kit.store.open_run(request())
        stores = (kit.store, kit.another())
        pairs = [[record(path=f"n{i}", payload=b"%d" % w) for w in (0, 1)] for i in range(100)]
        calls = [(stores[w], "commit_many", ([commit(pair[w])],)) for pair in pairs for w in (0, 1)]
        answers = kit.together(*calls)
        for i, pair in enumerate(pairs):
            outcomes = [answer[0] for answer in answers[2 * i : 2 * i + 2]]
            taken = [w for w in (0, 1) if outcomes[w] is None]
            assert len(taken) == 1, f"two commits on one key at once ended as {outcomes}"
            outcome_is(outcomes[1 - taken[0]], AlreadyCommitted, "the later of two commits")
            found = kit.store.fetch("run", pair[0].header.key)
            assert found == [pair[taken[0]]], "the commit that was refused is the one stored"
        assert len(kit.store.inspect("run").headers) == len(pairs)

    def test_two_threads_have_one_winner_for_each_record(self, kit: Kit) -> None:
        """The same, with one store object in two threads, each with its loop."""
        import asyncio

        from stroma._aio import settled

        kit.store.open_run(request())
        inner = kit.store.inner

        def write(worker: int) -> list[int]:
            async def body() -> list[int]:
                won: list[int] = []
                for i in range(50):
                    one = record(path=f"n{i}", payload=b"%d" % worker)
                    (outcome,) = await settled(inner.commit_many([commit(one)]))
                    if outcome is None:
                        won.append(i)
                    else:
                        outcome_is(outcome, AlreadyCommitted, "the later of two commits")
                return won

            return asyncio.run(body())

        results = in_threads([lambda: write(0), lambda: write(1)])
        broken = [each for each in results if isinstance(each, BaseException)]
        assert not broken, f"writing from two threads failed: {broken[0]!r}"
        assert sorted(results[0] + results[1]) == list(range(50)), (
            f"of 50 keys, {len(results[0])} and {len(results[1])} were won by two threads"
        )

    def test_a_completed_run_is_shown_and_not_claimed(self, kit: Kit) -> None:
        """A COMPLETED run is read with its result; only `reopen` claims it."""
        kit.store.open_run(request())
        one = record()
        assert kit.store.commit(commit(one, update=DONE)) is None
        done = kit.store.inspect("run").run
        kit.tick()
        shown = kit.another().open_run(request(token="bob"))
        assert not shown.is_claimed, "a COMPLETED run was claimed: it would be run, and paid, again"
        assert (shown.is_new, shown.last, shown.status_before) == (False, one, None)
        assert list(shown.headers) == [one.header], "a COMPLETED run is shown without its records"
        same_run(kit, shown.run, done, "opening a COMPLETED run changed it")
        same_run(kit, kit.store.inspect("run").run, done, "opening a COMPLETED run changed it")
        stale = kit.store.commit(commit(record(path="late"), token="bob"))
        is_stale(kit, stale, "a commit by who only read the run")
        assert kit.store.fetch("run", key(path="late")) == [None]
        opened = kit.store.open_run(request(token="bob", reopen=True))
        assert (opened.is_claimed, opened.run.status) == (True, RunStatus.RUNNING)
        assert opened.status_before is RunStatus.COMPLETED

    @pytest.mark.parametrize("status", [RunStatus.PARTIAL, RunStatus.FAILED, RunStatus.CANCELLED])
    def test_a_stopped_run_is_claimed(self, kit: Kit, status: RunStatus) -> None:
        """A run that stopped is claimed with what it has, and its status before is told."""
        kit.store.open_run(request(token="alice"))
        one = record()
        stop = RunUpdate(status=status, stop_reason="why", release=True)
        assert kit.store.commit(commit(one, update=stop)) is None
        opened = kit.store.open_run(request(token="bob"))
        assert (opened.is_claimed, opened.is_new, opened.last) == (True, False, one)
        assert opened.status_before is status, (
            f"status_before is {opened.status_before}, and the claim found {status}: who gives "
            "the run back untouched could not restore it"
        )
        assert (opened.run.status, opened.run.owner) == (RunStatus.RUNNING, "bob")
        assert opened.run.stop_reason == "why", "the claim lost the reason"

    def test_a_released_run_is_free(self, kit: Kit) -> None:
        """A release by the owner frees the run; one by anybody else does nothing."""
        before = kit.store.open_run(request(token="alice")).run
        for token in ("bob", "", "Alice", "alice "):
            kit.another().release("run", token)
        same_run(kit, kit.store.inspect("run").run, before, "a release by others changed the run")
        refused(kit.another(), "bob")
        kit.store.release("run", "alice")
        released = kit.store.inspect("run").run
        assert (released.owner, released.holder, released.lease_expires_at) == ("", "", 0.0)
        assert released.status is RunStatus.RUNNING, "a release changed the status"
        assert kit.another().open_run(request(token="bob")).is_claimed
        kit.store.release("none", "alice")

    def test_renewal_is_the_owners(self, kit: Kit) -> None:
        """Each pair is answered in its place: True for the owner, else False and nothing done."""
        kit.store.open_run(request("a", "alice", lease_seconds=1000))
        b = kit.store.open_run(request("b", "bob", lease_seconds=1000)).run
        kit.store.open_run(request("c", "carol"))
        kit.store.release("c", "carol")
        c = kit.store.inspect("c").run
        claims = [("b", "alice"), ("a", "alice"), ("none", "alice"), ("b", ""), ("c", "")]
        answers = kit.another().renew(claims, 5000)
        assert answers == [False, True, False, False, False], f"renewals were answered {answers}"
        lease = kit.store.inspect("a").run
        assert abs(lease.lease_expires_at - lease.updated_at - 5000) < 5 + kit.grain_seconds
        same_run(kit, kit.store.inspect("b").run, b, "a renewal by another token")
        same_run(kit, kit.store.inspect("c").run, c, "a renewal of a run that nobody owns")
        assert not kit.store.exists("none"), "a renewal created a run"

    def test_a_renewed_lease_holds(self, kit: Kit) -> None:
        """A lease that is renewed does not end when it would have."""
        alice, bob = kit.store, kit.another()
        alice.open_run(request(token="alice", lease_seconds=kit.lease_seconds))
        assert alice.renew([("run", "alice")], LONG_SECONDS) == [True]
        kit.outlast(kit.lease_seconds)
        refused(bob, "bob")

    def test_a_commit_leaves_the_lease(self, kit: Kit) -> None:
        """Records and updates change no lease: only claims and renewals do."""
        kit.store.open_run(request(lease_seconds=1000))
        assert kit.store.renew([("run", "alice")], 5000) == [True]
        end = kit.store.inspect("run").run.lease_expires_at
        kit.tick()
        written(kit.store, record())
        assert kit.store.inspect("run").run.lease_expires_at == end, "a record moved the lease"
        assert kit.store.commit(commit(update=RunUpdate(stop_reason="x"))) is None
        assert kit.store.inspect("run").run.lease_expires_at == end, (
            "an update brought back the lease from before it was renewed, or made another"
        )

    def test_an_ended_lease_is_taken_over(self, kit: Kit) -> None:
        """When a lease has ended, another worker claims the run with all that is recorded."""
        kit.store.open_run(request(token="alice", lease_seconds=kit.lease_seconds))
        one = record()
        written(kit.store, one)
        opened = kit.take_over(request(token="bob"), kit.another())
        assert (opened.is_claimed, opened.is_new, opened.run.owner) == (True, False, "bob")
        assert opened.run.holder == "worker bob"
        assert (list(opened.headers), opened.last) == ([one.header], one)
        assert opened.status_before is RunStatus.RUNNING

    def test_an_ended_lease_that_nobody_took_does_not_stop_its_owner(self, kit: Kit) -> None:
        """The end of a lease alone takes nothing away: the owner commits and renews on."""
        kit.store.open_run(request(lease_seconds=kit.lease_seconds))
        kit.outlast(kit.lease_seconds)
        written(kit.store, record())
        assert kit.store.renew([("run", "alice")], LONG_SECONDS) == [True], (
            "the owner of a lease that ended, and that nobody took, could not renew it: a slow "
            "worker would lose a live run"
        )
        refused(kit.another(), "bob")

    def test_a_claim_after_a_lease_is_one(self, kit: Kit) -> None:
        """When many claim a run whose lease ended, one gets it."""
        kit.store.open_run(request(token="alice", lease_seconds=kit.lease_seconds))
        kit.outlast(kit.lease_seconds)
        stores = (kit.store, kit.another())
        calls = [(stores[i % 2], "open_run", (request(token=f"w{i}"),)) for i in range(12)]
        answers = kit.together(*calls)
        won = [a for a in answers if not isinstance(a, BaseException)]
        assert len(won) == 1, f"{len(won)} of 12 workers took over a run at once: {answers!r:.300}"

    def test_an_owner_that_comes_back_writes_nothing(self, kit: Kit) -> None:
        """A worker whose run was taken over makes no record visible any more."""
        alice, bob = taken_over(kit)
        answer = alice.commit(commit(record(path="b", payload=b'"late"'), token="alice"))
        is_stale(kit, answer, "a commit of a worker whose run was taken over")
        if answer is not None:
            assert "worker bob" in str(answer), f"the refusal does not say who owns it: {answer}"
        mine = record(path="b", position=1, payload=b'"bob"')
        written(bob, mine, token="bob")
        is_stale(kit, alice.commit(commit(record(path="c"), token="alice")), "a stale commit")
        assert bob.commit(commit(update=DONE, token="bob")) is None
        found = bob.inspect("run")
        assert [header.path for header in found.headers] == ["a", "b"], (
            "records of a worker that had lost the run are visible: "
            f"{[header.path for header in found.headers]}"
        )
        assert bob.fetch("run", key(path="b"), key(path="c")) == [mine, None]
        assert found.run.status is RunStatus.COMPLETED

    def test_an_owner_that_comes_back_changes_nothing(self, kit: Kit) -> None:
        """Updates, leases, renewals and releases of a worker that lost its run do nothing."""
        alice, bob = taken_over(kit)
        before = bob.inspect("run").run
        kit.tick()
        update = RunUpdate(status=RunStatus.FAILED, stop_reason="late", release=True)
        outcome_is(alice.commit(commit(token="alice", update=update)), StaleOwner, "a stale update")
        outcome_is(
            alice.commit(commit(record(path="c"), token="alice", update=DONE)),
            StaleOwner,
            "a record with a stale update",
        )
        assert alice.renew([("run", "alice")], 9000) == [False], (
            "a worker whose run was taken over renewed it: it would never learn of its loss"
        )
        alice.release("run", "alice")
        same_run(kit, bob.inspect("run").run, before, "a worker that lost the run changed it")
        assert bob.fetch("run", key(path="c")) == [None]
        written(bob, record(path="b"), token="bob")

    def test_a_stale_commit_says_so_even_when_the_key_is_taken(self, kit: Kit) -> None:
        """StaleOwner comes before AlreadyCommitted: the worker has to stop, not to read back."""
        alice, bob = taken_over(kit)
        written(bob, record(path="b"), token="bob")
        answer = alice.commit(commit(record(path="b"), token="alice"))
        is_stale(kit, answer, "a stale commit on a key that is taken")

    def test_a_token_does_not_come_back_when_its_successor_leaves(self, kit: Kit) -> None:
        """A claims, B claims and releases: the run is nobody's, and not A's again."""
        alice, bob = taken_over(kit)
        bob.release("run", "bob")
        answer = alice.commit(commit(record(path="b"), token="alice"))
        is_stale(kit, answer, "a commit by the owner before the last one, after its release")
        assert bob.fetch("run", key(path="b")) == [None]
        assert alice.renew([("run", "alice")], 9000) == [False], (
            "after its successor's release, an earlier owner could renew: what the successor "
            "wrote would meet what the earlier one still writes"
        )
        outcome_is(
            alice.commit(commit(token="alice", update=DONE)), StaleOwner, "its update of the run"
        )
        assert bob.inspect("run").run.owner == ""

    def test_a_released_run_takes_no_commits(self, kit: Kit) -> None:
        """After its release a worker writes nothing, also while nobody owns the run."""
        kit.store.open_run(request())
        kit.store.release("run", "alice")
        is_stale(kit, kit.store.commit(commit(record())), "a commit after the release")
        assert kit.store.fetch("run", key()) == [None]
        assert kit.store.inspect("run").headers in ((), [])
        assert kit.store.renew([("run", "alice")], 60) == [False]
        assert kit.store.inspect("run").run.owner == "", "a renewal after the release took it back"

    def test_a_token_is_compared_as_a_whole(self, kit: Kit) -> None:
        """Tokens are equal or not: no prefix, no case, no pattern, and not the holder."""
        kit.store.open_run(request(token="alice"))
        for token in ("Alice", "alic", "alice ", "a*", "%", "worker alice", "0"):
            answer = kit.store.commit(commit(record(path=f"by {token}"), token=token))
            is_stale(kit, answer, f"a commit with the token {token!r}, and 'alice' owns the run,")
            assert kit.store.fetch("run", key(path=f"by {token}")) == [None]
            refused(kit.store, token)

    def test_a_commit_to_a_run_that_does_not_exist_is_refused(self, kit: Kit) -> None:
        """A commit with a token creates no run."""
        answer = kit.store.commit(commit(record(), token="alice"))
        is_stale(kit, answer, "a commit to a run that does not exist")
        outcome_is(kit.store.commit(commit(update=DONE)), StaleOwner, "an update of no run")
        assert not kit.store.exists("run"), "a commit created a run"
        assert kit.store.fetch("run", key()) == [None]
        opened = kit.store.open_run(request())
        assert list(opened.headers) == [], "what was committed before the run existed is in it"

    def test_a_stale_commit_harms_no_other_of_its_batch(self, kit: Kit) -> None:
        """Good commits of a batch are written, and the stale one among them is not."""
        alice, bob = taken_over(kit)
        alice.open_run(request("mine", "alice"))
        outcomes = alice.commit_many(
            [
                commit(record("mine", "x"), token="alice"),
                commit(record("run", "late"), token="alice"),
                commit(record("none", "x"), token="alice"),
                commit(record("run", "y"), token="bob"),
                commit(record("mine", "z"), token="alice"),
            ]
        )
        good = [outcomes[i] for i in (0, 3, 4)]
        assert good == [None] * 3, f"good commits of a batch with stale ones ended as {good}"
        is_stale(kit, outcomes[1], "a stale commit in a batch")
        is_stale(kit, outcomes[2], "a commit to no run in a batch")
        assert [header.path for header in bob.inspect("run").headers] == ["a", "y"]
        assert [header.path for header in bob.inspect("mine").headers] == ["x", "z"]

    def test_the_owner_of_a_new_run_under_an_old_id_is_the_only_one(self, kit: Kit) -> None:
        """Who owned a run that was deleted and made again owns nothing of the new one."""
        alice, bob = kit.store, kit.another()
        alice.open_run(request(token="alice"))
        bob.delete("run")
        bob.open_run(request(token="bob"))
        is_stale(
            kit, alice.commit(commit(record(path="old"), token="alice")), "a commit from before"
        )
        assert alice.renew([("run", "alice")], 60) == [False]
        assert bob.fetch("run", key(path="old")) == [None]
        assert list(bob.inspect("run").headers) == []
