"""Reserves what an attempt may use before it calls: in the budget, and in the store."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from pydantic import BaseModel

from stroma.account import RunAccount, Stopped
from stroma.cost import NO_USAGE, ModelFallback, Usage, model_under
from stroma.errors import BudgetExceeded, CallInDoubt, ConfigError, UnknownPrice
from stroma.failures import error_text
from stroma.plan import Leaf
from stroma.records import RunStatus
from stroma.result import InDoubt
from stroma.scope import Estimate, NodeScope, usage_of


class Reservations:
    """The reservations of one start of a run."""

    def __init__(self, account: RunAccount) -> None:
        self._account = account
        self._ledger = account.ledger
        self._journal = account.journal

    async def hold(
        self,
        leaf: Leaf,
        value: BaseModel,
        scope: NodeScope,
        recheck: Callable[[Leaf, str], Awaitable[tuple[ModelFallback, ...]]],
    ) -> None:
        """Set aside the most that an attempt may use.

        While calls are under way that may leave enough, it waits for them. What they used meanwhile
        counts as it does for an attempt that begins afterwards.

        Args:
            leaf: the node.
            value: its input.
            scope: the attempt.
            recheck: what is asked before an attempt begins: raises `Stopped`, or returns the rules
                of model fallback that hold.

        Raises:
            BudgetExceeded: it does not fit, and nothing is under way that could leave enough.
            Stopped: nobody can tell or price what it may use, or nothing may begin any more.
        """
        usage = self._estimated(leaf, value, scope)
        while not self._fits(usage, scope):
            await self._account.until_let_go()
            rules = await recheck(leaf, scope.path)
            if rules != scope._rules:
                scope._rules = rules
                usage = self._estimated(leaf, value, scope)

    def _fits(self, usage: Usage, scope: NodeScope) -> bool:
        """Set usage aside, or say that it has to wait."""
        try:
            self._ledger.hold(usage, scope.path)
        except BudgetExceeded:
            if not self._ledger.has_held:
                raise
            return False
        except UnknownPrice as exc:
            raise Stopped(RunStatus.FAILED, str(exc), exc) from exc
        scope._held = usage
        return True

    async def record(self, leaf: Leaf, scope: NodeScope) -> None:
        """Record that the call is about to be made.

        Raises:
            StoreError: the store does not take it.
        """
        usage = NO_USAGE if scope._held is None else scope._held
        scope._reserved = await self._journal.reserve(leaf, scope.path, usage)

    def _estimated(self, leaf: Leaf, value: BaseModel, scope: NodeScope) -> Usage:
        if leaf.estimate is None:
            return NO_USAGE
        try:
            found = leaf.estimate(value, scope)
            if found is None:
                return NO_USAGE
            if not isinstance(found, Estimate):
                raise ConfigError(
                    "it must return a stroma.Estimate, or None where a call costs nothing, "
                    f"not {type(found).__name__}"
                )
            model = model_under(scope._rules, found.model) if found.model else scope.model
            usage = usage_of(found.input_tokens, found.output_tokens, model, found.cost_usd)
        except Exception as exc:
            said = error_text(exc)
            if not isinstance(exc, ConfigError):
                said = f"{type(exc).__name__}: {said}"
            error = ConfigError(f"the estimator failed for {scope.path!r}: {said}")
            error.__cause__ = exc
            raise Stopped(RunStatus.FAILED, f"nothing was called: {error}", error) from exc
        return self._ledger.priced(usage) if usage.cost_usd is None else usage

    def check_doubts(self, leaf: Leaf, path: str) -> None:
        """Refuse to make a call again of which nobody knows what became of it.

        Raises:
            Stopped: an earlier start left one, and the node is to wait for an answer.
        """
        doubts = self._journal.doubts(path) if leaf.settings.stops_in_doubt else ()
        if doubts:
            raise waiting(self._journal.run_id, doubts[-1])


def waiting(run_id: str, doubt: InDoubt) -> Stopped:
    """Return the end of a run that waits until somebody says what became of a call."""
    error = CallInDoubt(
        f"nobody knows what became of call {doubt.attempt} of {doubt.path!r} ({doubt.reason}), "
        'and its node is on_in_doubt="stop": look it up at the provider, and say what you '
        f"found with runner.resolve(nodes, {run_id!r}, {doubt.path!r}, outcome=…) or the command "
        "stroma resolve; then the run can go on",
        path=doubt.path,
    )
    return Stopped(RunStatus.WAITING, str(error), error)
