"""The page about extending: a store, classifiers, spans by hooks, and all of them together."""

import asyncio
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Span, StatusCode, Tracer
from pydantic import BaseModel

from stroma import (
    AsyncCheckpointStore,
    CheckpointManager,
    Classifier,
    ContractRegistry,
    ExecutionBudget,
    FailureClass,
    FailurePolicy,
    NodeContext,
    NodeContract,
    RunConfig,
    StromaRunner,
    stroma_node,
)
from stroma.checkpoint import _resolve_schema, _schema_ref
from stroma.runner import NodeHooks
from tests.servers.redis import REDIS, shared_server


class Question(BaseModel):
    text: str


class Answer(BaseModel):
    text: str


NO_WAIT = {
    FailureClass.RECOVERABLE: FailurePolicy(max_retries=5, base_delay_seconds=0),
    FailureClass.AMBIGUOUS: FailurePolicy(max_retries=0),
}


# -- a store -----------------------------------------------------------------------------------


class SqlStore:
    """States in a table, with the reference of their schema; the page's, on another database."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._execute(
            "CREATE TABLE IF NOT EXISTS checkpoints (run_id TEXT, node_id TEXT, state TEXT, "
            "schema_ref TEXT, PRIMARY KEY (run_id, node_id))"
        )

    def _execute(self, sql: str, *values: object) -> list[Any]:
        connection = sqlite3.connect(self._path)
        try:
            with connection:
                return connection.execute(sql, values).fetchall()
        finally:
            connection.close()

    async def save(self, run_id: str, node_id: str, state: BaseModel) -> None:
        await asyncio.to_thread(
            self._execute,
            "INSERT INTO checkpoints VALUES (?, ?, ?, ?) ON CONFLICT (run_id, node_id) "
            "DO UPDATE SET state = excluded.state, schema_ref = excluded.schema_ref",
            run_id,
            node_id,
            state.model_dump_json(),
            _schema_ref(state),
        )

    async def load(self, run_id: str, node_id: str) -> BaseModel | None:
        rows = await asyncio.to_thread(
            self._execute,
            "SELECT state, schema_ref FROM checkpoints WHERE run_id = ? AND node_id = ?",
            run_id,
            node_id,
        )
        return _resolve_schema(rows[0][1]).model_validate_json(rows[0][0]) if rows else None

    async def delete(self, run_id: str) -> None:
        sql = "DELETE FROM checkpoints WHERE run_id = ?"
        await asyncio.to_thread(self._execute, sql, run_id)


def test_a_reference_names_module_and_class_and_leads_back() -> None:
    ref = _schema_ref(Answer(text=""))

    assert ref == f"{Answer.__module__}:Answer"
    assert _resolve_schema(ref) is Answer


async def test_a_store_of_ones_own_carries_a_run_over_a_crash(tmp_path: Path) -> None:
    store = SqlStore(tmp_path / "states.db")
    assert isinstance(store, AsyncCheckpointStore)
    registry = ContractRegistry()
    ask_contract = NodeContract(node_id="ask", input_schema=Question, output_schema=Answer)
    check_contract = NodeContract(node_id="check", input_schema=Answer, output_schema=Answer)
    registry.register(ask_contract)
    registry.register(check_contract)
    calls = []

    @stroma_node("ask", ask_contract)
    async def ask(state: Question) -> Answer:
        calls.append("ask")
        return Answer(text=state.text.upper())

    @stroma_node("check", check_contract)
    async def check(state: Answer) -> Answer:
        calls.append("check")
        if len(calls) == 2:
            raise RuntimeError("not yet")
        return state

    config = RunConfig(run_id="own", policy_map=NO_WAIT)
    first = await StromaRunner(registry, CheckpointManager(store), config).run(
        [ask, check], Question(text="why")
    )
    assert str(first.status) == "FAILED"

    reopened = SqlStore(tmp_path / "states.db")
    second = await StromaRunner(registry, CheckpointManager(reopened), config).run(
        [ask, check], Question(text="why")
    )
    assert str(second.status) == "RESUMED"
    assert second.final_state == Answer(text="WHY")
    assert calls == ["ask", "check", "check"]


# -- classifiers -------------------------------------------------------------------------------


def openai_classifier(exc: Exception, ctx: NodeContext) -> FailureClass | None:
    message = str(exc).lower()
    if any(word in message for word in ("rate_limit_exceeded", "429")):
        return FailureClass.RECOVERABLE
    if any(word in message for word in ("invalid_api_key", "401")):
        return FailureClass.TERMINAL
    if any(word in message for word in ("500", "service_unavailable")):
        return FailureClass.RECOVERABLE
    return None


def anthropic_classifier(exc: Exception, ctx: NodeContext) -> FailureClass | None:
    message = str(exc).lower()
    if "overloaded" in message:
        return FailureClass.RECOVERABLE
    return FailureClass.TERMINAL if "permission_error" in message else None


def escalate_on_repeat(exc: Exception, ctx: NodeContext) -> FailureClass | None:
    is_repeated = isinstance(exc, TimeoutError) and ctx.attempt >= 3
    return FailureClass.TERMINAL if is_repeated else None


CLASSIFIERS: list[Classifier] = [escalate_on_repeat, openai_classifier, anthropic_classifier]


@pytest.mark.parametrize(
    ("error", "status", "calls"),
    [
        (RuntimeError("rate_limit_exceeded"), "PARTIAL", 6),
        (RuntimeError("HTTP 429"), "PARTIAL", 6),
        (RuntimeError("invalid_api_key"), "FAILED", 1),
        (RuntimeError("HTTP 401"), "FAILED", 1),
        (RuntimeError("HTTP 500"), "PARTIAL", 6),
        (RuntimeError("service_unavailable"), "PARTIAL", 6),
        (RuntimeError("Overloaded"), "PARTIAL", 6),
        (RuntimeError("permission_error"), "FAILED", 1),
        (TimeoutError("slow"), "FAILED", 3),
        (ConnectionError("reset"), "PARTIAL", 6),
        (ValueError("odd"), "FAILED", 1),
    ],
    ids=str,
)
async def test_the_first_word_of_a_classifier_holds(
    error: Exception, status: str, calls: int
) -> None:
    runner = StromaRunner.quick(policy_map=NO_WAIT).with_classifiers(CLASSIFIERS)
    attempts = []

    @runner.node("ask", input=Question, output=Answer)
    async def ask(state: Question) -> Answer:
        attempts.append(state)
        raise error

    result = await runner.run([ask], Question(text="why"))

    assert (str(result.status), len(attempts)) == (status, calls)
    assert result.error is error


async def test_a_classifier_is_told_the_node_and_the_attempt_from_one() -> None:
    told = []

    def note(exc: Exception, ctx: NodeContext) -> FailureClass | None:
        told.append((ctx.node_id, ctx.attempt))
        return None

    runner = StromaRunner.quick(policy_map=NO_WAIT).with_classifiers([note])

    @runner.node("ask", input=Question, output=Answer)
    async def ask(state: Question) -> Answer:
        if len(told) < 2:
            raise TimeoutError
        return Answer(text="because")

    await runner.run([ask], Question(text="why"))

    assert told == [("ask", 1), ("ask", 2)]


# -- spans -------------------------------------------------------------------------------------


@pytest.fixture
def spans() -> Iterator[tuple[Tracer, InMemorySpanExporter]]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield provider.get_tracer("stroma"), exporter
    provider.shutdown()


def otel_hooks(tracer: Tracer) -> NodeHooks:
    active: dict[tuple[str, str], Span] = {}

    async def start(run_id: str, node_id: str, input_state: dict[str, Any]) -> None:
        previous = active.pop((run_id, node_id), None)
        if previous is not None:
            previous.set_status(StatusCode.ERROR, description="superseded by retry")
            previous.end()
        attributes = {"stroma.run_id": run_id, "stroma.node_id": node_id}
        span = tracer.start_span(f"stroma.node.{node_id}", attributes=attributes)
        active[run_id, node_id] = span

    async def success(run_id: str, node_id: str, output_state: dict[str, Any], tokens: int) -> None:
        span = active.pop((run_id, node_id))
        span.set_attribute("stroma.tokens_used", tokens)
        span.set_status(StatusCode.OK)
        span.end()

    async def failure(
        run_id: str, node_id: str, exc: Exception, failure_class: FailureClass
    ) -> None:
        span = active.pop((run_id, node_id))
        span.record_exception(exc)
        span.set_attribute("stroma.failure_class", str(failure_class))
        span.set_status(StatusCode.ERROR, description=str(exc))
        span.end()

    return NodeHooks(on_node_start=start, on_node_success=success, on_node_failure=failure)


def described(span: ReadableSpan) -> tuple[object, ...]:
    own = {k: v for k, v in (span.attributes or {}).items() if k != "stroma.run_id"}
    return span.name, span.status.status_code, own


async def test_hooks_give_a_span_for_each_attempt(
    spans: tuple[Tracer, InMemorySpanExporter],
) -> None:
    tracer, exporter = spans
    runner = StromaRunner.quick(policy_map=NO_WAIT, run_id="r").with_hooks(otel_hooks(tracer))
    calls = []

    @runner.node("ask", input=Question, output=Answer)
    async def ask(state: Question) -> tuple[Answer, int]:
        calls.append(state)
        if len(calls) == 1:
            raise TimeoutError("upstream")
        return Answer(text="because"), 12

    @runner.node("check", input=Answer, output=Answer)
    async def check(state: Answer) -> Answer:
        raise RuntimeError("no")

    await runner.run([ask, check], Question(text="why"))

    finished = exporter.get_finished_spans()
    node = "stroma.node_id"
    assert [described(span) for span in finished] == [
        (
            "stroma.node.ask",
            StatusCode.ERROR,
            {node: "ask", "stroma.failure_class": "recoverable"},
        ),
        ("stroma.node.ask", StatusCode.OK, {node: "ask", "stroma.tokens_used": 12}),
        (
            "stroma.node.check",
            StatusCode.ERROR,
            {node: "check", "stroma.failure_class": "ambiguous"},
        ),
    ]
    assert [event.name for event in finished[0].events] == ["exception"]
    assert finished[0].status.description == "upstream"
    assert {(span.attributes or {})["stroma.run_id"] for span in finished} == {"r"}


# -- all of them together ----------------------------------------------------------------------


def answer_over_http(request: httpx.Request) -> httpx.Response:
    return httpx.Response(200, json={"answer": f"because of {request.url.path}"})


async def test_a_runner_of_all_extension_points(
    tmp_path: Path, spans: tuple[Tracer, InMemorySpanExporter]
) -> None:
    tracer, exporter = spans
    transport = httpx.MockTransport(answer_over_http)
    async with httpx.AsyncClient(timeout=30.0, transport=transport) as http:
        runner = (
            StromaRunner.quick(store=SqlStore(tmp_path / "states.db"))
            .with_budget(tokens=100_000, cost_usd=2.00, latency_ms=120_000)
            .with_classifiers(CLASSIFIERS)
            .with_hooks(otel_hooks(tracer))
            .with_context({"http": http, "model": "gpt-4o", "cache": {}})
        )

        @runner.node("ask", input=Question, output=Answer)
        async def ask(state: Question, ctx: dict[str, Any]) -> tuple[dict[str, str], int, int, str]:
            response = await ctx["http"].get(f"https://example.test/{state.text}")
            ctx["cache"][state.text] = response.json()["answer"]
            return {"text": ctx["cache"][state.text]}, 1000, 100, ctx["model"]

        result = await runner.run([ask], Question(text="rain"), run_id="all")

    assert str(result.status) == "COMPLETED"
    assert result.final_state == Answer(text="because of /rain")
    assert str(result.cost_usd) == "0.0035", "the built-in table knows the model"
    assert runner.config.budget == ExecutionBudget(
        tokens=100_000, cost_usd="2.00", latency_ms=120_000
    )
    assert [span.name for span in exporter.get_finished_spans()] == ["stroma.node.ask"]
    assert await SqlStore(tmp_path / "states.db").load("all", "ask") == result.final_state


@pytest.mark.server
async def test_redis_in_the_chain() -> None:
    runner = StromaRunner.quick().with_redis(shared_server(REDIS).url, ttl_seconds=7200)

    assert type(runner.checkpoint_manager.store).__name__ == "RedisStore"

    @runner.node("ask", input=Question, output=Answer)
    async def ask(state: Question) -> dict[str, str]:
        return {"text": state.text.upper()}

    async with runner:
        result = await runner.run([ask], Question(text="rain"))
    assert result.final_state == Answer(text="RAIN")
