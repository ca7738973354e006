"""Functions that turn what an older version recorded into what this one takes."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, Field

from stroma import ConfigError, Pipeline, RunStatus, SchemaMismatch, fan_out, node, parallel
from stroma.pipeline import Upcaster
from tests.core.helpers import Calls, Number, make_runner


class OldNote(BaseModel):
    title: str


class NewNote(BaseModel):
    headline: str
    words: int


def _pipeline(
    calls: Calls, schema: type[BaseModel], upcasters: dict[str, Upcaster] | None = None
) -> Pipeline:
    """A node that gives the schema, and one that takes it and fails at its first call."""

    @node(id="write", input=Number, output=schema)
    async def write(state: Number) -> dict[str, str]:
        calls.made["write"] += 1
        return {"title": "two words"}

    @node(id="read", input=schema, output=Number)
    async def read(state: Any) -> Number:
        calls.made["read"] += 1
        if calls["read"] == 1:
            raise TypeError("bug")
        return Number(value=state.words)

    return Pipeline("notes", [write, read], upcasters=upcasters)


def _upcast(old: dict[str, Any]) -> dict[str, Any]:
    return {"headline": old["title"], "words": len(old["title"].split())}


async def test_a_recorded_state_is_mended(store: Any, calls: Calls) -> None:
    runner = make_runner(store)
    await runner.run(_pipeline(calls, OldNote), Number(), run_id="r")
    result = await runner.run(_pipeline(calls, NewNote, {"write": _upcast}), Number(), run_id="r")
    assert (result.status, result.final_state) == (RunStatus.RESUMED, Number(value=2))
    assert calls["write"] == 1


async def test_the_recorded_input_is_mended(store: Any, calls: Calls) -> None:
    runner = make_runner(store)

    @node(id="first", input=OldNote, output=Number)
    async def old(state: OldNote) -> Number:
        raise TypeError("bug")

    @node(id="first", input=NewNote, output=Number)
    async def new(state: NewNote) -> Number:
        return Number(value=state.words)

    await runner.run([old], OldNote(title="a b c"), run_id="r")
    mended = Pipeline("notes", [new], upcasters={"input": _upcast})
    result = await runner.run(mended, run_id="r")
    assert result.final_state == Number(value=3)


async def test_the_mended_input_is_compared_with_the_one_given(store: Any) -> None:
    runner = make_runner(store)

    @node(id="first", input=OldNote, output=Number)
    async def old(state: OldNote) -> Number:
        raise TypeError("bug")

    @node(id="first", input=NewNote, output=Number)
    async def new(state: NewNote) -> Number:
        return Number(value=state.words)

    await runner.run([old], OldNote(title="a b c"), run_id="r")
    mended = Pipeline("notes", [new], upcasters={"input": _upcast})
    result = await runner.run(mended, NewNote(headline="a b c", words=3), run_id="r")
    assert result.final_state == Number(value=3)


async def test_an_upcaster_is_not_asked_about_what_fits(store: Any, calls: Calls) -> None:
    def never(old: dict[str, Any]) -> dict[str, Any]:
        raise AssertionError("never called")

    class Note(BaseModel):
        title: str
        words: int = 5

    runner = make_runner(store)
    await runner.run(_pipeline(calls, OldNote), Number(), run_id="r")
    result = await runner.run(_pipeline(calls, Note, {"write": never}), Number(), run_id="r")
    assert result.final_state == Number(value=5)


async def test_an_upcaster_mends_what_a_tightened_field_refuses(store: Any, calls: Calls) -> None:
    class Note(BaseModel):
        title: str = Field(max_length=3)

        @property
        def words(self) -> int:
            return len(self.title)

    runner = make_runner(store)
    await runner.run(_pipeline(calls, OldNote), Number(), run_id="r")
    shorter = {"write": lambda old: {"title": old["title"][:3]}}
    result = await runner.run(_pipeline(calls, Note, shorter), Number(), run_id="r")
    assert result.final_state == Number(value=3)


async def test_what_an_upcaster_gives_has_to_fit(store: Any, calls: Calls) -> None:
    runner = make_runner(store)
    await runner.run(_pipeline(calls, OldNote), Number(), run_id="r")
    wrong = _pipeline(calls, NewNote, {"write": lambda old: {"headline": "x"}})
    with pytest.raises(SchemaMismatch, match="words: Field required"):
        await runner.run(wrong, Number(), run_id="r")


async def test_an_upcaster_that_raises_is_told_apart(store: Any, calls: Calls) -> None:
    runner = make_runner(store)
    await runner.run(_pipeline(calls, OldNote), Number(), run_id="r")
    wrong = _pipeline(calls, NewNote, {"write": lambda old: {"headline": old["no such"]}})
    with pytest.raises(SchemaMismatch, match="its upcaster raised KeyError") as caught:
        await runner.run(wrong, Number(), run_id="r")
    assert isinstance(caught.value.__cause__, KeyError)
    good = await runner.run(_pipeline(calls, NewNote, {"write": _upcast}), Number(), run_id="r")
    assert good.status is RunStatus.RESUMED  # the refused start gave the run up


async def test_items_and_children_are_mended(store: Any, calls: Calls) -> None:
    class Batch(BaseModel):
        items: list[Number]

    def pipeline(schema: type[BaseModel], **upcasters: Upcaster) -> Pipeline:
        @node(id="write", input=Number, output=schema)
        async def write(state: Number) -> dict[str, str]:
            calls.made["write"] += 1
            return {"title": "a b"} if schema is OldNote else {"headline": "a b", "words": 2}  # type: ignore[dict-item]

        bad = calls.node("bad", TypeError("bug"), {"value": 1})
        each = fan_out(
            parallel(write, bad), over="items", into="done", max_concurrency=1, id="each"
        )
        return Pipeline("p", [each], upcasters=upcasters)

    runner = make_runner(store)
    batch = Batch(items=[Number(), Number()])
    await runner.run(pipeline(OldNote), batch, run_id="r")
    result = await runner.run(pipeline(NewNote, write=_upcast), batch, run_id="r")
    assert result.status is RunStatus.RESUMED
    assert [item.words for item in result.final_state.done] == [2, 2]  # type: ignore[union-attr]
    assert calls["write"] == 2


def test_an_upcaster_for_no_node_is_refused(calls: Calls) -> None:
    nodes = [calls.node("a"), parallel(calls.node("b"), calls.node("c"))]
    with pytest.raises(ConfigError, match="upcasters for x, but its nodes are a, b, c, parallel"):
        Pipeline("p", nodes, upcasters={"x": _upcast})
    for known in ("input", "a", "b", "parallel(b, c)"):
        Pipeline("p", nodes, upcasters={known: _upcast})
