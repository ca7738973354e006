"""Classifiers with one defect each, and the clauses that catch it."""

from __future__ import annotations

import contextlib
import random
import socket
import time
from pathlib import Path
from typing import Any, ClassVar

import pytest

from stroma import FailureClass, FailureVerdict, NodeContext
from stroma.testing.classifiers import Case, ClassifierConformance

RECOVERABLE = FailureClass.RECOVERABLE


class Defective(ClassifierConformance):
    caught_by: ClassVar[set[str]] = set()

    @pytest.fixture
    def classifier(self) -> Any:
        return self.classify

    def classify(self, exc: Any, ctx: NodeContext) -> Any:
        raise NotImplementedError


class TestRaisesOnOddAttributes(Defective):
    caught_by: ClassVar = {
        "test_it_answers_with_a_class_a_verdict_or_none",
        "test_a_run_does_what_it_says",
    }

    def classify(self, exc: Any, ctx: NodeContext) -> Any:
        status = getattr(exc, "status_code", None)
        return RECOVERABLE if status is not None and status >= 500 else None


class TestRaisesOnTexts(Defective):
    caught_by: ClassVar = {
        "test_it_answers_with_a_class_a_verdict_or_none",
        "test_a_run_does_what_it_says",
    }

    def classify(self, exc: Any, ctx: NodeContext) -> Any:
        return RECOVERABLE if "429" in str(exc) else None


class TestRecursesDownTheCauses(Defective):
    caught_by: ClassVar = {
        "test_it_answers_with_a_class_a_verdict_or_none",
        "test_a_run_does_what_it_says",
    }

    def classify(self, exc: Any, ctx: NodeContext) -> Any:
        return None if exc.__cause__ is None else self.classify(exc.__cause__, ctx)


class TestNeverEnds(Defective):
    caught_by: ClassVar = {"test_it_ends"}

    def classify(self, exc: Any, ctx: NodeContext) -> Any:
        while exc.__cause__ is not None:
            exc = exc.__cause__
        return FailureClass.TERMINAL if isinstance(exc, KeyError) else None


class TestRaisesWhereFewLook(Defective):
    caught_by: ClassVar = {"test_it_answers_whatever_attributes_an_exception_has"}

    def classify(self, exc: Any, ctx: NodeContext) -> Any:
        return RECOVERABLE if vars(exc).get("type", "").startswith("overloaded") else None


class TestReturnsText(Defective):
    caught_by: ClassVar = {
        "test_it_answers_with_a_class_a_verdict_or_none",
        "test_a_run_does_what_it_says",
    }

    def classify(self, exc: Any, ctx: NodeContext) -> Any:
        return "recoverable"


class TestReturnsABool(Defective):
    caught_by: ClassVar = {
        "test_it_answers_with_a_class_a_verdict_or_none",
        "test_a_run_does_what_it_says",
    }

    def classify(self, exc: Any, ctx: NodeContext) -> Any:
        return True if isinstance(exc, TimeoutError) else None


class TestIsACoroutine(Defective):
    caught_by: ClassVar = {
        "test_it_answers_with_a_class_a_verdict_or_none",
        "test_it_says_the_same_each_time",
        "test_a_run_does_what_it_says",
    }

    async def classify(self, exc: Any, ctx: NodeContext) -> Any:
        return RECOVERABLE


class TestAddsANote(Defective):
    caught_by: ClassVar = {"test_it_leaves_the_exception_as_it_was"}

    def classify(self, exc: Any, ctx: NodeContext) -> Any:
        exc.add_note("looked at")


class TestSetsAnAttribute(Defective):
    caught_by: ClassVar = {"test_it_leaves_the_exception_as_it_was"}

    def classify(self, exc: Any, ctx: NodeContext) -> Any:
        exc.attempt = ctx.attempt


class TestRaisesAndCatches(Defective):
    """Which adds frames to the exception's traceback."""

    caught_by: ClassVar = {"test_it_leaves_the_exception_as_it_was"}

    def classify(self, exc: Any, ctx: NodeContext) -> Any:
        try:
            raise exc
        except TimeoutError:
            return RECOVERABLE
        except BaseException:
            return None


