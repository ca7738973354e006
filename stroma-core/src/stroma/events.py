"""What hooks are told: one frozen record for each kind of event."""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

from stroma.cost import NO_USAGE, Usage
from stroma.failures import FailureClass

StepKind: TypeAlias = Literal["node", "parallel", "fan_out"]
Outcome: TypeAlias = Literal["succeeded", "failed", "cancelled"]


class RunOpening(NamedTuple):
    """A run is about to be claimed, or created.

    Attributes:
        run_id: the run.
        pipeline: the pipeline's name, or "".
        version: the pipeline's version, or "".
        node_ids: the nodes, in order.
        is_new: the id was made for this start, so that nothing can be recorded under it.
    """

    run_id: str
    pipeline: str
    version: str
    node_ids: tuple[str, ...]
    is_new: bool


class RunStart(NamedTuple):
    """A run begins or is continued.

    Attributes:
        run_id: the run.
        pipeline: the pipeline's name, or "".
        version: the pipeline's version, or "".
        node_ids: the nodes, in order.
        epoch: 0, or the number of times the run was deliberately started over.
        recorded: the nodes whose recorded results are used.
        trace_parent: the W3C traceparent that was stored with the run, or "".
    """

    run_id: str
    pipeline: str
    version: str
    node_ids: tuple[str, ...]
    epoch: int
    recorded: tuple[str, ...]
    trace_parent: str


class RunInterrupted(NamedTuple):
    """A run ends without a result: an exception leaves `run()`.

    Attributes:
        run_id: the run.
        error: the exception: `asyncio.CancelledError` for a cancelled run, `StaleOwner` for one
            that another worker has taken over, `RunLocked` for one that another worker owns.
    """

    run_id: str
    error: BaseException


class StepStart(NamedTuple):
    """A step begins: a node with all of its attempts, a `parallel` or a `fan_out`.

    Attributes:
        run_id: the run.
        node_id: the step's id.
        path: its place, such as "extract[17]".
        kind: "node", "parallel" or "fan_out".
    """

    run_id: str
    node_id: str
    path: str
    kind: StepKind


class StepEnd(NamedTuple):
    """A step has ended: its result is recorded, or there is none.

    Attributes:
        run_id: the run.
        node_id: the step's id.
        path: its place, such as "extract[17]".
        kind: "node", "parallel" or "fan_out".
        outcome: "succeeded", also when an attempt failed before; "failed", or "cancelled".
        error: why there is no result, or None.
    """

    run_id: str
    node_id: str
    path: str
    kind: StepKind
    outcome: Outcome
    error: BaseException | None = None


class AttemptStart(NamedTuple):
    """A node is about to be called.

    Attributes:
        run_id: the run.
        node_id: the node.
        path: its place, such as "extract[17]".
        attempt: 1 for the first call of this start; 0 for a paid repair of an output that an
            earlier start recorded.
        model: the model that the run suggests, or "".
    """

    run_id: str
    node_id: str
    path: str
    attempt: int
    model: str


class AttemptEnd(NamedTuple):
    """A call of a node has ended, and what there is to record of it is recorded.

    Attributes:
        run_id: the run.
        node_id: the node.
        path: its place, such as "extract[17]".
        attempt: 1 for the first call of this start; 0 for a paid repair of an output that an
            earlier start recorded.
        outcome: "succeeded", also when the store does not take the result; "failed", or
            "cancelled".
        duration_ms: milliseconds that the call took, without its record.
        usage: what it used, in tokens and dollars.
        error: what it failed with, or None.
        failure_class: the class of the failure, or None.
        reason: the classifier's word for it, or "".
        retry_delay_seconds: how long until the next attempt, or None if there is none.
    """

    run_id: str
    node_id: str
    path: str
    attempt: int
    outcome: Outcome
    duration_ms: float = 0.0
    usage: Usage = NO_USAGE
    error: BaseException | None = None
    failure_class: FailureClass | None = None
    reason: str = ""
    retry_delay_seconds: float | None = None


class RetryDetails(NamedTuple):
    """A failed attempt is about to be repeated.

    Attributes:
        run_id: the run.
        node_id: the node.
        path: its place, such as "extract[17]".
        attempt: the attempt that failed, 1 for the first of this start.
        delay_seconds: how long until the next one.
        failure_class: the class of the failure.
        reason: the classifier's word for it.
        error: the exception.
    """

    run_id: str
    node_id: str
    path: str
    attempt: int
    delay_seconds: float
    failure_class: FailureClass
    reason: str
    error: Exception


class BudgetDetails(NamedTuple):
    """A budget's limit was reached, or a rule of model fallback came into force.

    Attributes:
        run_id: the run.
        path: the place that was about to run.
        event: "reached" or "fallback".
        message: what happened, as a sentence.
        spent: what the run has spent.
        model: the model in force after a fallback, or "".
    """

    run_id: str
    path: str
    event: str
    message: str
    spent: Usage
    model: str = ""
