"""How functions become nodes, what they may return, and nodes that run other nodes."""

from __future__ import annotations

import inspect
import sys
import typing
from collections.abc import Awaitable, Callable, Mapping
from typing import (
    Any,
    Final,
    Literal,
    ParamSpec,
    TypeAlias,
    TypeVar,
    get_args,
    get_origin,
    overload,
)

from pydantic import BaseModel, ValidationError

from stroma.contracts import NodeContract
from stroma.cost import Usage
from stroma.errors import ConfigError
from stroma.failures import FailurePolicy, PolicyMap
from stroma.ids import check_id
from stroma.node_settings import (
    PLAIN_SETTINGS,
    Estimator,
    NodeSettings,
    Repair,
    as_estimator,
    as_policies,
    check_in_doubt,
    check_model,
    check_repair,
    check_resamples,
    check_timeout_ms,
)
from stroma.schemas import describe
from stroma.scope import Estimate, may_be_context, usage_of

P = ParamSpec("P")
R = TypeVar("R")
NodeFunction: TypeAlias = Callable[..., Any]

NODE_ID: Final = "_stroma_node_id"
CONTRACT: Final = "_stroma_contract"
SETTINGS: Final = "_stroma_settings"


def mark(
    function: Callable[P, R],
    contract: NodeContract,
    settings: NodeSettings,
    localns: Mapping[str, object] | None = None,
) -> Callable[P, R]:
    """Make a function a node, and return it.

    Args:
        function: the function.
        contract: what it takes and gives.
        settings: what else its decorator fixed.
        localns: names that its annotations may use besides those of its module.

    Raises:
        ConfigError: it cannot be a node.
    """
    if not callable(function):
        raise ConfigError(f"a node must be a function, not {type(function).__name__}")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise ConfigError(
            f"node {contract.node_id!r}: a node returns its output; this function yields"
        )
    count = _positional(function, contract.node_id)
    if count not in (1, 2):
        raise ConfigError(
            f"node {contract.node_id!r}: the function must take the state, and the context if "
            f"it wants it; it takes {count} arguments"
        )
    if count == 2:
        _check_context(function, contract.node_id, localns or {})
    setattr(function, NODE_ID, contract.node_id)
    setattr(function, CONTRACT, contract)
    setattr(function, SETTINGS, settings)
    return function


def _positional(function: NodeFunction, node_id: str) -> int:
    """Return how many arguments a node is to be called with."""
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    found = list(inspect.signature(function).parameters.values())
    if any(p.kind is p.KEYWORD_ONLY and p.default is p.empty for p in found):
        raise ConfigError(f"node {node_id!r}: a required keyword argument cannot be given")
    required = sum(p.kind in positional and p.default is p.empty for p in found)
    return max(required, min(2, sum(p.kind in positional for p in found)))


def _check_context(function: NodeFunction, node_id: str, localns: Mapping[str, object]) -> None:
    """Refuse a second parameter that is annotated as what the context is not.

    Raises:
        ConfigError: names the parameter.
    """
    _, second, *_ = inspect.signature(function).parameters.values()
    try:
        annotation = _hints(function, localns).get(second.name, second.annotation)
    except Exception:  # it cannot be resolved here, and so says nothing
        annotation = second.annotation
    if annotation is second.empty or may_be_context(annotation):
        return
    shown = getattr(annotation, "__name__", annotation)
    raise ConfigError(
        f"node {node_id!r}: its second parameter {second.name!r} gets the context, a dict, and is "
        f"annotated as {shown}: a node takes one state; annotate the context as dict[str, Any]"
    )


def wants_context(function: NodeFunction) -> bool:
    """Say whether a node takes the context as its second argument."""
    return _positional(function, getattr(function, NODE_ID, "?")) == 2


def is_async(function: NodeFunction) -> bool:
    """Say whether calling the function returns a coroutine, wrapped or not."""
    call = getattr(function, "__call__", None)  # noqa: B004  (an instance with async __call__)
    return inspect.iscoroutinefunction(inspect.unwrap(function)) or inspect.iscoroutinefunction(
        call
    )


