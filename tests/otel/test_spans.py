"""Spans of runs, nodes and attempts: where they stand, and what they say of what went wrong."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.trace import SpanKind, StatusCode

from stroma import (
    ContractViolation,
    FailurePolicy,
    InMemoryStore,
    Pipeline,
    RunLocked,
    StaleOwner,
    TraceOptions,
    fan_out,
    node,
    parallel,
    report_usage,
)
from tests.core.helpers import Calls, Number, make_runner
from tests.core.test_fan_out import Batch
from tests.otel.support import Seen, attributes_of, id_of, parent_of


async def test_a_run_is_a_workflow_with_its_nodes_and_their_attempts(
    seen: Seen, calls: Calls
) -> None:
    pipeline = Pipeline("digest", [calls.node("a"), calls.node("b")], version="3")
    await make_runner(hooks=seen.hooks()).run(pipeline, Number(), run_id="r")
    assert seen.trees() == [
        [
            "invoke_workflow digest",
            ["stroma.node a", ["stroma.attempt a"]],
            ["stroma.node b", ["stroma.attempt b"]],
        ]
    ]
    assert {span.kind for span in seen.spans} == {SpanKind.INTERNAL}
    assert attributes_of(seen.only("invoke_workflow digest")) == {
        "gen_ai.operation.name": "invoke_workflow",
        "gen_ai.workflow.name": "digest",
        "stroma.pipeline.version": "3",
        "stroma.run.id": "r",
        "stroma.run.epoch": 0,
        "stroma.run.status": "COMPLETED",
    }
    assert attributes_of(seen.only("stroma.attempt b")) == {
        "stroma.run.id": "r",
        "stroma.node.id": "b",
        "stroma.node.path": "b",
        "stroma.attempt.number": 1,
    }


async def test_a_retried_error_marks_the_attempt_and_not_the_node(seen: Seen, calls: Calls) -> None:
    await make_runner(hooks=seen.hooks()).run(
        [calls.node("a", TimeoutError("slow"), {"value": 1})], Number()
    )
    failed, succeeded = seen.named("stroma.attempt a")
    assert failed.status.status_code is StatusCode.ERROR
    assert failed.status.description == "slow"
    told = attributes_of(failed)
    assert told["error.type"] == "TimeoutError"
    assert told["stroma.failure.class"] == "recoverable"
    assert told["stroma.retry.delay"] > 0
    assert succeeded.status.status_code is StatusCode.UNSET
    of_node = seen.only("stroma.node a")
    assert of_node.status.status_code is StatusCode.OK
    assert attributes_of(of_node)["stroma.node.attempts"] == 2
    assert seen.only("invoke_workflow").status.status_code is StatusCode.OK
    assert [span.events for span in seen.spans] == [()] * 4


async def test_a_failure_marks_attempt_node_and_run(seen: Seen, calls: Calls) -> None:
    await make_runner(hooks=seen.hooks()).run([calls.node("a", TypeError("bug"))], Number())
    assert len(seen.spans) == 3
    for span in seen.spans:
        assert span.status.status_code is StatusCode.ERROR
        assert attributes_of(span)["error.type"] == "TypeError"
    assert attributes_of(seen.only("invoke_workflow"))["stroma.run.status"] == "FAILED"


async def test_usage_stands_on_the_attempt_and_adds_up_without_gen_ai_names(
    seen: Seen, calls: Calls
) -> None:
    @node(id="a", input=Number, output=Number, policy=FailurePolicy(max_retries=1))
    async def ask(state: Number) -> Number:
        calls.made["a"] += 1
        report_usage(input_tokens=100, output_tokens=10, model="gpt-4o")
        if calls["a"] == 1:
            raise TimeoutError("paid for, and lost")
        return state

    await make_runner(hooks=seen.hooks()).run([ask], Number())
    usage = {"stroma.usage.input_tokens": 100, "stroma.usage.output_tokens": 10}
    for span in seen.named("stroma.attempt a"):
        assert attributes_of(span).items() >= usage.items()
        assert attributes_of(span)["stroma.cost.usd"] == pytest.approx(0.00035)
        assert attributes_of(span)["stroma.usage.model"] == "gpt-4o"
    for name in ("stroma.node a", "invoke_workflow"):
        told = attributes_of(seen.only(name))
        assert told["stroma.usage.input_tokens"] == 200
        assert told["stroma.cost.usd"] == pytest.approx(0.0007)
    names = {name for span in seen.spans for name in attributes_of(span)}
    assert not [name for name in names if name.startswith("gen_ai.usage")]


@pytest.mark.parametrize("is_sync", [False, True], ids=["async", "sync"])
async def test_the_attempt_is_current_inside_the_node(seen: Seen, is_sync: bool) -> None:
    def work(state: Number) -> Number:
        with seen.tracer.start_as_current_span("inside"):
            return state

    async def awork(state: Number) -> Number:
        await asyncio.sleep(0)
        return work(state)

    made = node(id="a", input=Number, output=Number)(work if is_sync else awork)
    before = trace.get_current_span()
    await make_runner(hooks=seen.hooks()).run([made], Number())
    assert seen.trees() == [
        ["invoke_workflow", ["stroma.node a", ["stroma.attempt a", ["inside"]]]]
    ]
    assert trace.get_current_span() is before


async def test_children_and_items_have_the_attempts_of_their_own(seen: Seen) -> None:
    def inside(node_id: str) -> Any:
        async def work(state: Number) -> Number:
            with seen.tracer.start_as_current_span(f"in {node_id} {state.value}"):
                await asyncio.sleep(0.001)
            return state

        return node(id=node_id, input=Number, output=Number)(work)

    each = fan_out(inside("w"), over="items", into="done", max_concurrency=2, id="each")
    both = parallel(inside("a"), inside("b"), id="both")
    runner = make_runner(hooks=seen.hooks())
    await runner.run([each], Batch(items=[Number(value=n) for n in range(3)]))
    await runner.run([both], Number())
    of_items, of_children = seen.trees()
    assert of_items[1][0] == "stroma.fan_out each"
    assert sorted(of_items[1][1:]) == [
        ["stroma.node w", ["stroma.attempt w", [f"in w {number}"]]] for number in range(3)
    ]
    assert of_children == [
        "invoke_workflow",
        [
            "stroma.parallel both",
            ["stroma.node a", ["stroma.attempt a", ["in a 0"]]],
            ["stroma.node b", ["stroma.attempt b", ["in b 0"]]],
        ],
    ]
    paths = sorted(attributes_of(span)["stroma.node.path"] for span in seen.named("stroma.node w"))
    assert paths == ["w[0]", "w[1]", "w[2]"]


async def test_a_run_inside_a_node_stands_below_its_attempt(seen: Seen, calls: Calls) -> None:
    runner = make_runner(hooks=seen.hooks())
    inner = calls.node("inner")

    @node(id="outer", input=Number, output=Number)
    async def outer(state: Number) -> Number:
        await runner.run(Pipeline("inner", [inner]), state)
        return state

    await runner.run([outer, calls.node("next")], Number())
    below = ["invoke_workflow inner", ["stroma.node inner", ["stroma.attempt inner"]]]
    assert seen.trees() == [
        [
            "invoke_workflow",
            ["stroma.node outer", ["stroma.attempt outer", below]],
            ["stroma.node next", ["stroma.attempt next"]],
        ]
    ]


async def test_a_run_stands_below_the_span_around_it(seen: Seen, calls: Calls) -> None:
    with seen.tracer.start_as_current_span("request"):
        await make_runner(hooks=seen.hooks()).run([calls.node("a")], Number())
    assert parent_of(seen.only("invoke_workflow")) == id_of(seen.only("request"))


# -- what goes wrong -----------------------------------------------------------------------


async def test_a_cancelled_run_is_marked_so_at_all_levels(seen: Seen) -> None:
    reached = asyncio.Event()

    @node(id="a", input=Number, output=Number)
    async def wait(state: Number) -> Number:
        reached.set()
        await asyncio.sleep(60)
        return state

    before = trace.get_current_span()
    task = asyncio.create_task(make_runner(hooks=seen.hooks()).run([wait], Number()))
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert trace.get_current_span() is before
    assert len(seen.spans) == 3
    for span in seen.spans:
        assert span.status.status_code is StatusCode.ERROR
        assert span.status.description == "cancelled"
        assert attributes_of(span)["error.type"] == "CancelledError"
    assert attributes_of(seen.only("invoke_workflow"))["stroma.run.status"] == "CANCELLED"


async def test_a_timeout_is_the_type_of_the_error(seen: Seen) -> None:
    @node(id="a", input=Number, output=Number, timeout_ms=1, policy=FailurePolicy(max_retries=0))
    async def slow(state: Number) -> Number:
        await asyncio.sleep(60)
        return state

    await make_runner(hooks=seen.hooks()).run([slow], Number())
    assert attributes_of(seen.only("stroma.attempt a"))["error.type"] == "NodeTimeout"
    assert attributes_of(seen.only("invoke_workflow"))["stroma.run.calls_in_doubt"] == 1


async def test_a_budget_that_stops_a_run_is_an_event_of_the_node_it_stops(
    seen: Seen, calls: Calls
) -> None:
    nodes = [calls.node("a", ({"value": 1}, 10)), calls.node("b")]
    await make_runner(hooks=seen.hooks()).with_budget(tokens=5).run(nodes, Number())
    stopped = seen.only("stroma.node b")
    assert [event.name for event in stopped.events] == ["stroma.budget.reached"]
    assert attributes_of(stopped)["error.type"] == "BudgetExceeded"
    assert seen.named("stroma.attempt b") == []
    told = attributes_of(seen.only("invoke_workflow"))
    assert (told["stroma.run.status"], told["error.type"]) == ("PARTIAL", "BudgetExceeded")


async def test_a_cheaper_model_is_an_event_of_the_node_that_gets_it(
    seen: Seen, calls: Calls
) -> None:
    nodes = [calls.node("a", ({"value": 1}, 80)), calls.node("b")]
    runner = make_runner(hooks=seen.hooks()).with_budget(tokens=100)
    runner.with_model_fallback("gpt-4o", to="gpt-4o-mini", at_budget_pct=0.5)
    await runner.run(nodes, Number())
    (event,) = seen.only("stroma.node b").events
    assert event.name == "stroma.model.fallback"
    assert dict(event.attributes or {})["stroma.model"] == "gpt-4o-mini"
    assert attributes_of(seen.only("stroma.attempt b"))["stroma.model"] == "gpt-4o-mini"


@pytest.mark.parametrize(
    ("nodes", "initial"),
    [
        pytest.param([("a", {"value": "x"})], Number(), id="output"),
        pytest.param([("a", {"value": 1})], {"value": "x"}, id="input of the run"),
    ],
)
async def test_a_contract_that_is_violated_is_the_type_of_the_error(
    seen: Seen, calls: Calls, nodes: list[tuple[str, object]], initial: Any
) -> None:
    pipeline = Pipeline("digest", [calls.node(*each) for each in nodes])
    await make_runner(hooks=seen.hooks()).run(pipeline, initial)
    run = seen.only("invoke_workflow digest")
    assert attributes_of(run)["error.type"] == ContractViolation.__name__
    assert run.status.status_code is StatusCode.ERROR


async def test_a_lost_run_says_so(seen: Seen) -> None:
    store = InMemoryStore()

    @node(id="a", input=Number, output=Number)
    async def slow(state: Number) -> Number:
        store.delete("r")  # as when another worker has ended and deleted it
        return state

    with pytest.raises(StaleOwner):
        await make_runner(store, hooks=seen.hooks()).run([slow], Number(), run_id="r")
    run = seen.only("invoke_workflow")
    assert attributes_of(run)["stroma.run.status"] == "LOST"
    assert attributes_of(run)["error.type"] == "StaleOwner"
    assert attributes_of(seen.only("stroma.node a"))["error.type"] == "StaleOwner"


async def test_a_run_that_another_worker_owns_has_no_span_here(seen: Seen, calls: Calls) -> None:
    store = InMemoryStore()

    @node(id="a", input=Number, output=Number)
    async def outer(state: Number) -> Number:
        other = make_runner(store, hooks=seen.hooks())
        with pytest.raises(RunLocked):
            await other.run([calls.node("a")], Number(), run_id="r")
        return state

    await make_runner(store).run([outer], Number(), run_id="r")
    assert seen.spans == []


async def test_a_run_that_cannot_be_continued_has_a_span_with_the_reason(
    seen: Seen, calls: Calls
) -> None:
    runner = make_runner(hooks=seen.hooks())
    await runner.run([calls.node("a")], Number(value=1), run_id="r")
    seen.exporter.clear()
    with pytest.raises(Exception, match="another input"):
        await runner.run([calls.node("a")], Number(value=2), run_id="r")
    assert attributes_of(seen.only("invoke_workflow"))["error.type"] == "RunInputMismatch"


# -- payloads ------------------------------------------------------------------------------


async def test_spans_hold_no_payloads_unless_asked(seen: Seen, calls: Calls) -> None:
    secret = "the secret text"
    from tests.core.helpers import Text

    @node(id="a", input=Text, output=Text)
    async def work(state: Text) -> Any:
        if calls.made.update(["a"]) or calls["a"] == 1:
            Number.model_validate({"value": secret})
        return {"text": [secret]}

    await make_runner(hooks=seen.hooks()).run([work], Text(text=secret))
    assert len(seen.spans) == 4
    assert secret not in "".join(span.to_json() for span in seen.spans)


async def test_payloads_are_cut_and_redacted_when_asked_for(seen: Seen) -> None:
    from pydantic import BaseModel

    class Patient(BaseModel):
        name: str
        text: str

    @node(id="a", input=Patient, output=Patient)
    async def work(state: Patient) -> Patient:
        return Patient(name=state.name, text="y" * 100)

    options = TraceOptions(preview_bytes=50, redact=frozenset({"name"}))
    hooks = seen.hooks(payloads=options)
    await make_runner(hooks=hooks).run([work], Patient(name="Jane", text="x"))
    told = attributes_of(seen.only("stroma.attempt a"))
    assert told["stroma.input"] == '{"name": "[redacted]", "text": "x"}'
    assert told["stroma.output"].startswith('{"name": "[redacted]", "text": "yyy')
    assert len(told["stroma.output"]) == 50
