"""What a failure means, and what to do about it: classes, classifiers and retry policies."""

import asyncio
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple, TypeAlias

from pydantic import Field, ValidationError, field_validator

from stroma.clock import Random
from stroma.errors import (
    BudgetExceeded,
    ConfigError,
    ContractViolation,
    UnknownPrice,
)
from stroma.options import Options, no_bool
from stroma.schemas import describe

logger = logging.getLogger("stroma")

_MAX_TEXT = 10_000
"""How many characters of an exception's text are kept."""


class FailureClass(StrEnum):
    """What may become of a failure when the node is called again."""

    RECOVERABLE = "recoverable"
    """It may pass: a timeout, a dropped connection, a rate limit."""
    TERMINAL = "terminal"
    """It cannot pass by itself: never retried."""
    AMBIGUOUS = "ambiguous"
    """Nobody can tell: retried less, and then somebody has to look."""


class NodeContext(NamedTuple):
    """What a classifier is told about the place of a failure.

    Attributes:
        run_id: the run.
        node_id: the node.
        attempt: which call failed, 1 for the first of this start.
        path: the node's place: its id, and the item of `fan_out` as "extract[17]".
    """

    run_id: str
    node_id: str
    attempt: int
    path: str = ""


class FailureVerdict(NamedTuple):
    """What a classifier may return instead of a bare class.

    Attributes:
        failure_class: the class.
        reason: a short word for logs and traces, such as "rate_limit".
        retry_after_seconds: the server's wish: no retry before it.
    """

    failure_class: FailureClass
    reason: str = ""
    retry_after_seconds: float | None = None


Classifier: TypeAlias = Callable[[Exception, NodeContext], FailureClass | FailureVerdict | None]
"""Tells the class of an exception, or None to leave it to the next classifier."""


_TERMINAL = (
    ContractViolation,
    BudgetExceeded,
    UnknownPrice,
    ConfigError,
    TypeError,
    AttributeError,
    NameError,
    ImportError,
    NotImplementedError,
    SyntaxError,
    RecursionError,
)
_RECOVERABLE = (TimeoutError, asyncio.TimeoutError, ConnectionError)


def default_classifier(exc: Exception, ctx: NodeContext) -> FailureVerdict:
    """Classify by the built-in rules, which come after every other classifier."""
    name = type(exc).__name__
    if isinstance(exc, _RECOVERABLE):
        return FailureVerdict(FailureClass.RECOVERABLE, name)
    if isinstance(exc, _TERMINAL):
        return FailureVerdict(FailureClass.TERMINAL, name)
    return FailureVerdict(FailureClass.AMBIGUOUS, name)


def classify(exc: Exception, ctx: NodeContext, classifiers: Iterable[Classifier]) -> FailureVerdict:
    """Return the first verdict that a classifier has, or else the built-in one.

    A classifier that raises, or returns something else, is logged and passed over.
    Contract violations and reached budgets are terminal whatever a classifier says.
    """
    if not isinstance(exc, ContractViolation | BudgetExceeded | UnknownPrice):
        for classifier in classifiers:
            verdict = _ask(classifier, exc, ctx)
            if verdict is not None:
                return verdict
    return default_classifier(exc, ctx)


def _ask(classifier: Classifier, exc: Exception, ctx: NodeContext) -> FailureVerdict | None:
    name = getattr(classifier, "__qualname__", repr(classifier))
    try:
        answer = classifier(exc, ctx)
    except Exception:
        logger.warning(
            "classifier %s raised on %s in node %s of run %s; it was passed over",
            name,
            type(exc).__name__,
            ctx.node_id,
            ctx.run_id,
            exc_info=True,
        )
        return None
    if answer is None:
        return None
    if isinstance(answer, FailureClass):
        return FailureVerdict(answer, type(exc).__name__)
    if isinstance(answer, FailureVerdict) and _is_verdict(answer):
        return answer
    logger.warning(
        "classifier %s returned %r, which is no FailureClass, FailureVerdict or None; "
        "it was passed over",
        name,
        answer,
    )
    return None


def _is_verdict(answer: FailureVerdict) -> bool:
    """Say whether a verdict holds what its attributes promise."""
    wish = answer.retry_after_seconds
    is_number = isinstance(wish, int | float) and not math.isnan(wish)
    return isinstance(answer.failure_class, FailureClass) and (wish is None or is_number)


def error_text(exc: BaseException) -> str:
    """Return what an exception says, as any store can keep it; its name when it says nothing.

    A node's exceptions are foreign: their text may be endless, no UTF-8, or not to be had.
    Those of pydantic are told without the values, which belong in no log.
    """
    try:
        text = _problems(exc) if isinstance(exc, ValidationError) else str(exc)
        text = text[:_MAX_TEXT]
    except Exception:
        text = ""
    text = text.encode(errors="replace").decode().replace("\0", "?")
    return text or type(exc).__name__


def _problems(exc: ValidationError) -> str:
    return f"{exc.title} does not fit: {'; '.join(describe(exc))}"


class FailurePolicy(Options):
    """How often and after what delay a node is called again.

    The delay before retry n is drawn evenly from 0 to
    ``min(max_delay_seconds, base_delay_seconds * multiplier ** (n - 1))``: full jitter, which
    keeps workers that failed together from returning together.

    Attributes:
        max_retries: calls after the first one.
        base_delay_seconds: upper end of the first delay.
        multiplier: growth of the upper end from one retry to the next.
        max_delay_seconds: cap of the upper end; a Retry-After of the server may be longer.
        max_retry_after_seconds: a server's Retry-After above this is not waited for: the
            node is out of retries.

    Raises:
        ConfigError: a number is too small or none.
    """

    max_retries: int = Field(default=3, ge=0)
    base_delay_seconds: float = Field(default=0.5, ge=0, allow_inf_nan=False)
    multiplier: float = Field(default=2.0, ge=1, allow_inf_nan=False)
    max_delay_seconds: float = Field(default=30.0, ge=0, allow_inf_nan=False)
    max_retry_after_seconds: float = Field(default=300.0, ge=0, allow_inf_nan=False)

    _no_bools = field_validator("*", mode="before")(no_bool)

    def delay_seconds(
        self, retry: int, random: Random, retry_after_seconds: float | None = None
    ) -> float:
        """Return how long to wait before a retry.

        Args:
            retry: 1 for the first one.
            random: a number from 0 up to 1.
            retry_after_seconds: the server's wish, a lower bound of the delay.
        """
        # 2.0 ** 1024 overflows; the cap holds long before
        growth = self.multiplier ** min(retry - 1, 64)
        delay = random() * min(self.max_delay_seconds, self.base_delay_seconds * growth)
        return max(delay, retry_after_seconds or 0.0)


PolicyMap: TypeAlias = Mapping[FailureClass, FailurePolicy]


def default_policy_map() -> dict[FailureClass, FailurePolicy]:
    """Return the policies that hold where a run or node sets none.

    Three retries of what may pass, one of what nobody can tell, none of what cannot.
    """
    return {
        FailureClass.RECOVERABLE: FailurePolicy(max_retries=3),
        FailureClass.AMBIGUOUS: FailurePolicy(max_retries=1),
        FailureClass.TERMINAL: FailurePolicy(max_retries=0),
    }


def policy_for(failure_class: FailureClass, maps: Sequence[PolicyMap]) -> FailurePolicy:
    """Return the first policy that a map has for the class, in the order node, run, default."""
    for policies in maps:
        if failure_class in policies:
            return policies[failure_class]
    return default_policy_map()[failure_class]
