"""The clauses that every classifier keeps. Subclass `ClassifierConformance`, and run pytest."""

from __future__ import annotations

import asyncio
import gc
import inspect
import math
import sys
import weakref
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from functools import wraps
from types import FrameType
from typing import Any, Final, NamedTuple, TypeAlias, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from stroma.failures import (
    Classifier,
    FailureClass,
    FailurePolicy,
    FailureVerdict,
    NodeContext,
    default_classifier,
)
from stroma.nodes import node
from stroma.records import RunStatus
from stroma.result import ExecutionResult
from stroma.testing._odd_exceptions import (
    RETRY_AFTER_SECONDS,
    Make,
    Odd,
    Response,
    Unprintable,
    circle,
    polite_server,
    table,
)
from stroma.testing._watch import installed_plugins, outside_acts, stroma_warnings
from stroma.testing.clock import FakeClock
from stroma.testing.single_node import run_node_sync

Case: TypeAlias = tuple[Exception, FailureClass | FailureVerdict | None]
"""An exception, and what the classifier says of it."""

_CONTEXT: Final = NodeContext("a run", "a node", 1, "a node[3]")
_MAX_RETRIES: Final = 2
_NEEDLESS: Final = (HealthCheck.differing_executors, HealthCheck.function_scoped_fixture)
_MAX_STEPS: Final = 100_000
_STATUS_AFTER: Final = {
    FailureClass.RECOVERABLE: RunStatus.PARTIAL,
    FailureClass.AMBIGUOUS: RunStatus.FAILED,
    FailureClass.TERMINAL: RunStatus.FAILED,
}


class ClassifierConformance:
    """What must hold for a classifier, as tests.

    A subclass has the fixture `classifier`, and may have the fixture `cases`::

        class TestByStatus(ClassifierConformance):
            @pytest.fixture
            def classifier(self):
                return by_status

            @pytest.fixture
            def cases(self):
                return [(HTTPError(429), FailureClass.RECOVERABLE), (ValueError(), None)]

    A case expects a class, a verdict, or None where the classifier has nothing to say. A class
    is enough for a classifier that returns verdicts: then only their class is compared.
    """

    @pytest.fixture
    def cases(self) -> Sequence[Case]:
        """Exceptions with what is expected of them; none unless a subclass says so."""
        return ()

    def test_it_answers_with_a_class_a_verdict_or_none(self, classifier: Classifier) -> None:
        for name, make in table().items():
            problem = _problem_of(_ask(classifier, make()))
            assert problem is None, f"{name}: {problem}"

    @given(attributes=st.data())
    @settings(
        max_examples=60,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=[
            HealthCheck.differing_executors,
            HealthCheck.function_scoped_fixture,
        ],
    )
    def test_it_answers_whatever_attributes_an_exception_has(
        self, classifier: Classifier, attributes: st.DataObject
    ) -> None:
        exc = attributes.draw(_odd_exceptions())
        problem = _problem_of(_ask(classifier, exc))
        assert problem is None, f"the exception drawn below: {problem}"

    def test_it_ends(self, classifier: Classifier) -> None:
        with _at_most(_MAX_STEPS) as steps:
            _ask(classifier, circle())
        assert steps.left, "the classifier does not end on a chain of causes that is a circle"

    def test_it_leaves_the_exception_as_it_was(self, classifier: Classifier) -> None:
        for name, make in table().items():
            exc = make()
            before = _snapshot(exc)
            _ask(classifier, exc)
            changed = [what for what, value in _snapshot(exc).items() if before[what] != value]
            assert not changed, f"{name}: the classifier changed its {', '.join(changed)}"

    def test_it_says_the_same_each_time(self, classifier: Classifier) -> None:
        made = table()
        first = {name: _ask(classifier, make()) for name, make in made.items()}
        for _ in range(10):
            for name, make in reversed(made.items()):
                again = _ask(classifier, make())
                assert _is_same(again, first[name]), (
                    f"{name}: the classifier says {first[name]!r} and then {again!r}"
                )

    def test_it_does_nothing_but_look(self, classifier: Classifier) -> None:
        made = {name: make() for name, make in table().items()}
        for exc in made.values():  # by which it has imported what it needs
            _ask(classifier, exc)
        for name, exc in made.items():
            with outside_acts() as seen:
                _ask(classifier, exc)
            assert not seen, f"{name}: the classifier did {', '.join(sorted(set(seen)))}"

    def test_it_does_not_have_a_cancellation_retried(self, classifier: Classifier) -> None:
        stops = (
            asyncio.CancelledError(),
            GeneratorExit(),
            KeyboardInterrupt(),
            SystemExit(1),
            BaseExceptionGroup("several", [KeyboardInterrupt(), TimeoutError()]),
        )
        for stop in stops:
            answer = _ask(classifier, stop)
            said = answer.failure_class if isinstance(answer, FailureVerdict) else answer
            assert said is not FailureClass.RECOVERABLE, (
                f"{type(stop).__name__} ends a run, and the classifier says {answer!r}"
            )

    def test_retry_after_is_in_seconds(self, classifier: Classifier) -> None:
        for name, make in table().items():
            wish = _wish_of(_ask(classifier, make()))
            is_sane = wish is None or (math.isfinite(wish) and wish >= 0)
            assert is_sane, f"{name}: retry_after_seconds is {wish}"
        wish = _wish_of(_ask(classifier, polite_server()))
        assert wish is None or wish <= RETRY_AFTER_SECONDS * 10, (
            f"a server asks for {RETRY_AFTER_SECONDS:.0f} s, and retry_after_seconds is {wish}"
        )

    def test_it_keeps_no_exception(self, classifier: Classifier) -> None:
        made: dict[str, Make] = {**table(), "the last one": Odd}
        watched = {name: _asked_and_dropped(classifier, make) for name, make in made.items()}
        gc.collect()
        kept = [name for name, exc in watched.items() if exc is not None and exc() is not None]
        assert not kept, (
            f"the classifier keeps exceptions, and with them the frames of the node: {kept}"
        )

    def test_its_cases_are_classified(self, classifier: Classifier, cases: Sequence[Case]) -> None:
        for name, (exc, expected) in _named(cases).items():
            answer = _ask(classifier, exc)
            assert _fits(answer, expected), f"{name}: expected {expected!r}, not {answer!r}"

    def test_a_run_does_what_it_says(self, classifier: Classifier, cases: Sequence[Case]) -> None:
        made: dict[str, Make] = dict(table())
        made.update((name, _same(exc)) for name, (exc, _) in _named(cases).items())
        for name, make in made.items():
            _check_run(classifier, make, name)


