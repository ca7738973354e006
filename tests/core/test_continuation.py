"""Where a recorded run goes on, what is bought again by consent, and every loud refusal."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, Field

from stroma import (
    CheckpointNotFound,
    ConfigError,
    InMemoryStore,
    Pipeline,
    PipelineChanged,
    RecordCorrupt,
    RunStatus,
    SchemaMismatch,
    fan_out,
    node,
    parallel,
)
from tests.core.helpers import Calls, Number, Text, make_runner, stored, stored_run


def _chain(calls: Calls, *names: str, bad: str = "") -> list[Any]:
    """Nodes that add 1 and use 10 tokens each; the bad one fails at its first call."""
    good = lambda state: ({"value": state.value + 1}, 10)  # noqa: E731
    return [calls.node(name, *([TypeError("bug")] if name == bad else []), good) for name in names]


# -- resume_from -----------------------------------------------------------------------------


async def test_going_on_at_the_node_that_failed_buys_nothing_again(
    store: Any, calls: Calls
) -> None:
    runner, nodes = make_runner(store), _chain(calls, "a", "b", "c", bad="b")
    await runner.run(nodes, Number(), run_id="r")
    result = await runner.run(nodes, Number(), run_id="r", resume_from="b")
    assert result.status is RunStatus.RESUMED
    assert result.final_state == Number(value=3)
    assert (calls["a"], calls["b"], calls["c"], result.epoch) == (1, 2, 1, 0)


async def test_going_on_at_a_recorded_node_buys_it_and_what_follows_again(
    store: Any, calls: Calls
) -> None:
    runner, nodes = make_runner(store), _chain(calls, "a", "b", "c")
    await runner.run(nodes, Number(), run_id="r")
    result = await runner.run(nodes, Number(), run_id="r", resume_from="b")
    assert (calls["a"], calls["b"], calls["c"]) == (1, 2, 2)
    assert (result.status, result.skipped, result.epoch) == (RunStatus.RESUMED, ("a",), 1)
    assert result.tokens == 50  # all spend is adopted
    assert result.spent_before.tokens == 30


async def test_a_new_epoch_is_continued_like_any_run(store: Any, calls: Calls) -> None:
    runner = make_runner(store)
    nodes = [*_chain(calls, "a", "b"), calls.node("c", {"value": 7}, TypeError(), {"value": 8})]
    await runner.run(nodes, Number(), run_id="r")
    stopped = await runner.run(nodes, Number(), run_id="r", resume_from="b")
    assert (stopped.status, stopped.final_state) == (RunStatus.FAILED, Number(value=2))
    result = await runner.run(nodes, Number(), run_id="r")
    assert (calls["a"], calls["b"], calls["c"]) == (1, 2, 3)
    assert (result.final_state, result.skipped) == (Number(value=8), ("a", "b"))
    assert result.tokens == 30


async def test_epochs_pile_up(store: Any, calls: Calls) -> None:
    runner, nodes = make_runner(store), _chain(calls, "a", "b", "c")
    await runner.run(nodes, Number(), run_id="r")
    for place, epoch in (("c", 1), ("a", 2), ("b", 3)):
        result = await runner.run(nodes, Number(), run_id="r", resume_from=place)
        assert (result.final_state, result.epoch) == (Number(value=3), epoch)
    assert (calls["a"], calls["b"], calls["c"]) == (2, 3, 4)
    assert result.tokens == 90
    again = await runner.run(nodes, Number(), run_id="r")
    assert (again.status, again.tokens, calls["c"]) == (RunStatus.RESUMED, 90, 4)


async def test_going_on_beyond_what_is_recorded_is_refused(store: Any, calls: Calls) -> None:
    runner, nodes = make_runner(store), _chain(calls, "a", "b", "c", bad="b")
    await runner.run(nodes, Number(), run_id="r")
    with pytest.raises(CheckpointNotFound, match="cannot go on at 'c': the result of 'b' before"):
        await runner.run(nodes, Number(), run_id="r", resume_from="c")
    run = await stored_run(store, "r")
    assert (run.owner, run.status) == ("", RunStatus.FAILED)


async def test_an_unknown_node_is_refused_by_name(calls: Calls) -> None:
    nodes = [calls.node("a"), parallel(calls.node("b"), calls.node("c"))]
    with pytest.raises(ConfigError, match=r"'x' is no node of this pipeline: its nodes are a, par"):
        await make_runner().run(nodes, Number(), run_id="r", resume_from="x")
    with pytest.raises(ConfigError, match=r"it is inside 'parallel\(b, c\)'; give that"):
        await make_runner().run(nodes, Number(), run_id="r", resume_from="b")
    assert calls["a"] == 0


async def test_going_on_at_an_unfinished_parallel_keeps_its_finished_children(
    store: Any, calls: Calls
) -> None:
    both = parallel(calls.node("a"), calls.node("b", TypeError("bug"), {"value": 2}))
    runner = make_runner(store)
    await runner.run([both], Number(), run_id="r")
    result = await runner.run([both], Number(), run_id="r", resume_from="parallel(a, b)")
    assert (calls["a"], calls["b"], result.epoch) == (1, 2, 0)


async def test_going_on_at_a_recorded_parallel_buys_its_children_again(
    store: Any, calls: Calls
) -> None:
    runner, both = make_runner(store), parallel(calls.node("a"), calls.node("b"))
    await runner.run([both], Number(), run_id="r")
    await runner.run([both], Number(), run_id="r", resume_from="parallel(a, b)")
    assert (calls["a"], calls["b"]) == (2, 2)


# -- restart ---------------------------------------------------------------------------------


async def test_restart_buys_everything_again_and_forgets_what_was_spent(
    store: Any, calls: Calls
) -> None:
    runner, nodes = make_runner(store), _chain(calls, "a", "b")
    await runner.run(nodes, Number(), run_id="r")
    result = await runner.run(nodes, Number(), run_id="r", restart=True)
    assert (calls["a"], calls["b"]) == (2, 2)
    assert (result.status, result.epoch) == (RunStatus.COMPLETED, 1)
    assert (result.tokens, result.spent_before.tokens) == (20, 0)


async def test_restart_of_a_run_that_does_not_exist_starts_it(store: Any, calls: Calls) -> None:
    nodes = _chain(calls, "a")
    result = await make_runner(store).run(nodes, Number(), run_id="r", restart=True)
    assert (result.status, result.epoch) == (RunStatus.COMPLETED, 0)


async def test_restart_without_an_input_takes_the_recorded_one(store: Any, calls: Calls) -> None:
    runner, nodes = make_runner(store), _chain(calls, "a")
    await runner.run(nodes, Number(value=5), run_id="r")
    result = await runner.run(nodes, run_id="r", restart=True)
    assert (result.final_state, calls["a"]) == (Number(value=6), 2)


async def test_restart_may_be_with_another_pipeline(store: Any, calls: Calls) -> None:
    runner = make_runner(store)
    old = [*_chain(calls, "a"), parallel(calls.node("b"), calls.node("c"))]
    await runner.run(old, Number(), run_id="r")
    new = _chain(calls, "x", "a")
    result = await runner.run(new, Number(), run_id="r", restart=True)
    assert (result.status, calls["a"], calls["x"]) == (RunStatus.COMPLETED, 2, 1)
    again = await runner.run(new, Number(), run_id="r")
    assert (again.status, again.skipped) == (RunStatus.RESUMED, ("x", "a"))


# -- a changed pipeline ----------------------------------------------------------------------


async def test_nodes_that_were_appended_continue_a_complete_run(store: Any, calls: Calls) -> None:
    runner = make_runner(store)
    await runner.run(_chain(calls, "a", "b"), Number(), run_id="r")
    result = await runner.run(_chain(calls, "a", "b", "c", "d"), Number(), run_id="r")
    assert result.status is RunStatus.RESUMED
    assert result.final_state == Number(value=4)
    assert (calls["a"], calls["b"], calls["c"], calls["d"]) == (1, 1, 1, 1)
    assert (await stored_run(store, "r")).status is RunStatus.COMPLETED


async def test_other_nodes_after_the_recorded_ones_are_fine(store: Any, calls: Calls) -> None:
    runner = make_runner(store)
    await runner.run(_chain(calls, "a", "b", bad="b"), Number(), run_id="r")
    result = await runner.run(_chain(calls, "a", "x", "b"), Number(), run_id="r")
    assert (result.status, calls["a"]) == (RunStatus.RESUMED, 1)


async def test_other_code_and_other_policies_are_fine(store: Any, calls: Calls) -> None:
    runner = make_runner(store)
    await runner.run(_chain(calls, "a", "b", bad="b"), Number(), run_id="r")
    other = [calls.node("a", {"value": 100}), calls.node("b", {"value": 5})]
    result = await make_runner(store, policy_map={}).run(other, Number(), run_id="r")
    assert (result.final_state, calls["a"]) == (Number(value=5), 1)


@pytest.mark.parametrize(
    "names", [("b", "a", "c"), ("x", "a", "b"), ("a", "x", "b"), ("a",), ("a", "c", "b")], ids=str
)
async def test_a_changed_recorded_prefix_is_refused(
    store: Any, calls: Calls, names: tuple[str, ...]
) -> None:
    runner = make_runner(store)
    await runner.run(_chain(calls, "a", "b", "c", bad="c"), Number(), run_id="r")
    made = dict(calls.made)
    with pytest.raises(PipelineChanged, match="restart=True"):
        await runner.run(_chain(calls, *names), Number(), run_id="r")
    assert made == dict(calls.made)
    assert (await stored_run(store, "r")).owner == ""


async def test_a_changed_prefix_is_refused_after_epochs_too(store: Any, calls: Calls) -> None:
    runner, nodes = make_runner(store), _chain(calls, "a", "b", "c")
    await runner.run(nodes, Number(), run_id="r")
    await runner.run(nodes, Number(), run_id="r", resume_from="c")
    with pytest.raises(PipelineChanged):
        await runner.run(_chain(calls, "a", "x", "c"), Number(), run_id="r")


async def test_a_child_that_is_gone_is_refused(store: Any, calls: Calls) -> None:
    runner = make_runner(store)
    bad = calls.node("b", TypeError())
    await runner.run([parallel(calls.node("a"), bad)], Number(), run_id="r")
    with pytest.raises(PipelineChanged, match="has recorded 'a', which this pipeline does not"):
        await runner.run([parallel(calls.node("x"), bad)], Number(), run_id="r")


@pytest.mark.parametrize("how", ["by itself", "later", "in fan_out", "out of fan_out"])
async def test_a_child_that_stands_elsewhere_is_refused(store: Any, calls: Calls, how: str) -> None:
    class Batch(BaseModel):
        items: list[Number] = [Number(value=5)]
        value: int = 0

    def pipeline(*, changed: bool) -> list[Any]:
        a = calls.node("a")
        b = calls.node("b", *[] if changed else [TypeError("bug")])
        if how == "by itself":
            return [a, b] if changed else [parallel(a, b)]
        if how == "later":
            return [*[calls.node("x")][:changed], parallel(a, b)]
        both = parallel(a, b)
        if changed is (how == "out of fan_out"):
            return [both]
        return [fan_out(both, over="items", into="done", input=Batch)]

    runner = make_runner(store)
    first = await runner.run(pipeline(changed=False), {}, run_id="r")
    assert (first.status, calls["a"]) == (RunStatus.FAILED, 1)
    with pytest.raises(
        PipelineChanged, match=r"has recorded 'a(\[0\])?', and this pipeline has 'a' in"
    ):
        await runner.run(pipeline(changed=True), run_id="r")
    assert calls["a"] == 1


async def test_a_child_may_get_siblings_and_another_sibling(store: Any, calls: Calls) -> None:
    runner, bad = make_runner(store), calls.node("b", TypeError())
    await runner.run([parallel(calls.node("a"), bad)], Number(), run_id="r")
    changed = [parallel(calls.node("x"), calls.node("a"), parallel(calls.node("y"), bad))]
    result = await runner.run(changed, Number(), run_id="r")
    assert result.status is RunStatus.FAILED
    assert (calls["a"], calls["x"], calls["y"]) == (1, 1, 1)


async def test_a_node_before_adopted_ones_is_refused(store: Any, calls: Calls) -> None:
    runner = make_runner(store)
    await runner.run(_chain(calls, "a", "b", "c"), Number(), run_id="r")
    bad = calls.node("c", TypeError())
    await runner.run([*_chain(calls, "a", "b"), bad], Number(), run_id="r", resume_from="c")
    for names in (("a", "x", "b", "c"), ("a",)):
        with pytest.raises(PipelineChanged, match="restart=True"):
            await runner.run(_chain(calls, *names), Number(), run_id="r")
    assert (calls["a"], calls["b"], calls["x"]) == (1, 1, 0)


async def test_the_record_names_the_version_that_went_on(store: Any, calls: Calls) -> None:
    runner, nodes = make_runner(store), _chain(calls, "a", "b", bad="b")
    await runner.run(Pipeline("p", nodes, version="1"), Number(), run_id="r")
    await runner.run(Pipeline("p", nodes, version="2"), Number(), run_id="r")
    assert (await stored_run(store, "r")).version == "2"


# -- a changed schema ------------------------------------------------------------------------


def _with_output(calls: Calls, schema: type[BaseModel], output: dict[str, Any]) -> Any:
    @node(id="a", input=Number, output=schema)
    async def a(state: Number) -> Any:
        calls.made["a"] += 1
        return output

    return a


def _failing(calls: Calls, schema: type[BaseModel]) -> Any:
    @node(id="b", input=schema, output=Number)
    async def b(state: BaseModel) -> Number:
        calls.made["b"] += 1
        if calls["b"] == 1:
            raise TypeError("bug")
        return Number(value=len(state.model_dump()))

    return b


class _Note(BaseModel):
    title: str
    score: int = 0


async def _change(store: Any, calls: Calls, schema: type[BaseModel]) -> Any:
    """Record a `_Note`, and continue with another schema in its place."""
    runner = make_runner(store)
    output = {"title": "t", "score": 3}
    await runner.run(
        [_with_output(calls, _Note, output), _failing(calls, _Note)], Number(), run_id="r"
    )
    later = [_with_output(calls, schema, output), _failing(calls, schema)]
    return await runner.run(later, Number(), run_id="r")


async def test_a_new_optional_field_is_compatible(store: Any, calls: Calls) -> None:
    class Note(BaseModel):
        title: str
        score: int = 0
        tags: list[str] = []

    result = await _change(store, calls, Note)
    assert (result.status, result.final_state, calls["a"]) == (
        RunStatus.RESUMED,
        Number(value=3),
        1,
    )


async def test_titles_descriptions_and_constraints_are_compatible(store: Any, calls: Calls) -> None:
    class Note(BaseModel):
        """Another docstring."""

        title: str = Field(title="Title", description="what it is about", max_length=10)
        score: int | None = None

    assert (await _change(store, calls, Note)).status is RunStatus.RESUMED


class _Removed(BaseModel):
    title: str


class _Renamed(BaseModel):
    headline: str
    score: int = 0


class _Retyped(BaseModel):
    title: str
    score: list[int] = []


class _Added(BaseModel):
    title: str
    score: int = 0
    author: str


class _Tightened(BaseModel):
    title: str
    score: int = Field(default=0, ge=5)


@pytest.mark.parametrize(
    ("schema", "change"),
    [
        (_Removed, "score: recorded, but no longer a field"),
        (_Renamed, "title: recorded, but no longer a field (renamed to headline?)"),
        (_Retyped, 'score: was int, is {"list":["int"]}'),
        (_Added, "author: now required, but not recorded"),
        (_Tightened, "score: Input should be greater than or equal to 5"),
    ],
)
async def test_an_incompatible_field_is_refused_by_name(
    store: Any, calls: Calls, schema: type[BaseModel], change: str
) -> None:
    with pytest.raises(SchemaMismatch) as caught:
        await _change(store, calls, schema)
    assert change in caught.value.changes
    assert change in str(caught.value)
    assert "upcasters={'a': function}" in str(caught.value)
    assert (calls["a"], calls["b"]) == (1, 1)
    assert (await stored_run(store, "r")).owner == ""


async def test_only_the_state_that_is_needed_has_to_fit(store: Any, calls: Calls) -> None:
    runner = make_runner(store)
    number = calls.node("n", {"value": 1})
    note = _with_output(calls, _Note, {"title": "t"})

    @node(id="n2", input=_Note, output=Number)
    async def to_number(state: _Note) -> Number:
        return Number(value=4)

    bad = calls.node("z", TypeError(), {"value": 9})
    await runner.run([number, note, to_number, bad], Number(), run_id="r")
    changed = _with_output(calls, _Retyped, {})
    result = await runner.run([number, changed, to_number, bad], Number(), run_id="r")
    assert result.final_state == Number(value=9)


# -- missing and damaged records -------------------------------------------------------------


async def _damaged(calls: Calls, damage: Any) -> Any:
    store = InMemoryStore()
    runner, nodes = make_runner(store), _chain(calls, "a", "b", "c", bad="c")
    await runner.run(nodes, Number(), run_id="r")
    damage(store._entries["r"].records)
    return await runner.run(nodes, Number(), run_id="r")


def _place(records: dict[Any, Any], path: str) -> Any:
    return next(place for place in records if place[1] == path and place[2] == "result")


async def test_a_damaged_payload_is_refused(calls: Calls) -> None:
    def damage(records: dict[Any, Any]) -> None:
        place = _place(records, "b")
        records[place] = records[place]._replace(payload=b'{"value": 77}')

    with pytest.raises(RecordCorrupt, match=r"'b'.*does not have its digest.*resume_from='b'"):
        await _damaged(calls, damage)
    assert calls["b"] == 1


async def test_a_missing_result_is_refused(calls: Calls) -> None:
    def damage(records: dict[Any, Any]) -> None:
        del records[_place(records, "a")]

    with pytest.raises(CheckpointNotFound, match="gone on after 'a', and its own result is gone"):
        await _damaged(calls, damage)
    assert (calls["a"], calls["b"]) == (1, 1)


async def test_missing_adopted_results_are_refused(calls: Calls) -> None:
    store = InMemoryStore()
    runner = make_runner(store)
    await runner.run(_chain(calls, "a", "b"), Number(), run_id="r")
    bad = [calls.node("a"), calls.node("b", TypeError())]
    await runner.run(bad, Number(), run_id="r", resume_from="b")
    records = store._entries["r"].records
    for place in [place for place in records if place[1] == "a"]:
        del records[place]
    with pytest.raises(CheckpointNotFound, match="gone on after 'a', and its own result is gone"):
        await runner.run(_chain(calls, "a", "b"), Number(), run_id="r")
    assert (calls["a"], calls["b"]) == (1, 2)
    for _ in range(2):
        result = await runner.run(_chain(calls, "a", "b"), run_id="r", resume_from="a")
        assert (result.status, result.final_state) == (RunStatus.COMPLETED, Number(value=2))


async def test_a_record_that_vanishes_between_two_reads_is_refused(calls: Calls) -> None:
    store = InMemoryStore()
    runner = make_runner(store)
    both = parallel(calls.node("a"), calls.node("b", TypeError()))
    await runner.run([both], Number(), run_id="r")
    fetch = store.fetch
    store.fetch = lambda run_id, keys: [None] * len(fetch(run_id, keys))  # type: ignore[method-assign]
    with pytest.raises(CheckpointNotFound, match="'a' is listed, and gone from the store"):
        await runner.run([both], Number(), run_id="r")
    assert calls["a"] == 1
    assert store.inspect("r").run.owner == ""  # type: ignore[union-attr]


@pytest.mark.parametrize("plan", [b"", b"[]", b"{", b'{"node_ids": 3}'])
async def test_a_damaged_run_record_is_refused(calls: Calls, plan: bytes) -> None:
    store = InMemoryStore()
    runner, nodes = make_runner(store), _chain(calls, "a", "b", bad="b")
    await runner.run(nodes, Number(), run_id="r")
    entry = store._entries["r"]
    entry.run = entry.run._replace(plan=plan)  # type: ignore[union-attr]
    with pytest.raises(RecordCorrupt, match="plan cannot be read"):
        await runner.run(nodes, Number(), run_id="r")


async def test_what_save_wrote_by_itself_is_no_record_of_the_run(store: Any, calls: Calls) -> None:
    saved = store.save("r", "a", Text(text="x"))
    if saved is not None:
        await saved
    result = await make_runner(store).run(_chain(calls, "a"), Number(), run_id="r")
    assert (result.status, calls["a"]) == (RunStatus.COMPLETED, 1)
    loaded = store.load("r", "a")
    assert (await loaded if hasattr(loaded, "__await__") else loaded) == Text(text="x")


# -- inside parallel and fan_out -------------------------------------------------------------


class _Batch(BaseModel):
    items: list[Number]


async def test_the_pipelines_spend_of_attempts_is_kept_over_many_starts(
    store: Any, calls: Calls
) -> None:
    from stroma import report_usage

    @node
    async def unlucky(state: Number) -> Number:
        report_usage(input_tokens=1)
        raise RuntimeError("odd")

    runner = make_runner(store)
    for start in range(1, 5):
        result = await runner.run([unlucky], Number(), run_id="r")
        assert result.tokens == 2 * start
    headers = (await stored(store, "r")).headers
    assert [h.attempt for h in headers] == list(range(1, 9))


async def test_items_that_failed_are_the_only_ones_to_run_again(store: Any, calls: Calls) -> None:
    failing = {3, 7}

    def work(state: Number) -> Any:
        if state.value in failing:
            raise TypeError("bug")
        return {"value": state.value}

    each = fan_out(calls.node("w", work), over="items", into="done", max_concurrency=1)
    runner, batch = make_runner(store), _Batch(items=[Number(value=n) for n in range(10)])
    await runner.run([each], batch, run_id="r")
    failing.discard(3)
    await runner.run([each], batch, run_id="r")
    failing.discard(7)
    result = await runner.run([each], batch, run_id="r")
    assert result.status is RunStatus.RESUMED
    assert [n.value for n in result.final_state.done] == list(range(10))  # type: ignore[union-attr]
    assert calls["w"] == 12
