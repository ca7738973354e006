"""The pipeline that the faults hit: a sequence, `parallel`, `fan_out`, retries and a budget.

Every call of a node is paid: it has an id of its own, which is reported as its model, so that
each record in the store tells which call it is of. What the nodes give depends on their input
alone, so that a run ends alike whatever happened on the way.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Iterable, Iterator
from contextvars import ContextVar
from typing import Any, Final

from pydantic import BaseModel

from stroma import (
    Estimate,
    ExecutionBudget,
    FailurePolicy,
    NodeHooks,
    Pipeline,
    StromaRunner,
    current,
    fan_out,
    node,
    parallel,
    report_usage,
)
from stroma.failures import FailureClass
from stroma.records import unique_id
from stroma.result import ExecutionResult
from stroma.scope import NodeScope
from tests.faults.sidelog import SideLog

ITEMS: Final = 4
CONCURRENCY: Final = 2
"""How many items of the `fan_out` are in flight at a time, and children of the `parallel`."""
TOKENS: Final = {
    "split": 3,
    "left": 5,
    "right": 7,
    "extract": 11,
    "join": 13,
}
FAILURE_TOKENS: Final = 2
"""What an attempt costs that fails after it was billed."""
RESERVED: Final = "reserved"
"""The model of what is reserved; the models of calls are their ids."""
RESERVED_BESIDE: Final = 4
"""How many tokens more are reserved than a call uses."""
PAID: Final = (
    *("split", "left", "right"),
    *(f"extract[{i}]" for i in range(ITEMS)),
    "join",
)
"""Every place of the pipeline that is paid for."""


class Order(BaseModel):
    """The input."""

    number: int = 7
    padding: str = ""


class Split(Order):
    """After the first node."""

    parts: list[Part] = []


class Part(BaseModel):
    """An item."""

    value: int


class Left(Split):
    """Of the child `left`."""

    left: int


class Right(Split):
    """Of the child `right`."""

    right: int


class Fact(BaseModel):
    """Of an item."""

    value: int


class Facts(BaseModel):
    """After the `fan_out`."""

    parts: list[Part]
    left: int
    right: int
    facts: list[Fact]


class Answer(BaseModel):
    """The output."""

    total: int


class Provider:
    """Whom the nodes pay, in this process. There is one at a time.

    Args:
        log: takes each call before and after.
        latency_seconds: how long a call takes.
        failures: whether some places fail at the first attempt of each start: `left` and the
            second item when they are billed, the third one before.
        slow: places that take `slow_seconds`.
        slow_seconds: see there.
    """

    def __init__(
        self,
        log: SideLog,
        *,
        latency_seconds: float = 0.002,
        failures: bool = True,
        slow: tuple[str, ...] = (),
        slow_seconds: float = 0.0,
    ) -> None:
        self.log = log
        self.latency_seconds = latency_seconds
        self.failures = failures
        self.slow = slow
        self.slow_seconds = slow_seconds

    async def call(self) -> None:
        """Be billed for the call that the caller runs in; some fail after that.

        Raises:
            TimeoutError: the first attempt of a place that fails.
        """
        scope = current()
        call = unique_id()
        is_first = self.failures and scope.attempt == 1
        if is_first and scope.path == "extract[2]":
            raise TimeoutError("the provider is not reached")
        fails = is_first and scope.path in ("left", "extract[1]")
        tokens = FAILURE_TOKENS if fails else TOKENS[scope.node_id]
        about: dict[str, Any] = {
            "path": scope.path,
            "call": call,
            "tokens": tokens,
            "epoch": scope.epoch,
            "attempt": scope.attempt,
        }
        self.log.write("begun", scope.run_id, **about)
        is_slow = scope.path in self.slow
        await asyncio.sleep(self.slow_seconds if is_slow else self.latency_seconds)
        self.log.write("answered", scope.run_id, **about)
        report_usage(input_tokens=tokens, model=call, cost_usd="0.001")
        if fails:
            raise TimeoutError("the provider took too long")


_employed: Provider | None = None
_provider: ContextVar[Provider | None] = ContextVar("provider", default=None)


def employ(provider: Provider) -> None:
    """Have the nodes of this process pay this provider from now on."""
    global _employed
    _employed = provider


@contextlib.contextmanager
def paying(provider: Provider) -> Iterator[Provider]:
    """Have the nodes of this task, and of those that it starts, pay this provider meanwhile."""
    token = _provider.set(provider)
    try:
        yield provider
    finally:
        _provider.reset(token)


async def _pay() -> None:
    provider = _provider.get() or _employed
    assert provider is not None, "nobody is there to be paid"
    await provider.call()


def _estimate(state: BaseModel, scope: NodeScope) -> Estimate:
    """Return more than a call uses, as estimators do."""
    return Estimate(TOKENS[scope.node_id] + RESERVED_BESIDE, model=RESERVED, cost_usd="0.002")


def _pipeline(**settings: Any) -> Pipeline:
    @node(**settings)
    async def split(state: Order) -> Split:
        await _pay()
        parts = [Part(value=state.number * i) for i in range(ITEMS)]
        return Split(**dict(state), parts=parts)

    @node(**settings)
    async def left(state: Split) -> Left:
        await _pay()
        return Left(**dict(state), left=state.number + 1)

    @node(**settings)
    async def right(state: Split) -> Right:
        await _pay()
        return Right(**dict(state), right=state.number + 2)

    @node(**settings)
    async def extract(part: Part) -> Fact:
        await _pay()
        return Fact(value=part.value + 100)

    @node(**settings)
    async def join(state: Facts) -> Answer:
        await _pay()
        return Answer(total=state.left + state.right + sum(fact.value for fact in state.facts))

    steps = [
        split,
        parallel(left, right, id="both"),
        fan_out(extract, over="parts", into="facts", max_concurrency=CONCURRENCY),
        join,
    ]
    return Pipeline("faults", steps, version="1")


PIPELINE: Final = _pipeline()
RESERVING: Final = _pipeline(estimate=_estimate)
"""The same, and each call is reserved before it is made."""


def answer_of(order: Order) -> Answer:
    """Return what a run without faults ends with."""
    facts = sum(order.number * i + 100 for i in range(ITEMS))
    return Answer(total=2 * order.number + 3 + facts)


class Acknowledgements(NodeHooks):
    """Writes down what the runner says is recorded."""

    def __init__(self, log: SideLog) -> None:
        self.log = log
        super().__init__()

    def on_node_success(self, run_id: str, path: str, state: object, tokens: int) -> None:  # type: ignore[override]
        scope = current()
        self._write("acknowledged", run_id, path, scope.usage.model, scope.epoch)

    def on_node_failure(
        self,
        run_id: str,
        path: str,
        exc: Exception,
        failure_class: FailureClass,  # type: ignore[override]
    ) -> None:
        scope = current()
        if scope.usage.tokens:
            self._write("charged", run_id, path, scope.usage.model, scope.epoch)

    def _write(self, event: Any, run_id: str, path: str, call: str, epoch: int) -> None:
        self.log.write(event, run_id, path=path, call=call, epoch=epoch)


def runner_of(
    store: object,
    log: SideLog,
    *,
    options: dict[str, Any] | None = None,
    lease_seconds: float = 60.0,
    budget_tokens: int | None = 100_000,
    save_retries: int = 12,
    seed: int = 0,
    **config: Any,
) -> StromaRunner:
    """Return a runner that retries quickly, and says what is recorded."""
    quick = FailurePolicy(max_retries=3, base_delay_seconds=0.001, max_delay_seconds=0.01)
    saves = FailurePolicy(max_retries=save_retries, base_delay_seconds=0.01, max_delay_seconds=0.5)
    return StromaRunner.quick(
        store=store,
        store_options=options,
        budget=ExecutionBudget(tokens=budget_tokens),
        policy_map={FailureClass.RECOVERABLE: quick},
        lease_seconds=lease_seconds,
        **{
            "hooks": Acknowledgements(log),
            "save_policy": saves,
            "random": random.Random(seed).random,
            **config,
        },
    )


def told(doubts: Iterable[Any]) -> list[list[Any]]:
    """Return attempts in doubt as the side log has them: path, tokens charged, and their model."""
    return [[doubt.path, doubt.charged.tokens, doubt.charged.model] for doubt in doubts]


def say_how_it_ended(log: SideLog, result: ExecutionResult) -> None:
    """Write down what `run()` returned."""
    final = result.final_state
    log.write(
        "ended",
        result.run_id,
        epoch=result.epoch,
        tokens=result.tokens,
        more={
            "status": str(result.status),
            "reason": result.stop_reason,
            "final": None if final is None else final.model_dump(),
            "in_doubt": told(result.in_doubt),
            "unsaved": list(result.unsaved),
        },
    )


@contextlib.asynccontextmanager
async def closing(runner: StromaRunner) -> AsyncIterator[StromaRunner]:
    """Close a runner whatever its store says to that."""
    try:
        yield runner
    finally:
        with contextlib.suppress(Exception):
            await runner.aclose()
