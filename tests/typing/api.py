"""What a user would write, for two type checkers; it is never run."""

from __future__ import annotations

from collections.abc import MutableMapping
from decimal import Decimal
from typing import Any, assert_type

from pydantic import BaseModel

import stroma
from stroma import (
    AsyncInMemoryStore,
    AttemptEnd,
    AttemptStart,
    BudgetDetails,
    CheckpointManager,
    CheckpointStore,
    Classifier,
    ContractRegistry,
    Estimate,
    ExecutionBudget,
    ExecutionResult,
    ExecutionTrace,
    FailureClass,
    FailurePolicy,
    FailureVerdict,
    InMemoryStore,
    NodeContext,
    NodeContract,
    NodeHooks,
    NodeScope,
    Pipeline,
    Price,
    PriceTable,
    RetryDetails,
    RunConfig,
    RunInterrupted,
    RunOpening,
    RunStart,
    RunStatus,
    StepEnd,
    StepStart,
    StromaRunner,
    TraceDifference,
    TraceEvent,
    TraceOptions,
    Usage,
    current,
    fan_out,
    node,
    parallel,
    report_usage,
    stroma_node,
)
from stroma_postgres import PostgresStore
from stroma_redis import RedisStore, SyncRedisStore
from stroma_s3 import S3Store


class Document(BaseModel):
    text: str
    chunks: list[str] = []


class Summary(BaseModel):
    summary: str


# -- nodes -----------------------------------------------------------------------------------


@node
async def summarize(state: Document) -> Summary:
    report_usage(input_tokens=10, output_tokens=2, model="gpt-4o", cost_usd=Decimal("0.01"))
    scope = current()
    assert_type(scope.attempt, int)
    assert_type(scope.item, int | None)
    assert_type(scope.idempotency_key, str)
    assert_type(scope.budget_left, ExecutionBudget)
    return Summary(summary=state.text)


@node(id="short", output=Summary, timeout_ms=500, model="gpt-4o", policy=FailurePolicy())
def shorten(state: Document, ctx: MutableMapping[str, object]) -> dict[str, str]:
    return {"summary": state.text[:10] + str(ctx.get("_stroma_model"))}


@node
async def counted(state: Document) -> tuple[Summary, int, int, str]:
    return Summary(summary=state.text), 10, 2, "gpt-4o"


contract = NodeContract(node_id="plain", input_schema=Document, output_schema=Summary)


@stroma_node("plain", contract)
async def plain(state: Document) -> dict[str, str]:
    return {"summary": state.text}


async def decorated_functions_keep_their_types() -> None:
    assert_type(await summarize(Document(text="x")), Summary)
    assert_type(shorten(Document(text="x"), {}), dict[str, str])
    assert_type(await counted(Document(text="x")), tuple[Summary, int, int, str])
    assert_type(await plain(Document(text="x")), dict[str, str])


# -- runners ---------------------------------------------------------------------------------


def classify(exc: Exception, ctx: NodeContext) -> FailureClass | FailureVerdict | None:
    if "429" in str(exc):
        return FailureVerdict(FailureClass.RECOVERABLE, "rate_limit", retry_after_seconds=2.5)
    return FailureClass.TERMINAL if ctx.attempt > 2 else None


classifier: Classifier = classify


def my_prices(model: str, input_tokens: int, output_tokens: int) -> Price | None:
    return Price(Decimal(1), Decimal(2), "contract of May") if model == "mine" else None


async def started(run_id: str, node_id: str, state: dict[str, Any]) -> None: ...


def succeeded(run_id: str, node_id: str, state: dict[str, Any], tokens: int) -> None: ...


def failed(run_id: str, node_id: str, exc: Exception, failure_class: FailureClass) -> None: ...


def run_started(start: RunStart) -> None:
    assert_type(start.recorded, tuple[str, ...])


async def run_ended(result: ExecutionResult) -> None: ...


def retried(details: RetryDetails) -> None: ...


def budget(details: BudgetDetails) -> None: ...


def run_opened(opening: RunOpening) -> None:
    assert_type(opening.is_new, bool)


def run_interrupted(interrupted: RunInterrupted) -> None:
    assert_type(interrupted.error, BaseException)


async def step_started(start: StepStart) -> None: ...


async def step_ended(end: StepEnd) -> None: ...


def attempt_started(start: AttemptStart) -> None: ...


def attempt_ended(end: AttemptEnd) -> None:
    assert_type(end.retry_delay_seconds, float | None)


hooks = NodeHooks(
    on_node_start=started,
    on_node_success=succeeded,
    on_node_failure=failed,
    on_run_start=run_started,
    on_run_end=run_ended,
    on_retry=retried,
    on_budget=budget,
    on_run_open=run_opened,
    on_run_interrupted=run_interrupted,
    on_step_start=step_started,
    on_step_end=step_ended,
    on_attempt_start=attempt_started,
    on_attempt_end=attempt_ended,
    name="metrics",
    is_active=lambda: True,
    trace_parent=lambda run_id: "",
)


def most(state: Document, call: NodeScope) -> Estimate | None:
    assert_type(call.model, str)
    return Estimate(len(state.text), 200, "gpt-4o") if state.text else None


def mend(raw: dict[str, Any], violation: stroma.ContractViolation) -> Summary:
    return Summary(summary=raw["sumary"])


@node(estimate=most, repair=mend, on_violation="resample", max_resamples=2)
async def careful(state: Document) -> Summary:
    return Summary(summary=state.text)


@node(estimate=Estimate(cost_usd="0.25"), on_in_doubt="stop")
async def once(state: Summary) -> Summary:
    return state


