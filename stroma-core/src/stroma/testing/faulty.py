"""A store that fails on purpose: before it does something, or after it did it."""

from __future__ import annotations

import asyncio
import inspect
import random
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from enum import StrEnum
from typing import Any, NamedTuple

from pydantic import BaseModel

from stroma._aio import settled
from stroma.clock import Clock
from stroma.errors import ConfigError, OutcomeUnknown, StoreUnavailable

OPERATIONS = (
    *("save", "load", "delete", "save_typed", "load_typed"),
    *("setup", "open_run", "inspect", "commit_many", "renew", "release", "fetch"),
    *("runs", "claimable", "purge", "health"),
)
"""The operations that faults are injected into; closing is never one of them."""


class FaultKind(StrEnum):
    """How an operation goes wrong."""

    REFUSED = "refused"
    """Nothing is done, and it raises `StoreUnavailable`."""
    LOST = "lost"
    """It is done, and raises `OutcomeUnknown`: the reply was lost."""
    DELAYED = "delayed"
    """It is done after a while."""
    HANGS = "hangs"
    """Nothing is done, and it does not end until `FaultyStore.let_go`."""


class Fault(NamedTuple):
    """One fault to inject.

    Attributes:
        operation: name of the operation, such as "commit_many"; "*" is any.
        kind: how it goes wrong.
        call: number of the call of this operation that it happens to, from 1, or of any
            operation for "*".
    """

    operation: str
    kind: FaultKind
    call: int = 1


class Injected(NamedTuple):
    """One fault that was injected.

    Attributes:
        operation: name of the operation.
        kind: how it went wrong.
        call: number of the call of this operation, from 1.
    """

    operation: str
    kind: FaultKind
    call: int