class _Raised(NamedTuple):
    """What stands for an answer where there was none: a clause of its own is about that."""

    error: str


def _ask(classifier: Classifier, exc: BaseException, context: NodeContext = _CONTEXT) -> object:
    assert callable(classifier), (
        f"the fixture `classifier` must return a function, not {type(classifier).__name__}"
    )
    try:
        answer: object = classifier(cast("Exception", exc), context)
    except BaseException as raised:
        return _Raised(type(raised).__name__)
    _close(answer)
    return answer


def _close(answer: object) -> None:
    """Close a coroutine, or Python warns that it was not awaited."""
    if inspect.iscoroutine(answer):
        answer.close()


def _closing(classifier: Classifier) -> Classifier:
    @wraps(classifier)
    def asked(exc: Exception, ctx: NodeContext) -> Any:
        answer = classifier(exc, ctx)
        _close(answer)
        return answer

    return asked


def _problem_of(answer: object) -> str | None:
    """Return what is wrong with an answer, or None."""
    if answer is None or isinstance(answer, FailureClass):
        return None
    if isinstance(answer, _Raised):
        return f"the classifier raised {answer.error}; it would be passed over"
    if not isinstance(answer, FailureVerdict):
        return f"{answer!r} is no FailureClass, FailureVerdict or None; it would be passed over"
    if not isinstance(answer.failure_class, FailureClass):
        return f"failure_class is {answer.failure_class!r}, and no FailureClass"
    if not isinstance(answer.reason, str):
        return f"reason is {answer.reason!r}, and no text"
    wish: object = answer.retry_after_seconds
    is_number = isinstance(wish, int | float) and not isinstance(wish, bool)
    return None if wish is None or is_number else f"retry_after_seconds is {wish!r}, and no number"


def _wish_of(answer: object) -> float | None:
    wish: object = answer.retry_after_seconds if isinstance(answer, FailureVerdict) else None
    return wish if isinstance(wish, int | float) else None


def _is_same(answer: object, other: object) -> bool:
    return repr(answer) == repr(other)  # in which NaN is NaN


def _fits(answer: object, expected: object) -> bool:
    if isinstance(expected, FailureClass) and isinstance(answer, FailureVerdict):
        return answer.failure_class is expected
    return answer == expected


def _asked_and_dropped(classifier: Classifier, make: Make) -> weakref.ref[Exception] | None:
    """Ask about an exception, and return what tells whether it is still there."""
    exc = make()
    _ask(classifier, exc)
    try:
        return weakref.ref(exc)
    except TypeError:  # built-in ones cannot be watched
        return None


