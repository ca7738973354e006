"""The plan that a list of nodes is checked and compiled into."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ForwardRef, TypeAlias, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, create_model
from pydantic.fields import FieldInfo

from stroma.contracts import ContractRegistry, NodeContract, check_storable
from stroma.errors import ConfigError
from stroma.failures import PolicyMap
from stroma.forms import unstorable_fields
from stroma.ids import path_of
from stroma.node_settings import PLAIN_SETTINGS, Estimator, NodeSettings
from stroma.nodes import (
    CONTRACT,
    SETTINGS,
    FanOut,
    NodeFunction,
    NodeLike,
    Parallel,
    id_of,
    is_async,
    wants_context,
)
from stroma.pipeline import Pipeline, Upcaster
from stroma.records import PlanDocument
from stroma.schemas import StateCodec, codec_of, values_of

Codec: TypeAlias = StateCodec[BaseModel]


@dataclass(slots=True, eq=False, repr=False)
class Leaf:
    """A function in a plan.

    Attributes:
        id: the node's id.
        path: the id as it is stored, where the node stands in no `fan_out`.
        takes: codec of the input.
        gives: codec of the output.
        call: the function.
        settings: what its decorator fixed.
        wants_context: it takes the context.
        is_async: it runs in the loop, not in a thread.
        policies: retry policies in the order in which they are looked up.
        timeout_seconds: for one attempt, or None.
        is_bare: calling it is just awaiting it: no thread, no context, no timeout.
        top_id: id of the pipeline's node that it is, or is in: what `resume_from` takes.
        estimate: tells the most that an attempt may use, or None.
        is_reserved: a call is recorded before it is made.
    """

    id: str
    path: str
    takes: Codec
    gives: Codec
    call: NodeFunction
    settings: NodeSettings
    wants_context: bool
    is_async: bool
    policies: tuple[PolicyMap, ...] = ()
    timeout_seconds: float | None = None
    is_bare: bool = False
    top_id: str = ""
    estimate: Estimator | None = None
    is_reserved: bool = False


@dataclass(slots=True, eq=False, repr=False)
class Group:
    """`parallel` in a plan.

    Attributes:
        id: the id.
        path: the id as it is stored, where the group stands in no `fan_out`.
        takes: codec of the input of every child.
        gives: codec of the merged outputs.
        children: the steps side by side.
    """

    id: str
    path: str
    takes: Codec
    gives: Codec
    children: tuple[Step, ...]

    def merge(self, outputs: Sequence[BaseModel]) -> BaseModel:
        """Return the outputs as one state; a later one's fields hold."""
        values: dict[str, Any] = {}
        for output in outputs:
            values.update(values_of(output))
        return self.gives.schema.model_construct(None, **values)


@dataclass(slots=True, eq=False, repr=False)
class Each:
    """`fan_out` in a plan.

    Attributes:
        id: the id.
        path: the id as it is stored, where it stands in no other `fan_out`.
        takes: codec of the state before it.
        gives: codec of that state plus the outputs.
        child: the step for each item.
        over: the field with the items.
        into: the field for the outputs.
        max_concurrency: how many items run at once.
    """

    id: str
    path: str
    takes: Codec
    gives: Codec
    child: Step
    over: str
    into: str
    max_concurrency: int

    def merge(self, state: BaseModel, outputs: Sequence[BaseModel]) -> BaseModel:
        """Return the state with the outputs."""
        values = values_of(state)
        values[self.into] = list(outputs)
        return self.gives.schema.model_construct(None, **values)


Step: TypeAlias = Leaf | Group | Each


