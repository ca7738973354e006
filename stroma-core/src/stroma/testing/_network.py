"""Clauses about the way to the server: lost replies, broken connections, and what follows."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from stroma.errors import OutcomeUnknown, StoreError, StoreUnavailable
from stroma.records import ClaimQuery, RunQuery, RunStatus, RunUpdate
from stroma.testing._checks import written
from stroma.testing._clauses import clauses, if_server
from stroma.testing._kit import Driven, Kit
from stroma.testing._values import DONE, Note, commit, record, request
from stroma.testing.proxy import TcpProxy

_MAX_REPLIES = 6
_TRIES = 4
UPDATE = RunUpdate(status=RunStatus.PARTIAL, stop_reason="why")

Act = Callable[[Driven], object]


def attempted(kit: Kit, store: Driven, operation: str, *args: object) -> object:
    """Do an operation over a bad network; it succeeds, or says what is known, in time.

    Returns:
        What it returned, or the error: `StoreUnavailable` or `OutcomeUnknown` at level 1.
    """
    begin = time.monotonic()
    answer = kit.bounded(store, operation, *args)
    seconds = time.monotonic() - begin
    assert seconds <= kit.subject.longest_wait_seconds + 1, f"{operation} took {seconds:.1f} s"
    if operation == "commit_many" and not isinstance(answer, BaseException):
        (answer,) = answer
    if isinstance(answer, BaseException) and kit.keeps_records:
        assert isinstance(answer, StoreUnavailable | OutcomeUnknown), (
            f"over a broken connection {operation} ended in {type(answer).__name__} ({answer}); "
            "StoreUnavailable says that nothing was done, OutcomeUnknown that nobody knows"
        )
        assert answer.__cause__ is not None, (
            f"{operation} raised {answer!r} without a cause: chain the driver's exception"
        )
    return answer


def recovers(kit: Kit, store: Driven, act: Act, problem: str) -> object:
    """Do something again with the same object until it succeeds, a few times at most."""
    error: Exception | None = None
    for _ in range(_TRIES):
        try:
            return act(store)
        except AssertionError:
            raise
        except Exception as exc:
            if kit.keeps_records and not isinstance(exc, StoreError):
                raise
            error = exc
    pytest.fail(f"{problem}, the store object does not recover: {error!r}")


@clauses("network", if_server)
class NetworkClauses:
    """What is promised when replies are lost and connections break."""

    def test_lost_replies_of_saves(self, kit: Kit) -> None:
        """A save whose reply is lost is there or not; the store object goes on."""
        proxy, store = kit.behind_proxy()
        store.save("run", "node", Note(text="before"))
        for number in range(1, _MAX_REPLIES + 1):
            proxy.drop_reply(number)
            attempted(kit, store, "save", "run", "node", Note(text=str(number)))
            was_lost = proxy.dropped > 0
            proxy.heal()
            kit.store.load("run", "node")
            recovers(
                kit,
                store,
                lambda s, n=number: s.save("run", "node", Note(text=f"{n} again")),  # type: ignore[misc]
                "after a lost reply",
            )
            assert store.load("run", "node") == Note(text=f"{number} again")
            assert was_lost or number > 1, "no reply of a save passed the proxy: is make_at right?"

    def test_lost_replies_of_commits(self, kit: Kit) -> None:
        """A commit whose reply is lost is success or unknown; repeated, there is one record."""
        _only_level_1(kit)
        proxy, store = kit.behind_proxy()
        for number in range(1, _MAX_REPLIES + 1):
            run_id = f"lost {number}"
            store.open_run(request(run_id))
            one = commit(record(run_id, "a"), record(run_id, "b"), update=UPDATE)
            proxy.drop_reply(number)
            answer = attempted(kit, store, "commit_many", [one])
            proxy.heal()
            found = kit.store.inspect(run_id)
            state = (len(found.headers), found.run.stop_reason)
            assert state in ((0, ""), (2, "why")), f"{run_id}: half a commit is there: {state}"
            if isinstance(answer, StoreUnavailable):
                assert state[0] == 0, (
                    "the reply of a commit was lost, and it raised StoreUnavailable, which says "
                    f"that nothing was written, though it was: raise OutcomeUnknown ({answer})"
                )
            if answer is None:
                assert state[0] == 2, "a commit returned, and nothing is there"
            again = recovers(kit, store, lambda s, c=one: s.commit(c), "after a lost reply")  # type: ignore[misc]
            assert again is None, f"{run_id}: the same commit again was refused: {again!r}"
            headers = kit.store.inspect(run_id).headers
            assert [header.path for header in headers] == ["a", "b"], f"{run_id}: {headers}"

    def test_lost_replies_of_claims(self, kit: Kit) -> None:
        """A claim whose reply is lost can be made again by its token, by nobody else."""
        _only_level_1(kit)
        proxy, store = kit.behind_proxy()
        for number in range(1, _MAX_REPLIES + 1):
            run_id = f"lost {number}"
            proxy.drop_reply(number)
            answer = attempted(kit, store, "open_run", request(run_id))
            proxy.heal()
            was_done = kit.store.exists(run_id)
            assert not (was_done and isinstance(answer, StoreUnavailable)), (
                f"a claim was made, and open_run raised StoreUnavailable ({answer}): its caller "
                "believes that nothing happened, and the run stays locked"
            )
            again = recovers(
                kit,
                store,
                lambda s, r=run_id: s.open_run(request(r)),  # type: ignore[misc]
                "after a lost reply",
            )
            assert getattr(again, "is_claimed", False)
            written(store, record(run_id))

    def test_lost_replies_of_the_other_operations(self, kit: Kit) -> None:
        """Reading, renewing, releasing, listing and removing survive a lost reply, too."""
        _only_level_1(kit)
        proxy, store = kit.behind_proxy()
        store.open_run(request())
        one = record()
        written(store, one)
        calls: tuple[tuple[str, tuple[object, ...]], ...] = (
            ("fetch", ("run", [one.header.key])),
            ("inspect", ("run",)),
            ("renew", ([("run", "alice")], 9_000_000)),
            ("runs", (RunQuery(limit=5),)),
            ("claimable", (ClaimQuery(limit=5),)),
            ("health", ()),
            ("setup", ()),
            ("release", ("run", "alice")),
            ("delete", ("gone",)),
            ("purge", (RunQuery(tag="none"),)),
        )
        for operation, args in calls:
            proxy.drop_reply(1)
            attempted(kit, store, operation, *args)
            proxy.heal()
            recovers(
                kit,
                store,
                lambda s, o=operation, a=args: s.do(o, *a),  # type: ignore[misc]
                f"after a lost reply of {operation}",
            )
        assert store.fetch("run", one.header.key) == [one]
        assert kit.store.inspect("run").run.owner == ""

    @pytest.mark.parametrize("after_bytes", [1, 4, 20])
    def test_a_reply_that_is_cut(self, kit: Kit, after_bytes: int) -> None:
        """A reply that breaks off in its middle is no answer, and not a part of the next one."""
        proxy, store = kit.behind_proxy()
        store.save("run", "node", Note(text="kept" * 100))
        proxy.cut_reply(after_bytes)
        answer = attempted(kit, store, "load", "run", "node")
        assert isinstance(answer, Exception) or answer == Note(text="kept" * 100), (
            f"a reply that was cut after {after_bytes} bytes was read as {answer!r:.200}"
        )
        proxy.heal()
        found = recovers(kit, store, lambda s: s.load("run", "node"), "after a reply was cut")
        assert found == Note(text="kept" * 100)

    @pytest.mark.parametrize("fault", ["reset", "half_close"])
    def test_idle_connections_that_broke(self, kit: Kit, fault: str) -> None:
        """Connections that broke while nobody used them are replaced."""
        proxy, store = kit.behind_proxy()
        for i in range(3):
            store.save("run", f"n{i}", Note(text=str(i)))
            getattr(proxy, fault)()
            attempted(kit, store, "load", "run", f"n{i}")
            found = recovers(kit, store, lambda s, i=i: s.load("run", f"n{i}"), f"after {fault}")  # type: ignore[misc]
            assert found == Note(text=str(i)), f"after {fault}, load gave {found!r}"

    def test_a_connection_that_breaks_under_a_commit(self, kit: Kit) -> None:
        """A reset while a commit is under way leaves it whole or not there, to be repeated."""
        _only_level_1(kit)
        proxy, store = kit.behind_proxy()
        store.open_run(request())
        one = commit(record(path="a"), record(path="b"), update=UPDATE)
        proxy.delay(0.2)
        breaker = threading.Timer(0.1, proxy.reset)
        breaker.start()
        attempted(kit, store, "commit_many", [one])
        breaker.join()
        proxy.heal()
        assert len(kit.store.inspect("run").headers) in (0, 2)
        again = recovers(kit, store, lambda s: s.commit(one), "after a reset")
        assert again is None
        assert len(kit.store.inspect("run").headers) == 2

    def test_a_server_that_does_not_answer(self, kit: Kit) -> None:
        """When nothing comes back, an operation ends by itself, and the object recovers."""
        proxy, store = kit.behind_proxy()
        store.save("run", "node", Note(text="before"))
        proxy.pause()
        answer = attempted(kit, store, "save", "run", "node", Note(text="after"))
        assert isinstance(answer, Exception), "a save returned, and nothing reached the server"
        proxy.heal()
        recovers(kit, store, lambda s: s.save("run", "node", Note(text="again")), "after a pause")
        assert store.load("run", "node") == Note(text="again")

    def test_a_server_that_is_down(self, kit: Kit) -> None:
        """A server that refuses connections is StoreUnavailable; when it is back, all is well."""
        proxy, store = kit.behind_proxy()
        store.save("run", "node", Note(text="before"))
        proxy.refuse()
        proxy.reset()
        attempted(kit, store, "load", "run", "node")
        answer = attempted(kit, store, "save", "run", "node", Note(text="after"))
        assert isinstance(answer, Exception), "a save returned, and there is no server"
        if kit.keeps_records:
            assert isinstance(answer, StoreUnavailable), (
                f"no connection could be made, so that nothing was written: that is "
                f"StoreUnavailable, not {answer!r}"
            )
            health = attempted(kit, store, "health")
            assert isinstance(health, StoreError), "health says that all is well without a server"
        proxy.heal()
        found = recovers(kit, store, lambda s: s.load("run", "node"), "after the server was down")
        assert found == Note(text="before")

    def test_delayed_replies_go_to_who_asked(self, kit: Kit) -> None:
        """Operations at the same time over a slow line each get their own reply."""
        proxy, store = kit.behind_proxy()
        for i in range(10):
            store.save("run", f"n{i}", Note(text=str(i)))
        proxy.delay(0.02)
        answers = kit.together(*[(store, "load", ("run", f"n{i}")) for i in range(10)])
        assert answers == [Note(text=str(i)) for i in range(10)]

    def test_a_cancelled_operation_over_a_slow_line(self, kit: Kit) -> None:
        """A reply that comes after its caller was cancelled is given to nobody else."""
        if not kit.is_async:
            pytest.skip("network: a sync operation cannot be cancelled")
        proxy, store = kit.behind_proxy()
        for i in range(4):
            store.save("run", f"n{i}", Note(text=str(i)))
        proxy.delay(0.03)

        async def body(i: int) -> Any:
            task = asyncio.ensure_future(store.call("load", "run", f"n{i}"))
            await asyncio.sleep(0.015)
            task.cancel()
            await asyncio.wait({task})
            return await store.call("load", "run", f"n{(i + 1) % 4}")

        for i in range(4):
            found = kit.run(body(i))
            assert found == Note(text=str((i + 1) % 4)), (
                f"after the load of {i} was cancelled, the next one gave {found!r}"
            )

    def test_a_clean_run_takes_one_round_trip_for_each_node_and_one_more(self, kit: Kit) -> None:
        """Claiming takes one round trip, so does each commit, and reading a run that is done."""
        _only_level_1(kit)
        proxy, store = kit.behind_proxy()
        store.open_run(request("warm"))
        written(store, record("warm"))
        claim = _trips(proxy, lambda: store.open_run(request()))
        assert claim == 1, f"open_run of a new run took {claim} round trips: it creates and claims"
        for i in range(3):
            one = _trips(proxy, lambda i=i: written(store, record(path=f"n{i}", position=i)))  # type: ignore[misc]
            assert one == 1, f"a commit of one record took {one} round trips"
        last = _trips(proxy, lambda: store.commit(commit(record(path="last"), update=DONE)))
        assert last == 1, f"the last commit, with the run's end, took {last} round trips"
        again = _trips(proxy, lambda: store.open_run(request()))
        assert again == 1, f"opening a run that is complete took {again} round trips"

    def test_a_batch_takes_few_round_trips(self, kit: Kit) -> None:
        """Commits of many runs in one call take one or two round trips, not one for each."""
        _only_level_1(kit)
        if not kit.capabilities.refuses_stale_commits:
            pytest.skip("network: its server does not decide about several runs at once")
        proxy, store = kit.behind_proxy()
        for i in range(50):
            store.open_run(request(f"r{i}"))
        store.commit_many([commit(record(f"r{i}", "warm")) for i in range(50)])
        batch = [commit(record(f"r{i}")) for i in range(50)]
        many = _trips(proxy, lambda: store.commit_many(batch))
        assert many <= 2, f"50 commits in one call took {many} round trips"


def _trips(proxy: TcpProxy, act: Callable[[], object]) -> int:
    before = proxy.round_trips
    act()
    return proxy.round_trips - before


def _only_level_1(kit: Kit) -> None:
    if not kit.keeps_records:
        pytest.skip("network: level 1 only")
