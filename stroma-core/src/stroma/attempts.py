"""The attempt loop: the only one. Every call of a node goes through it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

from pydantic import BaseModel

from stroma._aio import CancelWatch, in_daemon_thread, settled, uncut_within
from stroma.account import RunAccount, Stopped
from stroma.batching import SAVE_GRACE_SECONDS
from stroma.contracts import accept_state, dump_state
from stroma.cost import NO_USAGE, ExecutionBudget, ModelFallback, Usage, model_under
from stroma.errors import (
    BudgetExceeded,
    ConfigError,
    ContractViolation,
    NodeTimeout,
    RecordTooLarge,
    StoreError,
    StromaError,
    UnknownPrice,
)
from stroma.failures import (
    FailureClass,
    FailureVerdict,
    NodeContext,
    classify,
    error_text,
    policy_for,
)
from stroma.hooks import BudgetDetails, RetryDetails
from stroma.nodes import split_output
from stroma.plan import Leaf
from stroma.records import RunStatus
from stroma.result import InDoubt
from stroma.scope import MODEL_KEY, NodeScope, RunScope, SharedContext, enter_scope, leave_scope

logger = logging.getLogger("stroma")

STATUS_AFTER: Final = {
    FailureClass.RECOVERABLE: RunStatus.PARTIAL,
    FailureClass.AMBIGUOUS: RunStatus.FAILED,
    FailureClass.TERMINAL: RunStatus.FAILED,
}


THREAD_GRACE_SECONDS: Final = 10.0
"""How long a cancelled run waits for a sync node that is under way."""


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
            self._budget_left,
            account.ledger.priced,
            self._model,
        )
        around = account.around
        is_limited = not account.ledger.budget.is_unlimited or bool(around.fallbacks)
        self._is_guarded = is_limited or around.stop_request is not None
        self._has_deadline = account.ledger.budget.latency_ms is not None
        self._watch = CancelWatch()
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
        if self._journal.is_continued:
            mended = await self._refused_output(leaf, path, position)
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
                if self._hooks.any_node_hook:
                    state_dict = leaf.takes.fields(value)
                    await self._hooks.fire("on_node_start", scope.run_id, path, state_dict)
                began = self._clock.monotonic()
                try:
                    if leaf.is_bare and not self._has_deadline:
                        raw = await leaf.call(value)
                    else:
                        raw = await self._call(leaf, value, scope)
                    if type(raw) is tuple:
                        raw = self._count(leaf, raw, scope)
                    output = accept_state(leaf.gives, raw, leaf.id, "output")
                    payload = dump_state(
                        leaf.gives, output, leaf.id, is_validated=output is not raw
                    )
                except asyncio.CancelledError as exc:
                    delay = await self._cut(leaf, scope, began, exc)
                except Exception as exc:
                    delay = await self._failed(leaf, scope, began, exc)
                else:
                    usage = self._account.settle(leaf.id, scope)
                    took_ms = (self._clock.monotonic() - began) * 1000
                    saving = self._account.save(
                        leaf, path, position, output, payload, usage, attempt, took_ms
                    )
                    if saving is not None:
                        await self._saved(saving, leaf, path, usage)
                    if self._hooks.any_node_hook or scope._cancelled is not None:
                        await self._conclude(leaf, scope, output, usage)
                    return output
            finally:
                leave_scope(token)
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

    def _model(self, own: str, rules: tuple[ModelFallback, ...]) -> str:
        """Return the model that a node is told to use, or ""."""
        context, fallbacks = self._around.context, self._around.fallbacks
        model = own or context.get(MODEL_KEY) or context.get("model")
        if not model and fallbacks:
            model = fallbacks[0].model
        return model_under(rules, model) if isinstance(model, str) else ""

    def _budget_left(self) -> ExecutionBudget:
        return self._account.ledger.left(self._account.this_start_ms)

    async def _call(self, leaf: Leaf, value: BaseModel, scope: NodeScope) -> object:
        """Call the node once, within its timeout and the latency budget."""
        if leaf.timeout_seconds is None and not self._has_deadline:
            return await self._invoke(leaf, value, scope)
        seconds, is_latency = self._time_limit(leaf)
        scope.deadline = self._clock.monotonic() + seconds
        timeout = asyncio.timeout(seconds)
        try:
            async with timeout:
                return await self._invoke(leaf, value, scope, timeout)
        except TimeoutError as exc:
            if not timeout.expired():
                raise  # the node's own
            self._account.in_doubt.append(
                InDoubt(scope.path, scope.attempt, "latency" if is_latency else "timeout")
            )
            if is_latency:
                active_ms = self._account.ledger.active_ms(self._account.this_start_ms)
                raise self._account.ledger.latency_reached(active_ms) from exc
            raise NodeTimeout(
                f"{scope.path} took longer than its timeout of {seconds * 1000:.0f} ms"
            ) from exc

    def _time_limit(self, leaf: Leaf) -> tuple[float, bool]:
        """Return the seconds that a call may take, and whether the budget sets them."""
        left_ms = self._account.ledger.left_ms(self._account.this_start_ms)
        left = float("inf") if left_ms is None else left_ms / 1000
        own = float("inf") if leaf.timeout_seconds is None else leaf.timeout_seconds
        return min(left, own), left < own

    async def _invoke(
        self,
        leaf: Leaf,
        value: BaseModel,
        scope: NodeScope,
        timeout: asyncio.Timeout | None = None,
    ) -> object:
        args: tuple[object, ...] = (value,)
        if leaf.wants_context:
            args = (value, SharedContext(self._around.context, scope.model))
        if leaf.is_async:
            return await leaf.call(*args)
        return await settled(await self._in_thread(partial(leaf.call, *args), scope, timeout))

    async def _in_thread(
        self, call: Callable[[], object], scope: NodeScope, timeout: asyncio.Timeout | None
    ) -> object:
        """Run a sync node in a thread, which nothing can cut.

        When the run is cancelled, the thread is waited for some time: what it returns by then
        is recorded before the cancellation is raised, since it is paid for.
        """
        thread = in_daemon_thread(call)
        try:
            return await asyncio.shield(thread)
        except asyncio.CancelledError as exc:
            now = asyncio.get_running_loop().time()
            ends_at = None if timeout is None else timeout.when()
            left = THREAD_GRACE_SECONDS if ends_at is None else ends_at - now
            if left > 0 and self._watch.is_cancelled():
                await asyncio.wait({thread}, timeout=min(left, THREAD_GRACE_SECONDS))
            if not thread.done() or thread.cancelled() or thread.exception() is not None:
                thread.cancel()  # a late result is dropped
                raise
            scope._cancelled = exc
            return thread.result()

    def _count(self, leaf: Leaf, raw: tuple[object, ...], scope: NodeScope) -> object:
        """Return the output of a tuple, and count the usage that came with it."""
        try:
            output, usage = split_output(raw, leaf.id)
        except ConfigError as exc:
            raise ContractViolation(leaf.id, "output", [str(exc)], raw) from exc
        scope.add(usage)
        return output

    async def _saved(self, saving: Awaitable[None], leaf: Leaf, path: str, usage: Usage) -> None:
        try:
            await saving
        except RecordTooLarge as exc:  # what it used can be recorded all the same
            terminal = FailureClass.TERMINAL.value
            await self._journal.attempt(leaf, path, usage, exc, terminal)
            raise

    async def _conclude(
        self, leaf: Leaf, scope: NodeScope, output: BaseModel, usage: Usage
    ) -> None:
        """Tell the hooks of a recorded result, and raise a cancellation that waited for it."""
        state_dict = leaf.gives.fields(output)
        await self._hooks.fire(
            "on_node_success", scope.run_id, scope.path, state_dict, usage.tokens
        )
        if scope._cancelled is not None:
            raise scope._cancelled

    async def _failed(self, leaf: Leaf, scope: NodeScope, began: float, exc: Exception) -> float:
        """Record a failed attempt, and return the seconds until the next one.

        Raises:
            Stopped: there is none.
            asyncio.CancelledError: the node hid that it was cancelled behind its failure.
        """
        if self._watch.is_cancelled():
            return await self._cut(leaf, scope, began, asyncio.CancelledError(), exc)
        duration_ms = (self._clock.monotonic() - began) * 1000
        usage = self._account.settle(leaf.id, scope)
        context = NodeContext(scope.run_id, scope.node_id, scope.attempt, scope.path)
        verdict = classify(exc, context, self._around.classifiers)
        delay = self._retry_delay(leaf, scope, verdict)
        failure_class = verdict.failure_class
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
        await self._journal.attempt(leaf, scope.path, usage, exc, failure_class.value)
        await self._hooks.fire("on_node_failure", scope.run_id, scope.path, exc, failure_class)
        if isinstance(exc, BudgetExceeded):
            raise await self._over_budget(exc, leaf, scope.path) from exc
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
            return await self._failed(leaf, scope, began, stray)
        usage = self._account.settle(leaf.id, scope)
        duration_ms = (self._clock.monotonic() - began) * 1000
        if not isinstance(hiding, ContractViolation):  # whose output is there
            self._account.in_doubt.append(InDoubt(scope.path, scope.attempt, "cancelled"))
        self._account.note(
            "cancelled", leaf.id, scope.path, scope.attempt, duration_ms, usage=usage
        )
        try:
            noting = self._journal.attempt(leaf, scope.path, usage, hiding or exc, "cancelled")
            await uncut_within(noting, SAVE_GRACE_SECONDS)
        except (StoreError, TimeoutError) as failed:
            logger.warning("run %s: a cut attempt is not recorded: %s", scope.run_id, failed)
        raise exc

    async def _refused_output(self, leaf: Leaf, path: str, position: int) -> BaseModel | None:
        """Look at an output again that did not fit the contract then; it is paid for.

        Raises:
            Stopped: it does not fit now either.
        """
        try:
            refused = await self._journal.refused_output(leaf, path)
            if refused is None:
                return None
            output = accept_state(leaf.gives, refused[0], leaf.id, "output")
            payload = dump_state(leaf.gives, output, leaf.id)
        except ContractViolation as exc:
            reason = (
                f"{exc}. The recorded output is paid for and still does not fit: mend the "
                f"contract, or give consent to buy it again with resume_from={leaf.top_id!r}"
            )
            self._account.note_violation(exc, path)
            raise Stopped(RunStatus.FAILED, reason, exc) from exc
        self._account.skipped[leaf.id] = None
        saving = self._account.save(leaf, path, position, output, payload, NO_USAGE, 0, 0.0)
        if saving is not None:
            await saving
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
        model = self._model(leaf.settings.model, rules)
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
