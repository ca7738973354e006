"""Records what somebody says became of a call that was in doubt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Final, Literal, NamedTuple, TypeAlias

from pydantic import BaseModel

from stroma.batching import ask, call_operation, outcomes_of
from stroma.checkpoint import CheckpointManager
from stroma.continuation import Continuation, RunRequest, continue_run
from stroma.contracts import accept_state, dump_state
from stroma.cost import NO_USAGE, Ledger, Usage
from stroma.doubt import RESOLUTION_REF, Doubt, account_of
from stroma.errors import (
    ConfigError,
    PipelineChanged,
    ResumeError,
    RunNotFound,
    StaleOwner,
    StoreError,
)
from stroma.journal import JournalSettings, persist
from stroma.opening import check_name, claim_run, give_back
from stroma.ownership import Claim, new_claim
from stroma.plan import Leaf, Plan
from stroma.records import (
    CheckpointRecord,
    Commit,
    OpenedRun,
    RecordHeader,
    RunStatus,
    RunUpdate,
    digest_of,
)

Outcome: TypeAlias = Literal["answered", "lost", "never_made"]
OUTCOMES: Final = ("answered", "lost", "never_made")


class Resolution(NamedTuple):
    """What somebody found out about a call.

    Attributes:
        path: the node's place.
        attempt: the number of the call; None for the only one in doubt there.
        outcome: "answered": it gave this output, which is recorded as the result; "lost": it was
            billed, and its answer cannot be had; "never_made": nothing was billed.
        output: what it gave; for "answered".
        usage: what it used; its cost is None where the tokens still need a price.
    """

    path: str
    attempt: int | None
    outcome: Outcome
    output: BaseModel | Mapping[str, object] | None
    usage: Usage

    def check(self) -> None:
        """Refuse what contradicts itself.

        Raises:
            ConfigError: says what.
        """
        if self.outcome not in OUTCOMES:
            raise ConfigError(
                f"outcome must be one of {', '.join(map(repr, OUTCOMES))}, not {self.outcome!r}"
            )
        if self.outcome == "answered" and self.output is None:
            raise ConfigError('outcome="answered" needs the output that the call gave')
        if self.outcome != "answered" and self.output is not None:
            raise ConfigError(
                f'an output goes with outcome="answered", and not with "{self.outcome}"'
            )
        is_billed = self.usage.tokens > 0 or bool(self.usage.cost_usd)
        if is_billed and self.outcome == "never_made":
            raise ConfigError('a call that was billed was made: say outcome="lost" or "answered"')


async def resolve_call(
    manager: CheckpointManager,
    settings: JournalSettings,
    plan: Plan,
    ledger: Ledger,
    run_id: str,
    said: Resolution,
) -> None:
    """Record what became of a call in doubt; see `StromaRunner.resolve`.

    Args:
        manager: the store.
        settings: clock, lease and save policy.
        plan: the nodes of the run.
        ledger: prices usage; still empty.
        run_id: the run.
        said: what became of the call.
    """
    said.check()
    if not manager.keeps_records:
        raise ConfigError(
            f"{type(manager.store).__name__} keeps states only: it knows of no call in doubt"
        )
    await manager.setup()
    claim = new_claim(run_id, settings.lease_seconds)
    request = RunRequest(run_id, True, None, resume=True)
    opened = await claim_run(manager, claim, None, reopen=True, is_ours=False)
    if opened is None:
        raise RunNotFound(
            f"run {run_id!r} does not exist in this store: it was never started, or it has expired "
            "or was deleted; say the run_id and the store that it was started with"
        )
    try:
        if plan.name and opened.run.pipeline:
            check_name(opened.run, plan)
        found = continue_run(opened, plan, request)
        doubt = _asked_for(run_id, found.calls.in_doubt, said)
        commit = _commit(opened, found, plan, claim, doubt, said, settings, ledger)
        await _save(manager, settings, commit)
    except BaseException as exc:
        await give_back(manager, claim, opened, exc, is_ours=False)
        raise


def _asked_for(run_id: str, in_doubt: Sequence[Doubt], said: Resolution) -> Doubt:
    here = [doubt for doubt in in_doubt if doubt.header.path == said.path]
    asked = [d for d in here if said.attempt is None or d.header.attempt == said.attempt]
    if len(asked) == 1:
        return asked[0]
    if asked:
        numbers = ", ".join(str(doubt.header.attempt) for doubt in asked)
        raise ConfigError(
            f"run {run_id!r}: several calls of {said.path!r} are in doubt: say which with "
            f"attempt=, one of {numbers}"
        )
    there = [f"{doubt.header.path!r} (call {doubt.header.attempt})" for doubt in in_doubt]
    call = said.path if said.attempt is None else f"{said.path}, call {said.attempt}"
    others = f"in doubt are: {', '.join(there)}" if there else "no call of this run is"
    raise ResumeError(f"run {run_id!r}: {call!r} is not in doubt; {others}")


def _commit(
    opened: OpenedRun,
    found: Continuation,
    plan: Plan,
    claim: Claim,
    doubt: Doubt,
    said: Resolution,
    settings: JournalSettings,
    ledger: Ledger,
) -> Commit:
    """Return the commit that settles the call, records its result, and gives the run up."""
    usage = said.usage
    if said.outcome == "never_made":
        usage = NO_USAGE
    elif usage.cost_usd is None:
        usage = ledger.priced(usage)
    settled = doubt.header._replace(
        kind="resolved",
        commit_id=f"{claim.token}.1",
        schema_ref=RESOLUTION_REF,
        fingerprint="",
        digest=digest_of(b"{}"),
        usage=usage,
        active_ms=0.0,
        created_at=settings.clock.now(),
    )
    records = [CheckpointRecord(settled, b"{}")]
    if said.output is not None:
        records.append(_result(opened, found, plan, settled, said.output))
    counted = account_of([*found.calls.counted, settled]).counted
    ledger.carry([header.usage for header in counted], found.active_ms)
    before = opened.status_before
    is_waiting = before is RunStatus.WAITING
    update = RunUpdate(
        RunStatus.PENDING if is_waiting else before,
        "" if is_waiting else None,
        spend=ledger.spent,
        release=True,
    )
    return Commit(claim.run_id, claim.token, tuple(records), update)


def _result(
    opened: OpenedRun,
    found: Continuation,
    plan: Plan,
    settled: RecordHeader,
    output: BaseModel | Mapping[str, object],
) -> CheckpointRecord:
    """Return the record of the answer, as the node's own would be.

    Raises:
        PipelineChanged: the node is gone.
        ConfigError: the place has its result, or was left behind by a later epoch.
        ContractViolation: the output does not fit.
    """
    run, path = opened.run, settled.path
    step = plan.by_id.get(settled.contract_id)
    if not isinstance(step, Leaf):
        raise PipelineChanged(
            f"run {run.run_id!r}: {path!r} was called, and this pipeline has no such function any "
            'more: give the pipeline that made the call, or say outcome="lost"'
        )
    if path in found.results or settled.epoch != run.epoch.number:
        raise ConfigError(
            f"run {run.run_id!r}: {path!r} has been called again since, or is to be: that call's "
            'result counts; say outcome="lost" for this one'
        )
    state = accept_state(step.gives, output, step.id, "output")
    payload = dump_state(step.gives, state, step.id)
    header = settled._replace(
        kind="result",
        attempt=0,
        position=plan.ids.index(step.id) if step.id in plan.ids else -1,
        commit_id=settled.commit_id[:-1] + "2",
        schema_ref=step.gives.ref,
        fingerprint=step.gives.fingerprint,
        digest=digest_of(payload),
        usage=NO_USAGE,
    )
    return CheckpointRecord(header, payload)


async def _save(manager: CheckpointManager, settings: JournalSettings, commit: Commit) -> None:
    async def send() -> StoreError | None:
        (failed,) = await outcomes_of(ask(manager.commit_many, (commit,)), 1)
        if isinstance(failed, StaleOwner):
            try:
                return None if await _is_recorded(manager, commit) else failed
            except StoreError as exc:
                return exc
        return failed

    failed = await send()
    if failed is not None:
        await persist(partial(send), failed, settings)


async def _is_recorded(manager: CheckpointManager, commit: Commit) -> bool:
    """Say whether a commit that is refused was stored when it was sent before, and not answered.

    It gave the run up: somebody else may own it by now.
    """
    found = await call_operation(manager.store, "inspect", commit.run_id)
    if not isinstance(found, OpenedRun):
        return False
    written = {header.commit_id for header in found.headers}
    return all(record.header.commit_id in written for record in commit.records)
