"""What a node's decorator fixes besides its contract, checked where it is written."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, TypeAlias

from stroma.errors import ConfigError, ContractViolation
from stroma.failures import FailureClass, FailurePolicy, PolicyMap
from stroma.options import finite
from stroma.scope import Estimate, NodeScope

Estimator: TypeAlias = Callable[[Any, NodeScope], Estimate | None]
"""Tells the most that an attempt may use, from its input and place; None where it costs nothing."""
Repair: TypeAlias = Callable[[Any, ContractViolation], Any]
"""Returns what a node should have returned, from what it did; sync or async."""


class NodeSettings(NamedTuple):
    """What a node's decorator fixed besides its contract.

    Attributes:
        policies: retry policies by failure class, before those of the run.
        timeout_ms: milliseconds for one attempt, or None.
        model: the model that the node uses, for rules of model fallback; "" for the run's.
        is_self_registered: the node brings its contract along; no registry need know it.
        estimate: the most that an attempt may use, or what tells it; None for the run's own.
        stops_in_doubt: a call whose outcome nobody knows is not made again.
        repair: mends an output that does not fit, or None.
        max_resamples: how often an output that does not fit is bought anew.
    """

    policies: PolicyMap | None = None
    timeout_ms: float | None = None
    model: str = ""
    is_self_registered: bool = False
    estimate: Estimator | None = None
    stops_in_doubt: bool = False
    repair: Repair | None = None
    max_resamples: int = 0


PLAIN_SETTINGS: Final = NodeSettings()


def as_policies(policy: FailurePolicy | PolicyMap | None, node_id: str) -> PolicyMap | None:
    """Return policies by failure class; a bare policy is for all that may be retried.

    Raises:
        ConfigError: it is something else, or retries what is TERMINAL.
    """
    if policy is None:
        return None
    if isinstance(policy, FailurePolicy):
        retried = (FailureClass.RECOVERABLE, FailureClass.AMBIGUOUS)
        return dict.fromkeys(retried, policy)
    if not isinstance(policy, Mapping) or not all(
        isinstance(key, FailureClass) and isinstance(value, FailurePolicy)
        for key, value in policy.items()
    ):
        raise ConfigError(
            f"node {node_id!r}: a policy is a FailurePolicy, or a dict of them by FailureClass"
        )
    check_terminal(policy, f"node {node_id!r}")
    return dict(policy)


def check_terminal(policies: PolicyMap, where: str) -> None:
    """Refuse retries of what cannot pass.

    Raises:
        ConfigError: the policy for TERMINAL has retries.
    """
    terminal = policies.get(FailureClass.TERMINAL)
    if terminal is not None and terminal.max_retries:
        raise ConfigError(
            f"{where}: TERMINAL failures are never retried; let a classifier call them "
            "RECOVERABLE or AMBIGUOUS instead"
        )


def check_timeout_ms(value: object, node_id: str) -> float | None:
    """Return a timeout in milliseconds, or None.

    Raises:
        ConfigError: it is no finite number above 0.
    """
    if value is None:
        return None
    number = finite(value)
    if number is None or number <= 0:
        raise ConfigError(
            f"node {node_id!r}: timeout_ms must be a finite number above 0, not {value!r}"
        )
    return number


def check_model(value: object, node_id: str) -> str:
    """Return the name of a node's model, or "".

    Raises:
        ConfigError: it is no text.
    """
    if not isinstance(value, str):
        raise ConfigError(f"node {node_id!r}: model must be a str, not {type(value).__name__}")
    return value


def as_estimator(value: object, node_id: str) -> Estimator | None:
    """Return an estimator; a bare `Estimate` holds for every attempt.

    Raises:
        ConfigError: it is neither.
    """
    if isinstance(value, Estimate):
        return lambda state, scope: value
    if value is not None and not is_estimator(value):
        raise ConfigError(
            f"node {node_id!r}: estimate must be a stroma.Estimate, or a function of the state "
            "and the attempt that returns one and is not async, not "
            f"{type(value).__name__}"
        )
    return typing.cast("Estimator | None", value)


def is_estimator(value: object) -> bool:
    """Say whether something can be asked for an estimate: at once, and without waiting."""
    return callable(value) and not inspect.iscoroutinefunction(value)


def check_resamples(on_violation: object, max_resamples: object, node_id: str) -> int:
    """Return how often a refused output is bought anew.

    Raises:
        ConfigError: an option is wrong.
    """
    if on_violation not in ("fail", "resample"):
        raise ConfigError(
            f'node {node_id!r}: on_violation must be "fail" or "resample", not {on_violation!r}'
        )
    is_count = isinstance(max_resamples, int) and not isinstance(max_resamples, bool)
    if not is_count or typing.cast(int, max_resamples) < 1:
        raise ConfigError(f"node {node_id!r}: max_resamples must be 1 or more")
    return typing.cast(int, max_resamples) if on_violation == "resample" else 0


def check_in_doubt(value: object, node_id: str) -> bool:
    """Return whether a call that nobody knows of is not made again.

    Raises:
        ConfigError: the option is wrong.
    """
    if value not in ("rerun", "stop"):
        raise ConfigError(f'node {node_id!r}: on_in_doubt must be "rerun" or "stop", not {value!r}')
    return value == "stop"


def check_repair(value: Repair | None, node_id: str) -> Repair | None:
    """Return what mends outputs, or None.

    Raises:
        ConfigError: it cannot be called.
    """
    if value is not None and not callable(value):
        raise ConfigError(f"node {node_id!r}: repair must be a function, not {value!r}")
    return value
