"""Tells hooks of attempts: when they begin, and once what there is to record is recorded."""

from __future__ import annotations

from pydantic import BaseModel

from stroma.cost import NO_USAGE
from stroma.events import AttemptEnd, AttemptStart, Outcome
from stroma.failures import FailureVerdict
from stroma.hooks import HookSet
from stroma.plan import Leaf
from stroma.scope import NodeScope, enter_scope, leave_scope


class AttemptTeller:
    """Tells the hooks of one start of a run."""

    def __init__(self, hooks: HookSet) -> None:
        self._hooks = hooks

    async def begins(self, leaf: Leaf, value: BaseModel, scope: NodeScope) -> None:
        """Tell that a node is about to be called; `ended` has to follow."""
        scope._is_told = True
        if self._hooks.listens("on_attempt_start"):
            start = AttemptStart(scope.run_id, leaf.id, scope.path, scope.attempt, scope.model)
            await self._hooks.fire("on_attempt_start", start)
        if self._hooks.listens("on_node_start"):
            state_dict = leaf.takes.fields(value)
            await self._hooks.fire("on_node_start", scope.run_id, scope.path, state_dict)

    async def succeeded(self, leaf: Leaf, scope: NodeScope, output: BaseModel, tokens: int) -> None:
        """Tell of a recorded result."""
        if self._hooks.listens("on_node_success"):
            state_dict = leaf.gives.fields(output)
            await self._hooks.fire("on_node_success", scope.run_id, scope.path, state_dict, tokens)

    def fails(
        self,
        scope: NodeScope,
        duration_ms: float,
        error: BaseException,
        verdict: FailureVerdict | None = None,
        delay: float | None = None,
    ) -> None:
        """Keep what `ended` tells of an attempt without a result; one without a verdict was cut."""
        if scope._is_told:
            scope._took_ms = duration_ms
            scope._end = (error, verdict, delay)

    async def repaired(self, leaf: Leaf, scope: NodeScope, outcome: Outcome) -> None:
        """Tell of the repair of an output of an earlier start, if it has been charged."""
        if scope._used is NO_USAGE:
            return
        place = (scope.run_id, leaf.id, scope.path, 0)
        await self._hooks.fire("on_attempt_start", AttemptStart(*place, scope.model))
        await self._hooks.fire("on_attempt_end", AttemptEnd(*place, outcome, 0.0, scope._used))

    async def ended(self, scope: NodeScope) -> None:
        """Tell that an attempt has ended."""
        token = enter_scope(scope)
        try:
            await self._hooks.fire("on_attempt_end", _end_of(scope))
        finally:
            leave_scope(token)


def _end_of(scope: NodeScope) -> AttemptEnd:
    place = (scope.run_id, scope.node_id, scope.path, scope.attempt)
    took_ms, used = scope._took_ms, scope._used
    if scope._end is None:
        if took_ms is None:  # it was cut before the node was called, or the process goes down
            return AttemptEnd(*place, "cancelled", 0.0, used)
        return AttemptEnd(*place, "succeeded", took_ms, used)
    error, verdict, delay = scope._end
    took_ms = took_ms or 0.0
    if verdict is None:
        return AttemptEnd(*place, "cancelled", took_ms, used, error)
    failure_class, reason = verdict.failure_class, verdict.reason
    return AttemptEnd(*place, "failed", took_ms, used, error, failure_class, reason, delay)
