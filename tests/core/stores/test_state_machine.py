"""Every store against a model made of dicts, under competing workers and a turning clock."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from stroma.errors import AlreadyCommitted, RunLocked, StaleOwner
from stroma.records import (
    PLAIN_EPOCH,
    CheckpointRecord,
    Commit,
    Epoch,
    RecordKey,
    RunQuery,
    RunRecord,
    RunStatus,
    RunUpdate,
    last_result,
)
from stroma.stores.memory import AsyncInMemoryStore, InMemoryStore
from stroma.stores.sqlite import SQLiteStore
from tests.core.stores.support import Awaited, ManualClock, Note, new_run, record, request

FULL = os.environ.get("HYPOTHESIS_PROFILE") == "full"
SETTINGS = settings(
    max_examples=200 if FULL else 20,
    stateful_step_count=50 if FULL else 30,
    derandomize=not FULL,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)

RUN_IDS = st.sampled_from(["*", "a:b", "a", "[ab]", "a\\", "\N{GRINNING FACE}", "..", "x" * 512])
PATHS = st.sampled_from(["b:c", "c", "*", "/", "n[0]"])
TOKENS = st.sampled_from(["alice", "bob", "carol"])
COMMIT_IDS = st.sampled_from(["c1", "c2", "c3"])
EPOCHS = st.integers(0, 2)
LEASES = st.sampled_from([0, 1, 30])
UPDATES = st.sampled_from(
    [
        None,
        RunUpdate(status=RunStatus.PARTIAL, stop_reason="later", release=True),
        RunUpdate(status=RunStatus.COMPLETED, release=True),
        RunUpdate(epochs=(Epoch(0, 0, False), Epoch(1, 1, True)), plan=b"{}", version="2"),
    ]
)

Place = tuple[int, str, str, int]


class Model:
    """What a store should hold."""

    def __init__(self) -> None:
        self.runs: dict[str, RunRecord] = {}
        self.records: dict[str, dict[Place, CheckpointRecord]] = {}

    def of(self, run_id: str) -> dict[Place, CheckpointRecord]:
        return self.records.setdefault(run_id, {})

    def owner(self, run_id: str) -> str | None:
        run = self.runs.get(run_id)
        return None if run is None else run.owner

    def forget(self, run_id: str) -> None:
        self.runs.pop(run_id, None)
        self.records.pop(run_id, None)

    def listed(self) -> list[RunRecord]:
        return sorted(self.runs.values(), key=lambda run: (-run.updated_at, run.run_id))


class StoreMachine(RuleBasedStateMachine):
    """Rules that any store follows; a subclass makes the store."""

    def make(self) -> Any:
        raise NotImplementedError

    @initialize()
    def begin(self) -> None:
        self.clock = ManualClock()
        self.model = Model()
        self.loop = asyncio.Runner()
        self.store = Awaited(self.make())

    def do(self, operation: str, *args: Any) -> Any:
        async def call() -> Any:
            return await getattr(self.store, operation)(*args)

        return self.loop.run(call())

    @rule(seconds=st.sampled_from([0.5, 10, 31]))
    def time_passes(self, seconds: float) -> None:
        self.clock.time += seconds

    @rule(run_id=RUN_IDS, token=TOKENS, exists=st.booleans(), reopen=st.booleans())
    def open(self, run_id: str, token: str, exists: bool, reopen: bool) -> None:
        asked = request(run_id, token, lease_seconds=30, must_exist=exists, reopen=reopen)
        run = self.model.runs.get(run_id)
        if run is None and exists:
            assert self.do("open_run", asked) is None
            return
        now = self.clock.time
        if run is not None and run.status is RunStatus.COMPLETED and not reopen:
            opened = self.do("open_run", asked)
            assert not opened.is_claimed
            assert opened.run == run
            return
        if run and run.owner not in ("", token) and run.lease_expires_at > now:
            with pytest.raises(RunLocked):
                self.do("open_run", asked)
            return
        expected = (run or new_run(run_id, created_at=now))._replace(
            status=RunStatus.RUNNING,
            owner=token,
            holder=f"worker {token}",
            lease_expires_at=now + 30,
            updated_at=now,
        )
        opened = self.do("open_run", asked)
        assert opened.is_claimed
        assert opened.is_new is (run is None)
        assert opened.run == expected
        self.model.runs[run_id] = expected
        kept = [r for r in self.model.of(run_id).values() if r.header.epoch != PLAIN_EPOCH]
        assert list(opened.headers) == [r.header for r in kept]
        last = last_result(opened.headers)
        assert (opened.last and opened.last.header) == last

    @rule(
        run_id=RUN_IDS,
        token=TOKENS,
        places=st.lists(st.tuples(EPOCHS, PATHS, COMMIT_IDS), max_size=3),
        update=UPDATES,
        lease=LEASES,
    )
    def commit(
        self,
        run_id: str,
        token: str,
        places: list[tuple[int, str, str]],
        update: RunUpdate | None,
        lease: int,
    ) -> None:
        records = tuple(
            record(run_id, path, epoch=epoch, commit_id=commit_id, payload=commit_id.encode())
            for epoch, path, commit_id in places
        )
        commit = Commit(run_id, token, records, update, lease * 1000)
        (outcome,) = self.do("commit_many", [commit])
        if self.model.owner(run_id) != token:
            assert isinstance(outcome, StaleOwner)
            return
        after = dict(self.model.of(run_id))
        for one in records:
            kept = after.setdefault(one.header[1:5], one)
            if kept.header.commit_id != one.header.commit_id:
                assert isinstance(outcome, AlreadyCommitted)
                return
        assert outcome is None
        self.model.records[run_id] = after
        run = self.model.runs[run_id]
        if lease:
            end = max(run.lease_expires_at, self.clock.time + lease)
            run = run._replace(lease_expires_at=end)
        if update is not None:
            run = update.apply(run, self.clock.time)
        self.model.runs[run_id] = run

    @rule(claims=st.lists(st.tuples(RUN_IDS, TOKENS), max_size=4), lease=st.sampled_from([1, 30]))
    def renew(self, claims: list[tuple[str, str]], lease: int) -> None:
        expected = [self.model.owner(run_id) == token for run_id, token in claims]
        assert list(self.do("renew", claims, lease * 1000)) == expected
        for (run_id, _), is_owner in zip(claims, expected, strict=True):
            if is_owner:
                self.model.runs[run_id] = self.model.runs[run_id]._replace(
                    lease_expires_at=self.clock.time + lease
                )

    @rule(run_id=RUN_IDS, token=TOKENS)
    def release(self, run_id: str, token: str) -> None:
        self.do("release", run_id, token)
        if self.model.owner(run_id) == token:
            run = self.model.runs[run_id]
            self.model.runs[run_id] = RunUpdate(release=True).apply(run, self.clock.time)

    @rule(run_id=RUN_IDS, path=PATHS, text=st.text(max_size=5))
    def save(self, run_id: str, path: str, text: str) -> None:
        self.do("save", run_id, path, Note(text=text))
        (found,) = self.do("fetch", run_id, [RecordKey(run_id, PLAIN_EPOCH, path)])
        assert Note.model_validate_json(found.payload) == Note(text=text)
        kept = self.model.of(run_id)
        kept.pop(found.header[1:5], None)
        kept[found.header[1:5]] = found

    @rule(run_id=RUN_IDS, path=PATHS, epoch=st.none() | EPOCHS | st.just(PLAIN_EPOCH))
    def fetch(self, run_id: str, path: str, epoch: int | None) -> None:
        kept = self.model.records.get(run_id, {})
        epochs = [epoch] if epoch is not None else [PLAIN_EPOCH, 2, 1, 0]
        found = (kept.get((e, path, "result", 0)) for e in epochs)
        expected = next((r for r in found if r is not None), None)
        assert list(self.do("fetch", run_id, [RecordKey(run_id, epoch, path)])) == [expected]

    @rule(run_id=RUN_IDS)
    def delete(self, run_id: str) -> None:
        self.do("delete", run_id)
        self.model.forget(run_id)

    @rule(limit=st.integers(1, 3), status=st.sampled_from([*RunStatus, None]))
    def purge(self, limit: int, status: RunStatus | None) -> None:
        statuses = () if status is None else (status,)
        free = [
            run.run_id
            for run in self.model.listed()
            if (status is None or run.status is status)
            and (run.owner == "" or run.lease_expires_at <= self.clock.time)
        ]
        assert self.do("purge", RunQuery(statuses=statuses, limit=limit)) == len(free[:limit])
        for run_id in free[:limit]:
            self.model.forget(run_id)

    @precondition(lambda self: hasattr(self, "model"))
    @invariant()
    def it_lists_what_it_holds(self) -> None:
        found: list[RunRecord] = []
        query = RunQuery(limit=3)
        while True:
            page = self.do("runs", query)
            found += page.runs
            if not page.cursor:
                break
            query = query._replace(cursor=page.cursor)
        assert found == self.model.listed()

    def teardown(self) -> None:
        if hasattr(self, "loop"):
            self.close()
            self.loop.close()

    def close(self) -> None:
        """Close what `make` opened."""


class MemoryMachine(StoreMachine):
    def make(self) -> Any:
        return InMemoryStore(clock=self.clock)


class AsyncMemoryMachine(StoreMachine):
    def make(self) -> Any:
        return AsyncInMemoryStore(clock=self.clock)


class SQLiteMachine(StoreMachine):
    def make(self) -> Any:
        self.folder = Path(tempfile.mkdtemp(prefix="stroma-machine-"))
        return SQLiteStore(self.folder / "runs.db", clock=self.clock)

    @rule()
    def reopen_the_file(self) -> None:
        """A store that is opened later finds everything; the earlier one's claims are void."""
        self.do("aclose")
        self.store = Awaited(SQLiteStore(self.folder / "runs.db", clock=self.clock))
        # Closed, its owner is proved gone: as if each lease had ended.
        for run in self.model.runs.values():
            if run.owner:
                opened = self.do(
                    "open_run",
                    request(run.run_id, run.owner, lease_seconds=30, must_exist=True, reopen=True),
                )
                self.model.runs[run.run_id] = opened.run

    def close(self) -> None:
        self.do("aclose")
        shutil.rmtree(self.folder)


for machine in (MemoryMachine, AsyncMemoryMachine, SQLiteMachine):
    machine.TestCase.settings = SETTINGS

TestMemory = MemoryMachine.TestCase
TestAsyncMemory = AsyncMemoryMachine.TestCase
TestSQLite = SQLiteMachine.TestCase
