"""Classifiers that keep every clause."""

from __future__ import annotations

import asyncio
import math

import pytest

from stroma import Classifier, FailureClass, FailureVerdict, NodeContext
from stroma.failures import default_classifier
from stroma.testing.classifiers import Case, ClassifierConformance


class HTTPError(Exception):
    def __init__(self, status: int, retry_after: float | None = None) -> None:
        super().__init__(f"HTTP {status}")
        self.status = status
        self.retry_after = retry_after


def by_status(exc: Exception, ctx: NodeContext) -> FailureVerdict | None:
    if not isinstance(exc, HTTPError):
        return None
    if exc.status == 429:
        return FailureVerdict(FailureClass.RECOVERABLE, "rate_limit", exc.retry_after)
    return FailureVerdict(FailureClass.TERMINAL, "request")


def give_up_on_repeated_timeouts(exc: Exception, ctx: NodeContext) -> FailureClass | None:
    if isinstance(exc, TimeoutError) and ctx.attempt >= 2:
        return FailureClass.TERMINAL
    return None


class ByHeaders:
    """Reads what an HTTP client keeps at its exceptions, whatever stands there."""

    def __call__(self, exc: Exception, ctx: NodeContext) -> FailureVerdict | None:
        try:
            headers = exc.response.headers  # type: ignore[attr-defined]
            wish = float(headers["retry-after"])
        except Exception:
            return None
        if not math.isfinite(wish) or wish < 0:
            return FailureVerdict(FailureClass.RECOVERABLE, "rate_limit")
        return FailureVerdict(FailureClass.RECOVERABLE, "rate_limit", wish)


def everything_is_terminal(exc: Exception, ctx: NodeContext) -> FailureClass:
    """Answers on anything, also where it is never asked."""
    return FailureClass.TERMINAL


def imports_when_asked(exc: Exception, ctx: NodeContext) -> FailureClass | None:
    import xmlrpc.client

    return FailureClass.TERMINAL if isinstance(exc, xmlrpc.client.Fault) else None


class TestByStatus(ClassifierConformance):
    @pytest.fixture
    def classifier(self) -> Classifier:
        return by_status

    @pytest.fixture
    def cases(self) -> list[Case]:
        return [
            (HTTPError(429, 3.0), FailureVerdict(FailureClass.RECOVERABLE, "rate_limit", 3.0)),
            (HTTPError(429, 3000.0), FailureClass.RECOVERABLE),
            (HTTPError(401), FailureClass.TERMINAL),
            (ValueError("x"), None),
        ]


class TestByAttempt(ClassifierConformance):
    @pytest.fixture
    def classifier(self) -> Classifier:
        return give_up_on_repeated_timeouts


class TestByHeaders(ClassifierConformance):
    @pytest.fixture
    def classifier(self) -> Classifier:
        return ByHeaders()


class TestTotal(ClassifierConformance):
    @pytest.fixture
    def classifier(self) -> Classifier:
        return everything_is_terminal


class TestLazyImport(ClassifierConformance):
    @pytest.fixture
    def classifier(self) -> Classifier:
        return imports_when_asked

    async def test_the_kit_stands_beside_tests_of_ones_own(self, classifier: Classifier) -> None:
        await asyncio.sleep(0)
        assert classifier(ValueError(), NodeContext("r", "n", 1)) is None


class TestBuiltInRules(ClassifierConformance):
    @pytest.fixture
    def classifier(self) -> Classifier:
        return default_classifier