def stroma_node(node_id: str, contract: NodeContract) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator that makes a function a node with this contract.

    The contract must be registered with the runner's registry before the node runs.

    Args:
        node_id: the node's id, which the contract must be for.
        contract: what the node takes and gives.

    Raises:
        ConfigError: the contract is for another node, or the function cannot be a node.
    """
    if not isinstance(contract, NodeContract):
        raise ConfigError(f"node {node_id!r}: the contract must be a NodeContract")
    if contract.node_id != node_id:
        raise ConfigError(f"node {node_id!r} was given the contract of {contract.node_id!r}")
    return lambda function: mark(function, contract, PLAIN_SETTINGS)


@overload
def node(function: Callable[P, R], /) -> Callable[P, R]: ...


@overload
def node(
    *,
    id: str | None = None,
    input: type[BaseModel] | None = None,
    output: type[BaseModel] | None = None,
    policy: FailurePolicy | PolicyMap | None = None,
    timeout_ms: float | None = None,
    model: str = "",
    estimate: Estimate | Estimator | None = None,
    on_in_doubt: Literal["rerun", "stop"] = "rerun",
    repair: Repair | None = None,
    on_violation: Literal["fail", "resample"] = "fail",
    max_resamples: int = 1,
) -> Callable[[Callable[P, R]], Callable[P, R]]: ...


def node(
    function: NodeFunction | None = None,
    /,
    *,
    id: str | None = None,
    input: type[BaseModel] | None = None,
    output: type[BaseModel] | None = None,
    policy: FailurePolicy | PolicyMap | None = None,
    timeout_ms: float | None = None,
    model: str = "",
    estimate: Estimate | Estimator | None = None,
    on_in_doubt: Literal["rerun", "stop"] = "rerun",
    repair: Repair | None = None,
    on_violation: Literal["fail", "resample"] = "fail",
    max_resamples: int = 1,
) -> Any:
    """Make a function a node; used bare or with options.

    The function takes the state, and as a second argument the context if it wants it. It may
    be sync (then it runs in a thread) or async, and returns a dict, a model, or a tuple that
    adds usage: ``(output, tokens)``, ``(output, input_tokens, model)`` or
    ``(output, input_tokens, output_tokens, model)``.

    Args:
        id: the node's id; the function's name if not given.
        input: the model that it takes; from the annotation of the first argument.
        output: the model that it gives; from the annotation of what is returned, or of the
            first member if that is a tuple.
        policy: how often it is retried, before what the run says.
        timeout_ms: milliseconds for one attempt.
        model: the model that it uses, for rules of model fallback.
        estimate: the most that one attempt may use, or a function of the state and the attempt
            that tells it. It is reserved before the call; what the run says holds otherwise.
        on_in_doubt: what to do about a call that may have been made, and nobody knows: "rerun"
            makes it again, "stop" has the run wait until somebody says what became of it
            (`StromaRunner.resolve`).
        repair: given an output that does not fit and the `ContractViolation`, returns one that
            does. It may be async, and report usage.
        on_violation: "fail" ends the run at an output that does not fit; "resample" calls the
            node again, up to ``max_resamples`` times over all starts, within the budget.
        max_resamples: how often; for "resample".

    Raises:
        ConfigError: a type is missing or no model, an option is wrong, or the second parameter is
            annotated as what the context, a dict, cannot be.
    """
    localns = sys._getframe(1).f_locals  # models of the function that the node is defined in

    def decorate(target: NodeFunction) -> NodeFunction:
        if not callable(target):
            raise ConfigError(f"a node is a function, not {type(target).__name__}")
        node_id = check_id(getattr(target, "__name__", "") if id is None else id, "node id")
        takes, gives = _annotated_types(target, node_id, input, output, localns)
        contract = make_contract(node_id, takes, gives)
        settings = NodeSettings(
            as_policies(policy, node_id),
            check_timeout_ms(timeout_ms, node_id),
            check_model(model, node_id),
            True,
            as_estimator(estimate, node_id),
            check_in_doubt(on_in_doubt, node_id),
            check_repair(repair, node_id),
            check_resamples(on_violation, max_resamples, node_id),
        )
        return mark(target, contract, settings, localns)

    return decorate if function is None else decorate(function)


def make_contract(node_id: str, takes: object, gives: object) -> NodeContract:
    """Return the contract of a node.

    Raises:
        ConfigError: the id cannot be stored, or a type is no pydantic model.
    """
    check_id(node_id, "node id")
    for side, schema in (("input", takes), ("output", gives)):
        if not (isinstance(schema, type) and issubclass(schema, BaseModel)):
            raise ConfigError(
                f"node {node_id!r}: its {side} must be a pydantic model class, not {schema!r}: "
                f"annotate the function, or give {side}="
            )
    try:
        return NodeContract.model_validate(
            {"node_id": node_id, "input_schema": takes, "output_schema": gives}
        )
    except ValidationError as exc:
        raise ConfigError(f"node {node_id!r}: {'; '.join(describe(exc, whole=''))}") from exc


def _annotated_types(
    function: NodeFunction,
    node_id: str,
    takes: object,
    gives: object,
    localns: Mapping[str, object],
) -> tuple[object, object]:
    if takes is not None and gives is not None:
        return takes, gives
    try:
        hints = _hints(function, localns)
    except NameError as exc:
        raise ConfigError(
            f"node {node_id!r}: an annotation cannot be resolved ({exc}): give input= and output="
        ) from exc
    first = next((name for name in inspect.signature(function).parameters), "")
    given = hints.get("return")
    if get_origin(given) is tuple:
        given = get_args(given)[0]
    return takes or hints.get(first), gives or given


def _hints(function: NodeFunction, localns: Mapping[str, object]) -> dict[str, Any]:
    target = inspect.unwrap(function)
    if not inspect.isroutine(target):
        target = type(target).__call__
    return typing.get_type_hints(target, localns=dict(localns))


def split_output(raw: tuple[object, ...], node_id: str) -> tuple[object, Usage]:
    """Return the output and the usage in a tuple that a node returned.

    Raises:
        ConfigError: it is not one of those that a node may return.
    """
    match raw:
        case (output, tokens):
            return output, usage_of(tokens, 0, "")
        case (output, input_tokens, model):
            return output, usage_of(input_tokens, 0, model)
        case (output, input_tokens, output_tokens, model):
            return output, usage_of(input_tokens, output_tokens, model)
        case _:
            raise ConfigError(
                f"node {node_id!r} returned a tuple of {len(raw)}; a node returns its output, or "
                "(output, tokens), (output, input_tokens, model) or "
                "(output, input_tokens, output_tokens, model)"
            )


class Parallel:
    """Nodes that run side by side on one state; made by `parallel`.

    Attributes:
        id: "parallel(a, b)", or as given.
        nodes: the children, in the order in which their outputs are merged.
    """

    def __init__(self, nodes: tuple[object, ...], id: str | None = None) -> None:
        if not nodes:
            raise ConfigError("parallel() needs at least one node")
        self.nodes = nodes
        self.id = check_id(
            id or f"parallel({', '.join(map(id_of, nodes))})",
            "node id" if id else "node id made of its children (give parallel(…, id=…) another)",
        )

    def __repr__(self) -> str:
        return self.id


class FanOut:
    """A node that runs once for each item of a list in the state; made by `fan_out`.

    Attributes:
        id: "fan_out(extract)", or as given.
        node: what runs for each item.
        over: the field of the state that holds the items.
        into: the field that takes the outputs, in the items' order.
        max_concurrency: how many items run at once.
        input: the model of the state, where it cannot be told from the node before.
    """

    def __init__(
        self,
        node: object,
        over: str,
        into: str,
        max_concurrency: int,
        id: str | None,
        input: type[BaseModel] | None,
    ) -> None:
        for name, value in (("over", over), ("into", into)):
            if not isinstance(value, str) or not value.isidentifier() or value.startswith("_"):
                raise ConfigError(f"fan_out: {name} must name a field, not {value!r}")
        if not isinstance(max_concurrency, int) or max_concurrency < 1 or max_concurrency is True:
            raise ConfigError(
                f"fan_out: max_concurrency must be 1 or more, not {max_concurrency!r}"
            )
        self.id = check_id(id or f"fan_out({id_of(node)})", "node id")
        self.node = node
        self.over = over
        self.into = into
        self.max_concurrency = max_concurrency
        self.input = input

    def __repr__(self) -> str:
        return self.id


NodeLike: TypeAlias = Callable[..., Awaitable[object] | object] | Parallel | FanOut
"""What a pipeline is made of: decorated functions, `parallel(…)` and `fan_out(…)`."""


def parallel(*nodes: NodeLike, id: str | None = None) -> Parallel:
    """Return a node that runs others side by side on the same state.

    Each child has its own contract, retries, record, usage and hooks. Their outputs are merged
    in the order given; where two have the same field, the later one holds. A child that fails
    cancels the others; one that has finished is never run again.

    Args:
        nodes: the children; they take the same input.
        id: the id; "parallel(a, b)" if not given.

    Raises:
        ConfigError: there is no node, something is no node, or the id cannot be stored.
    """
    return Parallel(nodes, id)


def fan_out(
    node: NodeLike,
    *,
    over: str,
    into: str,
    max_concurrency: int = 20,
    id: str | None = None,
    input: type[BaseModel] | None = None,
) -> FanOut:
    """Return a node that runs another one for each item of a list in the state.

    Its output is the state before it, plus ``into``. Each item is recorded by itself, as
    "extract[17]", and one that has finished is never run again.

    Args:
        node: what runs for each item; its contract's input is the item.
        over: the field that holds the list.
        into: the field that takes the outputs, in the items' order.
        max_concurrency: how many items run at once.
        id: the id; "fan_out(extract)" if not given.
        input: the model of the state; needed only where `fan_out` stands first and a run is
            continued without its input.

    Raises:
        ConfigError: an option is wrong.
    """
    return FanOut(node, over, into, max_concurrency, id, input)


def id_of(node: object) -> str:
    """Return the id of a node.

    Raises:
        ConfigError: it is no node.
    """
    if isinstance(node, Parallel | FanOut):
        return node.id
    node_id = getattr(node, NODE_ID, None)
    if isinstance(node_id, str):
        return node_id
    name = getattr(node, "__qualname__", None) or repr(node)
    raise ConfigError(
        f"{name} is no node: decorate it with @stroma.node, @runner.node or @stroma_node, "
        "or use parallel(…) or fan_out(…)"
    )
