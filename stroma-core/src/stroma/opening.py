"""Opens runs in level 1 stores: claims them, new or recorded, and gives them back on errors."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from stroma._aio import uncut, uncut_within
from stroma.batching import SAVE_GRACE_SECONDS, ask, call_operation, outcomes_of
from stroma.checkpoint import CheckpointManager
from stroma.continuation import RunRequest, continue_run, not_found
from stroma.errors import OutcomeUnknown, PipelineChanged, ResumeError
from stroma.journal import CANCELLED, JournalSettings, warn_once
from stroma.ownership import Claim, describe_worker, new_claim
from stroma.plan import Plan
from stroma.record_journal import RecordJournal
from stroma.records import (
    CLAIMABLE,
    Commit,
    OpenedRun,
    OpenRequest,
    PlanDocument,
    RunRecord,
    RunStatus,
    RunUpdate,
)


class NotWaiting(Exception):
    """A run that a worker meant to take up: another one has it, or has ended it meanwhile."""


async def open_record_journal(
    manager: CheckpointManager, settings: JournalSettings, plan: Plan, request: RunRequest
) -> RecordJournal:
    """Claim a run, new or recorded, and return its journal.

    Raises:
        RunLocked: another worker owns it.
        NotWaiting: it was to be taken up, and has ended meanwhile.
        ResumeError: it cannot be continued as asked.
        StoreError: the store cannot be used or reached.
    """
    if not manager.is_set_up:
        await manager.setup()
        if not manager.has_fencing:
            warn_once(
                type(manager.store),
                "%s cannot keep a worker that lost its run from writing: its server does not "
                "refuse conditional writes. Let one worker at a time run each run",
            )
    claim = new_claim(request.run_id, settings.lease_seconds)
    new = None if request.must_exist else new_run(request, plan, settings)
    reopen = request.restart or request.resume_from is not None
    opened = await claim_run(manager, claim, new, reopen, is_ours=not request.is_taken_up)
    if opened is None:
        raise not_found(request)
    if opened.is_new:
        return RecordJournal(manager, settings, plan, claim, opened, None)
    try:
        if request.accepts is not None:
            _check_waiting(opened, plan, request.accepts)
        found = continue_run(opened, plan, request)
        if not opened.is_claimed and found.position < len(plan.steps):
            again = await claim_run(manager, claim, None, True)  # there are nodes after the end
            if again is None:
                raise not_found(request)
            opened = again
            found = continue_run(opened, plan, request)
        journal = RecordJournal(manager, settings, plan, claim, opened, found)
        merged = _merged_plan(opened.run.plan, settings.document)
        if opened.is_claimed and (merged, plan.version) != (opened.run.plan, opened.run.version):
            journal.go_on_with(merged)
        if found.new_epoch is not None:
            await journal.open_epoch(found.new_epoch)
    except BaseException as exc:
        await give_back(manager, claim, opened, exc, is_ours=not request.is_taken_up)
        raise
    return journal


def _check_waiting(opened: OpenedRun, plan: Plan, accepts: Callable[[str], bool]) -> None:
    """Refuse a run that waits for no worker any more, or not for one of this version.

    Raises:
        NotWaiting: it has ended since the worker saw it.
        ResumeError: it is of a version that the pipeline does not accept.
    """
    run = opened.run
    if not opened.is_claimed or opened.status_before not in CLAIMABLE:
        raise NotWaiting(run.run_id)
    if not accepts(run.version):
        raise not_accepted(run, plan.version)


def check_name(run: RunRecord, plan: Plan) -> None:
    """Refuse a run that is of another pipeline.

    Raises:
        PipelineChanged: says of which.
    """
    if run.pipeline == plan.name:
        return
    was = f"of pipeline {run.pipeline!r}" if run.pipeline else "of a list of nodes, without a name"
    raise PipelineChanged(
        f"run {run.run_id!r} is {was}, and not of pipeline {plan.name!r}: go on with what it was "
        "started with, or use another run_id"
    )


def not_accepted(run: RunRecord, *versions: str) -> ResumeError:
    """Return why a worker leaves a run alone that is of another version.

    Args:
        run: the run.
        versions: of its pipeline, that the worker has.
    """
    own = " and ".join(map(repr, versions))
    return ResumeError(
        f"run {run.run_id!r} is of version {run.version!r} of pipeline {run.pipeline!r}, which "
        f"version {own} does not accept: keep a worker of that version until its runs have "
        f"ended, or, if its records fit, write accepts=[{run.version!r}]"
    )


def new_run(request: RunRequest, plan: Plan, settings: JournalSettings) -> RunRecord:
    """Return the record of a run that does not exist yet."""
    now = settings.clock.now()
    return RunRecord(
        request.run_id,
        RunStatus.RUNNING,
        pipeline=plan.name,
        version=plan.version,
        tags=settings.tags,
        input_payload=request.payload,
        input_fingerprint=plan.takes.fingerprint,
        plan=settings.document,
        trace_parent="" if settings.trace_parent is None else settings.trace_parent(),
        created_at=now,
        updated_at=now,
    )


def _merged_plan(recorded: bytes, live: bytes) -> bytes:
    """Return the live plan with the recorded forms, which name what changed."""
    if recorded == live:
        return recorded
    was, now = PlanDocument.from_json(recorded), PlanDocument.from_json(live)
    return now._replace(forms={**was.forms, **now.forms}).to_json()


async def claim_run(
    manager: CheckpointManager,
    claim: Claim,
    new: RunRecord | None,
    reopen: bool = False,
    *,
    is_ours: bool = True,
) -> OpenedRun | None:
    """Claim a run; while being cancelled, too, and then it is given back.

    Also where nobody knows whether the claim has landed, as when a loop ends and cuts it.

    Args:
        manager: the store.
        claim: the claim.
        new: the record to create if there is none.
        reopen: claim it even if it is COMPLETED.
        is_ours: see `give_back`.

    Raises:
        RunLocked: another worker owns it.
        StoreError: the store cannot be reached.
    """
    request = OpenRequest(claim.run_id, claim.token, describe_worker(), claim.lease_ms, new, reopen)
    if manager.is_in_memory:
        return await _call_open(manager.store, request)
    opened: OpenedRun | None = OpenedRun(RunRecord(claim.run_id, RunStatus.RUNNING))  # perhaps
    given_up: asyncio.CancelledError | None = None

    async def claim_it() -> OpenedRun | None:
        nonlocal opened
        opened = await _call_open(manager.store, request)
        if given_up is not None:  # the grace is over, and it has landed all the same
            await give_back(manager, claim, opened, given_up, is_ours=is_ours)
        return opened

    try:
        return await uncut(claim_it(), grace_seconds=SAVE_GRACE_SECONDS)
    except (asyncio.CancelledError, OutcomeUnknown) as exc:
        given_up = exc if isinstance(exc, asyncio.CancelledError) else None
        await give_back(manager, claim, opened, exc, is_ours=is_ours)
        raise


async def _call_open(store: object, request: OpenRequest) -> OpenedRun | None:
    opened = await call_operation(store, "open_run", request)
    assert opened is None or isinstance(opened, OpenedRun)
    return opened


async def give_back(
    manager: CheckpointManager,
    claim: Claim,
    opened: OpenedRun | None,
    why: BaseException,
    *,
    is_ours: bool = True,
) -> None:
    """Give a run up on the way out of an error, which a failure here must not hide.

    It stands as it stood before the claim, unless it was cancelled.

    Args:
        manager: the store.
        claim: the claim.
        opened: what it opened.
        why: what happened.
        is_ours: the one who is cancelled asked for this run. Otherwise others wait for it.
    """
    if opened is None or not opened.is_claimed:
        return
    update = RunUpdate(opened.status_before, release=True)
    if is_ours and isinstance(why, asyncio.CancelledError):
        update = update._replace(status=RunStatus.CANCELLED, stop_reason=CANCELLED)
    commit = Commit(claim.run_id, claim.token, (), update)
    with contextlib.suppress(TimeoutError):  # what fails here is made good by the lease's end
        await uncut_within(outcomes_of(ask(manager.commit_many, (commit,)), 1), SAVE_GRACE_SECONDS)
