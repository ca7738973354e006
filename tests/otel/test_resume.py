"""A continued run goes on in the trace that it began in, and is linked to its first start."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased, TraceIdRatioBased
from opentelemetry.trace import NoOpTracerProvider

from stroma import InMemoryStore, Pipeline, recover
from stroma_otel import otel_hooks
from tests.core.helpers import Calls, Number, make_runner, stored
from tests.otel.support import Seen, attributes_of, id_of, parent_of


def trace_id_of(span: Any) -> int:
    return int(span.context.trace_id)


async def test_the_run_record_keeps_where_the_run_is_in_a_trace(seen: Seen, calls: Calls) -> None:
    store = InMemoryStore()
    await make_runner(store, hooks=seen.hooks()).run([calls.node("a")], Number(), run_id="r")
    run, attempt = seen.only("invoke_workflow"), seen.only("stroma.attempt a")
    found = await stored(store, "r")
    assert found.run.trace_parent.split("-")[1:3] == [
        f"{trace_id_of(run):032x}",
        f"{id_of(run):016x}",
    ]
    assert [h.trace_parent.split("-")[2] for h in found.headers] == [f"{id_of(attempt):016x}"]


async def test_a_resumed_run_is_a_child_of_its_first_start_and_linked_to_it(
    seen: Seen, calls: Calls
) -> None:
    runner = make_runner(hooks=seen.hooks())
    nodes = [calls.node("a"), calls.node("b", TypeError(), {"value": 1})]
    for _ in range(2):
        await runner.run(nodes, Number(), run_id="r")
    first, second = seen.named("invoke_workflow")
    assert parent_of(first) is None
    assert parent_of(second) == id_of(first)
    assert trace_id_of(second) == trace_id_of(first)
    assert [link.context.span_id for link in second.links] == [id_of(first)]
    told = attributes_of(second)
    assert told["stroma.run.recorded_nodes"] == ("a",)
    assert told["stroma.run.status"] == "RESUMED"


async def test_a_resumed_run_is_a_child_of_the_span_around_it_and_linked_all_the_same(
    seen: Seen, calls: Calls
) -> None:
    runner = make_runner(hooks=seen.hooks())
    nodes = [calls.node("a"), calls.node("b", TypeError(), {"value": 1})]
    await runner.run(nodes, Number(), run_id="r")
    with seen.tracer.start_as_current_span("request"):
        await runner.run(nodes, Number(), run_id="r")
    first, second = seen.named("invoke_workflow")
    assert parent_of(second) == id_of(seen.only("request"))
    assert trace_id_of(second) != trace_id_of(first)
    assert [link.context.span_id for link in second.links] == [id_of(first)]


async def test_a_run_that_began_below_a_span_is_linked_to_itself_and_not_to_that(
    seen: Seen, calls: Calls
) -> None:
    runner = make_runner(hooks=seen.hooks())
    nodes = [calls.node("a", TypeError(), {"value": 1})]
    with seen.tracer.start_as_current_span("request"):
        await runner.run(nodes, Number(), run_id="r")
    await runner.run(nodes, Number(), run_id="r")
    first, second = seen.named("invoke_workflow")
    assert parent_of(first) == id_of(seen.only("request"))
    assert parent_of(second) == id_of(first)
    assert [link.context.span_id for link in second.links] == [id_of(first)]
    assert first.links == ()


async def test_a_submitted_run_goes_on_in_the_trace_that_it_was_submitted_in(
    seen: Seen, calls: Calls
) -> None:
    runner = make_runner(hooks=seen.hooks())
    pipeline = Pipeline("digest", [calls.node("a")])
    with seen.tracer.start_as_current_span("request"):
        await runner.submit(pipeline, Number(), run_id="r")
    await runner.run(pipeline, Number(), run_id="r")
    request, run = seen.only("request"), seen.only("invoke_workflow digest")
    assert parent_of(run) == id_of(request)
    assert [link.context.span_id for link in run.links] == [id_of(request)]


async def test_a_run_that_a_worker_takes_up_goes_on_in_the_trace_of_its_submission(
    seen: Seen, calls: Calls
) -> None:
    store = InMemoryStore()
    runner = make_runner(store, hooks=seen.hooks())
    pipeline = Pipeline("digest", [calls.node("a")], runner=runner)
    with seen.tracer.start_as_current_span("request"):
        await pipeline.submit(Number(), run_id="r")
    (result,) = (await recover(pipeline, store=store)).results
    assert result.is_complete
    assert seen.trees() == [
        ["request", ["invoke_workflow digest", ["stroma.node a", ["stroma.attempt a"]]]]
    ]


async def test_no_span_is_begun_and_never_ended(calls: Calls) -> None:
    class Counting(Seen):
        begun = 0

    seen = Counting()

    class Processor:
        def on_start(self, span: Any, parent_context: Any = None) -> None:
            seen.begun += 1

        def __getattr__(self, name: str) -> Any:
            return lambda *args, **options: None

    seen.tracer_provider.add_span_processor(Processor())  # type: ignore[arg-type]
    runner = make_runner(hooks=seen.hooks())
    nodes = [calls.node("a"), calls.node("b", TypeError(), {"value": 1})]
    for _ in range(3):
        await runner.run(nodes, Number(), run_id="r")
    assert seen.begun == len(seen.spans)


@pytest.mark.parametrize("sampler", [ALWAYS_OFF, TraceIdRatioBased(0.5)], ids=str)
async def test_a_start_is_sampled_as_its_run_is(calls: Calls, sampler: Any) -> None:
    seen = Seen(sampler=ParentBased(sampler))
    runner = make_runner(hooks=seen.hooks())
    for number in range(20):
        nodes = [calls.node(f"a{number}", TypeError(), {"value": 1})]
        for _ in range(2):
            await runner.run(nodes, Number(), run_id=f"r{number}")
        starts = [s for s in seen.spans if attributes_of(s)["stroma.run.id"] == f"r{number}"]
        assert len(starts) in {0, 6}


async def test_a_tracer_that_does_not_say_its_ids_in_advance_will_do(calls: Calls) -> None:
    class Foreign:
        """A tracer of another kind, on top of the SDK's."""

        def __init__(self, provider: Any) -> None:
            self._provider = provider

        def get_tracer(self, *args: Any, **options: Any) -> Any:
            found = self._provider.get_tracer(*args, **options)
            return type("T", (), {"start_span": staticmethod(found.start_span)})()

    seen = Seen()
    hooks = otel_hooks(tracer_provider=Foreign(seen.tracer_provider))  # type: ignore[arg-type]
    runner = make_runner(hooks=hooks)
    nodes = [calls.node("a", TypeError(), {"value": 1})]
    for _ in range(2):
        await runner.run(nodes, Number(), run_id="r")
    first, second = seen.named("invoke_workflow")
    assert [link.context.span_id for link in second.links] == [id_of(first)]


async def test_without_a_tracer_a_run_is_as_it_is(calls: Calls) -> None:
    store = InMemoryStore()
    runner = make_runner(store, hooks=otel_hooks(tracer_provider=NoOpTracerProvider()))
    result = await runner.run([calls.node("a")], Number(), run_id="r")
    assert result.is_complete
    assert (await stored(store, "r")).run.trace_parent == ""
