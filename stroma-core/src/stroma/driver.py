"""Takes one start of a run from its claim to its result."""

from __future__ import annotations

import asyncio
import logging

from pydantic import BaseModel

from stroma._aio import uncut, uncut_within
from stroma.account import RunAccount, Stopped, Surroundings
from stroma.batching import SAVE_GRACE_SECONDS
from stroma.cost import NO_USAGE, Ledger
from stroma.errors import (
    ContractViolation,
    OutcomeUnknown,
    RecordTooLarge,
    StaleOwner,
    StoreError,
    StoreUnavailable,
    StoreUnusable,
)
from stroma.events import RunStart
from stroma.execution import Execution
from stroma.failures import FailureClass, error_text
from stroma.hooks import HookSet
from stroma.journal import CANCELLED, CUT, Journal, Standing, Stop
from stroma.plan import Plan
from stroma.records import RunStatus
from stroma.result import ExecutionResult
from stroma.trace import ExecutionTrace, TraceEvent

logger = logging.getLogger("stroma")

_LOOK_SECONDS = 10.0
"""How long a worker that lost its run waits to hear how the run stands now."""


class RunDriver:
    """One start of a run.

    Args:
        plan: the checked nodes.
        journal: the run in its store, claimed.
        ledger: the account of its spend, still empty.
        trace: takes what happens.
        around: what the run was given.
    """

    def __init__(
        self,
        plan: Plan,
        journal: Journal,
        ledger: Ledger,
        trace: ExecutionTrace,
        around: Surroundings,
    ) -> None:
        self._plan = plan
        self._journal = journal
        self._ledger = ledger
        self._trace = trace
        self._hooks = around.hooks
        self._account = RunAccount(journal, ledger, trace, around, len(plan.steps) - 1)
        self._is_taken_up = around.stop_request is not None
        self._loss = _Loss()

    async def drive(self, given: BaseModel | None) -> ExecutionResult:
        """Run what is left, record how it ended, and return it.

        Args:
            given: the initial state, or None to take the recorded one.

        Raises:
            StaleOwner: another worker owns the run.
            AlreadyCommitted: somebody else recorded a result of it.
            ResumeError: a record that the continuation needs cannot be used.
            RecordCorrupt: a record is not as it was written.
        """
        if self._journal.is_complete:
            return await self._go(given)
        end = self._journal.keep(self._loss.happens)
        try:
            return await self._go(given)
        except asyncio.CancelledError:
            if self._loss.is_why_cancelled():
                standing = await self._look()
                raise self._with_what_is_lost(
                    _stale(self._journal.run_id, standing), standing
                ) from None
            raise
        except StaleOwner as exc:
            self._loss.is_why_cancelled()  # which the refusal has overtaken
            standing = await self._look() if self._account.has_cut_saves else None
            self._with_what_is_lost(exc, standing)
            raise
        finally:
            end()

    async def _go(self, given: BaseModel | None) -> ExecutionResult:
        if self._journal.is_continued:
            self._carry()
        try:
            if self._hooks.listens("on_run_start"):
                await self._hooks.fire("on_run_start", self._run_start())
            state = await self._journal.initial_state(given)
            state = await Execution(self._plan, self._account).run(state)
        except Stopped as stopped:
            result = await self._stopped(stopped.status, stopped.reason, stopped.error)
        except asyncio.CancelledError:
            if self._is_taken_up:  # nobody waits for it who could start it again
                await self._leave(RunStatus.PENDING, CUT)
            else:
                await self._leave(RunStatus.CANCELLED, CANCELLED)
            raise
        except Exception as exc:
            status = _status_after(exc)
            if status is None:
                await self._leave(None, "")
                raise
            if status is RunStatus.PARTIAL and self._is_taken_up:
                status = RunStatus.PENDING  # a worker goes on when the store is back
            is_outage = status is not RunStatus.FAILED
            result = await self._stopped(status, self._failure_of_store(exc), exc, is_outage)
        except BaseException:
            await self._leave(None, "")
            raise
        else:
            result = await self._completed(state)
        if self._hooks.listens("on_run_end"):
            await self._hooks.fire("on_run_end", result)
        return result

    def _carry(self) -> None:
        """Start from what earlier starts used."""
        carried = self._journal.carried()
        usages = [usage for found in carried.values() for usage in found]
        self._ledger.carry(usages, self._journal.carried_ms())
        for node_id, found in carried.items():
            total = NO_USAGE
            for usage in found:
                total = total.plus(self._ledger.priced(usage) if usage.cost_usd is None else usage)
            self._account.usage[node_id] = total

    def _run_start(self) -> RunStart:
        plan, journal = self._plan, self._journal
        return RunStart(
            journal.run_id,
            plan.name,
            plan.version,
            plan.ids,
            journal.epoch,
            plan.ids[: journal.position],
            journal.trace_parent,
        )

    async def _completed(self, state: BaseModel) -> ExecutionResult:
        account, journal = self._account, self._journal
        status = RunStatus.RESUMED if account.skipped else RunStatus.COMPLETED
        if journal.is_complete:
            return self._result(status, state, "")
        end = account.end() if account.ended is None else account.ended
        if isinstance(end, Exception):
            return await self._stopped(RunStatus.FAILED, str(end), end)
        if journal.position > account.last:  # nothing was left to carry the end with it
            try:
                await uncut(journal.stop(end))
            except StoreError as exc:
                self._could_not_say(exc)
        return self._result(status, state, end.reason)

    async def _stopped(
        self, status: RunStatus, reason: str, error: Exception, is_outage: bool = False
    ) -> ExecutionResult:
        is_told = True
        try:
            if isinstance(error, StoreUnusable):
                raise error  # there may be another store in its place by now
            for path in await uncut(self._journal.stop(Stop(status, reason, self._ledger.spent))):
                self._account.unsaved.pop(path, None)
        except StaleOwner:
            raise
        except StoreError as exc:
            is_told = False
            self._could_not_say(exc)
        if status is RunStatus.PENDING:  # in its store, for the next worker
            status = RunStatus.PARTIAL
        reason += self._what_next(is_outage, is_told)
        return self._result(status, self._account.state, reason, error)

    def _failure_of_store(self, exc: Exception) -> str:
        """Return what a store did, and at which node."""
        place = self._account.store_failed_at
        if isinstance(exc, RecordTooLarge):
            return error_text(exc)
        return f"the store failed{place and f' at {place!r}'}: {error_text(exc)}"

    def _what_next(self, is_outage: bool, is_told: bool) -> str:
        """Return what is not saved, and after an outage what to do; or "".

        Args:
            is_outage: the store is why the run stopped, and it may come back.
            is_told: the store took how the run ended, and what waited to be saved with it.
        """
        count = len(self._account.unsaved)
        if count:
            outputs, verb = ("1 output", "is") if count == 1 else (f"{count} outputs", "are")
            saved = f". {outputs}, held in `result.unsaved`, {verb} not known to be saved"
        else:
            saved = ". Every output is saved" if is_told else ". How it ended is not saved"
        if not is_outage:
            return saved if count else ""
        who = "a worker goes on with the run" if self._is_taken_up else "start the run again"
        again = ", which buys again what was not saved" if count else ""
        return f"{saved}: {who} when the store answers{again}"

    async def _leave(self, status: RunStatus | None, reason: str) -> None:
        """Give the run up on the way out of an exception, which nothing here may hide."""
        if self._journal.is_complete or self._loss.has_happened:
            return
        stopping = self._journal.stop(Stop(status, reason, self._ledger.spent))
        try:
            await uncut_within(stopping, SAVE_GRACE_SECONDS)
        except StaleOwner:
            return  # another worker's by now, or ended by its last save: nothing is left to say
        except (StoreError, TimeoutError) as exc:
            self._could_not_say(exc)

    async def _look(self) -> Standing | None:
        """Return how the lost run stands, or None if its store does not say."""
        try:
            async with asyncio.timeout(_LOOK_SECONDS):
                return await self._journal.look()
        except (StoreError, TimeoutError):
            return None

    def _with_what_is_lost(self, exc: StaleOwner, standing: Standing | None) -> StaleOwner:
        written = frozenset[str]() if standing is None else standing.written
        unsaved = self._account.unsaved
        exc.unsaved = {path: unsaved[path] for path in unsaved if path not in written}
        exc.in_doubt = tuple(self._account.in_doubt)
        return exc

    def _could_not_say(self, exc: Exception) -> None:
        logger.warning(
            "run %s ended, and its store could not be told; it is free again when its lease "
            "has ended: %s",
            self._journal.run_id,
            exc,
        )

    def _result(
        self,
        status: RunStatus,
        state: BaseModel | None,
        reason: str,
        error: Exception | None = None,
    ) -> ExecutionResult:
        account, ledger = self._account, self._ledger
        return ExecutionResult(
            self._journal.run_id,
            status,
            state,
            self._trace,
            reason,
            error,
            account.usage,
            ledger.spent,
            ledger.before,
            ledger.active_ms(account.this_start_ms),
            tuple(account.skipped),
            (*self._journal.doubts(), *account.in_doubt),
            account.unsaved,
            self._journal.epoch,
        )


