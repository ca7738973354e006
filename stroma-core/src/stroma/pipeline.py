"""Named pipelines."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from stroma.errors import ConfigError
from stroma.ids import check_id
from stroma.nodes import FanOut, NodeLike, Parallel, id_of

Upcaster: TypeAlias = Callable[[dict[str, Any]], dict[str, Any]]

INPUT = "input"
"""Key of the upcaster for a run's initial state."""


class Pipeline:
    """A named sequence of nodes, which another process can find again.

    Args:
        name: stands in the run record.
        nodes: the nodes, in order.
        version: of the pipeline; stands in the run record.
        upcasters: by node id, or "input" for the initial state: turns what an older version
            recorded, as a dict, into what this version's schema accepts.

    Raises:
        ConfigError: the name cannot be stored, there are no nodes, an upcaster is for no node.
    """

    def __init__(
        self,
        name: str,
        nodes: Sequence[NodeLike],
        *,
        version: str = "",
        upcasters: Mapping[str, Upcaster] | None = None,
    ) -> None:
        self.name = check_id(name, "pipeline name")
        if isinstance(nodes, str | bytes) or not isinstance(nodes, Sequence) or not nodes:
            raise ConfigError(f"pipeline {name!r} needs a list of nodes, and at least one")
        self.nodes = tuple(nodes)
        self.version = check_id(version, "pipeline version") if version else ""
        self.upcasters = dict(upcasters or {})
        for key, upcaster in self.upcasters.items():
            if not callable(upcaster):
                raise ConfigError(f"pipeline {name!r}: the upcaster of {key!r} must be a function")
        known = {INPUT, *(id_of(node) for node in _walk(self.nodes))}
        unknown = sorted(self.upcasters.keys() - known)
        if unknown:
            raise ConfigError(
                f"pipeline {name!r} has upcasters for {', '.join(unknown)}, "
                f"but its nodes are {', '.join(sorted(known - {INPUT}))}"
            )

    def __repr__(self) -> str:
        return f"Pipeline({self.name!r}, {len(self.nodes)} nodes, version={self.version!r})"


def _walk(nodes: Sequence[object]) -> Iterator[object]:
    for node in nodes:
        yield node
        if isinstance(node, Parallel):
            yield from _walk(node.nodes)
        elif isinstance(node, FanOut):
            yield from _walk((node.node,))
