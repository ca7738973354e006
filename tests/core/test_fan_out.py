"""A node over a list in the state: one record per item, order kept, bounded."""

from __future__ import annotations

import asyncio
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from stroma import (
    ConfigError,
    InMemoryStore,
    NodeHooks,
    RunStatus,
    current,
    fan_out,
    node,
    parallel,
)
from stroma.ids import path_of
from tests.core.helpers import Calls, Number, Text, make_runner, stored


class Batch(BaseModel):
    items: list[Number]
    name: str = "batch"


class Doubled(BaseModel):
    items: list[Number]
    name: str
    done: list[Number]


class Row(BaseModel):
    cells: list[Number]


class Table(BaseModel):
    rows: list[Row]


def _batch(*values: int) -> Batch:
    return Batch(items=[Number(value=value) for value in values])


def _double(calls: Calls, *script: Any) -> Any:
    return calls.node("w", *script or (lambda state: {"value": state.value * 2},))


# -- output ----------------------------------------------------------------------------------


async def test_the_output_is_the_state_before_plus_the_results(store: Any, calls: Calls) -> None:
    @node
    async def last(state: Doubled) -> Doubled:
        return state

    each = fan_out(_double(calls), over="items", into="done")
    result = await make_runner(store).run([each, last], _batch(1, 2, 3))
    assert result.final_state == Doubled(
        items=_batch(1, 2, 3).items, name="batch", done=_batch(2, 4, 6).items
    )


async def test_order_is_that_of_the_items_and_not_of_finishing(store: Any) -> None:
    finished: list[int] = []

    @node
    async def slow_first(state: Number) -> Number:
        for _ in range(50 - 5 * state.value):
            await asyncio.sleep(0)
        finished.append(state.value)
        return state

    each = fan_out(slow_first, over="items", into="done", max_concurrency=10)
    result = await make_runner(store).run([each], _batch(*range(10)))
    assert finished != sorted(finished)
    assert [item.value for item in result.final_state.done] == list(range(10))  # type: ignore[union-attr]


async def test_a_trailing_fan_out_gives_a_model(store: Any, calls: Calls) -> None:
    runner, each = make_runner(store), fan_out(_double(calls), over="items", into="done")
    first = await runner.run([each], _batch(1), run_id="r")
    assert first.final_state.model_dump() == {  # type: ignore[union-attr]
        "items": [{"value": 1}],
        "name": "batch",
        "done": [{"value": 2}],
    }
    again = await runner.run([each], _batch(1), run_id="r")
    assert again.final_state == first.final_state
    assert calls["w"] == 1


async def test_no_items_are_no_calls(store: Any, calls: Calls) -> None:
    each = fan_out(_double(calls), over="items", into="done")
    result = await make_runner(store).run([each], _batch())
    assert (result.status, calls["w"]) == (RunStatus.COMPLETED, 0)
    assert result.final_state.done == []  # type: ignore[union-attr]


async def test_results_may_replace_the_items(calls: Calls) -> None:
    each = fan_out(_double(calls), over="items", into="items")
    result = await make_runner().run([each], _batch(1, 2))
    assert result.final_state.model_dump()["items"] == [{"value": 2}, {"value": 4}]  # type: ignore[union-attr]


async def test_items_may_be_dicts_that_fit_the_nodes_input(calls: Calls) -> None:
    class Loose(BaseModel):
        items: list[dict[str, int]]

    each = fan_out(_double(calls), over="items", into="done")
    result = await make_runner().run([each], Loose(items=[{"value": 4}]))
    assert result.final_state.done == [Number(value=8)]  # type: ignore[union-attr]


# -- records ---------------------------------------------------------------------------------


async def test_each_item_has_its_record_usage_and_trace(store: Any, calls: Calls) -> None:
    each = fan_out(
        calls.node("w", lambda state: ({"value": 0}, state.value)), over="items", into="done"
    )
    result = await make_runner(store).run([each], _batch(5, 7), run_id="r")
    assert result.usage["w"].tokens == result.tokens == 12
    headers = (await stored(store, "r")).headers
    assert {h.path: (h.contract_id, h.usage.tokens) for h in headers} == {
        "w[0]": ("w", 5),
        "w[1]": ("w", 7),
        "fan_out(w)": ("fan_out(w)", 0),
    }
    assert [e.path for e in result.trace.for_node("w")] == ["w[0]", "w[1]"]