def _stale(run_id: str, standing: Standing | None) -> StaleOwner:
    """Return why a run is stopped that the store, asked to renew it, called another one's.

    Args:
        run_id: the run.
        standing: how it stands now, or None if the store does not say.
    """
    nothing = "Nothing of this worker becomes visible any more; start the run again"
    if standing is None:
        return StaleOwner(
            f"run {run_id!r}: another worker has taken it over, or it was deleted or has "
            f"expired. {nothing} to see how it stands"
        )
    run = standing.run
    if run is None:
        return StaleOwner(
            f"run {run_id!r}: the run does not exist any more: it was deleted or has expired. "
            "Nothing of it is recorded; starting it again buys everything again"
        )
    if run.owner:
        found = f"it is owned by {run.holder}" if run.holder else "it has another owner now"
        return StaleOwner(
            f"run {run_id!r}: another worker has taken it over: {found}. {nothing} when that one "
            "has ended, to get its result"
        )
    if run.status is RunStatus.RUNNING:
        return StaleOwner(
            f"run {run_id!r}: another worker took it over and gave it up. {nothing} to go on from "
            "what is recorded"
        )
    return StaleOwner(
        f"run {run_id!r}: another worker took it over and has ended it ({run.status}). {nothing} "
        "to get its result"
    )


