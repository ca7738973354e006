"""Clauses that run a store beside a model made of dicts, in random orders that shrink."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Coroutine, Generator
from contextlib import contextmanager
from functools import partial
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.errors import Flaky
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from stroma.errors import AlreadyCommitted, RunLocked, StaleOwner
from stroma.records import (
    PLAIN_EPOCH,
    CheckpointRecord,
    ClaimQuery,
    Commit,
    Epoch,
    RecordKey,
    RunQuery,
    RunRecord,
    RunStatus,
    RunUpdate,
    last_result,
)
from stroma.testing._claimable import claimable_in_pages
from stroma.testing._clauses import always, clauses, if_fencing
from stroma.testing._kit import Driven, Kit
from stroma.testing._listing import in_pages
from stroma.testing._values import LONG_SECONDS, Note, new_run, record, request

_IS_THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "full"

RUN_IDS = ("*", "a:b", "a", "[ab]", "a\\", "\N{GRINNING FACE}", "..", "x" * 512)
PATHS = ("b:c", "c", "*", "/", "n[0]")
run_ids, paths = st.sampled_from(RUN_IDS), st.sampled_from(PATHS)
tokens = st.sampled_from(["alice", "bob", "carol"])
commit_ids = st.sampled_from(["c1", "c2", "c3"])
epochs = st.integers(0, 2)
updates = st.sampled_from(
    [
        None,
        RunUpdate(status=RunStatus.PARTIAL, stop_reason="later", release=True),
        RunUpdate(status=RunStatus.COMPLETED, release=True),
        RunUpdate(status=RunStatus.PENDING, release=True),
        RunUpdate(status=RunStatus.WAITING),
        RunUpdate(epochs=(Epoch(0, 0, False), Epoch(1, 1, True)), plan=b"{}", version="2"),
    ]
)

Place = tuple[int, str, str, int]


class TimeIsUp(BaseException):
    """No other order is tried. Hypothesis lets it through, as it does a KeyboardInterrupt."""


class TimeBudget:
    """Ends the random orders after some time, unless one has failed and is shown again.

    Args:
        kit: has the store.
        seconds: how long they may take.
    """

    def __init__(self, kit: Kit, seconds: float) -> None:
        self._kit = kit
        self._until = time.monotonic() + seconds
        self._has_failed = False
        self.stores = tuple(Driven(s.inner, self._run) for s in (kit.store, kit.another()))

    @property
    def is_over(self) -> bool:
        """The time is up, and nothing has failed."""
        return time.monotonic() > self._until and not self._has_failed

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        if self.is_over:
            work.close()
            raise TimeIsUp
        return self._kit.run(work)

    @contextmanager
    def noting_failures(self) -> Generator[None]:
        """Take note of what is raised now or was before, in the teardown of a machine."""
        self._note(sys.exception())
        try:
            yield
        except BaseException as exc:
            self._note(exc)
            raise

    def _note(self, error: BaseException | None) -> None:
        self._has_failed |= isinstance(error, Exception)


class MachineOfStates(RuleBasedStateMachine):
    """Saving, loading and deleting, by two objects in turn."""

    def __init__(self, kit: Kit, budget: TimeBudget) -> None:
        super().__init__()
        self.budget = budget
        self.stores = budget.stores
        self.kept: dict[tuple[str, str], str] = {}
        for run_id in RUN_IDS:
            self.stores[0].delete(run_id)

    @rule(run_id=run_ids, path=paths, text=st.text(max_size=5), by=st.integers(0, 1))
    def save(self, run_id: str, path: str, text: str, by: int) -> None:
        self.stores[by].save(run_id, path, Note(text=text))
        self.kept[run_id, path] = text

    @rule(run_id=run_ids, path=paths, by=st.integers(0, 1))
    def load(self, run_id: str, path: str, by: int) -> None:
        text = self.kept.get((run_id, path))
        expected = None if text is None else Note(text=text)
        found = self.stores[by].load(run_id, path)
        assert found == expected, f"load({run_id!r}, {path!r}) gave {found!r}, not {expected!r}"

    @rule(run_id=run_ids, by=st.integers(0, 1))
    def delete(self, run_id: str, by: int) -> None:
        self.stores[by].delete(run_id)
        self.kept = {place: text for place, text in self.kept.items() if place[0] != run_id}

    def teardown(self) -> None:
        with self.budget.noting_failures():
            for run_id in RUN_IDS:
                for path in PATHS:
                    self.load(run_id, path, 0)


class Model:
    """What a level 1 store should hold."""

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


class MachineOfRecords(RuleBasedStateMachine):
    """Claims, commits, renewals, releases and removals, by two objects and three workers.

    With a clock that can be turned, time is a rule, and every time is compared. Otherwise
    leases are long, and times are compared by their order only.
    """

    def __init__(self, kit: Kit, budget: TimeBudget) -> None:
        super().__init__()
        self.kit = kit
        self.budget = budget
        self.clock = kit.subject.clock
        self.unit = 1.0 if self.clock else LONG_SECONDS
        self.model = Model()
        self.stores = budget.stores
        self.turn = 0
        for run_id in RUN_IDS:
            self.stores[0].delete(run_id)

    @property
    def store(self) -> Driven:
        """Each object in its turn."""
        self.turn += 1
        return self.stores[self.turn % 2]

    def now(self) -> float:
        return self.clock.now() if self.clock else 0.0

    @initialize()
    def begin(self) -> None:
        """Start with a run, so that few steps are wasted."""
        self.open("a", "alice", exists=False, reopen=False)

    @precondition(lambda self: self.clock is not None)
    @rule(seconds=st.sampled_from([0.5, 10, 31]))
    def time_passes(self, seconds: float) -> None:
        assert self.clock is not None
        self.clock.advance(seconds)

    @rule(run_id=run_ids, token=tokens, exists=st.booleans(), reopen=st.booleans())
    def open(self, run_id: str, token: str, exists: bool, reopen: bool) -> None:
        seconds = 30 * self.unit
        asked = request(
            run_id,
            token,
            lease_seconds=seconds,
            must_exist=exists,
            reopen=reopen,
            pipeline=_pipeline_of(run_id),
        )
        run = self.model.runs.get(run_id)
        if run is None and exists:
            assert self.store.find_run(asked) is None
            return
        now = self.now()
        if run is not None and run.status is RunStatus.COMPLETED and not reopen:
            opened = self.store.open_run(asked)
            assert not opened.is_claimed
            self.compare([opened.run], [run])
            return
        if run and run.owner not in ("", token) and self.is_held(run):
            try:
                self.store.open_run(asked)
            except RunLocked:
                return
            raise AssertionError(f"{token} claimed {run_id!r}, which {run.owner} owns")
        expected = (run or new_run(run_id, created_at=now, pipeline=_pipeline_of(run_id)))._replace(
            status=RunStatus.RUNNING,
            owner=token,
            holder=f"worker {token}",
            lease_expires_at=now + seconds,
            updated_at=now,
        )
        opened = self.store.open_run(asked)
        assert (opened.is_claimed, opened.is_new) == (True, run is None)
        assert opened.status_before is (None if run is None else run.status)
        self.compare([opened.run], [expected])
        self.model.runs[run_id] = opened.run
        self.compare_records(run_id, opened.headers, opened.last)

    def is_held(self, run: RunRecord) -> bool:
        return self.clock is None or run.lease_expires_at > self.now()

    def compare(self, found: list[RunRecord], expected: list[RunRecord]) -> None:
        """Check run records, and their times where they can be known."""
        if self.clock is None:
            found, expected = [_timeless(r) for r in found], [_timeless(r) for r in expected]
        assert found == expected

    def compare_records(self, run_id: str, headers: Any, last: CheckpointRecord | None) -> None:
        kept = [r for r in self.model.of(run_id).values() if r.header.epoch != PLAIN_EPOCH]
        assert list(headers) == [r.header for r in kept]
        assert (last and last.header) == last_result(headers)

    @rule(
        run_id=run_ids,
        token=tokens,
        places=st.lists(st.tuples(epochs, paths, commit_ids), max_size=3),
        update=updates,
    )
    def commit(
        self,
        run_id: str,
        token: str,
        places: list[tuple[int, str, str]],
        update: RunUpdate | None,
    ) -> None:
        is_owner = self.model.owner(run_id) == token
        if not is_owner and not self.kit.capabilities.refuses_stale_commits:
            return  # what it may write under its token shows when the same token claims again
        records = tuple(
            record(run_id, path, epoch=epoch, commit_id=commit_id, payload=commit_id.encode())
            for epoch, path, commit_id in places
        )
        outcome = self.store.commit(Commit(run_id, token, records, update))
        if not is_owner:
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
        if update is not None:
            self.apply(run_id, update)

    def apply(self, run_id: str, update: RunUpdate) -> None:
        self.model.runs[run_id] = update.apply(self.model.runs[run_id], self.now())

    @rule(claims=st.lists(st.tuples(run_ids, tokens), max_size=4), lease=st.sampled_from([1, 30]))
    def renew(self, claims: list[tuple[str, str]], lease: int) -> None:
        expected = [self.model.owner(run_id) == token for run_id, token in claims]
        assert self.store.renew(claims, lease * self.unit) == expected
        for (run_id, _), is_owner in zip(claims, expected, strict=True):
            if is_owner:
                end = self.now() + lease * self.unit
                self.model.runs[run_id] = self.model.runs[run_id]._replace(lease_expires_at=end)

    @rule(run_id=run_ids, token=tokens)
    def release(self, run_id: str, token: str) -> None:
        self.store.release(run_id, token)
        if self.model.owner(run_id) == token:
            self.apply(run_id, RunUpdate(release=True))

    @rule(run_id=run_ids, path=paths, text=st.text(max_size=5))
    def save(self, run_id: str, path: str, text: str) -> None:
        self.store.save(run_id, path, Note(text=text))
        (found,) = self.store.fetch(run_id, RecordKey(run_id, PLAIN_EPOCH, path))
        assert found is not None
        assert Note.model_validate_json(found.payload) == Note(text=text)
        kept = self.model.of(run_id)
        kept.pop(found.header[1:5], None)
        kept[found.header[1:5]] = found

    @rule(run_id=run_ids, path=paths, epoch=st.none() | epochs | st.just(PLAIN_EPOCH))
    def fetch(self, run_id: str, path: str, epoch: int | None) -> None:
        kept = self.model.records.get(run_id, {})
        tried = [epoch] if epoch is not None else [PLAIN_EPOCH, 2, 1, 0]
        found = (kept.get((e, path, "result", 0)) for e in tried)
        expected = next((r for r in found if r is not None), None)
        assert self.store.fetch(run_id, RecordKey(run_id, epoch, path)) == [expected]

    @rule(run_id=run_ids)
    def inspect(self, run_id: str) -> None:
        if run_id not in self.model.runs:
            assert not self.store.exists(run_id)
            return
        found = self.store.inspect(run_id)
        self.compare([found.run], [self.model.runs[run_id]])
        self.compare_records(run_id, found.headers, found.last)

    @rule(run_id=run_ids)
    def delete(self, run_id: str) -> None:
        self.store.delete(run_id)
        self.model.forget(run_id)

    @rule(limit=st.integers(1, 3), pipelines=st.sampled_from([(), ("p",), ("q", "p"), ("r",)]))
    def claimable(self, limit: int, pipelines: tuple[str, ...]) -> None:
        found = claimable_in_pages(self.store, ClaimQuery(pipelines, limit))
        expected = [
            run
            for run in self.model.runs.values()
            if run.status in (RunStatus.PENDING, RunStatus.RUNNING)
            and (run.owner == "" or not self.is_held(run))
            and (not pipelines or run.pipeline in pipelines)
        ]
        self.compare_lists(found, expected, lambda run: (run.created_at, run.run_id))

    @rule(limit=st.integers(1, 3), status=st.sampled_from([*RunStatus, None]))
    def purge(self, limit: int, status: RunStatus | None) -> None:
        statuses = () if status is None else (status,)
        listed = [run.run_id for run in in_pages(self.store, RunQuery(statuses=statuses, limit=3))]
        free = [
            run_id
            for run_id in listed
            if (run := self.model.runs[run_id]).owner == "" or not self.is_held(run)
        ]
        assert self.store.purge(RunQuery(statuses=statuses, limit=limit)) == len(free[:limit])
        for run_id in free[:limit]:
            self.model.forget(run_id)

    def teardown(self) -> None:
        with self.budget.noting_failures():
            pass

    @invariant()
    def it_lists_what_it_holds(self) -> None:
        found = in_pages(self.store, RunQuery(limit=3))
        runs = list(self.model.runs.values())
        self.compare_lists(found, runs, lambda run: (-run.updated_at, run.run_id))

    def compare_lists(
        self,
        found: list[RunRecord],
        expected: list[RunRecord],
        order: Callable[[RunRecord], tuple[float, str]],
    ) -> None:
        """Check which runs are listed, and that they are in order."""
        assert found == sorted(found, key=order)
        if self.clock is None:  # the model does not know the times
            order = _id_of
        self.compare(sorted(found, key=order), sorted(expected, key=order))


def _id_of(run: RunRecord) -> tuple[float, str]:
    return 0.0, run.run_id


def _pipeline_of(run_id: str) -> str:
    return "p" if RUN_IDS.index(run_id) % 2 else "q"


def _timeless(run: RunRecord) -> RunRecord:
    return run._replace(
        created_at=0.0, updated_at=0.0, lease_expires_at=float(run.lease_expires_at > 0)
    )


class _MachineSettings:
    """How the machines are run.

    Attributes:
        machine_settings: how many orders of how many steps are tried; 200 of 50, and what fails
            is made shorter, where the environment says ``HYPOTHESIS_PROFILE=full``.
        machine_seconds: after which time no other order is tried; not where it says so.
    """

    machine_settings = settings(
        max_examples=200 if _IS_THOROUGH else 20,
        stateful_step_count=50 if _IS_THOROUGH else 30,
        phases=(Phase.generate, Phase.shrink) if _IS_THOROUGH else (Phase.generate,),
        report_multiple_bugs=False,
        derandomize=not _IS_THOROUGH,
        database=None,
        deadline=None,
        suppress_health_check=(HealthCheck.too_slow, HealthCheck.data_too_large),
    )
    machine_seconds = math.inf if _IS_THOROUGH else 30.0

    def _run(self, kit: Kit, machine: Callable[[Kit, TimeBudget], RuleBasedStateMachine]) -> None:
        budget = TimeBudget(kit, self.machine_seconds)
        factory: Any = partial(machine, kit, budget)
        try:
            run_state_machine_as_test(factory, settings=self.machine_settings)
        except TimeIsUp:
            pass
        except Flaky:
            # What was cut in its middle looks to Hypothesis as if it had changed its mind.
            if not budget.is_over:
                raise


@clauses("states", always)
class StateMachineClauses(_MachineSettings):
    """A store of any level beside a dict."""

    def test_states_beside_a_dict(self, kit: Kit) -> None:
        """In any order of saves, loads and deletes, the store holds what a dict would."""
        self._run(kit, MachineOfStates)


@clauses("ownership", if_fencing)
class RecordMachineClauses(_MachineSettings):
    """A store of level 1 beside a model of its rules."""

    def test_records_beside_a_model(self, kit: Kit) -> None:
        """In any order of operations by three workers, the store follows the model."""
        self._run(kit, MachineOfRecords)