class FaultyStore:
    """Any store, with faults: level 0 or 1, sync or async, with the capabilities of the inner one.

    Faults come from a plan, or at random from a seed, or both. What the inner store's own
    operations call among themselves is left alone.

    Args:
        store: the inner store.
        plan: faults that happen at known calls.
        rate: how likely each call fails at random, from 0 to 1.
        kinds: which faults come at random.
        operations: which operations fail at random; None is all.
        seed: of the random faults; None takes one, which `seed` and the repr show.
        delay_seconds: how long a delayed operation waits.
        clock: what a delay is waited for by; None is the machine's.

    Attributes:
        seed: makes the same random faults again.
        log: what was injected, in order.
        calls: how often each operation was called.

    Raises:
        ConfigError: an operation of the plan is unknown, or the rate is no share.
    """

    def __init__(
        self,
        store: object,
        plan: Iterable[Fault] = (),
        *,
        rate: float = 0.0,
        kinds: Sequence[FaultKind] = (FaultKind.REFUSED, FaultKind.LOST),
        operations: Iterable[str] | None = None,
        seed: int | None = None,
        delay_seconds: float = 0.01,
        clock: Clock | None = None,
    ) -> None:
        self.plan = list(plan)
        self._operations = frozenset(OPERATIONS if operations is None else operations)
        unknown = {*self._operations, *(f.operation for f in self.plan)} - {*OPERATIONS, "*"}
        if unknown:
            raise ConfigError(
                f"{min(unknown)!r} is no operation of a store; there are {', '.join(OPERATIONS)}"
            )
        if not 0 <= rate <= 1:
            raise ConfigError(f"rate must be from 0 to 1, not {rate!r}")
        self.store: Any = store
        self.rate = rate
        self.seed = random.SystemRandom().randrange(1 << 32) if seed is None else seed
        self.log: list[Injected] = []
        self.calls: dict[str, int] = {}
        self._kinds = tuple(kinds)
        self._random = random.Random(self.seed)
        self._delay_seconds = delay_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._go = threading.Event()

    def __repr__(self) -> str:
        return f"FaultyStore({self.store!r}, rate={self.rate}, seed={self.seed})"

    # The three that make it a store are written out: protocols are checked without __getattr__.

    def save(self, run_id: str, node_id: str, state: BaseModel) -> Any:
        """Keep a state, unless a fault comes between."""
        return self._call("save", run_id, node_id, state)

    def load(self, run_id: str, node_id: str) -> Any:
        """Return a state, unless a fault comes between."""
        return self._call("load", run_id, node_id)

    def delete(self, run_id: str) -> Any:
        """Remove a run, unless a fault comes between."""
        return self._call("delete", run_id)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.__dict__["store"], name)  # AttributeError where it has none
        if name not in OPERATIONS:
            return found

        def call(*args: Any, **kwargs: Any) -> Any:
            return self._call(name, *args, **kwargs)

        return call

    def let_go(self) -> None:
        """End every operation that hangs, now and from now on, with `StoreUnavailable`."""
        self._go.set()

    def stop(self) -> None:
        """Inject nothing more: no plan, no rate."""
        with self._lock:
            self.plan.clear()
            self.rate = 0.0

    def _call(self, operation: str, *args: Any, **kwargs: Any) -> Any:
        method = getattr(self.store, operation)
        kind = self._next_fault(operation)
        if inspect.iscoroutinefunction(method):
            return self._awaited(kind, operation, lambda: method(*args, **kwargs))
        if kind is None:
            return method(*args, **kwargs)
        self._before(kind, operation)
        return self._after(kind, operation, method(*args, **kwargs))

    def _next_fault(self, operation: str) -> FaultKind | None:
        with self._lock:
            number = self.calls[operation] = self.calls.get(operation, 0) + 1
            kind = self._planned(operation, number) or self._random_kind(operation)
            if kind is not None:
                self.log.append(Injected(operation, kind, number))
            return kind

    def _planned(self, operation: str, number: int) -> FaultKind | None:
        total = sum(self.calls.values())
        for fault in self.plan:
            if (fault.operation, fault.call) in ((operation, number), ("*", total)):
                self.plan.remove(fault)
                return fault.kind
        return None

    def _random_kind(self, operation: str) -> FaultKind | None:
        if not self.rate or operation not in self._operations:
            return None
        # Both are drawn each time, so that a seed gives the same faults whatever came before.
        chance, kind = self._random.random(), self._random.choice(self._kinds)
        return kind if chance < self.rate else None

    def _before(self, kind: FaultKind, operation: str) -> None:
        if kind is FaultKind.REFUSED:
            raise _refusal(operation)
        if kind is FaultKind.DELAYED:
            self._wait(self._delay_seconds)
        if kind is FaultKind.HANGS:
            self._go.wait()
            raise _refusal(operation)

    def _wait(self, seconds: float) -> None:
        advance: Callable[[float], None] | None = getattr(self._clock, "advance", None)
        if advance is not None:  # a sync store cannot await the clock's sleep
            advance(seconds)
        else:
            time.sleep(seconds)

    def _after(self, kind: FaultKind, operation: str, answer: Any) -> Any:
        if hasattr(answer, "__await__"):
            return self._lost_when_awaited(kind, operation, answer)
        if kind is FaultKind.LOST:
            raise _loss(operation)
        return answer

    async def _lost_when_awaited(self, kind: FaultKind, operation: str, answer: Any) -> Any:
        return self._after(kind, operation, await settled(answer))

    async def _awaited(
        self, kind: FaultKind | None, operation: str, call: Callable[[], Awaitable[Any]]
    ) -> Any:
        if kind is FaultKind.REFUSED:
            raise _refusal(operation)
        if kind is FaultKind.DELAYED:
            await self._sleep(self._delay_seconds)
        if kind is FaultKind.HANGS:
            while not self._go.is_set():  # noqa: ASYNC110 - let_go() may come from any thread
                await asyncio.sleep(0.005)
            raise _refusal(operation)
        answer = await call()
        if kind is FaultKind.LOST:
            raise _loss(operation)
        return answer

    async def _sleep(self, seconds: float) -> None:
        await (asyncio.sleep(seconds) if self._clock is None else self._clock.sleep(seconds))


def _refusal(operation: str) -> StoreUnavailable:
    return StoreUnavailable(f"{operation}: refused on purpose, nothing was done")


def _loss(operation: str) -> OutcomeUnknown:
    return OutcomeUnknown(f"{operation}: the reply was lost on purpose")