class _Loss:
    """Cancels the task of a run that another worker has taken over.

    Attributes:
        has_happened: it was cancelled for this.
    """

    def __init__(self) -> None:
        self.has_happened = False
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._cancelled_before = task.cancelling()

    def happens(self) -> None:
        """Cancel the task. Called in its loop."""
        self.has_happened = True
        self._task.cancel()

    def is_why_cancelled(self) -> bool:
        """Say whether nobody else wants the task to end; then it goes on after this."""
        return self.has_happened and self._task.uncancel() <= self._cancelled_before


def _status_after(exc: Exception) -> RunStatus | None:
    """Return how a run stands that a store stopped, or None if the caller has to know."""
    if isinstance(exc, StoreUnavailable | OutcomeUnknown):
        return RunStatus.PARTIAL
    return RunStatus.FAILED if isinstance(exc, RecordTooLarge | StoreUnusable) else None


async def refused_input(
    run_id: str, exc: ContractViolation, trace: ExecutionTrace, hooks: HookSet
) -> ExecutionResult:
    """Return the result of a run that no node can begin; nothing is recorded of it."""
    trace.add(
        TraceEvent(
            "failed",
            exc.node_id,
            exc.node_id,
            0,
            0.0,
            failure_class=FailureClass.TERMINAL.value,
            failure_message=str(exc),
        )
    )
    result = ExecutionResult(run_id, RunStatus.FAILED, None, trace, str(exc), exc)
    await hooks.fire("on_run_end", result)
    return result
