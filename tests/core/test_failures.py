"""What a failure means, who decides it, and how the run stands after it."""

from __future__ import annotations

import logging
from decimal import Decimal

import pytest

from stroma import (
    BudgetExceeded,
    ConfigError,
    ContractViolation,
    FailureClass,
    FailureVerdict,
    NodeContext,
    NodeTimeout,
    RunStatus,
    UnknownPrice,
    node,
)
from stroma.failures import classify
from tests.core.helpers import Calls, Number, make_runner

RECOVERABLE = FailureClass.RECOVERABLE
TERMINAL = FailureClass.TERMINAL
AMBIGUOUS = FailureClass.AMBIGUOUS
HERE = NodeContext("run", "node", 1)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (TimeoutError(), RECOVERABLE),
        (NodeTimeout(), RECOVERABLE),
        (ConnectionError(), RECOVERABLE),
        (ConnectionResetError(), RECOVERABLE),
        (BrokenPipeError(), RECOVERABLE),
        (TypeError(), TERMINAL),
        (AttributeError(), TERMINAL),
        (NameError(), TERMINAL),
        (UnboundLocalError(), TERMINAL),
        (ImportError(), TERMINAL),
        (ModuleNotFoundError(), TERMINAL),
        (NotImplementedError(), TERMINAL),
        (SyntaxError(), TERMINAL),
        (RecursionError(), TERMINAL),
        (ConfigError(), TERMINAL),
        (ContractViolation("n", "output", ["x: wrong"]), TERMINAL),
        (BudgetExceeded("spent", limit="tokens"), TERMINAL),
        (UnknownPrice(), TERMINAL),
        (ValueError(), AMBIGUOUS),
        (KeyError(), AMBIGUOUS),
        (RuntimeError(), AMBIGUOUS),
        (OSError(), AMBIGUOUS),
        (Exception(), AMBIGUOUS),
    ],
    ids=lambda value: value.value if isinstance(value, FailureClass) else type(value).__name__,
)
def test_built_in_rules(error: Exception, expected: FailureClass) -> None:
    assert classify(error, HERE, ()).failure_class is expected


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (TimeoutError("slow"), RunStatus.PARTIAL),
        (RuntimeError("odd"), RunStatus.FAILED),
        (TypeError("bug"), RunStatus.FAILED),
    ],
)
async def test_the_class_of_the_failure_decides_how_the_run_stands(
    calls: Calls, error: Exception, status: RunStatus, store: object
) -> None:
    result = await make_runner(store).run([calls.node("a", error)], Number())
    assert result.status is status
    assert result.error is error
    assert type(error).__name__ in result.stop_reason
    assert str(error) in result.stop_reason


async def test_a_failed_run_keeps_the_last_recorded_state(calls: Calls) -> None:
    nodes = [calls.node("a"), calls.node("b", TypeError("bug"))]
    result = await make_runner().run(nodes, Number(value=1))
    assert result.final_state == Number(value=2)
    assert not result.is_complete


async def test_the_first_classifier_with_an_answer_decides(calls: Calls) -> None:
    asked: list[str] = []

    def silent(exc: Exception, ctx: NodeContext) -> None:
        asked.append("silent")

    def sure(exc: Exception, ctx: NodeContext) -> FailureClass:
        asked.append("sure")
        return TERMINAL

    def late(exc: Exception, ctx: NodeContext) -> FailureClass:
        raise AssertionError("never asked")

    runner = make_runner().with_classifiers([silent, sure, late])
    await runner.run([calls.node("a", TimeoutError("slow"))], Number())
    assert asked == ["silent", "sure"]
    assert calls["a"] == 1


async def test_a_classifier_is_told_the_place_and_the_attempt(calls: Calls) -> None:
    told: list[NodeContext] = []

    def watch(exc: Exception, ctx: NodeContext) -> None:
        told.append(ctx)

    runner = make_runner(classifiers=[watch])
    await runner.run([calls.node("a", RuntimeError("odd"))], Number(), run_id="r")
    assert told == [NodeContext("r", "a", 1, "a"), NodeContext("r", "a", 2, "a")]


