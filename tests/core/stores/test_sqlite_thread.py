"""The store's thread: event loops, cancellation, grouping, forks, and what is left behind."""

from __future__ import annotations

import asyncio
import gc
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from stroma.errors import AlreadyCommitted, StoreError, StoreUnusable
from stroma.records import RecordKey, RunQuery
from stroma.stores import _sqlite_session, _sqlite_thread
from stroma.stores._owner_lock import OwnerLock
from stroma.stores.sqlite import SQLiteStore
from tests.core.stores.support import ManualClock, Note, commit, in_child, record, request, steps


@contextmanager
def writing_elsewhere(database: Path) -> Iterator[None]:
    """Hold the file's write lock, so that every commit waits."""
    other = sqlite3.connect(database, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        other.execute("ROLLBACK")
        other.close()


class TestEventLoops:
    def test_one_after_the_other(self, database: Path) -> None:
        store = SQLiteStore(database)
        for i in range(3):
            asyncio.run(store.save("run", f"n{i}", Note(text=str(i))))
        found = [asyncio.run(store.load("run", f"n{i}")) for i in range(3)]
        assert found == [Note(text=str(i)) for i in range(3)]
        asyncio.run(store.aclose())

    def test_at_the_same_time(self, database: Path) -> None:
        store = SQLiteStore(database)
        failures: list[BaseException] = []

        async def work(worker: int) -> None:
            for i in range(20):
                await store.save(f"run{worker}", f"n{i}", Note(text=str(i)))
                assert await store.load(f"run{worker}", f"n{i}") == Note(text=str(i))

        def serve(worker: int) -> None:
            try:
                asyncio.run(work(worker))
            except BaseException as exc:
                failures.append(exc)

        threads = [threading.Thread(target=serve, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        asyncio.run(store.aclose())

    def test_a_loop_that_went_away_is_not_missed(self, database: Path) -> None:
        store = SQLiteStore(database)
        loop = asyncio.new_event_loop()
        asyncio.run(store.setup())
        with writing_elsewhere(database):
            task = loop.create_task(store.save("run", "node", Note()))
            loop.run_until_complete(steps(3))
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            task.get_coro().close()  # type: ignore[union-attr]
            loop.close()
        assert asyncio.run(store.load("run", "node")) == Note()
        asyncio.run(store.aclose())


class TestCancellation:
    @pytest.mark.parametrize("times", [1, 2])
    @pytest.mark.parametrize("after", range(6))
    async def test_a_commit_lands_or_not_and_never_half(
        self, sqlite: SQLiteStore, database: Path, after: int, times: int
    ) -> None:
        await sqlite.open_run(request())
        a, b = record(path="a"), record(path="b")
        with writing_elsewhere(database):
            task = asyncio.create_task(sqlite.commit_many([commit(a, b)]))
            for _ in range(times):
                await steps(after)
                task.cancel()
            await steps(3)
            # Once it has begun, it is not given up while the write is under way.
            assert task.done() is (after == 0)
        with pytest.raises(asyncio.CancelledError):
            await task
        found = await sqlite.fetch("run", [a.header.key, b.header.key])
        assert found == ([None, None] if after == 0 else [a, b])

    async def test_cancelled_after_the_answer(self, sqlite: SQLiteStore) -> None:
        await sqlite.open_run(request())
        task = asyncio.create_task(sqlite.commit_many([commit(record())]))
        while not (await sqlite.fetch("run", [record().header.key]))[0]:
            pass
        task.cancel()
        await asyncio.wait([task])
        assert (await sqlite.open_run(request())).headers  # type: ignore[union-attr]

    def test_a_loop_that_shuts_down_waits_for_the_write(self, database: Path) -> None:
        store = SQLiteStore(database)

        async def leave() -> None:
            await store.setup()
            asyncio.get_running_loop().create_task(store.save("run", "node", Note()))
            await asyncio.sleep(0)

        asyncio.run(leave())
        assert asyncio.run(store.load("run", "node")) == Note()
        asyncio.run(store.aclose())

    async def test_a_refusal_meanwhile_is_not_reported_as_lost(
        self, sqlite: SQLiteStore, database: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        gc.collect()  # what tests before this one have left behind
        caplog.clear()
        await sqlite.open_run(request())
        with writing_elsewhere(database):
            task = asyncio.create_task(sqlite.open_run(request(token="bob")))
            await steps(2)
            task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gc.collect()
        assert caplog.text == ""


class TestGrouping:
    @pytest.fixture
    def transactions(self, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
        """Whether each transaction was durable."""
        seen: list[bool] = []
        transact = _sqlite_session.Session.transact
        state_alone = _sqlite_session.Session.state_alone

        def counted(session: object, body: object, *, durable: bool) -> None:
            seen.append(durable)
            transact(session, body, durable=durable)  # type: ignore[arg-type]

        def counted_alone(session: object, body: object) -> bool:
            has_written = state_alone(session, body)  # type: ignore[arg-type]
            seen.extend([True] * has_written)
            return has_written

        monkeypatch.setattr(_sqlite_session.Session, "transact", counted)
        monkeypatch.setattr(_sqlite_session.Session, "state_alone", counted_alone)
        return seen

    async def test_commits_that_wait_share_a_transaction(
        self, sqlite: SQLiteStore, database: Path, transactions: list[bool]
    ) -> None:
        await sqlite.open_run(request())
        writes = [sqlite.commit_many([commit(record(path=f"n{i}"))]) for i in range(50)]
        with writing_elsewhere(database):
            tasks = [asyncio.create_task(write) for write in writes]
            await steps(3)
        assert await asyncio.gather(*tasks) == [[None]] * 50
        assert len(transactions) <= 4

    async def test_a_refused_one_fails_alone(self, sqlite: SQLiteStore, database: Path) -> None:
        await sqlite.open_run(request())
        await sqlite.commit_many([commit(record(path="n3"))])
        with writing_elsewhere(database):
            writes = [sqlite.commit_many([commit(record(path=f"n{i}"))]) for i in range(9)]
            tasks = [asyncio.create_task(write) for write in writes]
            await steps(3)
        outcomes = [type((await task)[0]) for task in tasks]
        assert outcomes == [AlreadyCommitted if i == 3 else type(None) for i in range(9)]

    async def test_a_broken_one_fails_alone(self, sqlite: SQLiteStore, database: Path) -> None:
        await sqlite.open_run(request())
        with writing_elsewhere(database):
            good = [sqlite.save("run", f"n{i}", Note()) for i in range(5)]
            bad = sqlite.commit_many([None])  # type: ignore[list-item]
            tasks = [asyncio.create_task(write) for write in (*good[:2], bad, *good[2:])]
            await steps(3)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [r for r in results if r is not None] == [results[2]]
        assert isinstance(results[2], StoreError | AttributeError)
        assert [await sqlite.load("run", f"n{i}") for i in range(5)] == [Note()] * 5

    async def test_a_clean_run_waits_for_the_disk_once_per_commit(
        self, sqlite: SQLiteStore, transactions: list[bool]
    ) -> None:
        await sqlite.open_run(request())
        for i in range(3):
            await sqlite.commit_many([commit(record(path=f"n{i}"))])
        assert transactions == [False, True, True, True]

    def test_the_pragma_is_not_lost_in_a_cache_of_statements(self, database: Path) -> None:
        session = _sqlite_session.Session(database, 1.0, ManualClock(), OwnerLock(database))
        levels = []
        for durable in (True, False, True, False, True):
            session.transact(session.tables.touch, durable=durable)
            levels += session._connection.execute("PRAGMA synchronous").fetchone()
        session.close()
        assert levels == [2, 1, 2, 1, 2]

    async def test_a_claim_without_a_commit_reaches_the_disk_by_itself(
        self, sqlite: SQLiteStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        synced = threading.Event()
        sync = _sqlite_session._sync
        monkeypatch.setattr(_sqlite_session, "_sync", lambda fd: (sync(fd), synced.set()))
        await sqlite.open_run(request())
        assert await asyncio.to_thread(synced.wait, 5)


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


async def threads_ended() -> None:
    """Wait for the thread that waited for the store's thread to see that it may end, too."""
    async with asyncio.timeout(5):
        while any(thread.name.startswith("stroma") for thread in threading.enumerate()):
            await asyncio.sleep(0.001)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
class TestNothingIsLeft:
    async def test_after_aclose(self, database: Path) -> None:
        async def use() -> None:
            store = SQLiteStore(database)
            await store.open_run(request())
            await asyncio.sleep(0.01)  # the claim is synced by a descriptor of its own
            await store.save("run", "node", Note())
            await store.aclose()

        await use()
        await threads_ended()
        files = open_files()
        for _ in range(10):
            await use()
        await threads_ended()
        assert open_files() == files

    async def test_after_files_that_are_refused(self, database: Path) -> None:
        database.write_text("no database " * 100)
        files = open_files()
        for _ in range(5):
            store = SQLiteStore(database)
            with pytest.raises(StoreUnusable):
                await store.setup()
            await store.aclose()
        assert open_files() == files

    def test_after_a_store_that_nobody_closed(self, database: Path) -> None:
        async def use() -> None:
            await SQLiteStore(database).open_run(request())

        asyncio.run(use())
        gc.collect()
        files, threads = open_files(), threading.active_count()
        for _ in range(3):
            asyncio.run(use())
            gc.collect()
        assert (open_files(), threading.active_count()) == (files, threads)
        assert [p.name for p in database.parent.iterdir()] == ["runs.db"]

    async def test_payloads_are_not_kept(self, sqlite: SQLiteStore) -> None:
        class Payload(bytes):
            pass

        await sqlite.open_run(request())
        payload = Payload(b"x" * 1000)
        one = record(payload=b"")._replace(payload=payload)
        await sqlite.commit_many([commit(one)])
        del one
        gc.collect()
        assert [type(r).__name__ for r in gc.get_referrers(payload)] in ([], ["coroutine"])


class TestClosing:
    async def test_what_was_waiting_is_finished(self, database: Path) -> None:
        store = SQLiteStore(database)
        await store.setup()
        with writing_elsewhere(database):
            saves = [
                asyncio.create_task(store.save("run", f"n{i}", Note(text=str(i)))) for i in range(5)
            ]
            await steps(3)
            closing = asyncio.create_task(store.aclose())
            await steps(3)
        await asyncio.gather(closing, *saves)
        again = SQLiteStore(database)
        assert await again.load("run", "n4") == Note(text="4")
        await again.aclose()

    async def test_a_closed_store_says_so(self, database: Path) -> None:
        store = SQLiteStore(database)
        await store.save("run", "node", Note())
        await store.aclose()
        await store.aclose()
        with pytest.raises(StoreUnusable, match="is closed"):
            await store.load("run", "node")
        with pytest.raises(StoreUnusable, match="is closed"):
            await store.runs(RunQuery())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
class TestForks:
    def test_parent_and_child_both_write(self, database: Path) -> None:
        store = SQLiteStore(database)
        asyncio.run(store.save("run", "before", Note(text="1")))

        def write() -> str:
            asyncio.run(store.save("run", "child", Note(text="2")))
            found = asyncio.run(store.load("run", "before"))
            asyncio.run(store.aclose())
            return repr(found)

        child = in_child(write)
        asyncio.run(store.save("run", "parent", Note(text="3")))
        assert child.read() == repr(Note(text="1"))
        assert asyncio.run(store.load("run", "child")) == Note(text="2")
        assert asyncio.run(store.load("run", "parent")) == Note(text="3")
        asyncio.run(store.aclose())

    def test_many_children(self, database: Path) -> None:
        store = SQLiteStore(database)
        asyncio.run(store.setup())

        def write(i: int) -> str:
            asyncio.run(store.save(f"run{i}", "node", Note(text=str(i))))
            return "written"

        children = [in_child(lambda i=i: write(i)) for i in range(5)]  # type: ignore[misc]
        assert [child.read() for child in children] == ["written"] * 5
        found = [asyncio.run(store.load(f"run{i}", "node")) for i in range(5)]
        assert found == [Note(text=str(i)) for i in range(5)]
        asyncio.run(store.aclose())

    async def test_what_waits_in_the_parent_goes_on(
        self, sqlite: SQLiteStore, database: Path
    ) -> None:
        await sqlite.open_run(request())
        with writing_elsewhere(database):
            writes = [sqlite.commit_many([commit(record(path=f"n{i}"))]) for i in range(3)]
            tasks = [asyncio.create_task(write) for write in writes]
            await steps(3)
            unlock = threading.Timer(0.05, lambda: None)
            unlock.start()
            unlock.join()
        child = in_child(lambda: "forked")
        assert child.read() == "forked"
        assert await asyncio.gather(*tasks) == [[None]] * 3
        keys = [RecordKey("run", 0, f"n{i}") for i in range(3)]
        assert None not in await sqlite.fetch("run", keys)

    async def test_a_child_forked_amid_a_write_is_told(
        self, database: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(_sqlite_thread, "_JOIN_GRACE_SECONDS", 0.01)
        clock = StuckClock()
        store = SQLiteStore(database, clock=clock, busy_timeout_seconds=0.0)
        task = asyncio.create_task(store.open_run(request()))
        while not clock.is_asked.is_set():
            await asyncio.sleep(0.001)

        def use() -> str:
            try:
                store._writer._put(None)  # type: ignore[arg-type]
            except StoreUnusable as exc:
                return str(exc)
            return "taken"

        text = in_child(use).read()
        clock.go_on.set()
        assert "make the store after the fork" in text
        assert (await task).is_claimed  # type: ignore[union-attr]
        await store.aclose()

    async def test_a_thread_that_leaves_late_is_replaced(
        self, database: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(_sqlite_thread, "_JOIN_GRACE_SECONDS", 0.01)
        clock = StuckClock()
        store = SQLiteStore(database, clock=clock, busy_timeout_seconds=0.0)
        task = asyncio.create_task(store.open_run(request()))
        while not clock.is_asked.is_set():
            await asyncio.sleep(0.001)
        store._writer.before_fork()
        clock.go_on.set()
        await threads_ended()
        store._writer.after_fork_in_parent()
        assert (await task).is_claimed  # type: ignore[union-attr]
        assert await store.commit_many([commit(record())]) == [None]
        await store.aclose()


class StuckClock:
    """A clock that does not answer until it may."""

    def __init__(self) -> None:
        self.is_asked = threading.Event()
        self.go_on = threading.Event()

    def now(self) -> float:
        self.is_asked.set()
        self.go_on.wait(10)
        return 0.0

    def monotonic(self) -> float:
        return 0.0

    async def sleep(self, seconds: float) -> None:
        """Not needed."""
