"""What becomes of an output that does not fit its contract: repaired, bought anew, or the end."""

from __future__ import annotations

import asyncio
from typing import NamedTuple, TypeGuard

from pydantic import BaseModel

from stroma._aio import CancelWatch, settled
from stroma.account import RunAccount, Stopped
from stroma.contracts import accept_state, dump_state
from stroma.cost import NO_USAGE
from stroma.errors import ContractViolation
from stroma.failures import error_text
from stroma.plan import Leaf
from stroma.records import RunStatus
from stroma.scope import NodeScope


class Mended(NamedTuple):
    """An output that fits after all.

    Attributes:
        output: the output.
        payload: its JSON.
    """

    output: BaseModel
    payload: bytes


class Violations:
    """The refused outputs of one start of a run, and those that earlier ones recorded."""

    def __init__(self, account: RunAccount, watch: CancelWatch) -> None:
        self._account = account
        self._watch = watch
        self._journal = account.journal
        self._refused: dict[str, int] = {}

    def refuse(self, leaf: Leaf, path: str) -> float | None:
        """Count an output that is refused in this start.

        Returns:
            The seconds until another one is bought, or None if none is.
        """
        self._refused[path] = self._refused.get(path, 0) + 1
        return 0.0 if self._may_resample(leaf, path) else None

    def _may_resample(self, leaf: Leaf, path: str) -> bool:
        refused = self._journal.refusals(path) + self._refused.get(path, 0)
        return 0 < refused <= leaf.settings.max_resamples

    async def repaired(
        self, leaf: Leaf, scope: NodeScope, exc: ContractViolation
    ) -> Mended | ContractViolation:
        """Return a recorded output as the node's repair mends it, or why it does not.

        Args:
            leaf: the node.
            scope: takes what the repair uses; what the call used is recorded.
            exc: why the output was refused.

        Raises:
            asyncio.CancelledError: the run is cancelled; what the repair used is recorded.
        """
        repair = leaf.settings.repair
        if repair is None:
            return exc
        scope.usage = NO_USAGE
        try:
            return mended(leaf, await settled(repair(exc.raw, exc)))
        except ContractViolation as failed:
            refused = failed
        except (Exception, asyncio.CancelledError) as failed:
            problem = f"its repair raised {type(failed).__name__}: {error_text(failed)}"
            refused = ContractViolation(leaf.id, "output", [*exc.problems, problem], exc.raw)
            refused.__cause__ = failed
        self._account.note_violation(refused, scope.path)
        usage = self._account.settle(leaf.id, scope)
        try:
            if usage is not NO_USAGE:
                await self._journal.spent_beside(leaf, scope.path, usage)
        finally:
            if self._watch.is_cancelled():  # even if the repair hid that behind a failure
                raise asyncio.CancelledError
        return refused

    async def recorded(self, leaf: Leaf, scope: NodeScope) -> Mended | None:
        """Look again at an output that an earlier start refused; it is paid for.

        Returns:
            What it is under the contract as it is now, or as the repair mends it. None if there
            is none, or if it is to be bought anew.

        Raises:
            Stopped: it does not fit now either.
        """
        try:
            refused = await self._journal.refused_output(leaf, scope.path)
            if refused is None:
                return None
            return mended(leaf, refused[0])
        except ContractViolation as exc:
            found = await self.repaired(leaf, scope, exc)
        if isinstance(found, Mended):
            return found
        if self._may_resample(leaf, scope.path):
            return None
        reason = (
            f"{found}. The recorded output is paid for and still does not fit: mend the "
            f"contract, or give consent to buy it again with resume_from={leaf.top_id!r}"
        )
        if leaf.settings.repair is None:
            self._account.note_violation(found, scope.path)
        raise Stopped(RunStatus.FAILED, reason, found) from found


def is_refused_output(exc: Exception, leaf: Leaf) -> TypeGuard[ContractViolation]:
    """Say whether an attempt failed at its own contract, with an output that is paid for."""
    return (
        isinstance(exc, ContractViolation) and exc.direction == "output" and exc.node_id == leaf.id
    )


def mended(leaf: Leaf, raw: object) -> Mended:
    """Return what a node gave as its contract has it.

    Raises:
        ContractViolation: it does not fit.
    """
    output = accept_state(leaf.gives, raw, leaf.id, "output")
    return Mended(output, dump_state(leaf.gives, output, leaf.id))
