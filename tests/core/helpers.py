"""What the tests of the core share: a clock that does not wait, models, and a faulty store."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

from pydantic import BaseModel

from stroma import InMemoryStore, StromaRunner, node
from stroma.checkpoint import Capabilities, Durability
from stroma.level0 import AsyncPlainMethods


class Number(BaseModel):
    value: int = 0


class Text(BaseModel):
    text: str


class FakeClock:
    """A clock whose sleeps return at once, and are written down."""

    def __init__(self, at: float = 1_800_000_000.0) -> None:
        self.at = at
        self.sleeps: list[float] = []

    def now(self) -> float:
        return self.at

    def monotonic(self) -> float:
        return self.at

    async def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.at += seconds
        await asyncio.sleep(0)

    def advance(self, seconds: float) -> None:
        self.at += seconds


def make_runner(store: object = None, **options: Any) -> StromaRunner:
    """Return a runner whose delays cost no time, and are as long as they can be."""
    options.setdefault("clock", FakeClock())
    options.setdefault("random", lambda: 1.0)
    return StromaRunner.quick(store=InMemoryStore() if store is None else store, **options)


class Calls:
    """Makes nodes that count their calls and do what a script says.

    A script is a list: an exception is raised, anything else returned; the last entry holds for
    all calls after it. Without a script a node adds 1 to the value.
    """

    def __init__(self) -> None:
        self.made: Counter[str] = Counter()
        self.order: list[str] = []

    def __getitem__(self, node_id: str) -> int:
        return self.made[node_id]

    def node(self, node_id: str, *script: object, **options: Any) -> Callable[..., Any]:
        @node(id=node_id, input=Number, output=Number, **options)
        async def scripted(state: Number) -> object:
            self.made[node_id] += 1
            self.order.append(node_id)
            await asyncio.sleep(0)
            if not script:
                return {"value": state.value + 1}
            entry = script[min(self.made[node_id], len(script)) - 1]
            if isinstance(entry, BaseException):
                raise entry
            return entry(state) if callable(entry) else entry

        return scripted


class Done:
    """A fault that comes after the store has done what it was asked for."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


class FaultyStore(AsyncPlainMethods):
    """Keeps records in memory, says that it is durable, suspends, and fails when told to.

    ``faults[operation]`` is a list: None is a call that works, an exception is raised instead
    of doing it, and `Done(exception)` after doing it.
    """

    def __init__(self, durability: Durability = Durability.FSYNC) -> None:
        self.inner = InMemoryStore()
        self.calls: Counter[str] = Counter()
        self.faults: dict[str, list[Any]] = {}
        self.capabilities = Capabilities(durability)

    def fail(self, operation: str, *faults: object) -> None:
        self.faults.setdefault(operation, []).extend(faults)

    async def _do(self, operation: str, *args: object) -> Any:
        self.calls[operation] += 1
        planned = self.faults.get(operation)
        fault = planned.pop(0) if planned else None
        await asyncio.sleep(0)
        if isinstance(fault, BaseException):
            raise fault
        answer = getattr(self.inner, operation)(*args)
        await asyncio.sleep(0)
        if isinstance(fault, Done):
            raise fault.error
        return answer

    async def setup(self) -> Any:
        return await self._do("setup")

    async def open_run(self, request: Any) -> Any:
        return await self._do("open_run", request)

    async def commit_many(self, commits: Any) -> Any:
        return await self._do("commit_many", commits)

    async def fetch(self, run_id: str, keys: Any) -> Any:
        return await self._do("fetch", run_id, keys)

    async def renew(self, claims: Any, lease_ms: int) -> Any:
        return await self._do("renew", claims, lease_ms)

    async def release(self, run_id: str, token: str) -> Any:
        return await self._do("release", run_id, token)

    async def inspect(self, run_id: str) -> Any:
        return await self._do("inspect", run_id)

    async def claimable(self, query: Any) -> Any:
        return await self._do("claimable", query)

    async def delete(self, run_id: str) -> Any:
        return await self._do("delete", run_id)


async def stored(store: Any, run_id: str) -> Any:
    """Return what a store holds of a run, without claiming it."""
    found = store.inspect(run_id)
    return await found if asyncio.iscoroutine(found) else found


async def stored_run(store: Any, run_id: str) -> Any:
    """Return the record of a run."""
    found = await stored(store, run_id)
    return None if found is None else found.run