def _snapshot(exc: BaseException) -> dict[str, object]:
    """Return what there is of an exception, by the name of the attribute."""
    found: dict[str, object] = {
        "args": [id(arg) for arg in exc.args],
        "attributes": {name: id(value) for name, value in vars(exc).items()},
        "notes": list(getattr(exc, "__notes__", ())),
        "__suppress_context__": exc.__suppress_context__,
    }
    for name in ("__cause__", "__context__", "__traceback__"):
        found[name] = id(getattr(exc, name))
    return found


def _odd_exceptions() -> st.SearchStrategy[Odd]:
    texts = st.sampled_from(["429", "rate_limit", "retry-after", "20", ""]) | st.text(max_size=5)
    values = st.deferred(
        lambda: st.one_of(
            st.none(),
            st.booleans(),
            st.integers(),
            st.floats(),
            texts,
            st.binary(max_size=5),
            st.lists(texts, max_size=2),
            st.dictionaries(texts, values, max_size=3),
            st.builds(Response, values, st.dictionaries(texts, texts, max_size=2)),
            st.builds(Unprintable),
            st.builds(object),
        )
    )
    http = ("body", "code", "headers", "request", "response", "retry_after", "status")
    names = st.sampled_from((*http, "details", "error", "message", "status_code", "type"))
    return st.builds(
        lambda args, attributes: Odd(*args, **attributes),
        st.lists(values, max_size=2),
        st.dictionaries(names, values, max_size=5),
    )


class _Steps(BaseException):
    """Counts the lines that are run, and is raised when there are too many."""

    def __init__(self, left: int) -> None:
        super().__init__()
        self.left = left

    def trace(self, frame: FrameType, event: str, arg: object) -> Callable[..., Any]:
        self.left = max(0, self.left - 1)
        if not self.left:
            raise self
        return self.trace


@contextmanager
def _at_most(lines: int) -> Generator[_Steps]:
    """Let this thread run no more than so many lines."""
    steps, before = _Steps(lines), sys.gettrace()
    sys.settrace(steps.trace)
    try:
        yield steps
    finally:
        sys.settrace(before)


class _State(BaseModel):
    number: int = 0


def _named(cases: Sequence[Case]) -> dict[str, Case]:
    """Return the cases by name, of which the text of an exception, that may raise, is no part."""
    return {f"case {n}, {type(case[0]).__name__}": case for n, case in enumerate(cases)}


def _same(exc: Exception) -> Make:
    return lambda: exc


def _check_run(classifier: Classifier, make: Make, name: str) -> None:
    """Run a node that raises this, and compare what became of it with the classifier's word."""
    calls = 0

    @node(id="failing", input=_State, output=_State)
    async def failing(state: _State) -> _State:
        nonlocal calls
        calls += 1
        raise make()

    policy = FailurePolicy(max_retries=_MAX_RETRIES, base_delay_seconds=1.0)
    retried = (FailureClass.RECOVERABLE, FailureClass.AMBIGUOUS)
    with stroma_warnings() as log:
        result = run_node_sync(
            failing,
            _State(),
            classifiers=[_closing(classifier)],
            clock=FakeClock(auto_advance=True),
            policy_map=dict.fromkeys(retried, policy),
            disabled_plugins=installed_plugins(),
        )
    assert not log, f"{name}: {'; '.join(log)}"
    _check_result(result, _answers(classifier, make, calls), calls, policy, name)


def _answers(classifier: Classifier, make: Make, calls: int) -> list[FailureVerdict]:
    """Return what the classifier, and else the built-in rules, say of each attempt."""
    found: list[FailureVerdict] = []
    for attempt in range(1, calls + 1):
        exc = make()
        context = NodeContext("a run", "failing", attempt, "failing")
        answer = _ask(classifier, exc, context)
        if isinstance(answer, FailureClass):
            answer = FailureVerdict(answer)
        if not isinstance(answer, FailureVerdict):
            answer = default_classifier(exc, context)
        found.append(answer)
    return found


def _check_result(
    result: ExecutionResult,
    verdicts: list[FailureVerdict],
    calls: int,
    policy: FailurePolicy,
    name: str,
) -> None:
    last = verdicts[-1]
    for event, verdict in zip(result.trace.failures(), verdicts, strict=True):
        assert event.failure_class == verdict.failure_class, f"{name}: {event.failure_class}"
        waited, wish = event.retry_delay_seconds, verdict.retry_after_seconds or 0.0
        assert waited is None or waited >= wish, f"{name}: waited {waited} s, and not {wish}"
    is_waited_for = (last.retry_after_seconds or 0.0) <= policy.max_retry_after_seconds
    if last.failure_class is not FailureClass.TERMINAL and is_waited_for:
        assert calls == policy.max_retries + 1, f"{name}: called {calls} times"
    assert result.status is _STATUS_AFTER[last.failure_class], f"{name}: {result.status}"