runner = (
    StromaRunner.quick(
        store=InMemoryStore(),
        budget=ExecutionBudget(tokens=1000),
        policy_map={FailureClass.RECOVERABLE: FailurePolicy(max_retries=5)},
        classifiers=[classify],
        hooks=hooks,
        tags=("nightly",),
    )
    .with_budget(tokens=100_000, cost_usd=2.00, latency_ms=120_000)
    .with_model_fallback("gpt-4o", to="gpt-4o-mini", at_budget_pct=0.5)
    .with_classifiers([classify])
    .with_hooks([hooks])
    .with_context({"model": "gpt-4o", "cache": {}})
    .with_policy_map({FailureClass.AMBIGUOUS: FailurePolicy(max_retries=2)})
    .with_node_policies({"short": FailurePolicy(max_retries=0)})
    .with_node_timeouts({"short": 250})
    .with_pricers([my_prices, PriceTable({"mine": ("1", 2.5)}, source="invoice")])
    .with_estimator(most)
    .with_options(trace=TraceOptions(preview_bytes=100, redact=frozenset({"text"})))
    .with_store("sqlite", path="runs.db")
)
assert_type(runner, StromaRunner)


@runner.node("local", input=Document, output=Summary)
async def local(state: Document) -> dict[str, str]:
    return {"summary": state.text}


registry = ContractRegistry()
registry.register(contract)
manual = StromaRunner(
    registry,
    CheckpointManager(AsyncInMemoryStore()),
    RunConfig(run_id="r", resume_from="plain", budget=ExecutionBudget(cost_usd=Decimal(1))),
)


# -- runs ------------------------------------------------------------------------------------


async def runs() -> None:
    digest = Pipeline(
        "digest",
        [
            summarize,
            shorten,
            parallel(plain, local),
            fan_out(summarize, over="chunks", into="parts", max_concurrency=5, id="each"),
        ],
        version="3",
        upcasters={"summarize": lambda old: {"summary": old["title"]}},
    )
    async with runner:
        result = await runner.run(digest, Document(text="x"), run_id="r")
        await runner.run(digest, {"text": "x"}, run_id="r", restart=True)
        await runner.run(digest, run_id="r", resume=True)
        await runner.run(digest, run_id="r", resume_from="short")
        await runner.resolve(digest, "r", "short", outcome="lost", cost_usd=0.5)
        await runner.resolve([once], "r", "once", outcome="answered", output=Summary(summary="x"))
        assert_type([doubt.charged for doubt in result.in_doubt], list[Usage])
        await manual.run([plain, summarize], Document(text="x"))
    assert_type(result, ExecutionResult)
    assert_type(result.status, RunStatus)
    assert_type(result.final_state, BaseModel | None)
    assert_type(result.trace, ExecutionTrace)
    assert_type(result.trace.failures(), list[TraceEvent])
    assert_type(result.trace.diff(result.trace), list[TraceDifference])
    assert_type(result.usage["short"], Usage)
    assert_type(result.cost_usd, Decimal)
    assert_type(result.spent.tokens, int)
    assert_type(result.error, Exception | None)
    if result.status is RunStatus.PARTIAL and isinstance(result.error, stroma.BudgetExceeded):
        print(result.error.limit)
    try:
        runner.run_sync([local], Document(text="x"), run_id="r")
    except stroma.RunLocked as locked:
        assert_type(locked.until_seconds, float)
    except stroma.SchemaMismatch as mismatch:
        assert_type(mismatch.changes, tuple[str, ...])


# -- stores ----------------------------------------------------------------------------------


class OwnStore:
    """A store of level 0 needs no base class."""

    def save(self, run_id: str, node_id: str, state: BaseModel) -> None: ...

    def load(self, run_id: str, node_id: str) -> BaseModel | None: ...

    def delete(self, run_id: str) -> None: ...


own: CheckpointStore = OwnStore()


async def stores() -> None:
    store = InMemoryStore()
    store.save("run-1", "node-1", Summary(summary="x"))
    assert_type(store.load("run-1", "node-1"), BaseModel | None)
    assert_type(store.load_typed("run-1", "node-1", Summary), Summary | None)
    manager = CheckpointManager(OwnStore())
    await manager.checkpoint("run-1", "node-1", Summary(summary="x"))
    assert_type(await manager.resume("run-1", "node-1", Summary), Summary | None)
    lasting = stroma.SQLiteStore("runs.db")
    await lasting.save("run-1", "node-1", Summary(summary="x"))
    assert_type(await lasting.load_typed("run-1", "node-1", Summary), Summary | None)


async def stores_on_servers() -> None:
    shared = (RedisStore("redis://localhost"), PostgresStore("postgresql://localhost"))
    for store in (*shared, S3Store(bucket="runs")):
        await store.save("run-1", "node-1", Summary(summary="x"))
        assert_type(await store.load_typed("run-1", "node-1", Summary), Summary | None)
    SyncRedisStore().save("run-1", "node-1", Summary(summary="x"))


# -- workers ---------------------------------------------------------------------------------


async def workers() -> None:
    runner = StromaRunner.quick(store="sqlite:///runs.db")
    pipeline = Pipeline("digest", [local], version="2", accepts=["1"], runner=runner)
    submitted = await pipeline.submit(Document(text="x"), run_id="r", tags=["nightly"])
    assert_type(submitted, stroma.Submitted)
    assert_type(submitted.status, RunStatus)
    assert_type(await runner.submit(pipeline, {"text": "x"}), stroma.Submitted)
    done = await stroma.recover(pipeline, limit=10, concurrency=2)
    assert_type(done.results, tuple[ExecutionResult, ...])
    for left in done.left_alone:
        assert_type(left.reason, str)
    worker = stroma.Worker(pipeline, store="sqlite:///runs.db", health="127.0.0.1:8080")
    await worker.run()
    worker.stop()
    worker.cancel()
