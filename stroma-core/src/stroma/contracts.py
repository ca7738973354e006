"""What a node takes and gives, and the registry of those promises."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import BaseModel, ValidationError, field_validator

from stroma.errors import ConfigError, ContractViolation, StateNotStorable
from stroma.forms import unstorable_fields
from stroma.ids import check_id
from stroma.options import Options
from stroma.schemas import StateCodec, codec_of, describe


class NodeContract(Options):
    """The types at a node's boundary.

    Attributes:
        node_id: the node that the contract is for; any text without NUL, up to 512 bytes.
        input_schema: the model that the node takes.
        output_schema: the model that the node gives.

    Raises:
        ConfigError: the id cannot be stored, or a type is no pydantic model.
    """

    node_id: str
    input_schema: type[BaseModel]
    output_schema: type[BaseModel]

    @field_validator("node_id")
    @classmethod
    def _storable_id(cls, value: str) -> str:
        return check_id(value, "node id")


class ContractRegistry:
    """The contracts that a runner knows, by node id."""

    def __init__(self) -> None:
        self._contracts: dict[str, NodeContract] = {}
        self._revision = 0

    @property
    def revision(self) -> int:
        """A number that changes with every registration."""
        return self._revision

    def register(self, contract: NodeContract) -> None:
        """Add a contract. Adding an equal one again changes nothing.

        Raises:
            ConfigError: another contract has this node id.
        """
        known = self._contracts.get(contract.node_id)
        if known == contract:
            return
        if known is not None:
            raise ConfigError(
                f"node {contract.node_id!r} is registered with {_types(known)}, "
                f"and cannot be registered again with {_types(contract)}: give one another id"
            )
        self._contracts[contract.node_id] = contract
        self._revision += 1

    def get(self, node_id: str) -> NodeContract | None:
        """Return the contract of a node, or None."""
        return self._contracts.get(node_id)

    def __contains__(self, node_id: object) -> bool:
        return node_id in self._contracts

    def __iter__(self) -> Iterator[NodeContract]:
        return iter(tuple(self._contracts.values()))

    def __len__(self) -> int:
        return len(self._contracts)


def _types(contract: NodeContract) -> str:
    return f"{contract.input_schema.__name__} -> {contract.output_schema.__name__}"


def check_storable(contract: NodeContract) -> None:
    """Refuse a contract whose states could not come back from a store.

    Raises:
        StateNotStorable: names the fields, and why.
    """
    for side, schema in (("input", contract.input_schema), ("output", contract.output_schema)):
        problems = unstorable_fields(schema)
        if problems:
            raise StateNotStorable(
                f"{contract.node_id} ({side}): {schema.__name__} cannot be stored: "
                + "; ".join(problems),
                fields=[problem.split(":", 1)[0] for problem in problems],
            )


def accept_state(
    codec: StateCodec[BaseModel],
    raw: object,
    node_id: str,
    direction: Literal["input", "output"],
) -> BaseModel:
    """Return ``raw`` as an instance of the schema.

    An instance of exactly this class is taken as it is. One of a subclass is taken if it has
    no fields of its own, which would be lost.

    Raises:
        ContractViolation: it does not fit; the message names every field.
    """
    if type(raw) is codec.schema:
        return raw
    if type(raw) is not dict and isinstance(raw, codec.schema):
        lost = type(raw).model_fields.keys() - codec.schema.model_fields.keys()
        if lost:
            problems = [
                f"{name}: a field of {type(raw).__name__}, not of {codec.schema.__name__}: "
                "it would be lost"
                for name in sorted(lost)
            ]
            raise ContractViolation(node_id, direction, problems, raw)
    try:
        return codec.validate(raw) if type(raw) is dict else codec.accept(raw)
    except ValidationError as exc:
        raise ContractViolation(node_id, direction, describe(exc), raw) from exc
    except Exception as exc:  # of a validator: what it looked at may be paid for
        problem = f"validating {codec.schema.__name__} raised {type(exc).__name__}: {exc}"
        raise ContractViolation(node_id, direction, [problem], raw) from exc


def dump_state(
    codec: StateCodec[BaseModel], state: BaseModel, node_id: str, *, is_validated: bool = False
) -> bytes:
    """Return an output's JSON, for the record; see `StateCodec.dump`.

    Raises:
        ContractViolation: it would not come back from a store as it is.
    """
    try:
        return codec.dump(state, is_validated=is_validated)
    except StateNotStorable as exc:
        raise ContractViolation(node_id, "output", [str(exc)], state) from exc
    except Exception as exc:  # of the model's own code, while what was written is compared
        problem = f"writing {codec.schema.__name__} raised {type(exc).__name__}: {exc}"
        raise ContractViolation(node_id, "output", [problem], state) from exc


__all__ = [
    "ContractRegistry",
    "NodeContract",
    "accept_state",
    "check_storable",
    "codec_of",
    "dump_state",
]
