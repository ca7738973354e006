"""Calls a node once: within its time, with its context, in the loop or in a thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Final

from pydantic import BaseModel

from stroma._aio import CancelWatch, in_daemon_thread, settled
from stroma.account import RunAccount
from stroma.errors import BudgetExceeded, ConfigError, ContractViolation, NodeTimeout
from stroma.nodes import split_output
from stroma.plan import Leaf
from stroma.scope import NodeScope, SharedContext

THREAD_GRACE_SECONDS: Final = 10.0
"""How long a cancelled run waits for a sync node that is under way."""


class NodeCaller:
    """Calls nodes of one start of a run."""

    def __init__(self, account: RunAccount, watch: CancelWatch) -> None:
        self._account = account
        self._clock = account.clock
        self._context = account.around.context
        self._has_deadline = account.ledger.budget.latency_ms is not None
        self._watch = watch

    async def call(self, leaf: Leaf, value: BaseModel, scope: NodeScope) -> object:
        """Call the node once, within its timeout and the latency budget.

        Raises:
            NodeTimeout: it takes longer than its timeout.
            BudgetExceeded: it is cut at the latency limit, or that was reached before the call.
        """
        if leaf.timeout_seconds is None and not self._has_deadline:
            return await self._invoke(leaf, value, scope)
        seconds, is_latency = self._time_limit(leaf)
        if seconds <= 0:  # a slow hook or store has used it up: nothing was called
            raise self._latency_reached()
        scope.deadline = self._clock.monotonic() + seconds
        timeout = asyncio.timeout(seconds)
        try:
            async with timeout:
                return await self._invoke(leaf, value, scope, timeout)
        except Exception as exc:  # a node may hide that it was cut behind a failure of its own
            if not timeout.expired():
                raise
            scope._doubt = "latency" if is_latency else "timeout"
            if is_latency:
                raise self._latency_reached() from exc
            raise NodeTimeout(
                f"{scope.path} took longer than its timeout of {seconds * 1000:.0f} ms"
            ) from exc

    def _latency_reached(self) -> BudgetExceeded:
        ledger = self._account.ledger
        return ledger.latency_reached(ledger.active_ms(self._account.this_start_ms))

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
            args = (value, SharedContext(self._context, scope.model))
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
            if not thread.done() or thread.cancelled():
                thread.cancel()  # a late result is dropped
                raise
            scope._cancelled = exc
            return thread.result()  # or what it raised


def count_output(leaf: Leaf, raw: tuple[object, ...], scope: NodeScope) -> object:
    """Return the output of a tuple, and count the usage that came with it."""
    try:
        output, usage = split_output(raw, leaf.id)
    except ConfigError as exc:
        raise ContractViolation(leaf.id, "output", [str(exc)], raw) from exc
    scope._add(usage)
    return output
