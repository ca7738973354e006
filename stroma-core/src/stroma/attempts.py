"""The attempt loop: the only one. Every call of a node goes through it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from typing import Final

from pydantic import BaseModel

from stroma._aio import CancelWatch, uncut_within
from stroma.account import RunAccount, Stopped
from stroma.batching import SAVE_GRACE_SECONDS
from stroma.calling import NodeCaller, count_output
from stroma.contracts import accept_state, dump_state
from stroma.cost import ModelFallback, Usage
from stroma.errors import (
    BudgetExceeded,
    CallInDoubt,
    ContractViolation,
    RecordTooLarge,
    StoreError,
    StromaError,
    UnknownPrice,
)
from stroma.events import BudgetDetails, RetryDetails
from stroma.failures import (
    FailureClass,
    FailureVerdict,
    NodeContext,
    classify,
    error_text,
    policy_for,
)
from stroma.plan import Leaf
from stroma.records import RunStatus
from stroma.reservations import Reservations, waiting
from stroma.result import InDoubt
from stroma.scope import NodeScope, RunScope, enter_scope, leave_scope
from stroma.telling import AttemptTeller
from stroma.violations import Mended, Violations, is_refused_output

logger = logging.getLogger("stroma")

STATUS_AFTER: Final = {
    FailureClass.RECOVERABLE: RunStatus.PARTIAL,
    FailureClass.AMBIGUOUS: RunStatus.FAILED,
    FailureClass.TERMINAL: RunStatus.FAILED,
}


class AttemptLoop:
    """Calls nodes of one start of a run: within the budget, retried, recorded."""

    def __init__(self, account: RunAccount) -> None:
        self._account = account
        self._around = account.around
        self._hooks = account.around.hooks
        self._clock = account.clock
        self._journal = account.journal
        self._scope = RunScope(
            account.journal.run_id,
            account.journal.epoch,
            account.budget_left,
            account.ledger.priced,
            account.around.model_for,
        )
        around = account.around
        is_limited = not account.ledger.budget.is_unlimited or bool(around.fallbacks)
        self._is_guarded = is_limited or around.stop_request is not None
        self._has_deadline = account.ledger.budget.latency_ms is not None
        self._watch = CancelWatch()
        self._caller = NodeCaller(account, self._watch)
        self._reservations = Reservations(account)
        self._violations = Violations(account, self._watch)
        self._teller = AttemptTeller(account.around.hooks)
        self._rules_seen: tuple[ModelFallback, ...] = ()
        self._budget_reported = False

    async def run(
        self, leaf: Leaf, state: BaseModel, index: tuple[int, ...], path: str, position: int
    ) -> BaseModel:
        """Call a node until it gives a result, and return that when it is recorded.

        Args:
            leaf: the node.
            state: its input.
            index: the items of `fan_out` that it stands in.
            path: its place.
            position: where it stands in the sequence; -1 inside `parallel` and `fan_out`.

        Raises:
            Stopped: there is no result, and no further attempt.
            StoreError: there is one, and the store does not take it.
        """
        value = (
            state if type(state) is leaf.takes.schema else self._account.accept(leaf, state, path)
        )
        is_continued = self._journal.is_continued
        mended = await self._mend_recorded(leaf, index, path, position) if is_continued else None
        if mended is not None:
            return mended
        attempt = 0
        while True:
            attempt += 1
            rules = await self._before_attempt(leaf, path) if self._is_guarded else ()
            scope = NodeScope(
                self._scope, leaf.id, index, path, attempt, rules, leaf.settings.model
            )
            token = enter_scope(scope)
            try:
                if leaf.is_reserved or self._hooks.any_attempt_hook:
                    await self._announce(leaf, value, scope)
                began = self._clock.monotonic()
                try:
                    if leaf.is_bare and not self._has_deadline:
                        raw = await leaf.call(value)
                    else:
                        raw = await self._caller.call(leaf, value, scope)
                    if type(raw) is tuple:
                        raw = count_output(leaf, raw, scope)
                    output = accept_state(leaf.gives, raw, leaf.id, "output")
                    payload = dump_state(
                        leaf.gives, output, leaf.id, is_validated=output is not raw
                    )
                except (Exception, asyncio.CancelledError) as exc:
                    delay = await self._after_failure(leaf, scope, position, began, exc)
                    if isinstance(delay, BaseModel):
                        return delay
                else:
                    usage = self._account.settle(leaf.id, scope)
                    took_ms = scope._took_ms = (self._clock.monotonic() - began) * 1000
                    saving = self._account.save(
                        leaf, path, position, output, payload, usage, attempt, took_ms
                    )
                    if saving is not None:
                        await self._saved(saving, leaf, scope, usage)
                    if self._hooks.any_attempt_hook or scope._cancelled is not None:
                        await self._conclude(leaf, scope, output, usage)
                    return output
            finally:
                leave_scope(token)
                if scope._is_told:
                    await self._teller.ended(scope)
            await self._account.pause(delay)

    async def _before_attempt(self, leaf: Leaf, path: str) -> tuple[ModelFallback, ...]:
        """Check the budget, and return the rules of model fallback that hold."""
        self._account.check_stop_request()
        try:
            self._account.ledger.check(self._account.this_start_ms)
        except BudgetExceeded as exc:
            raise await self._over_budget(exc, leaf, path) from exc
        except UnknownPrice as exc:
            raise Stopped(RunStatus.FAILED, str(exc), exc) from exc
        rules = self._account.ledger.active_fallbacks()
        if rules != self._rules_seen:
            await self._fell_back(rules, leaf, path)
        return rules

    async def _announce(self, leaf: Leaf, value: BaseModel, scope: NodeScope) -> None:
        """Reserve a call that is about to be made, and tell hooks of it."""
        try:
            if leaf.is_reserved:
                await self._reservations.hold(leaf, value, scope, self._before_attempt)
            if self._hooks.any_attempt_hook:
                await self._teller.begins(leaf, value, scope)
            if leaf.is_reserved:
                await self._reservations.record(leaf, scope)
        except BudgetExceeded as exc:
            raise await self._over_budget(exc, leaf, scope.path) from exc
        except BaseException:
            self._account.let_go(scope)
            raise

    async def _saved(
        self, saving: Awaitable[None], leaf: Leaf, scope: NodeScope, usage: Usage
    ) -> None:
        try:
            await saving
        except RecordTooLarge as exc:  # what it used can be recorded all the same
            await self._record(leaf, scope, usage, exc, FailureClass.TERMINAL.value)
            raise

    async def _conclude(
        self, leaf: Leaf, scope: NodeScope, output: BaseModel, usage: Usage
    ) -> None:
        """Tell the hooks of a recorded result, and raise a cancellation that waited for it."""
        await self._teller.succeeded(leaf, scope, output, usage.tokens)
        if scope._cancelled is not None:
            raise scope._cancelled

    async def _record(
        self,
        leaf: Leaf,
        scope: NodeScope,
        usage: Usage,
        exc: BaseException,
        failure_class: str,
    ) -> InDoubt | None:
        """Record an attempt without a result, and list it if nobody knows what became of it.

        Returns:
            How it is listed, or None.
        """
        is_reserved = scope._reserved > 0
        number = scope._reserved or self._journal.next_call(scope.path)
        scope._reserved = 0  # it is settled: what else is recorded here has a number of its own
        in_doubt = None
        if scope._doubt:
            in_doubt = InDoubt(scope.path, number, scope._doubt, usage)
            self._account.in_doubt.append(in_doubt)
        await self._journal.attempt(
            leaf,
            scope.path,
            number,
            usage,
            exc,
            failure_class,
            is_reserved=is_reserved,
            doubt=scope._doubt,
        )
        return in_doubt

    async def _after_failure(
        self,
        leaf: Leaf,
        scope: NodeScope,
        position: int,
        began: float,
        exc: Exception | asyncio.CancelledError,
    ) -> float | BaseModel:
        """Record a failed attempt, and return the seconds until the next one, or a mended output.

        Raises:
            Stopped: there is neither.
            asyncio.CancelledError: the run is cancelled, even if the node hid that behind its
                failure.
        """
        if isinstance(exc, asyncio.CancelledError):
            return await self._cut(leaf, scope, began, exc)
        if self._watch.is_cancelled():
            return await self._cut(leaf, scope, began, asyncio.CancelledError(), exc)
        if is_refused_output(exc, leaf):
            return await self._refused(leaf, scope, position, began, exc)
        return await self._failed(leaf, scope, began, exc)

    async def _failed(self, leaf: Leaf, scope: NodeScope, began: float, exc: Exception) -> float:
        """Record a failed attempt, and return the seconds until the next one.

        Raises:
            Stopped: there is no next one.
        """
        if isinstance(exc, CallInDoubt):
            scope._doubt = scope._doubt or "unanswered"
        context = NodeContext(scope.run_id, scope.node_id, scope.attempt, scope.path)
        verdict = classify(exc, context, self._around.classifiers)
        delay = self._retry_delay(leaf, scope, verdict)
        await self._note_failure(leaf, scope, began, exc, verdict, delay)
        return await self._again(leaf, scope, exc, verdict, delay)

    async def _refused(
        self,
        leaf: Leaf,
        scope: NodeScope,
        position: int,
        began: float,
        exc: ContractViolation,
    ) -> float | BaseModel:
        """Record an output that does not fit, and return it mended, or when it is bought anew.

        Raises:
            Stopped: neither.
        """
        delay = self._violations.refuse(leaf, scope.path)
        verdict = FailureVerdict(FailureClass.TERMINAL, type(exc).__name__)
        await self._note_failure(leaf, scope, began, exc, verdict, delay)
        found = await self._violations.repaired(leaf, scope, exc)
        if isinstance(found, Mended):
            return await self._keep_mended(leaf, scope, position, found)
        return await self._again(leaf, scope, found, verdict, delay)

    async def _note_failure(
        self,
        leaf: Leaf,
        scope: NodeScope,
        began: float,
        exc: Exception,
        verdict: FailureVerdict,
        delay: float | None,
    ) -> None:
        """Record a failed attempt, and tell of it.

        Raises:
            Stopped: its failure ends the run whatever the policies say.
        """
        duration_ms = (self._clock.monotonic() - began) * 1000
        usage = self._account.settle(leaf.id, scope)
        failure_class = verdict.failure_class
        self._teller.fails(scope, duration_ms, exc, verdict, delay)
        self._account.note(
            "failed",
            leaf.id,
            scope.path,
            scope.attempt,
            duration_ms,
            usage=usage,
            failure_class=failure_class.value,
            failure_message=error_text(exc),
            retry_delay_seconds=delay,
        )
        in_doubt = await self._record(leaf, scope, usage, exc, failure_class.value)
        await self._hooks.fire("on_node_failure", scope.run_id, scope.path, exc, failure_class)
        stopped = None
        if isinstance(exc, BudgetExceeded):
            stopped = await self._over_budget(exc, leaf, scope.path)
        if in_doubt is not None and leaf.settings.stops_in_doubt:
            stopped = waiting(scope.run_id, in_doubt)  # whatever the budget is
        if stopped is not None:
            raise stopped from exc

    async def _again(
        self,
        leaf: Leaf,
        scope: NodeScope,
        exc: Exception,
        verdict: FailureVerdict,
        delay: float | None,
    ) -> float:
        """Tell of the next attempt, and return the seconds until it.

        Raises:
            Stopped: there is none.
        """
        failure_class = verdict.failure_class
        if delay is None:
            raise Stopped(STATUS_AFTER[failure_class], _reason(scope, exc, verdict), exc) from exc
        await self._hooks.fire(
            "on_retry",
            RetryDetails(
                scope.run_id,
                leaf.id,
                scope.path,
                scope.attempt,
                delay,
                failure_class,
                verdict.reason,
                exc,
            ),
        )
        return delay

    def _retry_delay(self, leaf: Leaf, scope: NodeScope, verdict: FailureVerdict) -> float | None:
        """Return the seconds until the next attempt, or None if there is none."""
        policy = policy_for(verdict.failure_class, leaf.policies)
        if scope.attempt > policy.max_retries:
            return None
        if (verdict.retry_after_seconds or 0.0) > policy.max_retry_after_seconds:
            return None
        delay = policy.delay_seconds(
            scope.attempt, self._around.random, verdict.retry_after_seconds
        )
        left_ms = self._account.ledger.left_ms(self._account.this_start_ms)
        return None if left_ms is not None and delay * 1000 >= left_ms else delay

    async def _cut(
        self,
        leaf: Leaf,
        scope: NodeScope,
        began: float,
        exc: asyncio.CancelledError,
        hiding: Exception | None = None,
    ) -> float:
        """Note an attempt that was cancelled, and record it: at once if it used anything.

        Args:
            leaf: the node.
            scope: the attempt.
            began: when.
            exc: the cancellation.
            hiding: what the node raised in its place, or an output that does not fit.

        Returns:
            The seconds until the next attempt, when it was not this run that was cancelled but
            something that the node waited for: that is a failure like others.

        Raises:
            asyncio.CancelledError: the run is cancelled, or a sibling failed.
        """
        if not self._watch.is_cancelled():
            stray = StromaError(f"{scope.path} waited for something that was cancelled")
            stray.__cause__ = exc
            scope._doubt = scope._doubt or "cancelled"
            return await self._failed(leaf, scope, began, stray)
        is_known = isinstance(hiding, ContractViolation) or scope._cancelled is not None
        if not is_known:  # an output is there, or a thread that nothing has cut came to its end
            scope._doubt = scope._doubt or "cancelled"
        usage = self._account.settle(leaf.id, scope)
        duration_ms = (self._clock.monotonic() - began) * 1000
        self._teller.fails(scope, duration_ms, hiding or exc)
        self._account.note(
            "cancelled", leaf.id, scope.path, scope.attempt, duration_ms, usage=usage
        )
        try:
            noting = self._record(leaf, scope, usage, hiding or exc, "cancelled")
            await uncut_within(noting, SAVE_GRACE_SECONDS)
        except (StoreError, TimeoutError) as failed:
            logger.warning("run %s: a cut attempt is not recorded: %s", scope.run_id, failed)
        raise exc

    async def _mend_recorded(
        self, leaf: Leaf, index: tuple[int, ...], path: str, position: int
    ) -> BaseModel | None:
        """Return an output that an earlier start refused, if it can be had now.

        Raises:
            Stopped: it cannot, and it is not bought anew.
        """
        self._reservations.check_doubts(leaf, path)
        scope = NodeScope(self._scope, leaf.id, index, path, 0, (), leaf.settings.model)
        token = enter_scope(scope)
        try:
            found = await self._violations.recorded(leaf, scope)
        finally:
            leave_scope(token)
            await self._teller.repaired(leaf, scope, "failed")  # if it is charged by now
        if found is None:
            return None
        self._account.skipped[leaf.id] = None
        return await self._keep_mended(leaf, scope, position, found)

    async def _keep_mended(
        self, leaf: Leaf, scope: NodeScope, position: int, found: Mended
    ) -> BaseModel:
        """Save a mended output, and what the repair used with it."""
        output, payload = found
        usage = self._account.settle(leaf.id, scope)
        saving = self._account.save(
            leaf, scope.path, position, output, payload, usage, scope.attempt, 0.0
        )
        if saving is not None:
            await self._saved(saving, leaf, scope, usage)
        if scope.attempt:  # hooks were told that it began
            scope._end = None
            await self._conclude(leaf, scope, output, usage)
        else:
            await self._teller.repaired(leaf, scope, "succeeded")
        return output

    async def _over_budget(self, exc: BudgetExceeded, leaf: Leaf, path: str) -> Stopped:
        if not self._budget_reported:
            self._budget_reported = True
            self._account.note("budget", leaf.id, path, 0, failure_message=str(exc))
            details = BudgetDetails(
                self._journal.run_id, path, "reached", str(exc), self._account.ledger.spent
            )
            await self._hooks.fire("on_budget", details)
        return Stopped(RunStatus.PARTIAL, str(exc), exc)

    async def _fell_back(self, rules: tuple[ModelFallback, ...], leaf: Leaf, path: str) -> None:
        self._rules_seen = rules
        model = self._around.model_for(leaf.settings.model, rules)
        told = ", ".join(f"{rule.to} instead of {rule.model}" for rule in rules)
        self._account.note("fallback", leaf.id, path, 0, failure_message=told)
        details = BudgetDetails(
            self._journal.run_id, path, "fallback", told, self._account.ledger.spent, model
        )
        await self._hooks.fire("on_budget", details)


def _reason(scope: NodeScope, exc: Exception, verdict: FailureVerdict) -> str:
    calls = f"after {scope.attempt} attempts" if scope.attempt > 1 else "at the first attempt"
    if isinstance(exc, ContractViolation):
        return error_text(exc)
    return (
        f"{scope.path} failed {calls}, as {verdict.failure_class.value}: "
        f"{type(exc).__name__}: {error_text(exc)}"
    )