async def test_a_classifier_that_escalates_ends_the_retries(calls: Calls) -> None:
    def give_up(exc: Exception, ctx: NodeContext) -> FailureClass | None:
        return TERMINAL if ctx.attempt >= 2 else None

    runner = make_runner(classifiers=[give_up])
    result = await runner.run([calls.node("a", TimeoutError("slow"))], Number())
    assert calls["a"] == 2
    assert result.status is RunStatus.FAILED


async def test_a_classifier_that_raises_is_logged_and_passed_over(
    calls: Calls, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(exc: Exception, ctx: NodeContext) -> FailureClass:
        raise KeyError("oops")

    runner = make_runner(classifiers=[broken, lambda exc, ctx: TERMINAL])
    with caplog.at_level(logging.WARNING, "stroma"):
        result = await runner.run([calls.node("a", TimeoutError("slow"))], Number())
    assert calls["a"] == 1
    assert result.status is RunStatus.FAILED
    assert "broken raised on TimeoutError" in caplog.text


@pytest.mark.parametrize(
    "answer",
    [
        "recoverable",
        3,
        FailureVerdict("recoverable"),  # type: ignore[arg-type]
        FailureVerdict(RECOVERABLE, retry_after_seconds="5"),  # type: ignore[arg-type]
        FailureVerdict(RECOVERABLE, retry_after_seconds=float("nan")),
    ],
    ids=repr,
)
async def test_an_answer_that_is_none_is_logged_and_passed_over(
    calls: Calls, caplog: pytest.LogCaptureFixture, answer: object
) -> None:
    runner = make_runner(classifiers=[lambda exc, ctx: answer])
    with caplog.at_level(logging.WARNING, "stroma"):
        await runner.run([calls.node("a", TypeError("bug"))], Number())
    assert calls["a"] == 1
    assert "passed over" in caplog.text


async def test_no_classifier_can_have_a_violation_retried(calls: Calls) -> None:
    runner = make_runner(classifiers=[lambda exc, ctx: RECOVERABLE])
    result = await runner.run([calls.node("a", {"value": "many"})], Number())
    assert calls["a"] == 1
    assert result.status is RunStatus.FAILED


async def test_an_exception_whose_text_cannot_be_had_is_a_failure_like_others() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    @node
    async def a(state: Number) -> Number:
        raise Mute

    result = await make_runner().run([a], Number())
    assert result.status is RunStatus.FAILED
    assert "Mute" in result.stop_reason


async def test_a_text_that_is_no_utf8_can_be_recorded(store: object, calls: Calls) -> None:
    result = await make_runner(store).run([calls.node("a", TypeError("half \ud83d \0"))], Number())
    assert result.status is RunStatus.FAILED
    result.stop_reason.encode()


async def test_an_endless_text_is_cut(calls: Calls) -> None:
    result = await make_runner().run([calls.node("a", TypeError("x" * 10_000_000))], Number())
    assert len(result.stop_reason) < 100_000
    assert len(result.trace.failures()[0].failure_message) < 100_000


async def test_an_empty_text_is_replaced_by_the_name(calls: Calls) -> None:
    result = await make_runner().run([calls.node("a", TypeError())], Number())
    assert result.trace.failures()[0].failure_message == "TypeError"


async def test_values_that_did_not_fit_inside_a_node_are_not_told(store: object) -> None:
    @node
    async def a(state: Number) -> Number:
        return Number.model_validate({"value": "private"})

    result = await make_runner(store).run([a], Number())
    (message, *_) = [event.failure_message for event in result.trace.failures()]
    assert message.startswith("Number does not fit: value: Input should be a valid integer")
    assert "private" not in message + result.stop_reason


async def test_what_a_failed_attempt_used_counts(calls: Calls, store: object) -> None:
    from stroma import report_usage

    @node
    async def a(state: Number) -> Number:
        report_usage(input_tokens=5, cost_usd="0.01")
        raise TimeoutError("slow")

    result = await make_runner(store).run([a], Number())
    assert result.tokens == 20
    assert result.cost_usd == Decimal("0.04")
