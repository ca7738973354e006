"""Whatever happens to calls, workers and stores: what was billed is recorded or in doubt.

Runs with random faults go through many starts beside a provider that knows the truth. The seed is
in the name of each test.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from pydantic import BaseModel

from stroma import (
    BudgetExceeded,
    Estimate,
    FailurePolicy,
    InDoubt,
    NodeHooks,
    OutcomeUnknown,
    RunStatus,
    StoreUnavailable,
    StromaRunner,
    current,
    fan_out,
    node,
    parallel,
    report_usage,
)
from stroma.errors import StoreError
from stroma.failures import FailureClass
from tests.core.helpers import Done, FakeClock, FaultyStore, Number

MOST = 10
"""Tokens that a call bills at the most, as it is estimated."""
ITEMS = 4


class Died(BaseException):
    """The process ends here."""


class Items(BaseModel):
    items: list[Number]


class Call(NamedTuple):
    """A call as the provider knows it.

    Attributes:
        epoch: of the run, when it was made.
        path: the node's place.
        reserved: number of the call there, if it was reserved.
        tokens: what it bills.
    """

    epoch: int
    path: str
    reserved: int
    tokens: int


class Mortal:
    """A store as one process sees it, of which nothing is heard any more once that is dead."""

    def __init__(self, store: FaultyStore) -> None:
        self._store = store
        self.capabilities = store.capabilities
        self.is_dead = False

    def __getattr__(self, name: str) -> Any:
        operation = getattr(self._store, name)
        if not callable(operation):
            return operation

        async def call(*args: Any) -> Any:
            if self.is_dead:
                raise StoreUnavailable("the process is dead")
            return await operation(*args)

        return call


class World:
    """A provider, a store and a run between them, all of it with the faults of one seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.stops = self.random.random() < 0.4
        self.has_estimates = self.stops or self.random.random() < 0.8
        self.budget = self.random.choice([None, 60, 150, 1000])
        self.store = FaultyStore()
        self.calls: list[Call] = []
        self.resolved: dict[int, bool] = {}
        self.silent: set[str] = set()
        self.is_calm = False
        self.process: Mortal | None = None
        self.running: asyncio.Task[Any] | None = None

    # -- the provider ------------------------------------------------------------------------

    async def work(self, state: Number) -> Any:
        scope, chance = current(), self.random
        number, tokens = len(self.calls), chance.randrange(1, MOST + 1)
        call = Call(scope.epoch, scope.path, scope._reserved, tokens)
        if self.stops:
            before = [c for c in self.unknown() if (c.epoch, c.path) == (call.epoch, call.path)]
            assert not before, f"{call} is made, and nobody knows what became of {before}"
        self.calls.append(call)
        fate = "answer" if self.is_calm else chance.choice(FATES)
        if chance.random() < 0.5:
            await asyncio.sleep(0)
        if fate == "fail":
            report_usage(input_tokens=tokens)
            raise ConnectionError(f"call {number}")
        if fate == "misfit":
            return {"value": f"call {number}"}, tokens
        if fate == "slow":
            await asyncio.sleep(60)
        if fate == "hide":
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                raise ValueError("closed") from None
        if fate == "cancel":
            assert self.running is not None
            self.running.cancel()
            await asyncio.sleep(60)
        if fate == "die":
            self.die()
        return {"value": number}, tokens

    def die(self) -> None:
        assert self.process is not None
        self.process.is_dead = True
        raise Died

    # -- the run -----------------------------------------------------------------------------

    def nodes(self) -> list[Any]:
        options: dict[str, Any] = {
            "input": Number,
            "output": Number,
            "timeout_ms": 20,
            "on_violation": "resample",
            "max_resamples": 50,
        }
        if self.has_estimates:
            options["estimate"] = Estimate(input_tokens=MOST)
        if self.stops:
            options["on_in_doubt"] = "stop"
        made = {name: node(id=name, **options)(self._copy()) for name in ("a", "b", "c", "item")}

        @node(id="split", input=Number, output=Items)
        async def split(state: Number) -> Items:
            return Items(items=[Number(value=i) for i in range(ITEMS)])

        each = fan_out(made["item"], over="items", into="done", max_concurrency=3)
        return [made["a"], parallel(made["b"], made["c"]), split, each]

    def _copy(self) -> Callable[[Number], Any]:
        async def work(state: Number) -> Any:
            return await self.work(state)

        return work

    def disturb(self) -> None:
        """Plan the faults of the store, and of the hooks, for one start."""
        faults: list[object] = []
        for _ in range(40):
            error = self.random.choice([StoreUnavailable("down"), OutcomeUnknown("lost")])
            faults += self.random.choice(
                [[None]] * 12 + [[error], [Done(error)], [error] * 7, [Done(error)] * 7]
            )
        self.store.faults["commit_many"] = [] if self.is_calm else faults

    def runner(self, store: object, **options: Any) -> StromaRunner:
        recoverable = FailurePolicy(max_retries=1, base_delay_seconds=0.01)
        return StromaRunner.quick(
            store=store,
            clock=FakeClock(),
            random=lambda: 1.0,
            policy_map={FailureClass.RECOVERABLE: recoverable},
            **options,
        ).with_budget(tokens=self.budget)

    async def start(self) -> Any:
        """Start the run once, and return its result, or None if it had none."""
        self.disturb()
        self.process = process = Mortal(self.store)

        def tell(run_id: str, path: str, state: dict[str, Any]) -> None:
            if not self.is_calm and self.random.random() < 0.02:
                assert self.running is not None
                self.running.cancel()

        runner = self.runner(process, hooks=NodeHooks(on_node_start=tell))
        again = "a" if self.random.random() < 0.1 and not self.is_calm else None
        if self.store.inner.inspect("r") is None:
            again = None
        started = runner.run(self.nodes(), Number(), run_id="r", resume_from=again)
        self.running = asyncio.create_task(started)
        cancelling = asyncio.create_task(self.cancel_somewhere(self.running))
        result = None
        await asyncio.wait([self.running], timeout=20)
        assert self.running.done(), "it hangs"
        with contextlib.suppress(asyncio.CancelledError, BaseExceptionGroup, Died, StoreError):
            result = self.running.result()
        await cancelling
        self.store.faults.clear()
        could_say = self.let_lease_end()
        if result is not None and could_say and "nothing was run" not in result.stop_reason:
            self.check(result.in_doubt, result.tokens)
        return result

    async def cancel_somewhere(self, running: asyncio.Task[Any]) -> None:
        """Cancel the run at any of its steps, and at times once more soon after that."""
        if self.is_calm or self.random.random() < 0.7:
            return
        for most in (200, 5)[: self.random.choice([1, 2])]:
            for _ in range(self.random.randrange(most)):
                await asyncio.sleep(0)
            running.cancel()

    def let_lease_end(self) -> bool:
        """Give the run up for a process that could not, and say whether it could."""
        found = self.store.inner.inspect("r")
        if found is None or not found.run.owner:
            return True
        self.silent.add(found.run.owner)
        self.store.inner.release("r", found.run.owner)
        return False

    async def settle(self, doubts: tuple[InDoubt, ...]) -> None:
        """Look calls in doubt up at the provider, and say what became of them."""
        runner = self.runner(self.store)
        for doubt in doubts:
            place = (doubt.path, doubt.attempt)
            made = [i for i, c in enumerate(self.calls) if (c.path, c.reserved) == place]
            if not made:
                say: dict[str, Any] = {"outcome": "never_made"}
            else:
                (number,) = made
                say = {"outcome": "lost", "input_tokens": self.calls[number].tokens}
                if (
                    self.calls[number].epoch == self.epoch()
                    and self.stops
                    and self.random.random() < 0.5
                ):
                    say |= {"outcome": "answered", "output": {"value": number}}
                self.resolved[number] = say["outcome"] == "lost"
            self.store.fail("commit_many", *self.random.choice(RESOLVING))
            await runner.resolve(self.nodes(), "r", doubt.path, attempt=doubt.attempt, **say)
            self.store.faults.clear()

    # -- the truth ---------------------------------------------------------------------------

    def recorded(self) -> set[int]:
        """Return the numbers of the calls whose outcome is in the store."""
        found = self.store.inner.inspect("r")
        numbers: set[int] = set()
        if found is None:
            return numbers
        records = self.store.inner.fetch("r", [h.key for h in found.headers])
        for record in records:
            assert record is not None
            header, document = record.header, json.loads(record.payload)
            if header.contract_id not in ("a", "b", "c", "item"):
                continue
            if header.kind == "result":
                numbers.add(document["value"])
            elif "output" in document and "value" in document["output"]:
                numbers.add(int(document["output"]["value"].split()[1]))
            elif document.get("message", "").startswith("call "):
                numbers.add(int(document["message"].split()[1]))
        return numbers

    def epoch(self) -> int:
        found = self.store.inner.inspect("r")
        return 0 if found is None else found.run.epoch.number

    def unknown(self) -> list[Call]:
        """Return the calls of which nobody here knows what became of them."""
        known = self.recorded() | set(self.resolved)
        return [call for number, call in enumerate(self.calls) if number not in known]

    def unmade(self) -> list[tuple[str, int]]:
        """Return reservations whose processes ended before the call, and could not say so."""
        found = self.store.inner.inspect("r")
        assert found is not None
        settled = {h.key._replace(kind="reserved") for h in found.headers if h.kind != "reserved"}
        made = {(call.epoch, call.path, call.reserved) for call in self.calls}
        return [
            (h.path, h.attempt)
            for h in found.headers
            if h.kind == "reserved"
            and h.key not in settled
            and (h.epoch, h.path, h.attempt) not in made
            and h.commit_id.rpartition(".")[0] in self.silent
        ]

    def check(self, in_doubt: tuple[InDoubt, ...], spent: int) -> None:
        """Compare what a start tells with what the provider and the store know."""
        billed = self.recorded() | {n for n, is_lost in self.resolved.items() if is_lost}
        charged = sum(doubt.charged.tokens for doubt in in_doubt)
        assert spent == charged + sum(self.calls[number].tokens for number in billed)
        if not self.has_estimates:
            return
        listed = sorted((doubt.path, doubt.attempt) for doubt in in_doubt)
        truth = [(call.path, call.reserved) for call in self.unknown()]
        assert listed == sorted(truth + self.unmade())
        assert all(doubt.charged.tokens == MOST for doubt in in_doubt)
        if self.budget is not None:
            assert sum(call.tokens for call in self.calls) <= self.budget


FATES = ["answer"] * 8 + ["fail", "misfit", "slow", "hide", "cancel", "die"]
RESOLVING: list[list[object]] = [
    [],
    [StoreUnavailable("down")],
    [OutcomeUnknown("lost")],
    [Done(OutcomeUnknown("lost"))],
]


@pytest.mark.parametrize("seed", range(25))
async def test_what_was_billed_is_recorded_or_in_doubt(seed: int) -> None:
    world = World(seed)
    for start in range(12):
        world.is_calm = start > 8
        result = await world.start()
        if result is not None and world.has_estimates and world.random.random() < 0.5:
            await world.settle(result.in_doubt)
    world.is_calm = True
    while (result := await world.start()).status is RunStatus.WAITING:
        await world.settle(result.in_doubt)
    assert result.is_complete or isinstance(result.error, BudgetExceeded)
