"""Failures at chosen places of a pipeline, whose nodes are otherwise the real ones."""

from __future__ import annotations

import re
import threading
from collections.abc import Awaitable, Callable, Sequence
from functools import wraps
from inspect import signature
from typing import Any, Literal, NamedTuple, Self, TypeAlias, cast, overload

from stroma._aio import settled
from stroma.errors import ConfigError
from stroma.ids import path_of
from stroma.node_settings import PLAIN_SETTINGS, NodeSettings
from stroma.nodes import (
    CONTRACT,
    SETTINGS,
    FanOut,
    NodeFunction,
    NodeLike,
    Parallel,
    fan_out,
    is_async,
    mark,
    parallel,
)
from stroma.pipeline import Pipeline
from stroma.plugins import did_you_mean
from stroma.scope import NodeScope, current
from stroma.testing._walking import Place, places_of

When: TypeAlias = Literal["before", "after"]
Error: TypeAlias = BaseException | type[BaseException]

_INDEXED = re.compile(r"(?s)(.+?)((?:\[\d+\])+)")


class InjectedFailure(NamedTuple):
    """A failure that is to happen.

    Attributes:
        at: the node's id, or its place, such as "extract[17]".
        error: what is raised: an exception, or a class of which one is made each time.
        attempt: at which attempt of a start, from 1; None for every one.
        when: "before" the node is called, or "after" it gave its answer, which is lost.
    """

    at: str
    error: Error
    attempt: int | None = 1
    when: When = "before"

    def __str__(self) -> str:
        attempt = "every attempt" if self.attempt is None else f"attempt {self.attempt}"
        return f"{self.at}, {attempt}, {self.when} the call"


class FiredFailure(NamedTuple):
    """A failure that has happened.

    Attributes:
        run_id: the run.
        path: the node's place, such as "extract[17]".
        attempt: 1 for the first call of that start.
        when: "before" or "after" the call.
        error: what was raised.
    """

    run_id: str
    path: str
    attempt: int
    when: When
    error: BaseException


class _Failures:
    """What is to fail in one pipeline, and what has; safe to use from several threads."""

    def __init__(self, places: Sequence[Place], groups: Sequence[str]) -> None:
        self._places = places
        self._groups = groups
        self._lock = threading.Lock()
        self._once: set[tuple[int, str, int, str]] = set()
        self._planned: list[InjectedFailure] = []
        self._happened: set[int] = set()
        self.fired: list[FiredFailure] = []
        self._reached: dict[str, int] = {}

    def add(self, failure: InjectedFailure) -> None:
        _check(failure)
        if not any(_stands_at(place, failure.at) for place in self._places):
            raise ConfigError(self._unknown(failure.at))
        self._planned.append(failure)

    def raise_if_due(self, scope: NodeScope, when: When) -> None:
        """Raise the failure that is planned for this attempt, if there is one.

        One with a number happens once in a run, so that a continued run gets further.
        """
        with self._lock:
            self._reached[scope.path] = max(self._reached.get(scope.path, 0), scope.attempt)
            error = self._due(scope, when)
        if error is not None:
            raise error

    def _due(self, scope: NodeScope, when: When) -> BaseException | None:
        for number, failure in enumerate(self._planned):
            if failure.when != when or failure.at not in (scope.path, scope.node_id):
                continue
            once = (number, scope.run_id, scope.epoch, scope.path)
            if failure.attempt is not None:
                if failure.attempt != scope.attempt or once in self._once:
                    continue
                self._once.add(once)
            error = failure.error() if isinstance(failure.error, type) else failure.error
            self._happened.add(number)
            self.fired.append(FiredFailure(scope.run_id, scope.path, scope.attempt, when, error))
            return error
        return None

    def unfired(self) -> list[InjectedFailure]:
        numbered = enumerate(self._planned)
        return [failure for number, failure in numbered if number not in self._happened]

    def explain(self, failure: InjectedFailure) -> str:
        at = failure.at
        made = {p: n for p, n in self._reached.items() if p == at or _is_item(p, at)}
        if not made:
            return f"{failure}: the node was never called"
        times = ", ".join(f"{path} got to attempt {n}" for path, n in sorted(made.items())[:5])
        return f"{failure}: never happened; {times}"

    def _unknown(self, at: str) -> str:
        if at in self._groups:
            return f"{at!r} runs no code of its own: name one of the nodes in it"
        parsed = _INDEXED.fullmatch(at)
        for place in self._places:
            if parsed is not None and parsed[1] == path_of(place.id, ()):
                if not place.depth:
                    return f"{at!r}: {place.id} stands in no fan_out: write at={place.id!r}"
                example = path_of(place.id, (0,) * place.depth)
                return f"{at!r}: {place.id} stands in {place.depth} fan_out: write {example!r}"
        names = [place.id for place in self._places]
        return (
            f"there is no node {at!r} to fail{did_you_mean(at, names)}; "
            f"there are {', '.join(names) or 'none at all'}"
        )


