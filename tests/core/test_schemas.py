"""Forms, fingerprints and differences of schemas, and how states come back from JSON."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import json
import pathlib
import typing
import uuid
from typing import (
    Annotated,
    Any,
    Generic,
    Literal,
    NamedTuple,
    NewType,
    NotRequired,
    Optional,
    TypeVar,
    Union,
)

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    RootModel,
    SecretBytes,
    SecretStr,
    computed_field,
    create_model,
    field_serializer,
)
from typing_extensions import TypeAliasType, TypedDict

from stroma import StateNotStorable, UnknownSchema, register_models
from stroma.checkpoint import _resolve_schema, _schema_ref
from stroma.forms import canonical_form, differences, fingerprint, form_json, unstorable_fields
from stroma.schemas import StateCodec, codec_of, registered_model, tolerant_json

T = TypeVar("T")
UserId = NewType("UserId", int)
Ids = TypeAliasType("Ids", list[int])


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclasses.dataclass
class Point:
    x: int
    y: float = 0.0


class Movie(TypedDict):
    title: str
    year: NotRequired[int]


class OldMovie(typing.TypedDict):
    title: str
    year: typing.NotRequired[int]


class Pair(NamedTuple):
    left: int
    right: str


class Tree(BaseModel):
    value: int
    children: list[Tree] = []


class Box(BaseModel, Generic[T]):
    content: T


def _model(**fields: Any) -> type[BaseModel]:
    return create_model("Made", **fields)


# -- forms -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("annotation", "form"),
    [
        (str, "str"),
        (int, "int"),
        (None, "null"),
        (Any, "any"),
        (decimal.Decimal, "decimal"),
        (datetime.datetime, "datetime"),
        (uuid.UUID, "uuid"),
        (list[int], {"list": ["int"]}),
        (list, {"list": []}),
        (dict[str, float], {"dict": ["str", "float"]}),
        (tuple[int, ...], {"tuple": ["int", "..."]}),
        (frozenset[str], {"set": ["str"]}),
        (Optional[int], {"any_of": ["int", "null"]}),  # noqa: UP045
        (int | None, {"any_of": ["int", "null"]}),
        (Union[str, int], {"any_of": ["int", "str"]}),  # noqa: UP007
        (Literal["b", "a"], {"literal": ["a", "b"]}),
        (Color, {"literal": ["blue", "red"]}),
        (Annotated[int, Field(ge=0)], "int"),
        (UserId, "int"),
        (Point, {"fields": {"x": ["int", "required"], "y": ["float", "optional"]}}),
        (Movie, {"fields": {"title": ["str", "required"], "year": ["int", "optional"]}}),
        (OldMovie, {"fields": {"title": ["str", "required"], "year": ["int", "optional"]}}),
        (Pair, {"tuple": ["int", "str"]}),
        (Ids, {"list": ["int"]}),
        (list[T], {"list": ["any"]}),
        (pathlib.PurePath, "pathlib.PurePath"),
        (Literal[Color.RED, 1, None], {"literal": ["red", 1, None]}),  # noqa: PYI061
        (Box[int], {"fields": {"content": ["int", "required"]}}),
        (
            Tree,
            {
                "fields": {
                    "value": ["int", "required"],
                    "children": [{"list": ["^1"]}, "optional"],
                }
            },
        ),
    ],
    ids=str,
)
def test_the_form_of_a_type(annotation: Any, form: Any) -> None:
    assert canonical_form(annotation) == form
    json.loads(form_json(canonical_form(annotation)))


def test_words_about_a_schema_are_not_part_of_its_form() -> None:
    class Plain(BaseModel):
        a: int
        b: str = "x"

    class Described(BaseModel):
        """A docstring."""

        model_config = ConfigDict(title="Titled", extra="forbid")
        b: str = Field(default="y", title="B", description="text", examples=["z"], max_length=3)
        a: int = Field(alias="theA", gt=0)

    assert fingerprint(canonical_form(Plain)) == fingerprint(canonical_form(Described))


def test_fingerprints_never_change() -> None:
    """They stand in stores: a change here would refuse every run under way."""
    assert fingerprint(canonical_form(Tree)) == "3381544f573353eb"
    assert (
        fingerprint(canonical_form(_model(a=(int, ...), b=(list[str] | None, None))))
        == "b37df94f153e6de4"
    )


@pytest.mark.parametrize(
    "other",
    [
        {"a": (str, ...), "b": (int, 0)},
        {"a": (int, 0), "b": (int, 0)},
        {"a": (int, ...)},
        {"a": (int, ...), "b": (int, 0), "c": (int, 0)},
        {"a": (int, ...), "B": (int, 0)},
    ],
)
def test_another_structure_has_another_fingerprint(other: dict[str, Any]) -> None:
    form = canonical_form(_model(a=(int, ...), b=(int, 0)))
    assert fingerprint(canonical_form(_model(**other))) != fingerprint(form)


# -- differences -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recorded", "live"),
    [
        (int, int | None),
        (int, Any),
        (int, int | str),
        (int | str, str | int | None),
        (Literal["a"], Literal["a", "b"]),
        (Color, Literal["red", "blue", "green"]),
        (list[int], list[int | None]),
        (dict[str, list[int]], dict[str, list[int] | None]),
        (Tree, Tree),
        (Box[int], Box[int | str]),
    ],
    ids=str,
)
def test_what_a_recorded_state_can_be_read_as(recorded: Any, live: Any) -> None:
    was, now = canonical_form(_model(f=(recorded, ...))), canonical_form(_model(f=(live, ...)))
    assert differences(was, now) == []


@pytest.mark.parametrize(
    ("recorded", "live", "sentence"),
    [
        (int, str, "f: was int, is str"),
        (int | None, int, 'f: was {"any_of":["int","null"]}, is int'),
        (Literal["a", "b"], Literal["a"], "f: 'b' is no longer allowed"),
        (list[int], list[str], "f[]: was int, is str"),
        (list[int], dict[str, int], 'f: was {"list":["int"]}, is {"dict":["str","int"]}'),
        (tuple[int, int], tuple[int], 'f: was {"tuple":["int","int"]}, is {"tuple":["int"]}'),
        (Box[int], Box[str], "f.content: was int, is str"),
        (Tree, int, "f: was "),
    ],
    ids=str,
)
def test_what_it_cannot_be_read_as(recorded: Any, live: Any, sentence: str) -> None:
    was, now = canonical_form(_model(f=(recorded, ...))), canonical_form(_model(f=(live, ...)))
    (found,) = differences(was, now)
    assert found.startswith(sentence)


def test_each_field_is_named_by_its_place() -> None:
    was = canonical_form(_model(inner=(list[Box[int]], ...), old=(str, ...), gone=(bytes, ...)))
    now = canonical_form(
        _model(inner=(list[Box[float]], ...), new=(str, ...), need=(int, ...), fine=(int, 0))
    )
    assert differences(was, now) == [
        "inner[].content: was int, is float",
        "old: recorded, but no longer a field (renamed to new?)",
        "gone: recorded, but no longer a field",
        "new: now required, but not recorded",
        "need: now required, but not recorded",
    ]


_forms = st.recursive(
    st.sampled_from(["int", "str", "null", "any", "float"]),
    lambda inner: st.one_of(
        st.builds(lambda f: {"list": [f]}, inner),
        st.builds(lambda a, b: {"any_of": sorted([a, b], key=form_json)}, inner, inner),
        st.builds(
            lambda fields: {"fields": fields},
            st.dictionaries(
                st.sampled_from("abc"),
                st.tuples(inner, st.sampled_from(["required", "optional"])).map(list),
            ),
        ),
    ),
    max_leaves=6,
)


@given(_forms)
def test_a_form_does_not_differ_from_itself(form: Any) -> None:
    assert differences(form, form) == []
    assert differences(json.loads(form_json(form)), form) == []
    assert differences(form, "any") == []


@given(_forms, _forms)
def test_differences_are_sentences(was: Any, now: Any) -> None:
    found = differences(was, now)
    assert all(isinstance(sentence, str) and ": " in sentence for sentence in found)
    if fingerprint(was) == fingerprint(now):
        assert found == []


# -- what cannot be stored -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("annotation", "place"),
    [
        (SecretStr, "f: SecretStr"),
        (SecretBytes | None, "f: SecretBytes"),
        (list[dict[str, SecretStr]], "f: SecretStr"),
        (Box[SecretStr], "f.content: SecretStr"),
        (Annotated[str, Field(exclude=True)], "f: excluded"),
    ],
    ids=str,
)
def test_what_never_comes_back_is_named(annotation: Any, place: str) -> None:
    (problem,) = unstorable_fields(_model(f=(annotation, ...)))
    assert problem.startswith(place)


@pytest.mark.parametrize("schema", [Tree, Box[Any], _model(f=(Literal["SecretStr"], "SecretStr"))])
def test_what_comes_back_has_no_problems(schema: type[BaseModel]) -> None:
    assert unstorable_fields(schema) == []


# -- round trips -----------------------------------------------------------------------------


class Everything(BaseModel):
    model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")

    text: str
    number: int
    real: float
    flag: bool
    money: decimal.Decimal
    at: datetime.datetime
    day: datetime.date
    took: datetime.timedelta
    key: uuid.UUID
    data: bytes
    color: Color
    maybe: int | None
    texts: list[str]
    names: set[str]
    pair: tuple[int, str]
    table: dict[str, list[int]]
    point: Point
    tree: Tree


_EVERYTHING = st.builds(
    Everything,
    text=st.text(st.characters(exclude_categories=["Cs"])),
    number=st.integers(),
    real=st.floats(allow_nan=False, allow_infinity=False),
    flag=st.booleans(),
    money=st.decimals(allow_nan=False, allow_infinity=False, places=4),
    at=st.datetimes(timezones=st.just(datetime.UTC)),
    day=st.dates(),
    took=st.timedeltas(
        min_value=datetime.timedelta(days=-100), max_value=datetime.timedelta(days=100)
    ),
    key=st.uuids(),
    data=st.binary(),
    color=st.sampled_from(Color),
    maybe=st.none() | st.integers(),
    texts=st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=3),
    names=st.sets(st.text(alphabet="ab", max_size=2)),
    pair=st.tuples(st.integers(), st.text(alphabet="ab")),
    table=st.dictionaries(st.text(alphabet="ab"), st.lists(st.integers(), max_size=2)),
    point=st.builds(Point, st.integers(), st.floats(allow_nan=False, allow_infinity=False)),
    tree=st.just(Tree(value=1, children=[Tree(value=2)])),
)


@given(_EVERYTHING)
def test_whatever_is_dumped_comes_back_as_it_was(state: Everything) -> None:
    codec = codec_of(Everything)
    assert codec.load(codec.dump(state)) == state


def test_states_are_written_by_field_name_so_that_aliases_come_back() -> None:
    class Aliased(BaseModel):
        a: int = Field(alias="theA")
        b: int = Field(validation_alias=AliasChoices("b1", "b2"), serialization_alias="bOut")

    codec = codec_of(Aliased)
    state = Aliased(theA=1, b1=2)  # type: ignore[call-arg]
    assert codec.dump(state) == b'{"a":1,"b":2}'
    assert codec.load(codec.dump(state)) == state


def test_computed_fields_are_no_part_of_a_state() -> None:
    class Square(BaseModel):
        model_config = ConfigDict(extra="forbid")
        side: int

        @computed_field  # type: ignore[prop-decorator]
        @property
        def area(self) -> int:
            return self.side**2

    codec = codec_of(Square)
    assert codec.load(codec.dump(Square(side=3))).area == 9


def test_extra_fields_come_back() -> None:
    class Open(BaseModel):
        model_config = ConfigDict(extra="allow")

    codec = codec_of(Open)
    state = Open(x=[1, {"y": None}])  # type: ignore[call-arg]
    assert codec.load(codec.dump(state)) == state


def test_root_models_come_back() -> None:
    codec = codec_of(RootModel[list[int]])
    assert codec.load(codec.dump(RootModel[list[int]]([1, 2]))).root == [1, 2]


class _Lossy(BaseModel):
    value: Any

    @field_serializer("value")
    def _shorten(self, value: Any) -> Any:
        return value[:2] if isinstance(value, str) else value


class _Named(BaseModel):
    f: Any


@dataclasses.dataclass(slots=True)
class Tagged:
    tags: list[str]


@dataclasses.dataclass(slots=True)
class Marked(Tagged):
    mark: int = 0


def _cut(value: Any) -> Any:
    return value[:2] if isinstance(value, str) else value


class _Listed(BaseModel):
    f: list[list[Annotated[str, PlainSerializer(_cut)]]]

    @field_serializer("f", mode="wrap")
    def _drop_empty(self, value: Any, handler: Any) -> Any:
        return [item for item in handler(value) if item]


class _Holder(BaseModel):
    point: Tagged

    @field_serializer("point")
    def _shorten(self, point: Tagged) -> Any:
        return {"tags": [_cut(tag) for tag in point.tags]}


class _Real(BaseModel):
    f: float | list[float] | dict[str, float | None]


@pytest.mark.parametrize(
    ("state", "field"),
    [
        (_Lossy(value="abc"), "value"),
        (_Named(f=float("nan")), "f"),
        (_Real(f=float("inf")), "f"),
        (_Real(f=[1.0, float("nan")]), "f"),
        (_Named(f={1, 2}), "f"),
        (_Named(f=object()), "f"),
        (_Named(f={1: 2}), "f"),
        (_Named(f=b"\xff"), "f"),
        (_Named(f=datetime.timedelta(1)), "f"),
        (Box[Any](content=Tree(value=1)), "content"),
        (_Named(f="half \ud83d"), "f"),
        (_Named(f=[1, {"a": {2}}]), "f[1]['a']"),
        (_Listed(f=[["abc"], ["ab"]]), "f[0][0]"),
        (_Listed(f=[[], []]), "f"),
        (_Holder(point=Tagged(tags=["abc"])), "point.tags[0]"),
        (_Holder(point=Marked(tags=[])), "point"),
    ],
    ids=repr,
)
def test_what_would_not_come_back_is_refused_by_field(state: BaseModel, field: str) -> None:
    with pytest.raises(StateNotStorable) as caught:
        codec_of(type(state)).dump(state)
    assert caught.value.fields[0].startswith(field)
    assert field in str(caught.value)


def test_values_are_not_shown_by_the_refusal() -> None:
    with pytest.raises(StateNotStorable) as caught:
        codec_of(_Lossy).dump(_Lossy(value="hunter2"))
    assert "hunter2" not in str(caught.value)


def test_a_plain_schema_is_not_read_back() -> None:
    class Plain(BaseModel):
        a: Annotated[int, Field(ge=0)]
        kind: Literal["x"] = "x"
        color: Color = Color.RED
        at: datetime.datetime | None = datetime.datetime(2026, 1, 1)  # noqa: DTZ001
        b: list[str | None] = []
        c: dict[str, float] = {}

    codec: StateCodec[Plain] = codec_of(Plain)
    codec._validate_json = None  # type: ignore[assignment]  # would raise if it were called
    payload = codec.dump(Plain(a=1, c={"x": 1.5}))
    assert json.loads(payload)["c"] == {"x": 1.5}


# -- anything as JSON ------------------------------------------------------------------------

_json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**64), 2**64)
    | st.floats(allow_nan=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(_json_values)
def test_json_is_kept_exactly_half_surrogates_included(raw: Any) -> None:
    data, is_exact = tolerant_json(raw)
    assert json.loads(json.dumps(data)) == raw
    assert is_exact


class _Mute:
    def __repr__(self) -> str:
        raise RuntimeError("no words")


@pytest.mark.parametrize(
    "raw",
    [object(), _Mute(), {"a": _Mute()}, [b"\xff"], 10**5000, Box[Any](content=_Mute())],
    ids=lambda raw: type(raw).__name__,
)
def test_what_json_lacks_is_replaced_and_said(raw: Any) -> None:
    data, is_exact = tolerant_json(raw)
    json.dumps(data)
    assert not is_exact


def test_what_holds_itself_is_cut() -> None:
    raw: list[Any] = []
    raw.append(raw)
    data, is_exact = tolerant_json(raw)
    json.dumps(data)
    assert not is_exact


# -- known models ----------------------------------------------------------------------------


def test_a_model_is_found_by_its_reference_once_it_is_registered() -> None:
    class Late(BaseModel):
        x: int

    ref = f"{__name__}:test_a_model_is_found_by_its_reference_once_it_is_registered.<locals>.Late"
    with pytest.raises(UnknownSchema, match=r"no model is registered as .*register_models"):
        registered_model(ref)
    register_models(Late)
    assert registered_model(ref) is Late
    assert _schema_ref(Late(x=1)) == _schema_ref(Late) == ref
    assert _resolve_schema(ref) is Late


def test_a_reference_to_two_models_is_refused() -> None:
    twins = [create_model("Twin", x=(int, 0)) for _ in range(2)]
    register_models(*twins)
    with pytest.raises(UnknownSchema, match="2 models of this process are called"):
        registered_model(codec_of(twins[0]).ref)


def test_nothing_is_imported_by_a_stored_name() -> None:
    with pytest.raises(UnknownSchema):
        _resolve_schema("antigravity:fly")


def test_a_subclass_has_a_codec_of_its_own() -> None:
    class Base(BaseModel):
        a: int

    class Sub(Base):
        b: int

    assert codec_of(Base) is codec_of(Base)
    assert codec_of(Sub) is not codec_of(Base)
    assert codec_of(Sub).schema is Sub