async def test_a_finished_item_is_never_run_again_because_another_failed(
    store: Any, calls: Calls
) -> None:
    broken = {4}

    def work(state: Number) -> Any:
        if state.value in broken:
            raise TypeError("bug")
        return {"value": state.value}, 1

    w = calls.node("w", work)
    each = fan_out(w, over="items", into="done", max_concurrency=2, input=Batch)
    runner = make_runner(store)
    first = await runner.run([each], _batch(*range(8)), run_id="r")
    assert first.status is RunStatus.FAILED
    recorded = first.tokens
    broken.clear()
    result = await runner.run([each], run_id="r")
    assert result.status is RunStatus.RESUMED
    assert [item.value for item in result.final_state.done] == list(range(8))  # type: ignore[union-attr]
    assert result.tokens == 8
    assert calls["w"] == 8 + 1 + len(first.in_doubt)
    assert len(result.trace.skipped()) == recorded


async def test_siblings_are_cut_and_awaited_when_an_item_fails() -> None:
    left: list[int] = []

    @node
    async def w(state: Number) -> Number:
        if state.value == 3:
            await asyncio.sleep(0)
            raise TypeError("bug")
        try:
            await asyncio.sleep(60)
        finally:
            left.append(state.value)
        return state

    before = asyncio.all_tasks()
    each = fan_out(w, over="items", into="done", max_concurrency=5)
    result = await make_runner().run([each], _batch(*range(100)))
    assert sorted(left) == [0, 1, 2, 4]
    assert {d.path for d in result.in_doubt} == {"w[0]", "w[1]", "w[2]", "w[4]"}
    assert asyncio.all_tasks() == before


async def test_no_item_is_dropped_when_a_node_waits_for_something_cancelled() -> None:
    @node
    async def w(state: Number) -> Number:
        if state.value == 1:
            inner = asyncio.ensure_future(asyncio.sleep(60))
            asyncio.get_running_loop().call_soon(inner.cancel)
            await inner
        return state

    each = fan_out(w, over="items", into="done", max_concurrency=1)
    result = await make_runner().run([each], _batch(0, 1, 2))
    assert result.status is RunStatus.FAILED
    assert "w[1]" in result.stop_reason


async def test_hooks_and_the_node_know_the_item() -> None:
    told: list[str] = []
    seen: list[tuple[int | None, tuple[int, ...], str]] = []

    @node
    async def w(state: Number) -> Number:
        scope = current()
        seen.append((scope.item, scope.index, scope.path))
        return state

    hooks = NodeHooks(on_node_start=lambda run, node_id, state: told.append(node_id))
    each = fan_out(w, over="items", into="done")
    await make_runner(hooks=hooks).run([each], _batch(5, 6))
    assert told == ["w[0]", "w[1]"]
    assert seen == [(0, (0,), "w[0]"), (1, (1,), "w[1]")]


@given(
    st.lists(
        st.tuples(
            st.text(alphabet="ab[]0", min_size=1, max_size=6),
            st.lists(st.integers(0, 30), max_size=3).map(tuple),
        ),
        min_size=2,
        max_size=2,
        unique=True,
    )
)
def test_no_two_places_have_one_path(places: list[tuple[str, tuple[int, ...]]]) -> None:
    first, second = places
    assert path_of(*first) != path_of(*second)


async def test_an_id_with_brackets_is_no_items_place(store: Any, calls: Calls) -> None:
    each = fan_out(calls.node("w", {"value": 1}), over="items", into="done", input=Batch)

    @node(id="w[0]", input=Doubled, output=Number)
    async def odd(state: Doubled) -> Number:
        return Number(value=99)

    runner = make_runner(store)
    result = await runner.run([each, odd], _batch(0), run_id="r")
    again = await runner.run([each, odd], run_id="r")
    assert result.final_state == again.final_state == Number(value=99)


# -- bounded ---------------------------------------------------------------------------------


async def test_no_more_items_run_at_once_than_allowed(calls: Calls) -> None:
    running = most = 0

    @node
    async def w(state: Number) -> Number:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        return state

    each = fan_out(w, over="items", into="done", max_concurrency=7)
    await make_runner().run([each], _batch(*range(50)))
    assert most == 7


