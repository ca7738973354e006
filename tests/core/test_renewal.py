"""A run stays its worker's while it works, and a worker that lost it stops.

Renewal is about real time: leases here are short, and the tests wait for what happens.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from stroma import (
    InMemoryStore,
    RunLocked,
    RunStatus,
    StaleOwner,
    StoreUnavailable,
    fan_out,
    node,
    parallel,
)
from stroma.checkpoint import Capabilities, Durability
from stroma.renewal import RENEWER
from stroma.stores.rules import stale
from tests.core.helpers import Calls, FaultyStore, Number, make_runner, stored_run
from tests.core.stores.support import in_child

LEASE_SECONDS = 0.15


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not holds():
            await asyncio.sleep(0.002)


def worker(store: object) -> Any:
    return make_runner(store, lease_seconds=LEASE_SECONDS)


def taken_over(store: FaultyStore) -> None:
    """Have another worker take every run over, as it could after the lease."""
    change(store, owner="other", holder="worker other")


def change(store: FaultyStore, **changes: object) -> None:
    with store.inner._lock:
        for entry in store.inner._entries.values():
            entry.run = entry.run._replace(**changes)


async def test_a_node_may_take_longer_than_the_lease(store: Any) -> None:
    @node(id="slow", input=Number, output=Number)
    async def slow(state: Number) -> Number:
        ends = time.monotonic() + 3 * LEASE_SECONDS
        while time.monotonic() < ends:
            with pytest.raises(RunLocked):
                await worker(store).run([slow], run_id="r", resume=True)
            await asyncio.sleep(LEASE_SECONDS / 10)
        return state

    assert (await worker(store).run([slow], Number(), run_id="r")).is_complete


async def test_a_blocked_loop_does_not_lose_its_run(store: Any) -> None:
    refused: list[str] = []

    def somebody_else() -> None:
        for _ in range(20):
            time.sleep(LEASE_SECONDS / 5)
            try:
                asyncio.run(worker(store).run([blocking], run_id="r", resume=True))
            except RunLocked as exc:
                refused.append(exc.holder)

    @node(id="blocking", input=Number, output=Number)
    async def blocking(state: Number) -> Number:
        other = threading.Thread(target=somebody_else)
        other.start()
        other.join()  # and the loop stands still
        return state

    assert (await worker(store).run([blocking], Number(), run_id="r")).is_complete
    assert len(refused) == 20


async def test_a_worker_that_lost_its_run_stops_its_nodes(calls: Calls) -> None:
    store, seen = FaultyStore(), []

    @node(id="slow", input=Number, output=Number)
    async def slow(state: Number) -> Number:
        taken_over(store)
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            seen.append("cut")
            raise
        return state

    began = time.monotonic()
    with pytest.raises(StaleOwner, match="'r': another worker has taken it over") as lost:
        await worker(store).run([calls.node("a"), slow], Number(), run_id="r")
    assert time.monotonic() - began < 30
    assert seen == ["cut"]
    assert [(cut.path, cut.reason) for cut in lost.value.in_doubt] == [("slow", "cancelled")]
    assert (await stored_run(store, "r")).owner == "other"
    assert asyncio.current_task().cancelling() == 0  # type: ignore[union-attr]


def deleted(store: FaultyStore) -> None:
    store.inner.delete("r")


def ended(store: FaultyStore) -> None:
    change(store, owner="", holder="", status=RunStatus.COMPLETED)


def given_up(store: FaultyStore) -> None:
    change(store, owner="", holder="")


def silent(store: FaultyStore) -> None:
    taken_over(store)
    store.fail("inspect", StoreUnavailable("down"))


@pytest.mark.parametrize(
    ("happens", "says"),
    [
        (taken_over, "another worker has taken it over: it is owned by worker other. Nothing"),
        (deleted, "the run does not exist any more: it was deleted or has expired. Nothing"),
        (deleted, "starting it again buys everything again"),
        (ended, r"another worker took it over and has ended it \(COMPLETED\). Nothing"),
        (ended, "start the run again to get its result"),
        (given_up, "another worker took it over and gave it up. Nothing"),
        (silent, "another worker has taken it over, or it was deleted or has expired. Nothing"),
    ],
)
async def test_a_worker_that_lost_its_run_says_how_the_run_stands(
    happens: Callable[[FaultyStore], None], says: str
) -> None:
    store = FaultyStore()

    @node(id="slow", input=Number, output=Number)
    async def slow(state: Number) -> Number:
        happens(store)
        await asyncio.sleep(60)
        return state

    with pytest.raises(StaleOwner, match=f"^run 'r': .*{says}"):
        await worker(store).run([slow], Number(), run_id="r")


@pytest.mark.parametrize(
    ("holder", "says"),
    [
        ("worker other", "does not own it: it is owned by worker other. .* from what is recorded"),
        ("", "took it over and gave it up, or it ended. .* from what is recorded"),
        (None, "does not exist any more: it was deleted or has expired. .* to buy it again"),
    ],
)
def test_a_refused_commit_says_how_the_run_stands(holder: str | None, says: str) -> None:
    with pytest.raises(StaleOwner, match=f"^run 'r': .*{says}$"):
        raise stale("r", holder)


async def test_it_stops_them_side_by_side(calls: Calls) -> None:
    store, cut = FaultyStore(), []

    def slow(node_id: str) -> Any:
        @node(id=node_id, input=Number, output=Number)
        async def body(state: Number) -> Number:
            taken_over(store)
            try:
                await asyncio.sleep(60)
            finally:
                cut.append(node_id)
            return state

        return body

    with pytest.raises(StaleOwner):
        await worker(store).run([parallel(slow("a"), slow("b"))], Number(), run_id="r")
    assert sorted(cut) == ["a", "b"]


async def test_what_the_lost_worker_paid_for_is_in_the_error() -> None:
    store = FaultyStore()

    @node(id="a", input=Number, output=Number)
    async def a(state: Number) -> Number:
        taken_over(store)
        return Number(value=7)

    with pytest.raises(StaleOwner) as lost:
        await worker(store).run([a], Number(), run_id="r")
    assert lost.value.unsaved == {"a": Number(value=7)}


class LostDuringSave(FaultyStore):
    """Its run is taken over while a result is saved, and the worker learns it meanwhile.

    Args:
        groups_commits: no batcher stands in front, so that the save itself is cancelled.
        is_stored: the result is written before the run is taken over.
    """

    run: asyncio.Task[Any]

    def __init__(self, *, groups_commits: bool, is_stored: bool = False) -> None:
        super().__init__()
        self.capabilities = Capabilities(Durability.FSYNC, groups_commits=groups_commits)
        self._is_stored = is_stored

    async def commit_many(self, commits: Any) -> Any:
        answer = self.inner.commit_many(commits) if self._is_stored else None
        taken_over(self)
        await until(lambda: self.run.cancelling() > 0)
        return answer or self.inner.commit_many(commits)


def plain(node_id: str) -> Any:
    @node(id=node_id, input=Number, output=Number)
    async def body(state: Number) -> Number:
        return Number(value=7)

    return body


class Numbers(BaseModel):
    items: list[Number] = []
    done: list[Number] = []


SEQUENCE = ([plain("a"), plain("last")], Number(), ["a"])
SIDE_BY_SIDE = ([parallel(plain("a"), plain("b")), plain("last")], Number(), ["a", "b"])
ITEMS = (
    [fan_out(plain("a"), over="items", into="done", input=Numbers)],
    Numbers(items=[Number(), Number()]),
    ["a[0]", "a[1]"],
)


async def lost_during_save(store: LostDuringSave, shape: Any) -> StaleOwner:
    nodes, given, _ = shape
    store.run = asyncio.create_task(worker(store).run(nodes, given, run_id="r"))
    with pytest.raises(StaleOwner) as lost:
        await store.run
    assert store.run.cancelling() == 0
    return lost.value


@pytest.mark.parametrize("groups_commits", [True, False])
@pytest.mark.parametrize("shape", [SEQUENCE, SIDE_BY_SIDE, ITEMS])
async def test_an_output_whose_save_was_cut_is_in_the_error(
    shape: Any, groups_commits: bool
) -> None:
    lost = await lost_during_save(LostDuringSave(groups_commits=groups_commits), shape)
    assert lost.unsaved == {path: Number(value=7) for path in shape[2]}
    assert lost.in_doubt == ()


@pytest.mark.parametrize("groups_commits", [True, False])
async def test_an_output_whose_cut_save_was_stored_is_not_in_the_error(
    groups_commits: bool,
) -> None:
    store = LostDuringSave(groups_commits=groups_commits, is_stored=True)
    lost = await lost_during_save(store, SEQUENCE)
    assert lost.unsaved == {}


async def test_a_refusal_that_overtakes_the_loss_leaves_no_cancellation_behind() -> None:
    class Answering(LostDuringSave):
        async def commit_many(self, commits: Any) -> Any:
            try:
                return await super().commit_many(commits)
            except asyncio.CancelledError:
                return self.inner.commit_many(commits)

    lost = await lost_during_save(Answering(groups_commits=True), SEQUENCE)
    assert lost.unsaved == {"a": Number(value=7)}


async def test_the_callers_own_cancellation_wins() -> None:
    store, inside = FaultyStore(), asyncio.Event()

    @node(id="slow", input=Number, output=Number)
    async def slow(state: Number) -> Number:
        inside.set()
        await asyncio.sleep(60)
        return state

    run = asyncio.create_task(worker(store).run([slow], Number(), run_id="r"))
    await inside.wait()
    taken_over(store)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run


async def test_a_renewal_that_fails_is_tried_again_before_the_lease_ends(calls: Calls) -> None:
    store = FaultyStore()
    store.fail("renew", StoreUnavailable("down"), StoreUnavailable("down"))

    @node(id="slow", input=Number, output=Number)
    async def slow(state: Number) -> Number:
        await until(lambda: store.calls["renew"] >= 3)
        with pytest.raises(RunLocked):
            await worker(store).run([slow], run_id="r", resume=True)
        return state

    assert (await worker(store).run([slow], Number(), run_id="r")).is_complete


async def test_a_renewal_that_fails_names_the_run(caplog: pytest.LogCaptureFixture) -> None:
    store = FaultyStore()
    store.fail("renew", StoreUnavailable("down"))

    @node(id="slow", input=Number, output=Number)
    async def slow(state: Number) -> Number:
        await until(lambda: store.calls["renew"] >= 2)
        return state

    await worker(store).run([slow], Number(), run_id="r")
    assert caplog.messages == ["the lease of run 'r' is not renewed: down"]


async def test_a_renewal_that_fails_tells_the_number_of_runs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store, told = FaultyStore(), "the leases of 3 runs are not renewed: down"
    store.fail("renew", *[StoreUnavailable("down")] * 1000)

    @node(id="slow", input=Number, output=Number)
    async def slow(state: Number) -> Number:
        await until(lambda: told in caplog.messages)
        return state

    runner = worker(store)
    await asyncio.gather(*(runner.run([slow], Number(), run_id=f"r{n}") for n in range(3)))
    assert told in caplog.messages


async def test_a_renewal_that_fails_after_the_end_of_the_run_is_no_news(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store, renewing, ended, answered = (
        FaultyStore(),
        threading.Event(),
        threading.Event(),
        threading.Event(),
    )

    async def renew(claims: Any, lease_ms: int) -> Any:
        renewing.set()
        await asyncio.to_thread(ended.wait, 20)
        answered.set()
        raise StoreUnavailable("closed")

    store.renew = renew  # type: ignore[method-assign]

    @node(id="slow", input=Number, output=Number)
    async def slow(state: Number) -> Number:
        await until(renewing.is_set)
        return state

    await worker(store).run([slow], Number(), run_id="r")
    ended.set()
    await until(answered.is_set)
    await until(lambda: RENEWER._thread is None)
    assert caplog.messages == []


async def test_a_run_that_ends_is_not_taken_for_lost() -> None:
    """The last commit gives the run up; a renewal that comes just then finds no owner."""
    store = FaultyStore()

    class Slow(FaultyStore):
        async def commit_many(self, commits: Any) -> Any:
            answer = await store.commit_many(commits)
            if commits[0].update is not None:
                renewals = store.calls["renew"]
                await until(lambda: store.calls["renew"] > renewals + 1 or not RENEWER._watches)
            return answer

    slow = Slow()
    slow._do = store._do  # type: ignore[method-assign]

    @node(id="a", input=Number, output=Number)
    async def a(state: Number) -> Number:
        return state

    result = await worker(slow).run([a], Number(), run_id="r")
    assert result.status is RunStatus.COMPLETED


async def test_the_runs_of_a_store_are_renewed_together() -> None:
    store, sizes = FaultyStore(), []
    renew = store.renew

    async def counted(claims: Any, lease_ms: int) -> Any:
        sizes.append(len(claims))
        return await renew(claims, lease_ms)

    store.renew = counted  # type: ignore[method-assign]
    begun: list[int] = []

    @node(id="slow", input=Number, output=Number)
    async def slow(state: Number) -> Number:
        begun.append(1)
        await until(lambda: max(sizes, default=0) == 10)
        return state

    runner = worker(store)
    await asyncio.gather(*(runner.run([slow], Number(), run_id=f"r{n}") for n in range(10)))
    assert len(sizes) < 40


async def test_nothing_is_renewed_after_the_end(store: Any, calls: Calls) -> None:
    await worker(store).run([calls.node("a")], Number(), run_id="r")
    assert not RENEWER._watches
    failing = [calls.node("b", TypeError("bug"))]
    await worker(store).run(failing, Number(), run_id="r2")
    assert not RENEWER._watches


def test_a_forked_process_renews_its_own_runs() -> None:
    store = InMemoryStore()

    def run() -> str:
        @node(id="slow", input=Number, output=Number)
        async def slow(state: Number) -> Number:
            ends = time.monotonic() + 2 * LEASE_SECONDS
            while time.monotonic() < ends:
                with pytest.raises(RunLocked):
                    await worker(store).run([slow], run_id=f"r{os.getpid()}", resume=True)
                await asyncio.sleep(LEASE_SECONDS / 10)
            return state

        return asyncio.run(worker(store).run([slow], Number(), run_id=f"r{os.getpid()}")).status

    assert run() == "COMPLETED"
    assert in_child(run).read() == "COMPLETED"


_A_STORE_THAT_LOOKS_UP_NAMES = """
import asyncio, sys

import stroma
from pydantic import BaseModel


class Number(BaseModel):
    value: int = 0


class Store(stroma.SQLiteStore):
    renewals = 0

    async def renew(self, claims, lease_ms):
        await asyncio.get_running_loop().run_in_executor(None, int)
        Store.renewals += 1
        return await super().renew(claims, lease_ms)


@stroma.node
async def slow(state: Number) -> Number:
    while not Store.renewals:
        await asyncio.sleep(0.01)
    return state


async def main() -> None:
    async with stroma.StromaRunner.quick(store=Store(sys.argv[1]), lease_seconds=0.3) as runner:
        print((await runner.run([slow], Number())).status)


asyncio.run(main())
"""


def test_a_process_that_ends_soon_after_a_renewal_says_nothing_of_it(tmp_path: Path) -> None:
    """The renewals of a store whose server has a name have used threads, which are to be ended."""
    program = tmp_path / "program.py"
    program.write_text(_A_STORE_THAT_LOOKS_UP_NAMES)
    command = [sys.executable, str(program), str(tmp_path / "runs.db")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr, done.returncode) == ("COMPLETED\n", "", 0)
