"""The functions of a pipeline, wherever they stand in it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, cast

from stroma.contracts import ContractRegistry, NodeContract
from stroma.nodes import CONTRACT, FanOut, NodeFunction, NodeLike, Parallel, id_of


class Place(NamedTuple):
    """A function in a pipeline.

    Attributes:
        function: the function.
        id: its node id.
        depth: how many `fan_out` it stands in.
    """

    function: NodeFunction
    id: str
    depth: int


def places_of(nodes: Iterable[NodeLike], depth: int = 0) -> Iterator[Place]:
    """Yield every function of these nodes, in order.

    Raises:
        ConfigError: something is no node.
    """
    for node in nodes:
        if isinstance(node, Parallel):
            yield from places_of(cast("tuple[NodeLike, ...]", node.nodes), depth)
        elif isinstance(node, FanOut):
            yield from places_of((cast("NodeLike", node.node),), depth + 1)
        else:
            yield Place(cast("Any", node), id_of(node), depth)


def contracts_of(nodes: Iterable[NodeLike]) -> ContractRegistry:
    """Return a registry that knows the contracts of these nodes.

    Raises:
        ConfigError: something is no node, or two nodes have one id and other contracts.
    """
    registry = ContractRegistry()
    for place in places_of(nodes):
        contract: NodeContract = getattr(place.function, CONTRACT)
        registry.register(contract)
    return registry
