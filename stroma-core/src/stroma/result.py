"""What `run()` returns."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import NamedTuple

from pydantic import BaseModel

from stroma.cost import NO_USAGE, Usage
from stroma.records import RunStatus
from stroma.trace import ExecutionTrace


class Submitted(NamedTuple):
    """A run that was submitted, and that a worker takes up.

    Attributes:
        run_id: give it to `run()` to get the result, or to the command line to see how it stands.
        status: PENDING when it waits, RUNNING when a worker has it, COMPLETED when it was done
            before, WAITING when somebody has to say what became of a call.
        is_new: this call has created it.
    """

    run_id: str
    status: RunStatus
    is_new: bool


class InDoubt(NamedTuple):
    """An attempt that was cut: it may have been billed, and nobody here knows.

    Attributes:
        path: the node's place, such as "extract[17]".
        attempt: number of the call over all starts of the run, from 1, as far as they are
            recorded.
        reason: what cut it: "timeout", "latency", "cancelled"; "unanswered" when the node raised
            `CallInDoubt`; or "died" when its process ended and left nothing but its reservation.
        charged: what the run is charged for it: its reservation where an estimator made one, or
            else what it had reported.
    """

    path: str
    attempt: int
    reason: str
    charged: Usage = NO_USAGE


@dataclass(slots=True, eq=False)
class ExecutionResult:
    """The outcome of one `run()`.

    Attributes:
        run_id: give it to `run()` to continue, or to get this result again.
        status: COMPLETED, RESUMED, PARTIAL, FAILED or WAITING.
        final_state: the state that the run reached: the last node's output when it is
            complete, else that of the last node that finished, or None if none did.
        stop_reason: why it is not complete, or what it says on completion; "" otherwise.
        error: what stopped it, or None.
        trace: what happened in this start.
        usage: what each node used, over all starts, by node id.
        spent: what the run has spent, over all starts.
        spent_before: what it had spent when this start began.
        active_ms: milliseconds of active time, over all starts.
        skipped: ids of the nodes whose recorded results were used.
        in_doubt: attempts of all starts that may have been billed without an answer, and of
            which nobody has said yet what became of them.
        unsaved: outputs that the store would not take, by path: they were paid for.
        epoch: how often the run was deliberately started over.
        expires_at: when the store forgets the run, unless it is started again before, in seconds
            since the epoch; None if the store keeps it, or if this start wrote nothing.
    """

    run_id: str
    status: RunStatus
    final_state: BaseModel | None
    trace: ExecutionTrace
    stop_reason: str = ""
    error: Exception | None = None
    usage: Mapping[str, Usage] = field(default_factory=dict)
    spent: Usage = NO_USAGE
    spent_before: Usage = NO_USAGE
    active_ms: float = 0.0
    skipped: tuple[str, ...] = ()
    in_doubt: tuple[InDoubt, ...] = ()
    unsaved: Mapping[str, BaseModel] = field(default_factory=dict)
    epoch: int = 0
    expires_at: float | None = None

    @property
    def is_complete(self) -> bool:
        """Whether every node has its result."""
        return self.status in (RunStatus.COMPLETED, RunStatus.RESUMED)

    @property
    def tokens(self) -> int:
        """Tokens over all starts."""
        return self.spent.tokens

    @property
    def cost_usd(self) -> Decimal:
        """Dollars over all starts; what nobody could price counts as nothing."""
        return self.spent.cost_usd or Decimal(0)
