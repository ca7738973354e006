"""Wrong use is told before anything runs, in one sentence that says what to do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from typing import TYPE_CHECKING, Annotated, Any, Protocol, TypedDict, TypeVar

import pytest
from pydantic import BaseModel, RootModel

from stroma import (
    ConfigError,
    ExecutionBudget,
    FailurePolicy,
    InMemoryStore,
    ModelFallback,
    NodeContract,
    NodeHooks,
    Pipeline,
    PriceTable,
    RunConfig,
    RunStatus,
    StateNotStorable,
    StromaRunner,
    TraceOptions,
    fan_out,
    node,
    parallel,
    stroma_node,
)
from tests.core.helpers import Calls, Number, Text, make_runner

if TYPE_CHECKING:
    from decimal import Decimal as OnlyForTypeCheckers


# -- what is run -----------------------------------------------------------------------------


async def _plain(state: Number) -> Number:
    return state


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([], "the list of nodes is empty"),
        (None, "takes a list of nodes or a Pipeline, not NoneType"),
        ("nodes", "takes a list of nodes or a Pipeline, not str"),
        (_plain, "takes a list of nodes or a Pipeline, not function"),
        ([_plain], "_plain is no node: decorate it with @stroma.node"),
        ([None], "None is no node"),
        ([[_plain]], "is no node"),
        ([{}], "is no node"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_what_is_no_pipeline_is_refused(nodes: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        await make_runner().run(nodes, Number())


async def test_two_nodes_with_one_id_are_refused_before_anything_runs(calls: Calls) -> None:
    with pytest.raises(ConfigError, match="two nodes have the id 'a'"):
        await make_runner().run([calls.node("a"), calls.node("b"), calls.node("a")], Number())
    assert not calls.made


@pytest.mark.parametrize("state", ["text", 3, [Number()], Number], ids=repr)
async def test_an_initial_state_that_is_none_is_refused(calls: Calls, state: Any) -> None:
    with pytest.raises(ConfigError, match="must be a pydantic model or a dict, not"):
        await make_runner().run([calls.node("a")], state)


async def test_run_sync_inside_a_loop_says_what_to_do(calls: Calls) -> None:
    with pytest.raises(ConfigError, match=r"await runner.run"):
        make_runner().run_sync([calls.node("a")], Number())


def test_run_sync_runs(calls: Calls) -> None:
    result = make_runner().run_sync([calls.node("a")], Number(), run_id="r")
    assert (result.status, result.run_id) == (RunStatus.COMPLETED, "r")
    with pytest.raises(ConfigError):
        make_runner().run_sync([calls.node("a")], run_id="x")


# -- pipelines -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "a\0", None, 3, "x" * 513])
def test_a_pipeline_needs_a_name_that_can_be_kept(calls: Calls, name: Any) -> None:
    with pytest.raises(ConfigError, match="pipeline name"):
        Pipeline(name, [calls.node("a")])


@pytest.mark.parametrize("nodes", [[], None, "ab", 3], ids=repr)
def test_a_pipeline_needs_nodes(nodes: Any) -> None:
    with pytest.raises(ConfigError, match="needs a list of nodes, and at least one"):
        Pipeline("p", nodes)


def test_a_pipeline_says_what_it_is(calls: Calls) -> None:
    assert (
        repr(Pipeline("p", [calls.node("a")], version="2")) == "Pipeline('p', 1 nodes, version='2')"
    )
    assert repr(parallel(calls.node("a"))) == "parallel(a)"
    assert repr(fan_out(calls.node("a"), over="x", into="y")) == "fan_out(a)"


# -- nodes -----------------------------------------------------------------------------------


def test_types_are_taken_from_annotations() -> None:
    @node
    async def a(state: Number) -> tuple[Text, int, str]:
        return Text(text=""), 1, "m"

    contract: NodeContract = a._stroma_contract  # type: ignore[attr-defined]
    assert (contract.node_id, contract.input_schema, contract.output_schema) == ("a", Number, Text)


def test_options_win_over_annotations() -> None:
    @node(id="b", output=Number)
    async def a(state: Number) -> dict[str, int]:
        return {}

    assert a._stroma_node_id == "b"  # type: ignore[attr-defined]
    assert a._stroma_contract.output_schema is Number  # type: ignore[attr-defined]


def test_methods_and_objects_may_be_nodes() -> None:
    class Worker:
        def __call__(self, state: Number) -> Text:
            return Text(text=str(state.value))

    worker = node(id="w")(Worker())
    assert make_runner().run_sync([worker], Number(value=4)).final_state == Text(text="4")


def test_models_may_be_local_to_a_function() -> None:
    class Local(BaseModel):
        x: int = 0

    @node
    async def a(state: Local) -> Local:
        return state

    assert a._stroma_contract.input_schema is Local  # type: ignore[attr-defined]


def _no_annotation(state):  # type: ignore[no-untyped-def]
    return state


def _no_model(state: int) -> Number:
    return Number()


def _no_output(state: Number):  # type: ignore[no-untyped-def]
    return state


def _no_arguments() -> Number:
    return Number()


def _three_arguments(state: Number, ctx: dict[str, Any], more: int) -> Number:
    return state


def _two_states(state: Number, more: Number) -> Number:
    return state


def _number_too(state: Number, count: int, last: int = 3) -> Number:
    return state


def _keyword(state: Number, *, more: int) -> Number:
    return state


def _unresolved(state: OnlyForTypeCheckers) -> Number:
    return Number()


def _generator(state: Number) -> Any:
    yield state


async def _async_generator(state: Number) -> Any:
    yield state


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        (_no_annotation, {}, "its input must be a pydantic model class, not None"),
        (_no_model, {}, "its input must be a pydantic model class, not <class 'int'>"),
        (_no_output, {}, "its output must be a pydantic model class, not None"),
        (_no_arguments, {"input": Number}, "it takes 0 arguments"),
        (_three_arguments, {}, "it takes 3 arguments"),
        (_keyword, {}, "a required keyword argument cannot be given"),
        (_unresolved, {}, "an annotation cannot be resolved"),
        (_generator, {"output": Number}, "this function yields"),
        (_async_generator, {"output": Number}, "this function yields"),
        (_plain, {"id": "a\0b"}, "node id"),
        (_plain, {"input": Number()}, "its input must be a pydantic model class"),
        (_plain, {"policy": 3}, "a policy is a FailurePolicy, or a dict"),
        (_plain, {"policy": {"recoverable": FailurePolicy()}}, "a policy is a FailurePolicy"),
        (_plain, {"timeout_ms": 0}, "timeout_ms must be a finite number above 0, not 0"),
        (_plain, {"timeout_ms": float("inf")}, "timeout_ms must be a finite number above 0"),
        (_plain, {"timeout_ms": 10**400}, "timeout_ms must be a finite number above 0"),
        (_plain, {"timeout_ms": "5"}, "timeout_ms must be a finite number above 0, not '5'"),
        (_plain, {"timeout_ms": True}, "timeout_ms must be a finite number above 0, not True"),
        (_plain, {"model": 5}, "model must be a str, not int"),
        (_two_states, {}, "node '_two_states': its second parameter 'more' gets the"),
        (_number_too, {}, "second parameter 'count' gets the context, .* is annotated as int"),
    ],
)
def test_a_function_that_cannot_be_a_node_is_refused(
    function: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        node(**options)(function)


class _Typed(TypedDict):
    client: object


class _Readable(Protocol):
    def __getitem__(self, key: str, /) -> object: ...


@pytest.mark.parametrize(
    "annotation",
    [
        dict,
        dict[str, Any],
        MutableMapping[str, object],
        Mapping[str, Any],
        Annotated[dict[str, Any] | None, "the context"],
        Iterable[str],
        object,
        Any,
        _Typed,
        _Readable,
        TypeVar("AnyContext"),
        "NowhereDefined",
        None,
    ],
    ids=str,
)
async def test_a_context_may_be_annotated_as_what_it_is_or_not_at_all(annotation: Any) -> None:
    async def a(state: Number, ctx: Any) -> Number:
        return Number(value=ctx["x"])

    a.__annotations__["ctx"] = annotation
    if annotation is None:
        del a.__annotations__["ctx"]
    one = node(input=Number, output=Number)(a)
    result = await make_runner().with_context({"x": 3}).run([one], Number())
    assert result.final_state == Number(value=3)


def test_a_second_state_is_refused_by_every_decorator() -> None:
    class Local(BaseModel):
        x: int = 0

    async def a(state: Local, more: Local) -> Local:
        return state

    contract = NodeContract(node_id="a", input_schema=Number, output_schema=Number)
    for decorator in (
        node,
        stroma_node("a", contract),
        make_runner().node("a", input=Number, output=Number),
    ):
        function = a if decorator is node else _two_states
        with pytest.raises(ConfigError, match="node 'a': its second parameter 'more'"):
            decorator(function)  # type: ignore[operator]


def test_a_contract_for_another_node_is_refused() -> None:
    contract = NodeContract(node_id="a", input_schema=Number, output_schema=Number)
    with pytest.raises(ConfigError, match="node 'b' was given the contract of 'a'"):
        stroma_node("b", contract)
    with pytest.raises(ConfigError, match="must be a NodeContract"):
        stroma_node("b", Number)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="must be a function, not int"):
        stroma_node("a", contract)(3)  # type: ignore[arg-type, type-var]


async def test_models_without_fields_cannot_be_merged(calls: Calls) -> None:
    class Names(RootModel[list[str]]):
        pass

    @node(id="names", input=Number, output=Names)
    async def names(state: Number) -> list[str]:
        return ["a"]

    with pytest.raises(ConfigError, match="Names is a RootModel, which has no fields to merge"):
        await make_runner().run([parallel(names, calls.node("a"))], Number())
    result = await make_runner().run([names], Number())
    assert result.final_state == Names(["a"])


async def test_a_state_before_a_fan_out_must_be_storable(calls: Calls) -> None:
    from pydantic import SecretStr

    class Hidden(BaseModel):
        items: list[Number]
        key: SecretStr

    each = fan_out(calls.node("a"), over="items", into="done")
    with pytest.raises(ConfigError, match="Hidden cannot be stored: key: SecretStr"):
        await make_runner().run([each], Hidden(items=[], key=SecretStr("x")))


# -- options ---------------------------------------------------------------------------------


def test_an_unknown_option_is_named_with_those_that_there_are() -> None:
    with pytest.raises(ConfigError, match=r"no option 'polcy_map'.*policy_map.*options are"):
        StromaRunner.quick(polcy_map={})
    with pytest.raises(ConfigError, match="no option 'x'"):
        make_runner().with_options(x=1)


@pytest.mark.parametrize(
    "options",
    [
        {"budget": 3},
        {"policy_map": {"sometimes": FailurePolicy()}},
        {"policy_map": {"recoverable": 3}},
        {"classifiers": [3]},
        {"classifiers": "abc"},
        {"pricers": 3},
        {"lease_seconds": 0},
        {"lease_seconds": float("nan")},
        {"lease_seconds": 31_536_001},
        {"lease_seconds": 1e308},
        {"lease_seconds": 10**400},
        {"resume": "perhaps"},
        {"lease_seconds": True},
        {"tags": "abc"},
        {"tags": [""]},
        {"tags": ["a\0"]},
        {"tags": ["\ud800"]},
        {"tags": ["x" * 513]},
        {"tags": [5]},
        {"disabled_plugins": "otel"},
        {"clock": 5},
        {"random": 5},
        {"node_timeouts": {"a": -1}},
        {"node_timeouts": {"a": 10**400}},
        {"node_policies": {"a": 3}},
        {"node_policies": FailurePolicy()},
        {"node_timeouts": 5},
        {"model_fallbacks": [{"model": "", "to": "b"}]},
        {"save_policy": {"max_retries": -1}},
    ],
    ids=repr,
)
def test_a_wrong_option_is_named(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        StromaRunner.quick(store=InMemoryStore(), **options)


@pytest.mark.parametrize("value", [5, "abc", {"a": 1}], ids=repr)
@pytest.mark.parametrize("option", ["tags", "disabled_plugins"])
def test_what_is_no_list_of_names_is_told_so(option: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"{option}: must be a list of names, not"):
        StromaRunner.quick(**{option: value})


@pytest.mark.parametrize("tags", [[""], ["a\0"], ["\ud800"], ["x" * 300_000]])
async def test_a_run_is_not_submitted_under_a_tag_that_no_store_keeps(
    calls: Calls, tags: list[str]
) -> None:
    with pytest.raises(ConfigError, match="tag '"):
        await make_runner().submit(Pipeline("p", [calls.node("a")]), Number(), tags=tags)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: ExecutionBudget(tokens=-1), "ExecutionBudget: tokens: "),
        (lambda: ExecutionBudget(cost_usd=NAN), "ExecutionBudget: cost_usd: .* finite number"),
        (lambda: ExecutionBudget(token=5), "ExecutionBudget: token: "),
        (lambda: ExecutionBudget(tokens=True), "tokens: must be a number, not a bool"),
        (lambda: ExecutionBudget(cost_usd=True), "cost_usd: must be a number, not a bool"),
        (lambda: ExecutionBudget(latency_ms=True), "latency_ms: must be a number, not a bool"),
        (lambda: FailurePolicy(max_retries=-1), "FailurePolicy: max_retries: "),
        (lambda: FailurePolicy(max_retries=False), "max_retries: must be a number, not a bool"),
        (lambda: FailurePolicy(base_delay_seconds=True), "base_delay_seconds: must be a number"),
        (lambda: ModelFallback(model="a", to="b", at_budget_pct=80), "ModelFallback: at_budget_p"),
        (lambda: ModelFallback(model="a", to="b", at_budget_pct=NAN), "at_budget_pct: .* finite n"),
        (lambda: TraceOptions(max_events=-1), "TraceOptions: max_events: "),
        (lambda: TraceOptions(redact=WORD), "redact: must be a list of names, not 'word'"),
        (lambda: NodeContract(node_id="", input_schema=Number, output_schema=Number), "node id ''"),
        (lambda: RunConfig(lease_seconds=0), "RunConfig: lease_seconds: "),
        (lambda: RunConfig(tag=["a"]), "RunConfig: tag: "),
    ],
)
def test_a_wrong_model_of_options_is_refused_where_it_is_made(make: Any, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        make()


def test_a_wrong_option_inside_another_one_is_named_with_its_field() -> None:
    with pytest.raises(ConfigError, match=r"RunConfig: budget\.tokens: .*; budget\.cost_usd: "):
        make_runner().with_budget(tokens=-1, cost_usd=True)
    given: Any = {"budget": {"tokens": "5"}, "save_policy": {"max_retries": 1}}
    config = make_runner().with_options(**given).config
    assert (config.budget, config.save_policy.max_retries) == (ExecutionBudget(tokens=5), 1)


def test_a_lease_may_last_a_year() -> None:
    assert StromaRunner.quick(lease_seconds=31_536_000).config.lease_seconds == 365 * 86400


def test_options_of_a_store_need_a_store() -> None:
    with pytest.raises(ConfigError, match="store_options were given without a store"):
        StromaRunner.quick(store_options={"path": "x"})


@pytest.mark.parametrize("option", ["with_node_timeouts", "with_node_policies"])
async def test_options_for_a_node_that_there_is_not_are_refused(calls: Calls, option: str) -> None:
    value: Any = {"with_node_timeouts": 5.0, "with_node_policies": FailurePolicy()}[option]
    runner = getattr(make_runner(), option)({"summarise": value})
    with pytest.raises(
        ConfigError, match=r"'summarise', which is no node that runs code.*summarize"
    ):
        await runner.run([calls.node("summarize")], Number())


# -- builders --------------------------------------------------------------------------------


def test_builders_return_the_runner() -> None:
    runner = make_runner()
    assert runner.with_budget(tokens=1) is runner
    assert runner.with_options(tags=("a",)) is runner
    assert runner.with_store(InMemoryStore()) is runner
    assert (runner.config.budget.tokens, runner.config.tags) == (1, ("a",))


async def test_a_change_never_reaches_a_run_under_way(calls: Calls) -> None:
    inside, go_on = asyncio.Event(), asyncio.Event()
    told: list[str] = []

    @node
    async def first(state: Number) -> Number:
        inside.set()
        await go_on.wait()
        return state

    from stroma.runner import NodeHooks

    store = InMemoryStore()
    runner = make_runner(store)

    @runner.node("second", input=Number, output=Number)
    async def second(state: Number) -> Number:
        return Number(value=2)

    run = asyncio.create_task(runner.run([first, second], Number(), run_id="r"))
    await inside.wait()
    runner.with_budget(tokens=0).with_hooks(NodeHooks(on_node_start=lambda *a: told.append(a[1])))
    runner.with_store(InMemoryStore()).with_context({"x": 1}).with_policy_map({})
    runner.with_node_timeouts({"second": 1})
    go_on.set()
    result = await run
    assert (result.status, told) == (RunStatus.COMPLETED, [])
    assert store.inspect("r") is not None
    after = await runner.run([first, second], Number(), run_id="r")
    assert after.status is RunStatus.PARTIAL  # no tokens, and another store


async def test_a_change_reaches_the_next_run_of_the_same_nodes(calls: Calls) -> None:
    runner, nodes = make_runner(), [calls.node("a", TimeoutError())]
    await runner.run(nodes, Number())
    runner.with_node_policies({"a": FailurePolicy(max_retries=0)})
    await runner.run(nodes, Number())
    assert calls["a"] == 5


async def test_one_runner_may_run_many_pipelines_and_inputs_at_once(calls: Calls) -> None:
    runner = make_runner()
    nodes = [[calls.node(f"n{i}")] for i in range(40)]  # more than the plans that are kept
    results = await asyncio.gather(
        *(runner.run(nodes[i % 40], Number(value=i)) for i in range(120))
    )
    assert [result.final_state.value for result in results] == list(range(1, 121))  # type: ignore[union-attr]


# -- what cannot be called, and what must not be shown ---------------------------------------


NUMBER: Any = 5
NAN = float("nan")
WORD: Any = "word"
TRIPLE: Any = (1, 2, 3)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: node(NUMBER), "a node is a function, not int"),
        (lambda: node(id="")(_plain), "must have 1 to 512 bytes"),
        (lambda: NodeHooks(on_retry=NUMBER), "on_retry must be a function, not int"),
        (lambda: Pipeline("p", [Calls().node("a")], upcasters={"a": NUMBER}), "upcaster of 'a'"),
        (lambda: PriceTable({"m": NUMBER}, "ours"), "the prices of model 'm' must be two"),
        (lambda: PriceTable({"m": TRIPLE}, "ours"), "must be two"),
        (lambda: PriceTable({"m": (1, 2)}, NUMBER), "the source of a price must be a str, not int"),
    ],
)
def test_what_cannot_be_used_is_refused_where_it_is_written(wrong: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        wrong()


@pytest.mark.parametrize("tuple_end", [("the answer",), ("the answer", "m"), (1, ["the answer"])])
async def test_a_wrong_usage_does_not_show_what_was_returned(
    calls: Calls, tuple_end: tuple[object, ...]
) -> None:
    result = await make_runner().run([calls.node("a", ({"value": 1}, *tuple_end))], Number())
    assert result.status is RunStatus.FAILED
    assert "the answer" not in result.stop_reason + result.trace.to_json()


async def test_a_field_that_holds_a_function_is_refused_before_anything_runs(calls: Calls) -> None:
    class WithFunction(BaseModel):
        call: Callable[[int], int] | None = None

    last: Any = node(id="b", input=Number, output=WithFunction)(lambda state: {})
    with pytest.raises(StateNotStorable, match="call: functions are not stored"):
        await make_runner().run([calls.node("a"), last], Number())
    assert not calls.made
