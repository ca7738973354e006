"""Runs that hooks are looked at in, and what can be seen of a run from outside."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final, TypeAlias, TypeVar, cast

from pydantic import BaseModel

from stroma.checkpoint import CheckpointManager
from stroma.contracts import ContractRegistry
from stroma.cost import ExecutionBudget, ModelFallback
from stroma.failures import error_text
from stroma.hooks import NodeHooks
from stroma.nodes import NodeLike, fan_out, node, parallel
from stroma.result import ExecutionResult
from stroma.run_config import changed_config
from stroma.runner import StromaRunner
from stroma.stores.memory import InMemoryStore
from stroma.testing._watch import installed_plugins
from stroma.testing.clock import FakeClock
from stroma.trace import ExecutionTrace

T = TypeVar("T")
MODEL: Final = "gpt-4o"
_CHEAPER: Final = "gpt-4o-mini"


class Number(BaseModel):
    """The state of most runs."""

    value: int = 0
    seen: list[str] = []


class Batch(BaseModel):
    """A state with items."""

    items: list[Number]


@dataclass
class Outcome:
    """What can be seen of one `run()`.

    Attributes:
        facts: what is to be equal with and without hooks, by name.
        trace: what happened.
    """

    facts: dict[str, object]
    trace: ExecutionTrace | None = None


@dataclass
class Stage:
    """A store, a clock, and scripted nodes; a run of them is observed.

    Attributes:
        hooks: what runs are given.
        run_id: the id of the run.
        outcomes: what was seen of each start of it.
        calls: how often each node was called.
        task: the start that is under way.
    """

    hooks: Sequence[NodeHooks] = ()
    run_id: str = "the run"
    outcomes: list[Outcome] = field(default_factory=list[Outcome])
    calls: Counter[str] = field(default_factory=Counter[str])
    store: InMemoryStore = field(default_factory=InMemoryStore)
    task: asyncio.Task[ExecutionResult] | None = None

    def node(self, node_id: str, *script: object, **options: Any) -> NodeLike:
        """Return a node that raises or returns what the script says at each call.

        The last entry holds for all calls after it. A function is called, and awaited.
        """

        @node(id=node_id, input=Number, output=Number, **options)
        async def scripted(state: Number) -> object:
            self.calls[node_id] += 1
            for _ in range(3):  # so that runs side by side take turns
                await asyncio.sleep(0)
            entry = script[min(self.calls[node_id], len(script)) - 1] if script else None
            if isinstance(entry, BaseException):
                raise entry
            if callable(entry):
                await cast("Callable[[], Awaitable[None]]", entry)()
            if entry is None or callable(entry):
                return {"value": state.value + 1, "seen": [*state.seen, node_id]}
            return entry

        return scripted

    def sync_node(self, node_id: str) -> NodeLike:
        """Return a node that runs in a thread."""

        @node(id=node_id, input=Number, output=Number)
        def counted(state: Number) -> Number:
            self.calls[node_id] += 1
            return Number(value=state.value + 1)

        return counted

    def start(self, *nodes: NodeLike, **options: object) -> asyncio.Task[ExecutionResult]:
        """Start the run, or continue it, in a task of its own."""
        made: dict[str, object] = {
            "clock": FakeClock(auto_advance=True),
            "random": lambda: 0.5,
            "hooks": list(self.hooks),
            "disabled_plugins": installed_plugins(),
        }
        config = changed_config(None, {**made, **options})
        runner = StromaRunner(ContractRegistry(), CheckpointManager(self.store), config)
        running = runner.run(list(nodes), Number(), run_id=self.run_id)
        self.task = asyncio.get_running_loop().create_task(running)
        return self.task

    async def end(self) -> None:
        """Wait for the run, and note what can be seen of it."""
        assert self.task is not None
        await asyncio.wait({self.task})
        self.outcomes.append(self._outcome(self.task))

    async def run(self, *nodes: NodeLike, **options: object) -> None:
        """Run to the end."""
        self.start(*nodes, **options)
        await self.end()

    def _outcome(self, task: asyncio.Task[ExecutionResult]) -> Outcome:
        facts: dict[str, object] = {"what was called": dict(sorted(self.calls.items()))}
        facts.update(self._stored())
        if task.cancelled():
            return Outcome({"what left run()": "CancelledError", **facts})
        error = task.exception()
        if error is not None:
            return Outcome({"what left run()": f"{type(error).__name__}: {error}", **facts})
        result = task.result()
        return Outcome({"what left run()": "a result", **facts, **_seen_of(result)}, result.trace)

    def _stored(self) -> dict[str, object]:
        found = self.store.inspect(self.run_id)
        if found is None:
            return {"what is stored": None}
        run = found.run
        keys = sorted(header.key for header in found.headers)
        records = self.store.fetch(self.run_id, keys)
        return {
            "stored status": (run.status, run.stop_reason, bool(run.owner)),
            "stored spend": run.spend,
            "stored plan": run.plan,
            "stored epochs": run.epochs,
            "stored records": [
                (record.header.key, record.header.usage, record.payload)
                for record in records
                if record is not None
            ],
        }


def _seen_of(result: ExecutionResult) -> dict[str, object]:
    state, error = result.final_state, result.error
    return {
        "status": str(result.status),
        "final state": None if state is None else state.model_dump(),
        "stop reason": result.stop_reason,
        "error": None if error is None else (type(error).__name__, error_text(error)),
        "usage": dict(result.usage),
        "spend": (result.spent, result.spent_before),
        "skipped nodes": result.skipped,
        "attempts in doubt": sorted(result.in_doubt),
        "outputs that are not saved": sorted(result.unsaved),
        "run id": result.run_id,
        "epoch": result.epoch,
    }


def differences(stage: Stage, other: Stage) -> list[str]:
    """Return how one stage's runs went differently from another's, as sentences."""
    found: list[str] = []
    for here, there in zip(stage.outcomes, other.outcomes, strict=True):
        for name in dict.fromkeys([*here.facts, *there.facts]):
            mine, theirs = here.facts.get(name), there.facts.get(name)
            if mine != theirs:
                found.append(f"{name}: {mine!r}, and without them {theirs!r}")
        if here.trace is not None and there.trace is not None:
            found += [f"trace: {each}" for each in there.trace.diff(here.trace)]
    return found


# -- the runs ------------------------------------------------------------------------------


async def _success(stage: Stage) -> None:
    await stage.run(stage.node("a"), stage.sync_node("b"), stage.node("c", ({"value": 9}, 5)))


async def _retry(stage: Stage) -> None:
    slow = TimeoutError("slow")
    await stage.run(stage.node("a", slow, slow, ({"value": 1}, 7)), stage.node("b"))


async def _failure(stage: Stage) -> None:
    await stage.run(stage.node("a"), stage.node("b", TypeError("wrong")), stage.node("c"))


async def _out_of_retries(stage: Stage) -> None:
    await stage.run(stage.node("a", ConnectionError("gone")))


async def _violation(stage: Stage) -> None:
    await stage.run(stage.node("a", {"value": "no number"}))


async def _fallback(stage: Stage) -> None:
    used = ({"value": 1}, 60, 30, MODEL)
    rule = ModelFallback(model=MODEL, to=_CHEAPER, at_budget_pct=0.5)
    await stage.run(
        stage.node("a", used),
        stage.node("b", used),
        budget=ExecutionBudget(tokens=1000, cost_usd=Decimal("0.0008")),
        model_fallbacks=(rule,),
    )


async def _budget_stop(stage: Stage) -> None:
    nodes = [stage.node("a", ({"value": 1}, 10)), stage.node("b")]
    await stage.run(*nodes, budget=ExecutionBudget(tokens=5))
    await stage.run(*nodes, budget=ExecutionBudget(tokens=50))


async def _cancelled(stage: Stage) -> None:
    reached = asyncio.Event()
    nodes = [stage.node("a"), stage.node("b", _until_cancelled(reached), None), stage.node("c")]
    task = stage.start(*nodes)
    await _either(reached.wait(), task)
    task.cancel()
    await stage.end()
    await stage.run(*nodes)


async def _parallel(stage: Stage) -> None:
    group = parallel(stage.node("a", TimeoutError("slow"), None), stage.node("b"), id="both")
    await stage.run(group, stage.node("c"))


async def _failing_sibling(stage: Stage) -> None:
    reached = asyncio.Event()

    async def fail() -> None:
        await reached.wait()
        raise TypeError("wrong")

    waits = stage.node("b", _until_cancelled(reached), None)
    group = parallel(stage.node("a", fail, None), waits, id="both")
    await stage.run(group)
    await stage.run(group)


async def _fan_out(stage: Stage) -> None:
    @node(id="make", input=Number, output=Batch)
    async def make(state: Number) -> Batch:
        return Batch(items=[Number(value=n) for n in range(4)])

    @node(id="each", input=Number, output=Number)
    async def each(state: Number) -> Number:
        stage.calls[f"each {state.value}"] += 1
        await asyncio.sleep(0)
        if state.value == 2 and stage.calls["each 2"] == 1:
            raise TimeoutError("slow")
        return Number(value=state.value * 10)

    await stage.run(make, fan_out(each, over="items", into="done", max_concurrency=2))


async def _resume(stage: Stage) -> None:
    nodes = [stage.node("a"), stage.node("b", TypeError("wrong"), None), stage.node("c")]
    for _ in range(3):  # it fails, goes on, and is complete already
        await stage.run(*nodes)


def _until_cancelled(reached: asyncio.Event) -> Callable[[], Awaitable[None]]:
    async def wait() -> None:
        reached.set()
        await asyncio.get_running_loop().create_future()

    return wait


async def _either(first: Coroutine[Any, Any, object], task: asyncio.Task[Any]) -> None:
    waiting = asyncio.ensure_future(first)
    await asyncio.wait({waiting, task}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()


Scenario: TypeAlias = Callable[[Stage], Coroutine[Any, Any, None]]
SCENARIOS: Final[Mapping[str, Scenario]] = {
    "success": _success,
    "retry": _retry,
    "failure": _failure,
    "out of retries": _out_of_retries,
    "violation": _violation,
    "fallback": _fallback,
    "budget stop": _budget_stop,
    "cancelled": _cancelled,
    "parallel": _parallel,
    "failing sibling": _failing_sibling,
    "fan out": _fan_out,
    "resume": _resume,
}


def in_a_loop(work: Callable[[], Coroutine[Any, Any, T]], seconds: float) -> T:
    """Run a coroutine in an event loop of its own, in a thread, and return its result.

    Raises:
        AssertionError: it did not end in time, or an exception left the event loop.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def body() -> None:
        try:
            results.append(asyncio.run(work()))
        except BaseException as exc:
            errors.append(exc)

    context = contextvars.copy_context()
    thread = threading.Thread(target=context.run, args=(body,), daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise AssertionError(
            f"the runs did not end within {seconds:g} s: a callback blocks the event loop, or "
            "waits for what never comes"
        )
    if errors and isinstance(errors[0], AssertionError):
        raise errors[0]
    if errors:
        raise AssertionError(f"{type(errors[0]).__name__} left the event loop") from errors[0]
    return results[0]


def observed(scenario: Scenario, hooks: Sequence[NodeHooks], seconds: float) -> Stage:
    """Return what is seen of a scenario with these hooks."""
    stage = Stage(hooks)
    in_a_loop(lambda: scenario(stage), seconds)
    return stage