async def test_ten_thousand_items_take_bounded_memory_and_tasks() -> None:
    most = 0

    @node
    async def w(state: Number) -> Number:
        nonlocal most
        if state.value % 500 == 0:
            await asyncio.sleep(0)
            most = max(most, len(asyncio.all_tasks()))
        return state

    class Quiet(InMemoryStore):
        """Forgets payloads, so that what is measured is the runner's own."""

        def commit_many(self, commits: Any) -> Any:
            return [None] * len(commits)

    state = _batch(*range(10_000))
    runner = make_runner(Quiet(), trace={"max_events": 100})
    each = fan_out(w, over="items", into="done", max_concurrency=20)
    await runner.run([each], _batch(*range(100)))
    tracemalloc.start()
    try:
        result = await runner.run([each], state)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert result.status is RunStatus.COMPLETED
    assert len(result.final_state.done) == 10_000  # type: ignore[union-attr]
    assert most <= 25
    # three models an item: its output, and the state that is read back for the record
    assert peak < 15_000_000


async def test_items_that_are_recorded_are_read_in_pages(calls: Calls) -> None:
    class Counting(InMemoryStore):
        sizes: list[int] = []  # noqa: RUF012

        def fetch(self, run_id: str, keys: Any) -> Any:
            self.sizes.append(len(keys))
            return super().fetch(run_id, keys)

    def work(state: Number) -> Any:
        if state.value == 999 and calls["w"] <= 1000:
            raise TypeError("bug")
        return {"value": state.value}

    store = Counting()
    w = calls.node("w", work)
    each = fan_out(w, over="items", into="done", max_concurrency=1, input=Batch)
    runner = make_runner(store)
    await runner.run([each], _batch(*range(1000)), run_id="r")
    result = await runner.run([each], run_id="r")
    assert result.status is RunStatus.RESUMED
    assert calls["w"] == 1001
    assert len(store.sizes) < 10
    assert max(store.sizes) <= 256


# -- nested ----------------------------------------------------------------------------------


async def test_parallel_in_fan_out(store: Any, calls: Calls) -> None:
    @node(id="t", input=Number, output=Text)
    async def text(state: Number) -> Text:
        calls.made["t"] += 1
        if state.value == 2 and calls["t"] <= 3:
            raise TypeError("bug")
        return Text(text=str(state.value))

    both = parallel(_double(calls), text)
    each = fan_out(both, over="items", into="done", max_concurrency=1, input=Batch)
    runner = make_runner(store)
    assert each.id == "fan_out(parallel(w, t))"
    first = await runner.run([each], _batch(0, 1, 2, 3), run_id="r")
    assert first.status is RunStatus.FAILED
    result = await runner.run([each], run_id="r")
    assert result.final_state.model_dump()["done"] == [  # type: ignore[union-attr]
        {"value": 2 * n, "text": str(n)} for n in range(4)
    ]
    assert (calls["w"], calls["t"]) == (4, 5)
    paths = {h.path for h in (await stored(store, "r")).headers if h.kind == "result"}
    assert {"w[2]", "t[2]", "parallel(w, t)[2]", "fan_out(parallel(w, t))"} <= paths


async def test_fan_out_in_parallel(store: Any, calls: Calls) -> None:
    @node(id="count", input=Batch, output=Text)
    async def count(state: Batch) -> Text:
        calls.made["count"] += 1
        if calls["count"] == 1:
            for _ in range(100):  # until the items have finished
                await asyncio.sleep(0)
            raise TypeError("bug")
        return Text(text=str(len(state.items)))

    both = parallel(count, fan_out(_double(calls), over="items", into="done"))
    runner = make_runner(store if isinstance(store, InMemoryStore) else InMemoryStore())
    await runner.run([both], _batch(1, 2), run_id="r")
    result = await runner.run([both], run_id="r")
    assert result.final_state.model_dump() == {  # type: ignore[union-attr]
        "text": "2",
        "items": [{"value": 1}, {"value": 2}],
        "name": "batch",
        "done": [{"value": 2}, {"value": 4}],
    }
    assert (calls["w"], calls["count"]) == (2, 2)


async def test_fan_out_in_fan_out_knows_the_items_of_a_typed_list(calls: Calls) -> None:
    inner = fan_out(_double(calls), over="cells", into="sums")
    table = Table(rows=[Row(cells=[Number(value=1), Number(value=2)]), Row(cells=[])])
    outer = fan_out(inner, over="rows", into="done")
    result = await make_runner().run([outer], table)
    done = result.final_state.done  # type: ignore[union-attr]
    assert [[n.value for n in row.sums] for row in done] == [[2, 4], []]