_kept: list[Any] = []


class TestKeepsExceptions(Defective):
    caught_by: ClassVar = {"test_it_keeps_no_exception"}

    def classify(self, exc: Any, ctx: NodeContext) -> Any:
        _kept.append(exc)


class TestKeepsTheLastException(Defective):
    caught_by: ClassVar = {"test_it_keeps_no_exception"}

    def classify(self, exc: Any, ctx: NodeContext) -> Any:
        _kept[:] = [exc]


class TestThrowsDice(Defective):
    caught_by: ClassVar = {"test_it_says_the_same_each_time", "test_a_run_does_what_it_says"}

    def classify(self, exc: Any, ctx: NodeContext) -> Any:
        return random.choice([FailureClass.TERMINAL, None])


class TestRemembers(Defective):
    caught_by: ClassVar = {"test_it_says_the_same_each_time", "test_a_run_does_what_it_says"}

    @pytest.fixture
    def classifier(self) -> Any:
        seen: set[str] = set()

        def classify(exc: Any, ctx: NodeContext) -> Any:
            if ctx.node_id in seen:
                return FailureClass.TERMINAL
            seen.add(ctx.node_id)
            return None

        return classify


class TestReadsAFile(Defective):
    caught_by: ClassVar = {"test_it_does_nothing_but_look"}

    def classify(self, exc: Any, ctx: NodeContext) -> Any:
        Path(__file__).read_bytes()


class TestAsksAServer(Defective):
    caught_by: ClassVar = {"test_it_does_nothing_but_look"}

    def classify(self, exc: Any, ctx: NodeContext) -> Any:
        with socket.socket() as asked, contextlib.suppress(OSError):
            asked.connect(("127.0.0.1", 1))


class TestSleeps(Defective):
    caught_by: ClassVar = {"test_it_does_nothing_but_look"}

    def classify(self, exc: Any, ctx: NodeContext) -> Any:
        time.sleep(0.0001)


class TestRetriesCancellations(Defective):
    caught_by: ClassVar = {"test_it_does_not_have_a_cancellation_retried"}

    def classify(self, exc: Any, ctx: NodeContext) -> Any:
        return RECOVERABLE


class WithRetryAfter(Defective):
    def classify(self, exc: Any, ctx: NodeContext) -> Any:
        try:
            wish = self.read(exc.response.headers["retry-after"])
        except Exception:
            return None
        return FailureVerdict(RECOVERABLE, "rate_limit", wish)

    def read(self, header: Any) -> Any:
        raise NotImplementedError


class TestNegativeRetryAfter(WithRetryAfter):
    caught_by: ClassVar = {"test_retry_after_is_in_seconds"}

    def read(self, header: Any) -> Any:
        return min(float(header), 60.0) if float(header) == float(header) else None


class TestEndlessRetryAfter(WithRetryAfter):
    caught_by: ClassVar = {"test_retry_after_is_in_seconds"}

    def read(self, header: Any) -> Any:
        return max(float(header), 0.0) if float(header) == float(header) else None


class TestRetryAfterInMilliseconds(WithRetryAfter):
    caught_by: ClassVar = {"test_retry_after_is_in_seconds"}

    def read(self, header: Any) -> Any:
        return float(header) * 1000 if header == "20" else None


class TestRetryAfterAsText(WithRetryAfter):
    caught_by: ClassVar = {
        "test_it_answers_with_a_class_a_verdict_or_none",
        "test_a_run_does_what_it_says",
    }

    def read(self, header: Any) -> Any:
        return header if isinstance(header, str) else None


class TestMissesItsCase(Defective):
    caught_by: ClassVar = {"test_its_cases_are_classified"}

    @pytest.fixture
    def cases(self) -> list[Case]:
        return [(TimeoutError(), RECOVERABLE), (KeyError("x"), FailureClass.TERMINAL)]

    def classify(self, exc: Any, ctx: NodeContext) -> Any:
        return RECOVERABLE if isinstance(exc, TimeoutError) else None
