"""What the openai SDK and its HTTP client report stands below the attempt that called them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from openai import AsyncOpenAI, OpenAI
from opentelemetry.instrumentation.genai.openai import OpenAIInstrumentor
from opentelemetry.instrumentation.httpx import HTTPX2ClientInstrumentor
from opentelemetry.trace import StatusCode
from pydantic import BaseModel

from stroma import FailurePolicy, fan_out, node
from tests.core.helpers import make_runner
from tests.examples.endpoint import Endpoint, Reply, serving
from tests.otel.support import Seen, attributes_of, in_order


class Question(BaseModel):
    text: str


class Batch(BaseModel):
    questions: list[Question]


class Answers(BaseModel):
    answers: list[Question]


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with serving(latency_seconds=0.001) as endpoint:
        yield endpoint


@pytest.fixture
def instrumented(seen: Seen) -> Iterator[Seen]:
    instrumentors: list[Any] = [OpenAIInstrumentor(), HTTPX2ClientInstrumentor()]
    for each in instrumentors:
        each.instrument(tracer_provider=seen.tracer_provider, meter_provider=seen.meter_provider)
    yield seen
    for each in instrumentors:
        each.uninstrument()


def messages(question: Question) -> Any:
    return [{"role": "user", "content": question.text}]


async def test_calls_of_the_sdk_and_their_requests_nest_below_each_attempt(
    instrumented: Seen, endpoint: Endpoint
) -> None:
    endpoint.faults.append(Reply(503, "overloaded"))
    policy = FailurePolicy(max_retries=1, base_delay_seconds=0)

    @node(id="ask", input=Question, output=Question, policy=policy)
    async def ask(state: Question) -> tuple[Question, int, int, str]:
        async with AsyncOpenAI(base_url=endpoint.url, api_key="k", max_retries=0) as client:
            found = await client.chat.completions.create(model="gpt-4o", messages=messages(state))
        assert found.usage is not None
        used = found.usage.prompt_tokens, found.usage.completion_tokens
        return Question(text=found.choices[0].message.content or ""), *used, "gpt-4o"

    result = await make_runner(hooks=instrumented.hooks()).run([ask], Question(text="why?"))
    assert result.is_complete
    call = ["chat gpt-4o", ["POST"]]
    assert instrumented.trees() == [
        [
            "invoke_workflow",
            ["stroma.node ask", ["stroma.attempt ask", call], ["stroma.attempt ask", call]],
        ]
    ]
    failed, answered = instrumented.named("chat gpt-4o")
    assert failed.status.status_code is StatusCode.ERROR
    assert attributes_of(answered)["gen_ai.operation.name"] == "chat"
    assert "gen_ai.usage.input_tokens" in attributes_of(answered)
    counted = [
        s.name for s in instrumented.spans if "gen_ai.usage.input_tokens" in attributes_of(s)
    ]
    assert counted == ["chat gpt-4o"]


async def test_calls_in_threads_and_items_nest_below_their_own_attempt(
    instrumented: Seen, endpoint: Endpoint
) -> None:
    @node(id="ask", input=Question, output=Question)
    def ask(state: Question) -> Question:
        with OpenAI(base_url=endpoint.url, api_key="k", max_retries=0) as client:
            client.chat.completions.create(model="gpt-4o", messages=messages(state))
        return state

    each = fan_out(ask, over="questions", into="questions", max_concurrency=3, id="each")
    batch = Batch(questions=[Question(text=f"question {n}") for n in range(3)])
    result = await make_runner(hooks=instrumented.hooks()).run([each], batch)
    assert result.is_complete
    item = ["stroma.node ask", ["stroma.attempt ask", ["chat gpt-4o", ["POST"]]]]
    assert instrumented.trees() == [["invoke_workflow", ["stroma.fan_out each", item, item, item]]]
    assert (
        len({span.context.trace_id for span in in_order(instrumented.spans) if span.context}) == 1
    )
