"""What is checked at a node's boundary, and what becomes of an output that does not fit."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

from stroma import (
    ConfigError,
    ContractRegistry,
    ContractViolation,
    NodeContract,
    RunStatus,
    StateNotStorable,
    StromaRunner,
    node,
    parallel,
    report_usage,
    stroma_node,
)
from tests.core.helpers import Calls, Number, Text, make_runner, stored


class Summary(BaseModel):
    summary: str
    word_count: int


class Document(BaseModel):
    text: str


def _document_node(
    returned: object, called: list[int] | None = None, output: type[BaseModel] = Summary
) -> Any:
    @node(id="summarize", input=Document, output=output)
    async def summarize(state: Document) -> object:
        if called is not None:
            called.append(1)
        return returned

    return summarize


# -- violations ------------------------------------------------------------------------------


async def test_an_output_that_does_not_fit_fails_the_run_and_names_the_fields(
    store: object,
) -> None:
    bad = _document_node({"wrong": "field"})
    result = await make_runner(store).run([bad], Document(text="hello"))
    assert result.status is RunStatus.FAILED
    (event,) = result.trace.failures()
    message = "summarize (output): summary: Field required; word_count: Field required"
    assert event.failure_message == message
    assert event.failure_class == "terminal"
    assert result.stop_reason == message
    assert isinstance(result.error, ContractViolation)
    assert result.error.direction == "output"
    assert result.error.raw == {"wrong": "field"}


async def test_an_output_that_does_not_fit_is_not_bought_again(calls: Calls) -> None:
    await make_runner().run([calls.node("a", {"value": "many"})], Number())
    assert calls["a"] == 1


async def test_an_input_that_does_not_fit_is_a_result_and_not_an_exception(calls: Calls) -> None:
    result = await make_runner().run([calls.node("a")], {"value": "many"})
    assert result.status is RunStatus.FAILED
    assert calls["a"] == 0
    assert "a (input): value: " in result.stop_reason
    assert result.trace.failures()[0].failure_message == result.stop_reason


async def test_an_input_that_does_not_fit_leaves_no_record(store: Any, calls: Calls) -> None:
    runner = make_runner(store)
    await runner.run([calls.node("a")], {"value": "many"}, run_id="r")
    assert await stored(store, "r") is None
    result = await runner.run([calls.node("a")], {"value": 1}, run_id="r")
    assert result.status is RunStatus.COMPLETED


async def test_a_state_that_does_not_fit_the_next_node_names_that_node(calls: Calls) -> None:
    @node
    async def next_node(state: Text) -> Text:
        raise AssertionError("never called")

    result = await make_runner().run([calls.node("a"), next_node], Number())
    assert result.status is RunStatus.FAILED
    assert result.stop_reason == "next_node (input): text: Field required"
    assert result.final_state == Number(value=1)


async def test_values_are_not_in_the_message() -> None:
    bad = _document_node({"summary": 3, "word_count": "a private thing"})
    result = await make_runner().run([bad], Document(text=""))
    assert "private" not in result.stop_reason


async def test_a_validator_that_raises_anything_is_a_violation(store: object) -> None:
    class Picky(BaseModel):
        value: int

        @field_validator("value")
        @classmethod
        def _look_up(cls, value: int) -> int:
            return {}[value]

    called: list[int] = []
    bad = _document_node({"value": 1}, called, output=Picky)
    result = await make_runner(store).run([bad], Document(text=""), run_id="r")
    assert result.status is RunStatus.FAILED
    assert isinstance(result.error, ContractViolation)
    assert "KeyError" in result.stop_reason
    assert called == [1]


async def test_a_validator_of_an_input_that_raises_anything_does_not_escape(calls: Calls) -> None:
    class Picky(BaseModel):
        value: int

        @field_validator("value")
        @classmethod
        def _look_up(cls, value: int) -> int:
            return {}[value]

    @node
    async def picky(state: Picky) -> Number:
        raise AssertionError("never called")

    result = await make_runner().run([calls.node("a"), picky], Number())
    assert result.status is RunStatus.FAILED
    assert "KeyError" in result.stop_reason


# -- a refused output is paid for ------------------------------------------------------------


async def test_continuing_looks_at_the_recorded_output_and_does_not_call_the_node(
    store: object,
) -> None:
    class Mended(BaseModel):
        summary: str
        word_count: str

    called: list[int] = []
    output = {"summary": "ü", "word_count": "three"}
    await make_runner(store).run([_document_node(output, called)], Document(text=""), run_id="r")
    mended = _document_node(output, called, output=Mended)
    result = await make_runner(store).run([mended], Document(text=""), run_id="r")
    assert result.final_state == Mended(summary="ü", word_count="three")
    assert result.status is RunStatus.RESUMED
    assert called == [1]


async def test_a_recorded_output_that_still_does_not_fit_is_not_bought_again(
    store: object,
) -> None:
    called: list[int] = []
    bad = _document_node({"summary": 1}, called)
    runner = make_runner(store)
    await runner.run([bad], Document(text=""), run_id="r")
    result = await runner.run([bad], Document(text=""), run_id="r")
    assert result.status is RunStatus.FAILED
    assert called == [1]
    assert "resume_from='summarize'" in result.stop_reason


async def test_the_advice_names_the_node_that_resume_from_takes(
    store: object, calls: Calls
) -> None:
    runner = make_runner(store)
    nodes = [parallel(calls.node("a"), calls.node("b", {"value": "many"}, {"value": 5}))]
    await runner.run(nodes, Number(), run_id="r")
    refused = await runner.run(nodes, Number(), run_id="r")
    assert "resume_from='parallel(a, b)'" in refused.stop_reason
    result = await runner.run(nodes, Number(), run_id="r", resume_from="parallel(a, b)")
    assert result.is_complete


async def test_resume_from_is_consent_to_buy_it_again(store: object, calls: Calls) -> None:
    runner = make_runner(store)
    nodes = [calls.node("a"), calls.node("b", {"value": "many"}, {"value": 5}), calls.node("c")]
    await runner.run(nodes, Number(), run_id="r")
    result = await runner.run(nodes, Number(), run_id="r", resume_from="b")
    assert result.final_state == Number(value=6)
    assert (calls["a"], calls["b"], calls["c"]) == (1, 2, 1)


async def test_what_a_refused_output_cost_is_counted_once(store: object) -> None:
    @node(id="a", input=Number, output=Number)
    async def bad(state: Number) -> object:
        return {"value": "seven"}, 40

    @node(id="a", input=Number, output=Text)
    async def mended(state: Number) -> object:
        raise AssertionError("never called")

    class Word(BaseModel):
        value: str

    @node(id="a", input=Number, output=Word)
    async def fitting(state: Number) -> object:
        raise AssertionError("never called")

    runner = make_runner(store)
    first = await runner.run([bad], Number(), run_id="r")
    assert first.tokens == 40
    again = await runner.run([mended], Number(), run_id="r")
    assert (again.status, again.tokens) == (RunStatus.FAILED, 40)
    last = await runner.run([fitting], Number(), run_id="r")
    assert (last.is_complete, last.tokens) == (True, 40)
    assert last.usage["a"].tokens == 40


@pytest.mark.parametrize(
    "output",
    [
        {"text": "half a pair \ud83d"},
        {"text": float("nan"), "other": [float("inf")]},
        {"text": object()},
        {"text": {1, 2}},
        {"text": b"\xff\xfe"},
        {("a", 1): 2},
        {"text": 10**5000},
        "just text",
        None,
        [1, 2],
        Number(value=3),
    ],
    ids=[
        "surrogate",
        "nan",
        "object",
        "set",
        "bytes",
        "keys",
        "huge",
        "str",
        "none",
        "list",
        "model",
    ],
)
async def test_whatever_a_node_returns_is_recorded(store: Any, output: object) -> None:
    called: list[int] = []
    bad = _document_node(output, called, output=Text)
    runner = make_runner(store)
    first = await runner.run([bad], Document(text=""), run_id="r")
    again = await runner.run([bad], Document(text=""), run_id="r")
    assert first.status is again.status is RunStatus.FAILED
    assert called == [1]
    headers = (await stored(store, "r")).headers
    assert [h.schema_ref for h in headers] == ["stroma:violation"]


async def test_an_output_that_holds_itself_is_recorded(store: object) -> None:
    output: dict[str, object] = {}
    output["text"] = output
    result = await make_runner(store).run([_document_node(output, output=Text)], Document(text=""))
    assert result.status is RunStatus.FAILED


async def test_half_a_surrogate_pair_can_be_mended(store: object) -> None:
    class Clean(BaseModel):
        text: str

        @field_validator("text", mode="before")
        @classmethod
        def _drop_halves(cls, value: str) -> str:
            return value.encode(errors="ignore").decode()

    called: list[int] = []
    output = {"text": "ok \ud83d ✓"}
    runner = make_runner(store)
    await runner.run([_document_node(output, called, output=Text)], Document(text=""), run_id="r")
    mended = _document_node(output, called, output=Clean)
    result = await runner.run([mended], Document(text=""), run_id="r")
    assert result.final_state == Clean(text="ok  ✓")
    assert called == [1]


async def test_an_instance_of_another_model_is_recorded_by_field_name(store: object) -> None:
    class Aliased(BaseModel):
        text: int = Field(alias="theText")

    called: list[int] = []
    output = Aliased(theText=3)
    runner = make_runner(store)
    first = _document_node(output, called, output=Text)
    assert (await runner.run([first], Document(text=""), run_id="r")).status is RunStatus.FAILED

    class Mended(BaseModel):
        text: int

    mended = _document_node(output, called, output=Mended)
    result = await runner.run([mended], Document(text=""), run_id="r")
    assert result.final_state == Mended(text=3)


# -- what is taken as it is ------------------------------------------------------------------


async def test_an_instance_of_the_required_type_is_not_validated_again() -> None:
    validated: list[int] = []

    class Watched(BaseModel):
        value: int

        @field_validator("value")
        @classmethod
        def _count(cls, value: int) -> int:
            validated.append(value)
            return value

    made = Watched(value=1)

    @node
    async def a(state: Number) -> Watched:
        return made

    seen: list[Watched] = []

    @node
    async def b(state: Watched) -> Number:
        seen.append(state)
        return Number()

    runner = make_runner()
    await runner.run([a, b], Number())
    assert seen[0] is made
    # once when it was made, and once when its bytes were read back: it has a validator
    assert len(validated) == 2


async def test_an_instance_that_was_changed_since_is_looked_at() -> None:
    made = Number(value=1)
    made.value = "many"  # type: ignore[assignment]

    @node
    async def a(state: Number) -> Number:
        return made

    result = await make_runner().run([a], Number())
    assert result.status is RunStatus.FAILED
    assert result.stop_reason.startswith("a (output): ")


async def test_an_instance_of_a_subclass_is_refused_if_fields_would_be_lost(calls: Calls) -> None:
    class More(Number):
        note: str

    class Same(Number):
        pass

    bad = calls.node("a", More(value=1, note="x"))
    result = await make_runner().run([bad], Number())
    assert result.stop_reason == (
        "a (output): note: a field of More, not of Number: it would be lost"
    )
    good = calls.node("b", Same(value=1))
    result = await make_runner().run([good], Number())
    assert type(result.final_state) is Number


async def test_an_input_may_be_a_dict(calls: Calls) -> None:
    result = await make_runner().run([calls.node("a")], {"value": 1})
    assert result.final_state == Number(value=2)


async def test_a_dict_may_use_aliases_or_names() -> None:
    class Aliased(BaseModel):
        text: str = Field(alias="theText")

    outputs = iter([{"theText": "alias"}, {"text": "name"}])

    @node
    async def a(state: Number) -> Aliased:
        return next(outputs)  # type: ignore[return-value]

    runner = make_runner()
    texts = [(await runner.run([a], Number())).final_state.text for _ in range(2)]  # type: ignore[union-attr]
    assert texts == ["alias", "name"]


# -- what a node may return ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "usage"),
    [
        ({"value": 2}, (0, 0, "")),
        (Number(value=2), (0, 0, "")),
        (({"value": 2}, 7), (7, 0, "")),
        ((Number(value=2), 7), (7, 0, "")),
        (({"value": 2}, 7, "m"), (7, 0, "m")),
        (({"value": 2}, 7, 5, "m"), (7, 5, "m")),
        (({"value": 2}, 0), (0, 0, "")),
    ],
)
async def test_every_form_of_output(
    calls: Calls, output: object, usage: tuple[int, int, str], store: object
) -> None:
    result = await make_runner(store).run([calls.node("a", output)], Number())
    assert result.final_state == Number(value=2)
    assert result.status is RunStatus.COMPLETED
    spent = result.spent
    assert (spent.input_tokens, spent.output_tokens, spent.model) == usage


@pytest.mark.parametrize(
    "output",
    [
        (),
        ({"value": 2},),
        ({"value": 2}, 1, 2, "m", "more"),
        ({"value": 2}, "7"),
        ({"value": 2}, -7),
        ({"value": 2}, 7.5),
        ({"value": 2}, True),
        ({"value": 2}, None),
        ({"value": 2}, 7, None),
        ({"value": 2}, 7, 5),
        ({"value": 2}, 7, 5, None),
        ({"value": 2}, "m", 7),
    ],
    ids=repr,
)
async def test_a_malformed_tuple_is_a_violation_that_keeps_it(calls: Calls, output: object) -> None:
    result = await make_runner().run([calls.node("a", output)], Number())
    assert result.status is RunStatus.FAILED
    assert isinstance(result.error, ContractViolation)
    assert result.error.raw == output
    assert calls["a"] == 1


# -- what could not come back ----------------------------------------------------------------


async def test_a_contract_with_a_secret_is_refused_before_anything_runs(calls: Calls) -> None:
    class Keys(BaseModel):
        key: SecretStr

    @node
    async def b(state: Number) -> Keys:
        raise AssertionError("never called")

    with pytest.raises(StateNotStorable, match="key: SecretStr is stored as asterisks") as caught:
        await make_runner().run([calls.node("a"), b], Number())
    assert caught.value.fields == ("key",)
    assert calls["a"] == 0


async def test_excluded_fields_are_refused_wherever_they_are() -> None:
    class Inner(BaseModel):
        hidden: str = Field(exclude=True)

    class Outer(BaseModel):
        inner: list[Inner]

    @node
    async def a(state: Outer) -> Number:
        raise AssertionError("never called")

    with pytest.raises(StateNotStorable, match=r"inner\.hidden: excluded fields"):
        await make_runner().run([a], Outer(inner=[]))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
async def test_a_number_that_json_lacks_is_refused_by_name(value: float) -> None:
    class Score(BaseModel):
        score: float

    @node
    async def a(state: Number) -> Score:
        return Score(score=value)

    result = await make_runner().run([a], Number())
    assert result.status is RunStatus.FAILED
    assert "score" in result.stop_reason


async def test_a_number_that_json_lacks_survives_where_the_model_says_how(store: object) -> None:
    class Score(BaseModel):
        model_config = ConfigDict(ser_json_inf_nan="strings")
        score: float

    @node
    async def a(state: Score) -> Score:
        return state

    @node
    async def b(state: Score) -> Number:
        raise TypeError("stop here")

    runner = make_runner(store)
    await runner.run([a, b], Score(score=float("nan")), run_id="r")
    result = await runner.run([a, b], Score(score=float("nan")), run_id="r")
    assert result.skipped == ("a",)
    assert isinstance(result.final_state, Score)
    assert result.final_state.score != result.final_state.score


async def test_bytes_survive_or_are_refused_by_name() -> None:
    class Blob(BaseModel):
        data: bytes

    @node
    async def a(state: Blob) -> Blob:
        return Blob(data=b"\xff" if state.data == b"odd" else state.data)

    runner = make_runner()
    assert (await runner.run([a], Blob(data=b"plain"))).status is RunStatus.COMPLETED
    result = await runner.run([a], Blob(data=b"odd"))
    assert result.status is RunStatus.FAILED
    assert "Blob cannot be written as JSON: data: " in result.stop_reason


async def test_a_field_that_holds_a_subclass_is_refused_by_name() -> None:
    class Animal(BaseModel):
        name: str

    class Dog(Animal):
        breed: str

    class Home(BaseModel):
        pet: Animal

    @node
    async def a(state: Number) -> Home:
        return Home(pet=Dog(name="Rex", breed="mutt"))

    result = await make_runner().run([a], Number())
    assert result.status is RunStatus.FAILED
    assert "pet: Dog comes back as Animal" in result.stop_reason


async def test_an_initial_state_that_could_not_come_back_is_refused_before_anything_runs(
    calls: Calls,
) -> None:
    class Score(BaseModel):
        score: float

    @node
    async def a(state: Score) -> Number:
        raise AssertionError("never called")

    with pytest.raises(StateNotStorable, match=r"score.*ser_json_inf_nan='strings'"):
        await make_runner().run([a], Score(score=float("nan")))


async def test_a_validator_that_fails_only_when_the_record_is_read_is_a_violation() -> None:
    class Fickle(BaseModel):
        value: int

        @field_validator("value")
        @classmethod
        def _once(cls, value: int) -> int:
            seen.append(value)
            return {1: value}[len(seen)]

    seen: list[int] = []
    called: list[int] = []
    result = await make_runner().run([_document_node({"value": 5}, called, Fickle)], {"text": ""})
    assert result.status is RunStatus.FAILED
    assert "KeyError" in result.stop_reason
    assert called == [1]


async def test_comparing_what_came_back_may_raise() -> None:
    class Odd:
        def __eq__(self, other: object) -> bool:
            raise ValueError("the truth value is ambiguous")

        __hash__ = None  # type: ignore[assignment]

    class Holder(BaseModel):
        model_config = ConfigDict(arbitrary_types_allowed=True)
        odd: Any

    called: list[int] = []
    bad = _document_node(Holder(odd=Odd()), called, output=Holder)
    result = await make_runner().run([bad], Document(text=""))
    assert result.status is RunStatus.FAILED
    assert called == [1]


# -- the registry ----------------------------------------------------------------------------


def _contract(node_id: str, output: type[BaseModel] = Number) -> NodeContract:
    return NodeContract(node_id=node_id, input_schema=Number, output_schema=output)


def test_an_equal_contract_may_be_registered_again() -> None:
    registry = ContractRegistry()
    registry.register(_contract("a"))
    registry.register(_contract("a"))
    assert list(registry) == [_contract("a")]
    assert "a" in registry
    assert len(registry) == 1


def test_another_contract_under_the_same_id_is_refused() -> None:
    registry = ContractRegistry()
    registry.register(_contract("a"))
    with pytest.raises(ConfigError, match="'a' is registered with Number -> Number"):
        registry.register(_contract("a", Text))
    assert registry.get("a") == _contract("a")


def test_a_registry_does_not_know_what_was_not_registered() -> None:
    assert ContractRegistry().get("a") is None


@pytest.mark.parametrize("node_id", ["", "a\0b", "x" * 513, "\ud83d", 3])
def test_a_contract_needs_an_id_that_every_store_keeps(node_id: object) -> None:
    with pytest.raises(ValueError, match=r"node id|node_id"):
        NodeContract(node_id=node_id, input_schema=Number, output_schema=Number)  # type: ignore[arg-type]


async def test_a_stroma_node_needs_its_contract_in_the_registry() -> None:
    @stroma_node("a", _contract("a"))
    async def a(state: Number) -> Number:
        return state

    with pytest.raises(ConfigError, match="not registered with this runner"):
        await make_runner().run([a], Number())
    registry = ContractRegistry()
    registry.register(_contract("a"))
    result = await StromaRunner(registry).run([a], Number(value=3))
    assert result.final_state == Number(value=3)


async def test_a_registered_contract_must_be_that_of_the_node() -> None:
    registry = ContractRegistry()
    registry.register(_contract("a", Text))

    @stroma_node("a", _contract("a"))
    async def a(state: Number) -> Number:
        return state

    with pytest.raises(ConfigError, match="another contract than the one that is registered"):
        await StromaRunner(registry).run([a], Number())


def test_decorators_attach_id_and_contract() -> None:
    runner = make_runner()

    @runner.node("a", input=Number, output=Text)
    async def a(state: Number) -> dict[str, str]:
        return {"text": ""}

    assert a._stroma_node_id == "a"  # type: ignore[attr-defined]
    assert a._stroma_contract == _contract("a", Text)  # type: ignore[attr-defined]
    assert runner.registry.get("a") == _contract("a", Text)


async def test_usage_reported_before_a_violation_counts() -> None:
    @node
    async def a(state: Number) -> Number:
        report_usage(input_tokens=9)
        return {"value": "many"}  # type: ignore[return-value]

    result = await make_runner().run([a], Number())
    assert result.tokens == 9


async def test_the_refused_output_is_json_that_anyone_can_read(store: Any, calls: Calls) -> None:
    output = {"value": "viele", "more": [1, None, {"x": "é"}]}
    await make_runner(store).run([calls.node("a", output)], Number(), run_id="r")
    (header,) = (await stored(store, "r")).headers
    found = store.fetch("r", [header.key])
    (record,) = await found if hasattr(found, "__await__") else found
    assert json.loads(record.payload)["output"] == output


class Loose(BaseModel):
    value: Any = None


class Numbers(BaseModel):
    value: set[int] = set()


async def test_what_json_would_not_give_back_is_refused_at_the_next_start_too(store: Any) -> None:
    calls = 0

    def returning(output: type[BaseModel]) -> Any:
        @node(id="a", input=Number, output=output)
        async def a(state: Number) -> dict[str, Any]:
            nonlocal calls
            calls += 1
            return {"value": {1, 2}}

        return a

    runner = make_runner(store)
    for _ in range(2):
        result = await runner.run([returning(Loose)], Number(), run_id="r")
        assert (result.status, calls) == (RunStatus.FAILED, 1)

    mended = await runner.run([returning(Numbers)], Number(), run_id="r")
    assert (mended.final_state, calls) == (Numbers(value={1, 2}), 1)
