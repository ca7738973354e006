"""Named pipelines."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, Protocol, TypeAlias

from pydantic import BaseModel

from stroma.errors import ConfigError
from stroma.ids import check_id
from stroma.nodes import FanOut, NodeLike, Parallel, id_of
from stroma.result import Submitted

Upcaster: TypeAlias = Callable[[dict[str, Any]], dict[str, Any]]

INPUT = "input"
"""Key of the upcaster for a run's initial state."""


ANY_VERSION: Final = "*"
"""In `Pipeline.accepts`: whatever version a run is of."""


class Submitter(Protocol):
    """What a pipeline needs of a runner, which knows about pipelines and not the other way."""

    async def submit(
        self,
        pipeline: Pipeline,
        input: BaseModel | Mapping[str, object] | None = None,
        *,
        run_id: str | None = None,
        tags: Sequence[str] | None = None,
    ) -> Submitted:
        """See `StromaRunner.submit`."""
        ...


RunnerFactory: TypeAlias = Callable[[], AbstractAsyncContextManager[Submitter]]


class Pipeline:
    """A named sequence of nodes, which another process can find again.

    Args:
        name: stands in the run record.
        nodes: the nodes, in order.
        version: of the pipeline; stands in the run record.
        accepts: versions besides its own whose runs a worker of this one takes up; "*" is any.
        upcasters: by node id, or "input" for the initial state: turns what an older version
            recorded, as a dict, into what this version's schema accepts.
        runner: the `StromaRunner` with which `submit` and workers run it: its store, budget,
            policies and hooks. If not given, it is one with the configured store.

    Raises:
        ConfigError: the name cannot be stored, there are no nodes, an upcaster is for no node,
            the versions are no list of words, the runner is none.
    """

    def __init__(
        self,
        name: str,
        nodes: Sequence[NodeLike],
        *,
        version: str = "",
        accepts: Iterable[str] = (),
        upcasters: Mapping[str, Upcaster] | None = None,
        runner: Submitter | None = None,
    ) -> None:
        self.name = check_id(name, "pipeline name")
        if isinstance(nodes, str | bytes) or not isinstance(nodes, Sequence) or not nodes:
            raise ConfigError(f"pipeline {name!r} needs a list of nodes, and at least one")
        self.nodes = tuple(nodes)
        self.version = check_id(version, "pipeline version") if version else ""
        self.accepts = _versions(name, accepts)
        if runner is not None and not callable(getattr(runner, "submit", None)):
            raise ConfigError(
                f"pipeline {name!r}: runner must be a StromaRunner, not {type(runner).__name__}"
            )
        self.runner = runner
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

    def accepts_version(self, version: str) -> bool:
        """Say whether a worker of this pipeline takes up the runs of a version."""
        return version == self.version or version in self.accepts or ANY_VERSION in self.accepts

    async def submit(
        self,
        input: BaseModel | Mapping[str, object] | None = None,
        *,
        run_id: str | None = None,
        tags: Sequence[str] | None = None,
        runner: Submitter | None = None,
    ) -> Submitted:
        """Write a run that nobody owns yet, for a worker to take up.

        Without a runner, the configured store is opened for this call and closed again.

        Args:
            input: what the first node takes; not needed for a run that exists.
            run_id: the id, which is an idempotency key; a new one if it is not given.
            tags: words for listing runs; those of the runner if they are not given.
            runner: the runner; the pipeline's own if it is not given.

        Returns:
            The run's id, and how it stands.

        Raises:
            ConfigError: wrong use, no store is configured, or it keeps no records of runs.
            ContractViolation: the input does not fit the first node.
            RunInputMismatch: the id is in use for another input.
            PipelineChanged: the id is in use for another pipeline.
            StoreError: the store cannot be reached; ask again with the same id.
        """
        chosen = runner or self.runner
        if chosen is not None:
            return await chosen.submit(self, input, run_id=run_id, tags=tags)
        async with _runner_factories[0]() as configured:
            return await configured.submit(self, input, run_id=run_id, tags=tags)

    def __repr__(self) -> str:
        return f"Pipeline({self.name!r}, {len(self.nodes)} nodes, version={self.version!r})"


_runner_factories: Final[list[RunnerFactory]] = []


def set_runner_factory(make: RunnerFactory) -> None:
    """Say what makes the runner of pipelines that were given none; `stroma.runner` does."""
    _runner_factories[:] = [make]


def _versions(name: str, accepts: Iterable[str]) -> tuple[str, ...]:
    is_list = isinstance(accepts, Iterable) and not isinstance(accepts, str | bytes)
    versions = tuple(accepts) if is_list else ()
    if not is_list or not all(isinstance(version, str) for version in versions):
        raise ConfigError(
            f"pipeline {name!r}: accepts must be a list of versions, such as ['1', '2'] or "
            f"['*'], not {accepts!r}"
        )
    return versions


def _walk(nodes: Sequence[object]) -> Iterator[object]:
    for node in nodes:
        yield node
        if isinstance(node, Parallel):
            yield from _walk(node.nodes)
        elif isinstance(node, FanOut):
            yield from _walk((node.node,))
