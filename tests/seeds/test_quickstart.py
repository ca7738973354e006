"""The quickstart page: what fails is told, retried or continued, and what works completes."""

from pydantic import BaseModel

from stroma import (
    AsyncInMemoryStore,
    CheckpointManager,
    ContractRegistry,
    NodeContract,
    RunConfig,
    StromaRunner,
    stroma_node,
)

TEXT = "Stroma adds reliability to async agent pipelines"


class Document(BaseModel):
    text: str


class Summary(BaseModel):
    summary: str
    word_count: int


def summary_of(text: str) -> dict[str, object]:
    words = text.split()
    return {"summary": " ".join(words[:10]) + "...", "word_count": len(words)}


async def test_bad_output_is_caught_at_the_node_that_gave_it() -> None:
    runner = StromaRunner.quick()
    calls = []

    @runner.node("bad_summarize", input=Document, output=Summary)
    async def bad_summarize(state: Document) -> dict[str, str]:
        calls.append(state)
        return {"wrong_field": "nobody asked for this"}

    result = await runner.run([bad_summarize], Document(text="hello"))

    (event,) = result.trace.failures()
    told = f"{event.node_id}: {event.failure_message}"
    assert str(result.status) == "FAILED"
    assert told.endswith("summarize (output): summary: Field required; word_count: Field required")
    assert len(calls) == 1, "a violation is terminal"


async def test_a_timeout_is_retried_without_any_code() -> None:
    runner = StromaRunner.quick()
    attempt = {"count": 0}

    @runner.node("flaky_summarize", input=Document, output=Summary)
    async def flaky_summarize(state: Document) -> dict[str, object]:
        attempt["count"] += 1
        if attempt["count"] < 3:
            raise TimeoutError("upstream API timed out")
        return summary_of(state.text)

    result = await runner.run([flaky_summarize], Document(text="hello world from stroma"))

    assert str(result.status) == "COMPLETED"
    assert attempt["count"] == 3


async def test_a_crash_in_the_middle_is_continued_from_the_checkpoint() -> None:
    registry = ContractRegistry()
    manager = CheckpointManager(AsyncInMemoryStore())
    c1 = NodeContract(node_id="summarize", input_schema=Document, output_schema=Summary)
    c2 = NodeContract(node_id="validate", input_schema=Summary, output_schema=Summary)
    registry.register(c1)
    registry.register(c2)
    run_count = {"n": 0}

    @stroma_node("summarize", c1)
    async def summarize(state: Document) -> dict[str, object]:
        run_count["n"] += 1
        return summary_of(state.text)

    @stroma_node("validate", c2)
    async def validate_failing(state: Summary) -> dict[str, object]:
        raise RuntimeError("downstream service down")

    @stroma_node("validate", c2)
    async def validate_fixed(state: Summary) -> dict[str, object]:
        return state.model_dump()

    first = StromaRunner(registry, manager, RunConfig(run_id="qs-run-1"))
    result1 = await first.run([summarize, validate_failing], Document(text=TEXT))
    assert str(result1.status) == "FAILED"
    assert run_count["n"] == 1

    second = StromaRunner(registry, manager, RunConfig(run_id="qs-run-1", resume_from="validate"))
    result2 = await second.run([summarize, validate_fixed], Document(text=TEXT))
    assert str(result2.status) == "RESUMED"
    assert str(result2.final_state) == f"summary='{TEXT}...' word_count=7"
    assert run_count["n"] == 1, "it is never called again"

    summarize_diff, validate_diff = map(str, result1.trace.diff(result2.trace))
    assert summarize_diff.startswith("summarize: succeeded")
    assert "-> skipped" in summarize_diff
    assert "downstream service down" in validate_diff
    assert "-> succeeded" in validate_diff


async def test_when_everything_works() -> None:
    runner = StromaRunner.quick()

    @runner.node("summarize", input=Document, output=Summary)
    async def summarize(state: Document) -> dict[str, object]:
        return summary_of(state.text)

    @runner.node("validate", input=Summary, output=Summary)
    async def validate(state: Summary) -> dict[str, object]:
        if state.word_count == 0:
            raise ValueError("Empty summary")
        return state.model_dump()

    result = await runner.run([summarize, validate], Document(text=TEXT))

    assert str(result.status) == "COMPLETED"
    assert str(result.final_state) == f"summary='{TEXT}...' word_count=7"