@dataclass(slots=True, eq=False, repr=False)
class Plan:
    """A checked sequence of steps.

    Attributes:
        name: the pipeline's, or "".
        version: the pipeline's, or "".
        steps: the steps, in order.
        ids: their ids.
        by_id: every step, nested ones too.
        top: where each step of by_id stands in the sequence, by itself or nested.
        upcasters: the pipeline's.
    """

    name: str
    version: str
    steps: tuple[Step, ...]
    ids: tuple[str, ...]
    by_id: dict[str, Step]
    top: dict[str, int]
    upcasters: Mapping[str, Upcaster]

    @property
    def takes(self) -> Codec:
        """Codec of the initial state."""
        return self.steps[0].takes

    def leaves(self) -> Iterator[Leaf]:
        """Yield every function of the plan."""
        for step in self.by_id.values():
            if isinstance(step, Leaf):
                yield step

    def forms(self) -> dict[str, str]:
        """Return the canonical forms of all schemas, by fingerprint."""
        codecs = [self.takes, *(step.gives for step in self.by_id.values())]
        return {codec.fingerprint: codec.form_text for codec in codecs}

    def document(self, budget: Mapping[str, str], plugins: tuple[str, ...]) -> bytes:
        """Return what is to run, as JSON for the run record."""
        return PlanDocument(self.ids, self.forms(), dict(budget), plugins).to_json()


def compile_plan(
    nodes: Sequence[NodeLike] | Pipeline,
    registry: ContractRegistry,
    initial: type[BaseModel] | None,
) -> Plan:
    """Check nodes and return the plan of them.

    Args:
        nodes: the sequence.
        registry: the contracts that `stroma_node` functions must be registered with.
        initial: class of the initial state, or None if it is not known.

    Raises:
        ConfigError: something is no node, two nodes have one id, a contract is not registered
            or another one is, a state cannot be stored, or a field of `fan_out` is missing.
    """
    pipeline = nodes if isinstance(nodes, Pipeline) else None
    if pipeline is None and (isinstance(nodes, str | bytes) or not isinstance(nodes, Sequence)):
        raise ConfigError(f"run() takes a list of nodes or a Pipeline, not {type(nodes).__name__}")
    sequence = nodes.nodes if isinstance(nodes, Pipeline) else tuple(nodes)
    if not sequence:
        raise ConfigError("there is nothing to run: the list of nodes is empty")
    compiler = _Compiler(registry)
    steps = tuple(compiler.sequence(sequence, initial))
    return Plan(
        pipeline.name if pipeline else "",
        pipeline.version if pipeline else "",
        steps,
        tuple(step.id for step in steps),
        compiler.by_id,
        compiler.top,
        pipeline.upcasters if pipeline else {},
    )


class _Compiler:
    def __init__(self, registry: ContractRegistry) -> None:
        self.registry = registry
        self.by_id: dict[str, Step] = {}
        self.top: dict[str, int] = {}

    def sequence(self, nodes: Sequence[object], schema: type[BaseModel] | None) -> Iterator[Step]:
        for position, node in enumerate(nodes):
            step = self.step(node, schema)
            for node_id in self.by_id.keys() - self.top.keys():
                self.top[node_id] = position
                inner = self.by_id[node_id]
                if isinstance(inner, Leaf):
                    inner.top_id = step.id
            schema = step.gives.schema
            yield step

    def step(self, node: object, before: type[BaseModel] | None) -> Step:
        node_id = id_of(node)
        step: Step
        if isinstance(node, Parallel):
            step = self.group(node, before)
        elif isinstance(node, FanOut):
            step = self.each(node, before)
        else:
            assert callable(node)
            step = self.leaf(node, node_id)
        if node_id in self.by_id:
            raise ConfigError(
                f"two nodes have the id {node_id!r}: a result is found by its node's id, "
                "so give one of them another"
            )
        self.by_id[node_id] = step
        return step

    def leaf(self, function: NodeFunction, node_id: str) -> Leaf:
        contract: NodeContract = getattr(function, CONTRACT)
        settings: NodeSettings = getattr(function, SETTINGS, PLAIN_SETTINGS)
        known = self.registry.get(node_id)
        if known is None and not settings.is_self_registered:
            raise ConfigError(
                f"the contract of node {node_id!r} is not registered with this runner: "
                "call registry.register(contract), or use @runner.node or @stroma.node"
            )
        if known is not None and known != contract:
            raise ConfigError(
                f"node {node_id!r} has another contract than the one that is registered"
            )
        check_storable(contract)
        return Leaf(
            node_id,
            path_of(node_id, ()),
            codec_of(contract.input_schema),
            codec_of(contract.output_schema),
            function,
            settings,
            wants_context(function),
            is_async(function),
        )

    def group(self, node: Parallel, before: type[BaseModel] | None) -> Group:
        takes = _first_input(node.nodes) or before
        children = tuple(self.step(child, takes) for child in node.nodes)
        schemas = {child.takes.schema for child in children}
        if len(schemas) > 1:
            names = ", ".join(
                f"{child.id} takes {child.takes.schema.__name__}" for child in children
            )
            raise ConfigError(f"{node.id}: all of its nodes must take the same input; {names}")
        fields: dict[str, Any] = {}
        allows_extra = False
        for child in children:
            fields.update(_field_definitions(child.gives.schema, node.id))
            allows_extra |= child.gives.schema.model_config.get("extra") == "allow"
        merged = _model(f"Merged_{'_'.join(child.id for child in children)}", fields, allows_extra)
        return Group(node.id, path_of(node.id, ()), children[0].takes, codec_of(merged), children)

    def each(self, node: FanOut, before: type[BaseModel] | None) -> Each:
        schema = node.input or before
        if schema is None:
            raise ConfigError(
                f"{node.id}: the model of the state before it is not known: write "
                "fan_out(…, input=Model), or, where it stands first, give the input"
            )
        problems = unstorable_fields(schema)
        if problems:
            raise ConfigError(f"{node.id}: {schema.__name__} cannot be stored: {problems[0]}")
        allows_extra = schema.model_config.get("extra") == "allow"
        if node.over not in schema.model_fields and not allows_extra:
            raise ConfigError(
                f"{node.id}: the state before it, {schema.__name__}, has no field {node.over!r}; "
                f"it has {', '.join(schema.model_fields)}"
            )
        child = self.step(node.node, _item_model(schema, node.over))
        fields = _field_definitions(schema, node.id)
        fields[node.into] = (list[child.gives.schema], ...)  # type: ignore[name-defined]
        model = _model(f"{schema.__name__}_with_{node.into}", fields, allows_extra)
        return Each(
            node.id,
            path_of(node.id, ()),
            codec_of(schema),
            codec_of(model),
            child,
            node.over,
            node.into,
            node.max_concurrency,
        )


