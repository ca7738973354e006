"""Clauses about processes: forks, the death of the one that wrote, and a clock that is wrong."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from stroma import clock as clocks
from stroma.errors import RunLocked
from stroma.testing._checks import written
from stroma.testing._clauses import clauses, if_fencing, if_outlives, if_server
from stroma.testing._kit import Kit
from stroma.testing._pauses import Call, Paused, points_of
from stroma.testing._processes import fork, until_killed
from stroma.testing._values import DONE, Note, commit, record, request

SKEW_SECONDS = 3600.0


@clauses("processes", if_outlives)
class ProcessClauses:
    """Several processes, and what is left of one that was killed.

    Attributes:
        fork_points: at how many of an operation's I/O calls its process is forked, at most.
    """

    fork_points = 12

    def test_a_forked_child_and_its_parent_both_write(self, kit: Kit) -> None:
        """A store object that was used before a fork is used after it, on both sides."""
        kit.store.save("run", "before", Note(text="1"))

        def write(say: Callable[[object], None]) -> object:
            kit.forget()
            for i in range(20):
                kit.store.save("run", f"child{i}", Note(text=f"child {i}"))
            return repr(kit.store.load("run", "before"))

        child = fork(write)
        for i in range(20):
            kit.store.save("run", f"parent{i}", Note(text=f"parent {i}"))
            found = kit.store.load("run", f"parent{i}")
            assert found == Note(text=f"parent {i}"), (
                f"while a forked child used the store object, the parent loaded {found!r}: they "
                "share a connection, and read each other's replies"
            )
        said = child.wait()
        assert said == repr(Note(text="1")), f"the child loaded {said}"
        for who in ("child", "parent"):
            lost = [
                i
                for i in range(20)
                if kit.store.load("run", f"{who}{i}") != Note(text=f"{who} {i}")
            ]
            assert not lost, f"what the {who} saved after the fork is lost: {lost}"

    def test_an_idle_child_holds_nothing(self, kit: Kit) -> None:
        """A child that was forked during an operation, and does nothing, keeps no lock of it."""
        save: Call = ("save", ("run", "node", Note(text="1")))
        for point in points_of(kit, self.fork_points, save):
            paused = Paused(kit, point, save)
            with paused.for_a_moment():  # a store may make a fork wait for its operations
                child = fork(lambda say: until_killed())
            # Killing the child frees what it holds, so that this test ends in any case.
            watchdog = threading.Timer(kit.subject.longest_wait_seconds, child.end)
            watchdog.start()
            try:
                answer = paused.end()
                assert not isinstance(answer, Exception), f"a fork made a save fail: {answer!r}"
                kit.store.save("run", "node", Note(text="2"))
                found = kit.store.load("run", "node")
                assert watchdog.is_alive(), (
                    "a child that was forked during a save and does nothing kept the parent from "
                    "the store until the child was killed: what it inherits, such as the "
                    "descriptor of fcntl.flock, holds the lock; unlock before closing"
                )
                assert found == Note(text="2"), f"after a fork during a save, load gave {found!r}"
            finally:
                watchdog.cancel()
                watchdog.join()
                child.kill()

    def test_what_was_saved_outlives_the_process(self, kit: Kit) -> None:
        """What a returned `save` wrote is read after its process was killed."""

        def write(say: Callable[[object], None]) -> object:
            kit.forget()
            kit.store.save("run", "node", Note(text="kept"))
            say("saved")
            until_killed()
            return None

        child = fork(write)
        child.wait_for_line()
        child.kill()
        found = kit.store.load("run", "node")
        assert found == Note(text="kept"), (
            f"a save returned, its process was killed, and load gives {found!r}: it said that it "
            "was done before it was"
        )

    def test_what_was_committed_outlives_the_process(self, kit: Kit) -> None:
        """What a returned commit wrote is read, and its run is taken over, after a SIGKILL."""
        if not kit.keeps_records:
            pytest.skip("processes: level 1 only")
        one, two = record(path="a", position=0), record(path="b", position=1)
        claim = request(token="dead", lease_seconds=kit.lease_seconds)

        def write(say: Callable[[object], None]) -> object:
            kit.forget()
            kit.store.open_run(claim)
            written(kit.store, one, token="dead")
            written(kit.store, two, token="dead")
            say("committed")
            until_killed()
            return None

        child = fork(write)
        child.wait_for_line()
        child.kill()
        opened = kit.take_over(request(token="bob"))
        assert list(opened.headers) == [one.header, two.header], (
            "commits had returned, their process was killed, and of two records "
            f"{len(opened.headers)} are there: a node that was paid for would be bought again"
        )
        assert opened.last == two
        assert kit.store.commit(commit(record(path="c"), token="bob", update=DONE)) is None

    def test_processes_compete_for_a_run(self, kit: Kit) -> None:
        """Of several processes that claim a run, one gets it; each record has one winner."""
        if not kit.keeps_records or not kit.capabilities.fencing:
            pytest.skip("processes: level 1 with fencing only")
        kit.store.open_run(request("shared", "team"))

        def work(name: str) -> Callable[[Callable[[object], None]], object]:
            def body(say: Callable[[object], None]) -> object:
                kit.forget()
                try:
                    kit.store.open_run(request("wanted", name))
                    has_claimed = True
                except RunLocked:
                    has_claimed = False
                outcomes = [
                    kit.store.commit(commit(record("shared", f"n{i}"), token="team"))
                    for i in range(25)
                ]
                say([has_claimed, [i for i in range(25) if outcomes[i] is None]])
                until_killed()  # a dead owner's run may be taken over at once
                return None

            return body

        children = [fork(work(f"w{i}")) for i in range(3)]
        try:
            said = [child.wait_for_line() for child in children]
        finally:
            for child in children:
                child.kill()
        claims = [each[0] for each in said]
        assert sum(claims) == 1, f"{sum(claims)} of 3 processes claimed one run"
        won = sorted(i for each in said for i in each[1])
        assert won == list(range(25)), f"of 25 records that 3 processes wrote, {won} were won"
        assert len(kit.store.inspect("shared").headers) == 25


def _if_clock_of_its_own(kit: Kit) -> str | None:
    return (
        if_fencing(kit)
        or if_outlives(kit)
        or ("its clock is given to it" if kit.subject.clock else None)
        or if_server(kit)
    )


@clauses("clock skew", _if_clock_of_its_own)
class SkewClauses:
    """Leases are on the store's own clock: a worker whose clock is wrong does no harm.

    Python's clock is changed in a forked process; what a driver reads in C is not.
    """

    @pytest.mark.parametrize("skew_seconds", [SKEW_SECONDS, -SKEW_SECONDS])
    def test_a_lease_holds_against_a_wrong_clock(self, kit: Kit, skew_seconds: float) -> None:
        """A worker whose clock is an hour off does not take over a run that is owned."""
        kit.store.open_run(request(token="alice", lease_seconds=60))

        def claim(say: Callable[[object], None]) -> object:
            kit.forget()
            set_clock_off(skew_seconds)
            try:
                kit.another().open_run(request(token="skewed"))
            except RunLocked as exc:
                return exc.until_seconds
            return "claimed"

        said = fork(claim).wait()
        assert said != "claimed", (
            f"a worker whose clock is {skew_seconds:+g} s off took over a run whose lease has "
            "60 s: leases are measured by the client's clock"
        )
        assert abs(said - 60) < 30, f"it was told that the lease of 60 s has {said} s"
        written(kit.store, record())

    @pytest.mark.parametrize("skew_seconds", [SKEW_SECONDS, -SKEW_SECONDS])
    def test_a_lease_of_a_wrong_clock_ends(self, kit: Kit, skew_seconds: float) -> None:
        """A run claimed by a worker whose clock is an hour off holds, and ends, in its time."""
        kit.store.open_run(request("long", "first"))
        kit.store.release("long", "first")

        def claim(say: Callable[[object], None]) -> object:
            kit.forget()
            set_clock_off(skew_seconds)
            store = kit.another()
            long = store.open_run(request("long", "skewed", lease_seconds=60)).run
            short = store.open_run(request("short", "skewed", lease_seconds=kit.lease_seconds)).run
            say([long.updated_at, short.created_at])
            until_killed()
            return None

        child = fork(claim)
        times = child.wait_for_line()
        try:
            with pytest.raises(RunLocked):
                kit.store.open_run(request("long", "bob"))
            now = kit.store.open_run(request("now", "bob")).run.updated_at
            assert max(abs(each - now) for each in times) < SKEW_SECONDS / 2, (
                "the times of a run are those of the worker's clock, which is wrong"
            )
            assert kit.take_over(request("short", "bob")).run.owner == "bob"
        finally:
            child.kill()


def set_clock_off(skew_seconds: float) -> None:
    """Change what Python calls the time, in a process that ends soon."""
    now, now_ns = time.time, time.time_ns

    def skewed() -> float:
        return now() + skew_seconds

    time.time = skewed
    time.time_ns = lambda: now_ns() + int(skew_seconds * 1e9)
    clocks.SystemClock.now = staticmethod(skewed)
