"""Writes runs that wait for a worker."""

from __future__ import annotations

from stroma._aio import uncut
from stroma.batching import SAVE_GRACE_SECONDS, ask, call_operation, outcomes_of
from stroma.checkpoint import CheckpointManager
from stroma.continuation import RunRequest, check_input, not_found
from stroma.errors import ConfigError, OutcomeUnknown, RunLocked, StaleOwner, StoreError
from stroma.journal import JournalSettings, persist
from stroma.opening import check_name, claim_run, give_back, new_run
from stroma.ownership import Claim, new_claim
from stroma.plan import Plan
from stroma.records import Commit, OpenedRun, RunRecord, RunStatus, RunUpdate
from stroma.result import Submitted


async def submit(
    manager: CheckpointManager, settings: JournalSettings, plan: Plan, request: RunRequest
) -> Submitted:
    """Write a run that nobody owns yet, or queue again one that has stopped.

    Raises:
        ConfigError: the store keeps no records of runs, or there is no input for a new run.
        PipelineChanged: the run is of another pipeline.
        RunInputMismatch: the run was started with another input.
        StoreError: the store does not take it, after every try.
    """
    if not manager.keeps_records:
        raise ConfigError(
            f"{type(manager.store).__name__} has only save, load and delete, and keeps no records "
            "of runs that a worker could find: submit to a store that does, such as "
            "with_store('sqlite:///runs.db')"
        )
    await manager.setup()
    claim = new_claim(request.run_id, settings.lease_seconds)
    new = None if request.must_exist else new_run(request, plan, settings)
    try:
        opened = await claim_run(manager, claim, new, is_ours=False)
    except RunLocked:
        owned = await _owned(manager, request)
        _check(owned, plan, request)
        return Submitted(request.run_id, RunStatus.RUNNING, False)
    if opened is None:
        raise not_found(request)
    try:
        _check(opened.run, plan, request)
        status = _status_after(opened)
        if opened.is_claimed:
            queueing = _release(manager, settings, claim, status)
            await uncut(queueing, grace_seconds=SAVE_GRACE_SECONDS)
    except BaseException as exc:
        await give_back(manager, claim, opened, exc, is_ours=False)
        raise
    return Submitted(request.run_id, status, opened.is_new)


def _status_after(opened: OpenedRun) -> RunStatus:
    """Return how a run stands from now on: one that has stopped waits again."""
    if not opened.is_claimed:
        return opened.run.status
    if opened.status_before is RunStatus.WAITING:  # for somebody to say what became of a call
        return RunStatus.WAITING
    return RunStatus.PENDING


def _check(run: RunRecord, plan: Plan, request: RunRequest) -> None:
    check_name(run, plan)  # no worker would find it under this one
    if request.state is not None:
        check_input(run, plan, request.state)


async def _owned(manager: CheckpointManager, request: RunRequest) -> RunRecord:
    found = await call_operation(manager.store, "inspect", request.run_id)
    if not isinstance(found, OpenedRun):
        raise not_found(request)
    return found.run


async def _release(
    manager: CheckpointManager, settings: JournalSettings, claim: Claim, status: RunStatus
) -> None:
    """Give the run up for a worker to take.

    Raises:
        StoreError: the store does not take it, after every try. A worker finds the run when the
            lease has ended.
    """
    commit = Commit(claim.run_id, claim.token, (), RunUpdate(status, "", release=True))
    is_unknown = False

    async def send() -> StoreError | None:
        nonlocal is_unknown
        (failed,) = await outcomes_of(ask(manager.commit_many, (commit,)), 1)
        if isinstance(failed, StaleOwner) and is_unknown:
            return None  # it was given up by a commit that was not answered
        is_unknown |= isinstance(failed, OutcomeUnknown)
        return failed

    failed = await send()
    if failed is not None:
        await persist(send, failed, settings)