async def test_fan_out_in_fan_out_of_what_has_no_model(calls: Calls) -> None:
    class Untyped(BaseModel):
        rows: list[Any]

    inner = fan_out(_double(calls), over="cells", into="sums")
    with pytest.raises(ConfigError, match=r"model of the state before it is not known"):
        await make_runner().run([fan_out(inner, over="rows", into="done")], Untyped(rows=[]))
    assert not calls.made


async def test_fan_out_in_fan_out(store: Any, calls: Calls) -> None:
    def work(state: Number) -> Any:
        if state.value == 4 and calls["w"] <= 5:
            raise TypeError("bug")
        return {"value": state.value * 10}

    inner = fan_out(calls.node("w", work), over="cells", into="sums", max_concurrency=1, input=Row)
    outer = fan_out(inner, over="rows", into="done", max_concurrency=1, input=Table)
    table = Table(rows=[Row(cells=[Number(value=3 * r + c) for c in range(3)]) for r in range(3)])
    runner = make_runner(store)
    first = await runner.run([outer], table, run_id="r")
    assert first.status is RunStatus.FAILED
    assert "w[1][1]" in first.stop_reason
    result = await runner.run([outer], run_id="r")
    done = result.final_state.done  # type: ignore[union-attr]
    assert [[n.value for n in row.sums] for row in done] == [
        [0, 10, 20],
        [30, 40, 50],
        [60, 70, 80],
    ]
    assert calls["w"] == 10


# -- wrong use -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"over": ""},
        {"over": "a b"},
        {"over": "_x"},
        {"into": "1"},
        {"into": None},
        {"max_concurrency": 0},
        {"max_concurrency": True},
        {"max_concurrency": 2.5},
        {"id": "a\0"},
    ],
    ids=repr,
)
def test_an_option_that_makes_no_sense_is_refused(calls: Calls, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        fan_out(calls.node("w"), **{"over": "items", "into": "done", **options})


async def test_the_field_must_be_in_the_state(calls: Calls) -> None:
    each = fan_out(calls.node("w"), over="chunks", into="done")
    with pytest.raises(ConfigError, match="Batch, has no field 'chunks'; it has items, name"):
        await make_runner().run([each], _batch(1))


@pytest.mark.parametrize("value", [None, "text", {"a": 1}, 3])
async def test_the_field_must_hold_a_list(calls: Calls, value: Any) -> None:
    class Loose(BaseModel):
        items: Any

    each = fan_out(calls.node("w"), over="items", into="done")
    result = await make_runner().run([each], Loose(items=value))
    assert result.status is RunStatus.FAILED
    assert "fan_out(w) (input): items: fan_out needs a list, not" in result.stop_reason


async def test_an_item_must_fit_the_node(calls: Calls) -> None:
    class Loose(BaseModel):
        items: list[Any]

    each = fan_out(calls.node("w"), over="items", into="done", max_concurrency=1)
    result = await make_runner().run([each], Loose(items=[{"value": 1}, {"value": "x"}]))
    assert result.status is RunStatus.FAILED
    assert result.stop_reason.startswith("w (input): value: Input should be a valid integer")
    assert [event.path for event in result.trace.failures()] == ["w[1]"]


async def test_standing_first_it_needs_to_know_its_state_to_continue(
    store: Any, calls: Calls
) -> None:
    runner = make_runner(store)
    nodes = [calls.node("n")]
    each = fan_out(calls.node("w", TypeError(), {"value": 1}), over="items", into="done")
    with pytest.raises(ConfigError, match=r"write fan_out\(…, input=Model\), or, where it"):
        await runner.run([each], {"items": []})
    typed = fan_out(
        calls.node("w", TypeError(), {"value": 1}), over="items", into="done", input=Batch
    )
    await runner.run([typed], _batch(1), run_id="r")
    result = await runner.run([typed], run_id="r", resume=True)
    assert (result.is_complete, nodes[0] is not None) == (True, True)


async def test_two_fan_outs_of_one_node_are_refused(calls: Calls) -> None:
    w = calls.node("w")
    nodes = [fan_out(w, over="items", into="a"), fan_out(w, over="items", into="b", id="again")]
    with pytest.raises(ConfigError, match="two nodes have the id 'w'"):
        await make_runner().run(nodes, _batch(1))
