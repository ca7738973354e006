"""One node alone, through the attempt loop that runs it in a pipeline."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, MutableMapping, Sequence

from pydantic import BaseModel

from stroma.checkpoint import CheckpointManager
from stroma.errors import ConfigError
from stroma.nodes import FanOut, NodeLike, Parallel, id_of
from stroma.pipeline import Pipeline
from stroma.result import ExecutionResult
from stroma.run_config import changed_config
from stroma.runner import StromaRunner
from stroma.stores.memory import AsyncInMemoryStore
from stroma.testing._walking import contracts_of


class _NoWaits:
    """The machine's clock, but for its sleeps: they are over at once, and count as slept.

    Attributes:
        sleeps: the seconds of every sleep, in order.
    """

    def __init__(self) -> None:
        self.sleeps: list[float] = []
        self._skipped = 0.0

    def now(self) -> float:
        """Return seconds since the epoch."""
        return time.time() + self._skipped

    def monotonic(self) -> float:
        """Return seconds that never go back."""
        return time.monotonic() + self._skipped

    async def sleep(self, seconds: float, /) -> None:
        """Let other tasks run, and say from now on that this many seconds have gone by."""
        self.sleeps.append(seconds)
        self._skipped += max(0.0, seconds)
        await asyncio.sleep(0)


async def run_node(
    node: NodeLike,
    state: BaseModel | Mapping[str, object],
    *,
    context: MutableMapping[str, object] | None = None,
    **options: object,
) -> ExecutionResult:
    """Run one node alone, as it runs in a pipeline.

    Contracts, retries, budgets, usage and hooks are the real ones, and so are installed
    plugins. Results are kept in memory, and the waits between attempts take no time.

    Args:
        node: a function that is a node, or `parallel` or `fan_out`.
        state: its input, a model or a dict.
        context: the dict that a node with a second argument gets.
        **options: any field of `RunConfig`, such as ``budget`` or ``classifiers``. A
            ``clock`` replaces the one without waits.

    Returns:
        How it went: `final_state` is the node's output.

    Raises:
        ConfigError: it is no node, the state is none, or an option is unknown or wrong.
    """
    return await _runner(node, state, context, options).run([node], state)


def run_node_sync(
    node: NodeLike,
    state: BaseModel | Mapping[str, object],
    *,
    context: MutableMapping[str, object] | None = None,
    **options: object,
) -> ExecutionResult:
    """Run one node alone from code that is not async; see `run_node`.

    Raises:
        ConfigError: as for `run_node`, or called inside an event loop.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return _runner(node, state, context, options).run_sync([node], state)
    raise ConfigError("run_node_sync() was called inside an event loop: use await run_node()")


def _runner(
    node: object,
    state: object,
    context: MutableMapping[str, object] | None,
    options: Mapping[str, object],
) -> StromaRunner:
    single = _single(node)
    if not isinstance(state, BaseModel | Mapping):
        raise ConfigError(
            f"the state for node {id_of(single)!r} must be a pydantic model or a dict, "
            f"not {type(state).__name__}"
        )
    config = changed_config(None, {"clock": _NoWaits(), **options})
    manager = CheckpointManager(AsyncInMemoryStore())
    runner = StromaRunner(contracts_of([single]), manager, config)
    return runner if context is None else runner.with_context(context)


def _single(node: object) -> NodeLike:
    if isinstance(node, Pipeline) or (isinstance(node, Sequence) and not isinstance(node, str)):
        raise ConfigError(
            "run_node() takes one node, and was given several: run a pipeline with "
            "StromaRunner.quick().run(nodes, state)"
        )
    id_of(node)
    if isinstance(node, Parallel | FanOut) or callable(node):
        return node
    raise ConfigError(f"a node must be a function, not {type(node).__name__}")