def _item_model(schema: type[BaseModel], over: str) -> type[BaseModel] | None:
    """Return the model of a list's items, where its annotation names one."""
    field = schema.model_fields.get(over)
    if field is None or get_origin(field.annotation) not in (list, tuple, Sequence):
        return None
    item = get_args(field.annotation)[0]
    return item if isinstance(item, type) and issubclass(item, BaseModel) else None


def _first_input(nodes: Sequence[object]) -> type[BaseModel] | None:
    """Return the input of the first function among nodes side by side, or None."""
    for node in nodes:
        if isinstance(node, Parallel):
            return _first_input(node.nodes)
        if not isinstance(node, FanOut):
            contract: NodeContract | None = getattr(node, CONTRACT, None)
            return contract.input_schema if contract else None
    return None


def _field_definitions(schema: type[BaseModel], where: str) -> dict[str, Any]:
    """Return the fields of a model for `create_model`, without aliases."""
    if schema.__pydantic_root_model__:
        raise ConfigError(
            f"{where}: {schema.__name__} is a RootModel, which has no fields to merge"
        )
    return {
        name: _definition(field, _annotation(schema, name))
        for name, field in schema.model_fields.items()
    }


def _annotation(schema: type[BaseModel], name: str) -> object:
    """Return a field's type.

    pydantic 2.11 keeps an inherited annotation as it was written if it names a later model.
    """
    annotation = schema.model_fields[name].annotation
    if isinstance(annotation, ForwardRef):
        return get_type_hints(schema, include_extras=True)[name]
    return annotation


def _definition(field: FieldInfo, annotation: Any) -> tuple[Any, Any]:
    if field.metadata:
        annotation = Annotated[annotation, *field.metadata]
    if field.default_factory is not None:
        return annotation, FieldInfo(default_factory=field.default_factory)
    return annotation, ... if field.is_required() else field.default


def _model(name: str, fields: dict[str, Any], allows_extra: bool) -> type[BaseModel]:
    config = ConfigDict(
        arbitrary_types_allowed=True,
        extra="allow" if allows_extra else "ignore",
        protected_namespaces=(),  # the names were chosen elsewhere, and warned about there
    )
    return create_model(name, __config__=config, **fields)
