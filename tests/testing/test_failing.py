"""Failures at chosen places: the nodes are otherwise the real ones."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from pydantic import BaseModel

from stroma import (
    AsyncInMemoryStore,
    ConfigError,
    FailurePolicy,
    Pipeline,
    RunStatus,
    SQLiteStore,
    StromaRunner,
    fan_out,
    node,
    parallel,
    report_usage,
)
from stroma.testing import FailingNodes, FailingPipeline, FakeClock, failing


class Number(BaseModel):
    value: int = 0


class Batch(BaseModel):
    items: list[Number] = []


class Bought:
    """Nodes that count what is bought of them."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()

    def node(self, node_id: str, **options: Any) -> Any:
        @node(id=node_id, input=Number, output=Number, **options)
        async def buy(state: Number) -> Number:
            self.calls[f"{node_id} of {state.value}" if node_id == "each" else node_id] += 1
            report_usage(input_tokens=10)
            return Number(value=state.value + 1)

        return buy

    def split(self) -> Any:
        @node(input=Number, output=Batch)
        async def split(state: Number) -> Batch:
            return Batch(items=[Number(value=n) for n in range(3)])

        return split


@pytest.fixture
def bought() -> Bought:
    return Bought()


def runner(store: object = None, **options: Any) -> StromaRunner:
    made = AsyncInMemoryStore() if store is None else store
    return StromaRunner.quick(store=made, clock=FakeClock(auto_advance=True), **options)


async def test_an_attempt_fails_and_is_retried(bought: Bought) -> None:
    error = TimeoutError("slow")
    nodes = failing([bought.node("a"), bought.node("b")], at="b", error=error)
    result = await runner().run(nodes, Number(), run_id="r")
    assert result.status is RunStatus.COMPLETED
    assert bought.calls == {"a": 1, "b": 1}
    assert [tuple(fired) for fired in nodes.fired] == [("r", "b", 1, "before", error)]
    nodes.assert_fired()


async def test_after_the_call_its_answer_is_paid_for_and_lost(bought: Bought) -> None:
    nodes = failing([bought.node("a")], at="a", error=TimeoutError("lost"), when="after")
    result = await runner().run(nodes, Number())
    assert result.status is RunStatus.COMPLETED
    assert bought.calls["a"] == 2
    assert result.tokens == 20


async def test_a_later_attempt_fails(bought: Bought) -> None:
    nodes = failing([bought.node("a")], at="a", error=TimeoutError("1")).also(
        at="a", attempt=2, error=ConnectionError("2")
    )
    result = await runner().run(nodes, Number())
    said = [event.failure_message for event in result.trace.failures()]
    assert (said, bought.calls["a"]) == (["1", "2"], 1)
    assert [fired.attempt for fired in nodes.fired] == [1, 2]


async def test_every_attempt_fails_and_the_real_nodes_go_on(bought: Bought) -> None:
    store = AsyncInMemoryStore()
    real = [bought.node("a"), bought.node("b")]
    nodes = failing(real, at="b", attempt=None, error=TimeoutError)
    stopped = await runner(store).run(nodes, Number(), run_id="r")
    assert (stopped.status, bought.calls) == (RunStatus.PARTIAL, {"a": 1})
    assert len(nodes.fired) == 4

    result = await runner(store).run(real, Number(), run_id="r")
    assert (result.status, result.final_state) == (RunStatus.RESUMED, Number(value=2))
    assert bought.calls == {"a": 1, "b": 1}


async def test_a_failure_with_a_number_happens_once_in_a_run(bought: Bought) -> None:
    nodes = failing([bought.node("a")], at="a", error=TypeError("once"))
    for run_id in ("r", "s"):
        first = await runner(store := AsyncInMemoryStore()).run(nodes, Number(), run_id=run_id)
        again = await runner(store).run(nodes, Number(), run_id=run_id)
        assert (first.status, again.is_complete) == (RunStatus.FAILED, True)
    assert [fired.run_id for fired in nodes.fired] == ["r", "s"]


async def test_children_of_parallel_fail_alone(bought: Bought) -> None:
    store = AsyncInMemoryStore()
    real = [parallel(bought.node("a"), bought.node("b"), id="both"), bought.node("c")]
    nodes = failing(real, at="b", error=TypeError("wrong"), when="after")
    stopped = await runner(store).run(nodes, Number(), run_id="r")
    assert (stopped.status, nodes.fired[0].path) == (RunStatus.FAILED, "b")
    result = await runner(store).run(real, Number(), run_id="r")
    assert result.is_complete
    assert bought.calls == {"a": 1, "b": 2, "c": 1}


async def test_one_item_fails(bought: Bought) -> None:
    real = [bought.split(), fan_out(bought.node("each"), over="items", into="done")]
    nodes = failing(real, at="each[1]", error=TimeoutError("slow"), when="after")
    result = await runner().run(nodes, Number())
    assert result.is_complete
    assert bought.calls == {"each of 0": 1, "each of 1": 2, "each of 2": 1}
    assert [fired.path for fired in nodes.fired] == ["each[1]"]


async def test_the_id_alone_is_every_item(bought: Bought) -> None:
    real = [bought.split(), fan_out(bought.node("each"), over="items", into="done")]
    nodes = failing(real, at="each", error=TimeoutError)
    result = await runner().run(nodes, Number())
    assert result.is_complete
    assert sorted(fired.path for fired in nodes.fired) == ["each[0]", "each[1]", "each[2]"]


