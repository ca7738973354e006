"""A run in a level 1 store: claimed, fenced, and with its spend."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial

from pydantic import BaseModel

from stroma._aio import settled
from stroma.batching import Answer, CommitBatcher, ask, call_operation, outcomes_of
from stroma.checkpoint import CheckpointManager
from stroma.continuation import (
    VIOLATION_REF,
    Continuation,
    read_input,
    read_result,
)
from stroma.cost import NO_USAGE, Usage
from stroma.doubt import RESERVATION_REF, doubt_ref
from stroma.errors import (
    CheckpointNotFound,
    ContractViolation,
    OutcomeUnknown,
    RecordCorrupt,
    RecordTooLarge,
    StaleOwner,
    StoreError,
    StoreUnavailable,
)
from stroma.failures import error_text
from stroma.journal import JournalSettings, Standing, Stop, persist
from stroma.ownership import Claim
from stroma.plan import Leaf, Plan, Step
from stroma.records import (
    CheckpointRecord,
    Commit,
    Epoch,
    OpenedRun,
    RecordHeader,
    RecordKey,
    RecordKind,
    RunUpdate,
    check_digest,
    digest_of,
)
from stroma.renewal import RENEWER, Watch
from stroma.result import InDoubt
from stroma.schemas import tolerant_json

FAILURE_REF = "stroma:failure"
_MESSAGE_CHARS = 500
_make = tuple.__new__
"""Makes a named tuple in half the time that calling its class takes; once per node."""
_PAGE = 256
"""How many recorded items of a `fan_out` are read in one trip."""


class RecordJournal:
    """See `Journal`."""

    def __init__(
        self,
        manager: CheckpointManager,
        settings: JournalSettings,
        plan: Plan,
        claim: Claim,
        opened: OpenedRun,
        found: Continuation | None,
    ) -> None:
        self.run_id = claim.run_id
        self.epoch = opened.run.epoch.number
        self.position = 0 if found is None else found.position
        self.is_continued = found is not None
        self.is_complete = not opened.is_claimed
        self.trace_parent = opened.run.trace_parent
        self._store = manager.store
        self._commit_many = manager.commit_many
        self._batcher: CommitBatcher | None = manager.batcher()
        self._watch: Watch | None = None
        self._settings = settings
        self._clock = settings.clock
        self._where = settings.trace_parent
        self._plan = plan
        self._claim = claim
        self._run = opened.run
        self._last = opened.last
        self._results: Mapping[str, RecordHeader] = {} if found is None else found.results
        self._found = found
        attempts = () if found is None else found.attempts
        self._latest_attempts = _latest_attempts(attempts)
        self._refusals = _refusals(attempts)
        self._made = {} if found is None else dict(found.calls.made)
        self._new_plan: bytes | None = None
        self._pending: list[CheckpointRecord] = []
        self._put_back: dict[str, None] = {}
        self._written = 0
        self._started = self._since = settings.clock.monotonic()

    def keep(self, lost: Callable[[], None]) -> Callable[[], None]:
        """See `Journal.keep`."""
        self._watch = RENEWER.watch(self._store, self._claim, lost)
        return self._watch.end

    async def initial_state(self, given: BaseModel | None) -> BaseModel:
        """See `Journal.initial_state`."""
        if self.position == 0:
            return given if given is not None else read_input(self._run, self._plan)
        step = self._plan.steps[self.position - 1]
        (state,) = await self.recall(step, [step.path])
        assert state is not None, "the recorded prefix has a header for each of its nodes"
        return state

    async def recall(self, step: Step, paths: Sequence[str]) -> list[BaseModel | None]:
        """See `Journal.recall`."""
        states: list[BaseModel | None] = [None] * len(paths)
        wanted = [
            (i, self._results[path].key) for i, path in enumerate(paths) if path in self._results
        ]
        for start in range(0, len(wanted), _PAGE):
            page = wanted[start : start + _PAGE]
            records = await self._fetch([key for _, key in page])
            for (i, _), record in zip(page, records, strict=True):
                states[i] = read_result(record, self._run, step.gives, self._plan)
        return states

    async def _fetch(self, keys: list[RecordKey]) -> list[CheckpointRecord]:
        last = self._last
        if last is not None and keys == [last.header.key]:
            self._last = None  # needed once; not kept in memory
            return [last]
        found = await call_operation(self._store, "fetch", self.run_id, keys)
        assert isinstance(found, Sequence)
        records: list[CheckpointRecord] = []
        for key, record in zip(keys, found, strict=True):
            if record is None:
                raise CheckpointNotFound(
                    f"run {self.run_id!r}: the record of {key.path!r} is listed, and gone from the "
                    "store; restore it, or give consent to buy again with resume_from or restart"
                )
            records.append(record)
        return records

    async def refused_output(self, step: Leaf, path: str) -> tuple[object] | None:
        """See `Journal.refused_output`."""
        latest = self._latest_attempts.get(path)
        if latest is None or latest.schema_ref != VIOLATION_REF:
            return None
        (record,) = await self._fetch([latest.key])
        try:
            document = json.loads(check_digest(record))
            output, is_exact = document["output"], document["is_exact"]
            is_lossy = document["is_lossy"] and latest.fingerprint == step.gives.fingerprint
        except (ValueError, KeyError, TypeError) as exc:
            raise RecordCorrupt(f"run {self.run_id!r}: the attempt of {path!r}: {exc}") from exc
        if not is_exact or is_lossy:
            problem = (
                "the output could not be recorded as it was: it held what JSON does not have, or "
                "more than the store takes"
            )
            raise ContractViolation(step.id, "output", [problem], output)
        return (output,)

    def carried(self) -> Mapping[str, Sequence[Usage]]:
        """See `Journal.carried`."""
        usages: dict[str, list[Usage]] = {}
        for header in () if self._found is None else self._found.calls.counted:
            if header.usage != NO_USAGE:
                usages.setdefault(header.contract_id, []).append(header.usage)
        return usages

    def carried_ms(self) -> float:
        """See `Journal.carried_ms`."""
        return 0.0 if self._found is None else self._found.active_ms

    def doubts(self, path: str | None = None) -> tuple[InDoubt, ...]:
        """See `Journal.doubts`."""
        if self._found is None:
            return ()
        found = self._found.calls.in_doubt
        if path is None:
            return tuple(doubt.told() for doubt in found)
        here = (path, self.epoch)
        return tuple(d.told() for d in found if (d.header.path, d.header.epoch) == here)

    def refusals(self, path: str) -> int:
        """See `Journal.refusals`."""
        return self._refusals.get(path, 0)

    def digest(self, path: str) -> str:
        """See `Journal.digest`."""
        header = self._results.get(path)
        return "" if header is None else header.digest

    async def open_epoch(self, epoch: Epoch) -> None:
        """Begin an epoch, and leave behind what stands after its position."""
        epochs = (*self._run.epochs, epoch)
        await settled(self._commit((), RunUpdate(epochs=epochs)))
        self._run = self._run._replace(epochs=epochs)
        self.epoch = epoch.number

    def go_on_with(self, plan: bytes) -> None:
        """Have the next commit record that another version of the pipeline goes on."""
        self._new_plan = plan

    def result(
        self,
        step: Step,
        path: str,
        position: int,
        state: BaseModel,
        payload: bytes,
        digest: str,
        usage: Usage,
        stop: Stop | None,
    ) -> Awaitable[None] | None:
        """See `Journal.result`."""
        gives = step.gives
        header = self._header(
            path, "result", 0, position, step.id, gives.ref, gives.fingerprint, digest, usage
        )
        record = _make(CheckpointRecord, (header, payload))
        records = (*self._take_pending(), record) if self._pending else (record,)
        return self._commit(records, None if stop is None else self._update(stop))

    async def reserve(self, step: Leaf, path: str, usage: Usage) -> int:
        """See `Journal.reserve`."""
        number = self.next_call(path)
        record = self._bare_record(step, path, "reserved", number, RESERVATION_REF, usage)
        try:
            await settled(self._commit((*self._take_pending(), record), None))
        except BaseException:  # it may be stored: the next record says that nothing came of it
            self._pending = [waiting for waiting in self._pending if waiting is not record]
            unmade = self._bare_record(step, path, "attempt", number, FAILURE_REF, NO_USAGE)
            self._pending.append(unmade)
            raise
        return number

    async def spent_beside(self, step: Leaf, path: str, usage: Usage) -> None:
        """See `Journal.spent_beside`."""
        number = self.next_call(path)
        record = self._bare_record(step, path, "once", number, "stroma:repair", usage)
        await settled(self._commit((*self._take_pending(), record), None))

    def _bare_record(
        self, step: Leaf, path: str, kind: RecordKind, number: int, ref: str, usage: Usage
    ) -> CheckpointRecord:
        """Return a record that says all it has to say in its header."""
        payload = b"{}"
        digest = digest_of(payload)
        header = self._header(path, kind, number, -1, step.id, ref, "", digest, usage)
        return CheckpointRecord(header, payload)

    async def attempt(
        self,
        step: Leaf,
        path: str,
        number: int,
        usage: Usage,
        error: BaseException,
        failure_class: str,
        *,
        is_reserved: bool = False,
        doubt: str = "",
    ) -> None:
        """See `Journal.attempt`."""
        document: dict[str, object] = {
            "error": type(error).__name__,
            "message": error_text(error)[:_MESSAGE_CHARS],
            "failure_class": failure_class,
        }
        ref = doubt_ref(doubt) if doubt else FAILURE_REF
        if isinstance(error, ContractViolation) and error.direction == "output":
            ref = VIOLATION_REF
            document["output"], document["is_exact"] = tolerant_json(error.raw)
            # what its JSON would not give back fits the contract, which has to change first
            document["is_lossy"] = getattr(error.__cause__, "is_lossy", False)
        payload = json.dumps(document).encode()  # in ASCII: half a surrogate pair comes back, too
        digest = digest_of(payload)
        fingerprint = step.gives.fingerprint
        header = self._header(path, "attempt", number, -1, step.id, ref, fingerprint, digest, usage)
        self._pending.append(CheckpointRecord(header, payload))
        if usage is NO_USAGE and ref is FAILURE_REF and not is_reserved:
            return
        try:
            await settled(self._commit(self._take_pending(), None))
        except RecordTooLarge:
            if ref is not VIOLATION_REF:
                raise
            # that it was paid for can be recorded all the same
            document["output"], document["is_exact"] = f"{len(payload)} bytes", False
            payload = json.dumps(document).encode()
            header = header._replace(digest=digest_of(payload))
            self._pending.append(CheckpointRecord(header, payload))
            await settled(self._commit(self._take_pending(), None))

    def next_call(self, path: str) -> int:
        """See `Journal.next_call`."""
        self._made[path] = self._made.get(path, 0) + 1
        return self._made[path]

    async def stop(self, stop: Stop) -> Sequence[str]:
        """See `Journal.stop`."""
        await settled(self._commit(self._take_pending(), self._update(stop)))
        waiting = {record.header.path for record in self._pending}
        return [path for path in self._put_back if path not in waiting]

    async def look(self) -> Standing:
        """See `Journal.look`."""
        found = await call_operation(self._store, "inspect", self.run_id)
        if found is None:
            return Standing(None, frozenset())
        assert isinstance(found, OpenedRun)
        mine = f"{self._claim.token}."
        written = frozenset(
            header.path
            for header in found.headers
            if header.kind == "result" and header.commit_id.startswith(mine)
        )
        return Standing(found.run, written)

    def _update(self, stop: Stop) -> RunUpdate:
        if self._watch is not None:
            self._watch.is_ending = True
        this_start_ms = (self._settings.clock.monotonic() - self._started) * 1000
        return RunUpdate(
            stop.status,
            stop.reason,
            spend=stop.spend,
            active_ms=self.carried_ms() + this_start_ms,
            release=True,
        )

    def _header(
        self,
        path: str,
        kind: RecordKind,
        attempt: int,
        position: int,
        contract_id: str,
        schema_ref: str,
        fingerprint: str,
        digest: str,
        usage: Usage,
    ) -> RecordHeader:
        self._written += 1
        since = self._since
        self._since = self._clock.monotonic()
        return _make(
            RecordHeader,
            (
                self.run_id,
                self.epoch,
                path,
                kind,
                attempt,
                position,
                f"{self._claim.token}.{self._written:x}",
                contract_id,
                schema_ref,
                fingerprint,
                digest,
                usage,
                (self._since - since) * 1000,
                "" if self._where is None else self._where(),
                self._clock.now(),
            ),
        )

    def _take_pending(self) -> tuple[CheckpointRecord, ...]:
        pending = tuple(self._pending)
        self._pending.clear()
        return pending

    def _commit(
        self, records: tuple[CheckpointRecord, ...], update: RunUpdate | None
    ) -> Awaitable[None] | None:
        """Write records and changes of the run; None if the store has answered already."""
        if self._new_plan is not None:
            plan, self._new_plan = self._new_plan, None
            update = (update or RunUpdate())._replace(plan=plan, version=self._plan.version)
        commit = _make(Commit, (self.run_id, self._claim.token, records, update))
        answer = self._send(commit)
        if type(answer) is list and answer[0] is None:
            return None
        return self._settle(commit, answer)

    async def _settle(self, commit: Commit, answer: Answer) -> None:
        """Wait for the answer to a commit, and repeat the commit while that may help."""
        try:
            (failed,) = await outcomes_of(answer, 1)
            if failed is not None:
                await persist(partial(self._send_again, commit), failed, self._settings)
        except RecordTooLarge:
            self._pending[:0] = commit.records[:-1]  # what only rode on it
            raise
        except (StoreUnavailable, OutcomeUnknown, asyncio.CancelledError):
            # nobody knows whether it is stored, and storing it twice does no harm: the commit
            # that says how the run ended takes it along
            self._pending[:0] = commit.records
            for header, _ in commit.records:
                if header.kind == "result":
                    self._put_back[header.path] = None
            if commit.update is not None and commit.update.plan is not None:
                self._new_plan = commit.update.plan
            raise

    def _send(self, commit: Commit) -> Answer:
        if self._batcher is not None:
            return self._batcher.commit(commit)
        return ask(self._commit_many, (commit,))

    async def _send_again(self, commit: Commit) -> StoreError | None:
        (failed,) = await outcomes_of(self._send(commit), 1)
        if isinstance(failed, StaleOwner):
            try:
                return None if await self._has_ended_by(commit) else failed
            except StoreError as exc:
                return exc
        return failed

    async def _has_ended_by(self, commit: Commit) -> bool:
        """Say whether a commit that is refused ended the run when it was sent before.

        It gave the run up, and was not answered: now nobody owns the run.
        """
        if commit.update is None or not commit.update.release:
            return False
        found = await call_operation(self._store, "inspect", self.run_id)
        if not isinstance(found, OpenedRun) or found.run.owner:
            return False
        written = {header.commit_id for header in found.headers}
        return commit.update.status in (None, found.run.status) and all(
            record.header.commit_id in written for record in commit.records
        )


def _latest_attempts(attempts: Iterable[RecordHeader]) -> dict[str, RecordHeader]:
    """Return the last recorded attempt of each place."""
    latest: dict[str, RecordHeader] = {}
    for header in attempts:
        if header.kind != "attempt":
            continue
        if header.path not in latest or header.attempt > latest[header.path].attempt:
            latest[header.path] = header
    return latest


def _refusals(attempts: Iterable[RecordHeader]) -> dict[str, int]:
    """Return how many outputs of each place were refused."""
    refused: dict[str, int] = {}
    for header in attempts:
        if header.schema_ref == VIOLATION_REF:
            refused[header.path] = refused.get(header.path, 0) + 1
    return refused