class Failing:
    """Nodes with failures in them; what `failing` returns is one."""

    _failures: _Failures

    def also(
        self, *, at: str, error: Error, attempt: int | None = 1, when: When = "before"
    ) -> Self:
        """Add another failure, and return the nodes; see `failing`."""
        self._failures.add(InjectedFailure(at, error, attempt, when))
        return self

    @property
    def fired(self) -> tuple[FiredFailure, ...]:
        """What has happened, in order, over all runs of these nodes."""
        return tuple(self._failures.fired)

    @property
    def unfired(self) -> tuple[InjectedFailure, ...]:
        """What has not happened in any run."""
        return tuple(self._failures.unfired())

    def assert_fired(self) -> None:
        """Check that every failure has happened.

        Raises:
            AssertionError: names those that have not, and how far their nodes got.
        """
        missing = [self._failures.explain(failure) for failure in self._failures.unfired()]
        if missing:
            raise AssertionError("\n".join(missing))


class FailingNodes(list[NodeLike], Failing):
    """A list of nodes with failures in them; made by `failing`."""

    def __init__(self, nodes: Sequence[NodeLike]) -> None:
        self._failures = _failures_of(nodes)
        super().__init__(_wrapped(node, self._failures) for node in nodes)


class FailingPipeline(Pipeline, Failing):
    """A pipeline with failures in it; made by `failing`."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._failures = _failures_of(pipeline.nodes)
        nodes = [_wrapped(node, self._failures) for node in pipeline.nodes]
        super().__init__(
            pipeline.name,
            nodes,
            version=pipeline.version,
            accepts=pipeline.accepts,
            upcasters=pipeline.upcasters,
            runner=pipeline.runner,
        )


@overload
def failing(
    nodes: Pipeline,
    *,
    at: str,
    error: Error,
    attempt: int | None = 1,
    when: When = "before",
) -> FailingPipeline: ...


@overload
def failing(
    nodes: Sequence[NodeLike],
    *,
    at: str,
    error: Error,
    attempt: int | None = 1,
    when: When = "before",
) -> FailingNodes: ...


def failing(
    nodes: Pipeline | Sequence[NodeLike],
    *,
    at: str,
    error: Error,
    attempt: int | None = 1,
    when: When = "before",
) -> FailingPipeline | FailingNodes:
    """Return these nodes, with a failure at one place.

    Ids, contracts and settings are those of the nodes, so that the run can be continued with
    them: nothing has changed for it. ``.also(…)`` adds further failures, ``.fired`` says what
    has happened, and ``.assert_fired()`` that everything has.

    Args:
        nodes: what is to run.
        at: the id of a node, or its place: "extract[17]" is one item of `fan_out`, and
            "extract" each of them.
        error: what is raised: an exception, or a class of which one is made each time.
        attempt: at which attempt of a start, from 1. It happens once in a run, at each place.
            None: at every attempt of every start.
        when: "before" the node is called, so that nothing is bought; or "after" it gave its
            answer, which was paid for and is lost.

    Raises:
        ConfigError: there is no such node, it runs no code, or an argument is wrong.
    """
    if isinstance(nodes, Pipeline):
        return FailingPipeline(nodes).also(at=at, error=error, attempt=attempt, when=when)
    if isinstance(nodes, str) or not isinstance(nodes, Sequence):
        raise ConfigError(
            f"failing() takes a list of nodes or a Pipeline, not {type(nodes).__name__}"
        )
    return FailingNodes(nodes).also(at=at, error=error, attempt=attempt, when=when)


def _check(failure: InjectedFailure) -> None:
    at, error, attempt, when = failure
    is_class = isinstance(error, type) and issubclass(error, BaseException)
    if not is_class and not isinstance(error, BaseException):
        raise ConfigError(f"{at}: error must be an exception or a class of one, not {error!r}")
    is_number = isinstance(attempt, int) and not isinstance(attempt, bool)
    if attempt is not None and not (is_number and attempt >= 1):
        raise ConfigError(f"{at}: attempt must be 1 or more, or None, not {attempt!r}")
    if when not in ("before", "after"):
        raise ConfigError(f'{at}: when must be "before" or "after", not {when!r}')


def _stands_at(place: Place, at: str) -> bool:
    if at == place.id:
        return True
    parsed = _INDEXED.fullmatch(at)
    if parsed is None:
        return False
    index = tuple(map(int, re.findall(r"\d+", parsed[2])))
    return len(index) == place.depth and path_of(place.id, index) == at


def _is_item(path: str, node_id: str) -> bool:
    parsed = _INDEXED.fullmatch(path)
    return parsed is not None and parsed[1] == path_of(node_id, ())


def _failures_of(nodes: Sequence[NodeLike]) -> _Failures:
    return _Failures(list(places_of(nodes)), list(_groups_of(nodes)))


def _groups_of(nodes: Sequence[object]) -> list[str]:
    found: list[str] = []
    for node in nodes:
        if isinstance(node, Parallel):
            found += [node.id, *_groups_of(node.nodes)]
        elif isinstance(node, FanOut):
            found += [node.id, *_groups_of((node.node,))]
    return found


def _wrapped(node: object, failures: _Failures) -> NodeLike:
    if isinstance(node, Parallel):
        return parallel(*(_wrapped(child, failures) for child in node.nodes), id=node.id)
    if isinstance(node, FanOut):
        return fan_out(
            _wrapped(node.node, failures),
            over=node.over,
            into=node.into,
            max_concurrency=node.max_concurrency,
            id=node.id,
            input=node.input,
        )
    return _guarded(cast("NodeFunction", node), failures)


def _guarded(function: NodeFunction, failures: _Failures) -> NodeFunction:
    """Return a node like this one, that fails when it is told to."""

    async def guarded_async(*args: object) -> object:
        scope = current()
        failures.raise_if_due(scope, "before")
        answer = await cast("Callable[..., Awaitable[object]]", function)(*args)
        failures.raise_if_due(scope, "after")
        return answer

    def guarded(*args: object) -> object:
        scope = current()
        failures.raise_if_due(scope, "before")
        answer = function(*args)
        if hasattr(answer, "__await__"):
            return _awaited(answer, scope, failures)
        failures.raise_if_due(scope, "after")
        return answer

    wrapper: Any = wraps(function)(guarded_async if is_async(function) else guarded)
    wrapper.__signature__ = signature(function)  # how core tells whether it wants the context
    del wrapper.__wrapped__  # by which core would take an async wrapper of an object for sync
    settings: NodeSettings = getattr(function, SETTINGS, PLAIN_SETTINGS)
    return mark(wrapper, getattr(function, CONTRACT), settings)


async def _awaited(answer: object, scope: NodeScope, failures: _Failures) -> object:
    value = await settled(answer)
    failures.raise_if_due(scope, "after")
    return value