async def test_an_item_inside_nested_nodes_fails(bought: Bought) -> None:
    inner = parallel(bought.node("x"), bought.node("[y]"), id="pair")
    real = [bought.split(), fan_out(inner, over="items", into="done")]
    nodes = failing(real, at="[[y][2]", error=TimeoutError)
    assert (await runner().run(nodes, Number())).is_complete
    assert nodes.fired[0].path == "[[y][2]"


async def test_a_pipeline_stays_one(bought: Bought) -> None:
    real = Pipeline("p", [bought.node("a")], version="2", upcasters={"a": lambda old: old})
    broken = failing(real, at="a", error=TimeoutError("slow"))
    assert isinstance(broken, FailingPipeline)
    assert (broken.name, broken.version, set(broken.upcasters)) == ("p", "2", {"a"})
    store = AsyncInMemoryStore()
    await runner(store).run(broken, Number(), run_id="r")
    found = await store.inspect("r")
    assert found is not None
    assert (found.run.pipeline, found.run.version) == ("p", "2")
    assert broken.fired


async def test_settings_and_kinds_of_functions_are_kept(bought: Bought) -> None:
    seen: list[object] = []

    @node(policy=FailurePolicy(max_retries=7), timeout_ms=5_000, model="m")
    def sync(state: Number, ctx: dict[str, object]) -> Number:
        seen.append(ctx["name"])
        return state

    class Callable:
        async def __call__(self, state: Number) -> Number:
            return state

    instance = node(id="object", input=Number, output=Number)(Callable())

    @node(id="plain", input=Number, output=Number)
    def plain(state: Number) -> Any:
        async def later() -> Number:
            return state

        return later()

    nodes = failing([sync, instance, plain], at="sync", attempt=7, error=ValueError)
    nodes.also(at="object", error=TimeoutError, when="after")
    nodes.also(at="plain", error=TimeoutError, when="after")
    for attempt in range(1, 7):
        nodes.also(at="sync", attempt=attempt, error=TimeoutError)
    result = await runner().with_context({"name": "context"}).run(nodes, Number())
    assert result.is_complete
    assert seen == ["context"]
    assert [f.attempt for f in nodes.fired] == [1, 2, 3, 4, 5, 6, 7, 1, 1]


async def test_a_process_can_be_made_to_die(bought: Bought, tmp_path: Any) -> None:
    real = [bought.node("a"), bought.node("b")]
    nodes = failing(real, at="b", error=KeyboardInterrupt)
    store = SQLiteStore(tmp_path / "runs.db")

    async def interrupted() -> None:
        await runner(store).run(nodes, Number(), run_id="r")

    with pytest.raises(KeyboardInterrupt):
        await asyncio.to_thread(lambda: asyncio.run(interrupted()))
    result = await runner(store).run(real, Number(), run_id="r")
    await store.aclose()
    assert result.is_complete
    assert bought.calls == {"a": 1, "b": 1}


async def test_what_was_never_reached_is_said(bought: Bought) -> None:
    nodes = failing([bought.node("a"), bought.node("b")], at="a", attempt=3, error=TimeoutError)
    nodes.also(at="b", error=TypeError)
    nodes.also(at="a", error=TypeError("stops here"))
    await runner().run(nodes, Number())
    assert [failure.at for failure in nodes.unfired] == ["a", "b"]
    with pytest.raises(AssertionError) as caught:
        nodes.assert_fired()
    assert str(caught.value).splitlines() == [
        "a, attempt 3, before the call: never happened; a got to attempt 1",
        "b, attempt 1, before the call: the node was never called",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"at": "extrakt"}, "no node 'extrakt' to fail; did you mean 'extract'.*split, extract"),
        ({"at": "each one"}, "runs no code of its own: name one of the nodes in it"),
        ({"at": "split[3]"}, "split stands in no fan_out: write at='split'"),
        ({"at": "extract[3][1]"}, r"extract stands in 1 fan_out: write 'extract\[0\]'"),
        ({"at": "extract", "attempt": 0}, "attempt must be 1 or more, or None, not 0"),
        ({"at": "extract", "attempt": True}, "attempt must be 1 or more"),
        ({"at": "extract", "when": "while"}, '"before" or "after", not .while.'),
        ({"at": "extract", "error": "boom"}, "error must be an exception or a class of one"),
        ({"at": "extract", "error": int}, "error must be an exception or a class of one"),
    ],
)
def test_wrong_use_is_said(bought: Bought, arguments: dict[str, Any], message: str) -> None:
    each = fan_out(bought.node("extract"), over="items", into="done", id="each one")
    with pytest.raises(ConfigError, match=message):
        failing([bought.split(), each], **{"error": TimeoutError, **arguments})


@pytest.mark.parametrize("nodes", ["extract", None, 3])
def test_what_is_no_list_of_nodes_is_said(nodes: Any) -> None:
    with pytest.raises(ConfigError, match="takes a list of nodes or a Pipeline"):
        failing(nodes, at="a", error=TimeoutError)


def test_a_list_stays_a_list(bought: Bought) -> None:
    nodes = failing((bought.node("a"),), at="a", error=TimeoutError)
    assert isinstance(nodes, FailingNodes)
    assert len(nodes) == 1
