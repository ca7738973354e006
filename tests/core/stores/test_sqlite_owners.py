"""Dead owners are told from living ones by their file locks, whatever their leases say."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from stroma.errors import RunLocked
from stroma.records import OpenedRun
from stroma.stores._owner_lock import OwnerLock
from stroma.stores.sqlite import SQLiteStore
from tests.core.stores.support import commit, record, request, speaking_child

LONG = 3600.0


def claim(database: Path, token: str = "bob") -> OpenedRun | None:
    """Claim the run with a store of its own, and close it."""

    async def body() -> OpenedRun | None:
        store = SQLiteStore(database)
        try:
            return await store.open_run(request(token=token, lease_seconds=LONG))
        finally:
            await store.aclose()

    return asyncio.run(body())


def claim_and_stay(database: Path) -> Callable[[Callable[[str], None]], None]:
    """Return the work of a process that claims the run and then stays alive."""

    def body(say: Callable[[str], None]) -> None:
        async def work() -> None:
            store = SQLiteStore(database)
            await store.open_run(request(token="alice", lease_seconds=LONG))
            await store.commit_many([commit(record())])
            say("claimed")
            await asyncio.sleep(60)

        asyncio.run(work())

    return body


def lock_files(database: Path) -> list[Path]:
    folder = database.with_name(f"{database.name}-owners")
    return sorted(folder.iterdir()) if folder.exists() else []


@pytest.mark.crash
def test_a_killed_owner_is_replaced_at_once(database: Path) -> None:
    with speaking_child(claim_and_stay(database)) as child:
        assert next(child.lines()) == "claimed"
        child.kill()
        opened = claim(database)
    assert opened is not None
    assert opened.is_claimed
    assert [h.path for h in opened.headers] == ["node"]
    assert lock_files(database) == []


def test_a_living_owner_is_not(database: Path) -> None:
    with speaking_child(claim_and_stay(database)) as child:
        assert next(child.lines()) == "claimed"
        with pytest.raises(RunLocked, match="worker alice") as refused:
            claim(database)
        assert 0 < refused.value.until_seconds <= LONG


@pytest.mark.crash
def test_a_stopped_owner_is_alive(database: Path) -> None:
    with speaking_child(claim_and_stay(database)) as child:
        assert next(child.lines()) == "claimed"
        os.kill(child.pid, signal.SIGSTOP)
        with pytest.raises(RunLocked):
            claim(database)


@pytest.mark.crash
def test_a_child_of_the_owner_does_not_keep_it_alive(database: Path) -> None:
    def body(say: Callable[[str], None]) -> None:
        store = SQLiteStore(database)
        asyncio.run(_open(store))
        pid = os.fork()
        if pid == 0:
            signal.pause()
        say(str(pid))
        signal.pause()

    with speaking_child(body) as child:
        grandchild = int(next(child.lines()))
        with pytest.raises(RunLocked):
            claim(database)
        child.kill()
        try:
            opened = claim(database)
        finally:
            os.kill(grandchild, signal.SIGKILL)
    assert opened is not None
    assert opened.is_claimed


async def _open(store: SQLiteStore) -> None:
    await store.open_run(request(token="alice", lease_seconds=LONG))


async def test_two_stores_in_one_process_are_two_owners(database: Path) -> None:
    first, second = SQLiteStore(database), SQLiteStore(database)
    await first.open_run(request(token="alice", lease_seconds=LONG))
    with pytest.raises(RunLocked):
        await second.open_run(request(token="bob", lease_seconds=LONG))
    await first.aclose()
    opened = await second.open_run(request(token="bob", lease_seconds=LONG))
    assert opened is not None
    assert opened.is_claimed
    await second.aclose()


async def test_one_store_is_one_owner_of_many_claims(database: Path) -> None:
    store = SQLiteStore(database)
    await store.open_run(request(token="alice", lease_seconds=LONG))
    with pytest.raises(RunLocked):
        await store.open_run(request(token="bob", lease_seconds=LONG))
    await store.open_run(request("other", token="bob"))
    assert len(lock_files(database)) == 1
    await store.aclose()


async def test_a_store_that_claims_nothing_locks_nothing(database: Path) -> None:
    store = SQLiteStore(database)
    await store.open_run(request(must_exist=True))
    assert lock_files(database) == []
    await store.aclose()


async def test_closing_leaves_one_file(database: Path) -> None:
    store = SQLiteStore(database)
    await store.open_run(request())
    await store.aclose()
    assert [p.name for p in database.parent.iterdir()] == ["runs.db"]


def test_leftovers_of_the_dead_are_swept(database: Path) -> None:
    folder = database.with_name("runs.db-owners")
    folder.mkdir()
    (folder / "abc123").touch()
    lock = OwnerLock(database)
    nonce = lock.hold()
    assert [p.name for p in lock_files(database)] == [nonce]
    assert lock.hold() == nonce
    lock.drop()
    assert not folder.exists()


def test_a_stored_nonce_is_never_a_path(database: Path) -> None:
    database.touch()
    lock = OwnerLock(database)
    assert not lock.is_dead("../runs.db")
    assert not lock.is_dead("")
    assert lock.is_dead("0123456789ab")
    assert database.exists()


def test_where_no_lock_can_be_had_leases_tell(tmp_path: Path) -> None:
    lock = OwnerLock(tmp_path / "none" / "runs.db")
    assert lock.hold() == ""
    lock.drop()
