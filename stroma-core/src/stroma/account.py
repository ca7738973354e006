"""The account of one start of a run: what it has reached, used, noted and saved."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, MutableMapping
from typing import NamedTuple

from pydantic import BaseModel

from stroma.clock import Clock, Random
from stroma.contracts import accept_state
from stroma.cost import (
    NO_USAGE,
    ExecutionBudget,
    Ledger,
    ModelFallback,
    Usage,
    larger_usage,
    model_under,
)
from stroma.errors import (
    BudgetExceeded,
    ContractViolation,
    StopRequested,
    StoreError,
    UnknownPrice,
)
from stroma.failures import Classifier, FailureClass
from stroma.hooks import HookSet
from stroma.journal import Journal, Stop
from stroma.plan import Step
from stroma.records import RunStatus, digest_of
from stroma.result import InDoubt
from stroma.scope import MODEL_KEY, NodeScope
from stroma.stop_request import StopRequest
from stroma.trace import EventKind, EventRow, ExecutionTrace


class Stopped(Exception):
    """The run goes no further.

    Attributes:
        status: PARTIAL or FAILED; PENDING when it goes on without being asked for again; WAITING
            until somebody says what became of a call.
        reason: why, for the result and the run record.
        error: what stopped it.
    """

    def __init__(self, status: RunStatus, reason: str, error: Exception) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.error = error

    @property
    def spares_siblings(self) -> bool:
        """Whether what is under way beside it goes on: it is paid for, and none of it failed."""
        return self.status is RunStatus.WAITING or isinstance(
            self.error, BudgetExceeded | UnknownPrice | StopRequested
        )


class Surroundings(NamedTuple):
    """What an execution is given besides its plan and journal.

    Attributes:
        clock: where times are from.
        random: for the delay between two attempts.
        classifiers: in the order in which they are asked.
        hooks: what is called at the boundaries.
        context: the caller's shared dict.
        fallbacks: rules of model fallback.
        stop_request: of the worker that took the run up, or None if its caller waits for it.
    """

    clock: Clock
    random: Random
    classifiers: tuple[Classifier, ...]
    hooks: HookSet
    context: MutableMapping[str, object]
    fallbacks: tuple[ModelFallback, ...] = ()
    stop_request: StopRequest | None = None

    def model_for(self, own: str, rules: tuple[ModelFallback, ...]) -> str:
        """Return the model that a node is told to use, or "".

        Args:
            own: the node's own, or "".
            rules: of model fallback that hold.
        """
        model = own or self.context.get(MODEL_KEY) or self.context.get("model")
        if not model and self.fallbacks:
            model = self.fallbacks[0].model
        return model_under(rules, model) if isinstance(model, str) else ""


class RunAccount:
    """What one start of a run keeps track of.

    Attributes:
        journal: the run in its store.
        ledger: what the run spent, over all starts.
        trace: what happened in this start.
        around: what the run was given.
        last: index of the last step.
        state: the last state of the sequence that is recorded.
        usage: what each node used, over all starts, by node id.
        in_doubt: attempts of this start that may have been billed without an answer.
        unsaved: outputs that the store would not take, by path, or whose save was cut.
        store_failed_at: the place at which the store failed first, or "".
        has_cut_saves: some of those may be stored, since the save was cut.
        skipped: ids of the nodes whose recorded results were used, in order.
        ended: how the run ends by its last result, once that is there.
    """

    def __init__(
        self,
        journal: Journal,
        ledger: Ledger,
        trace: ExecutionTrace,
        around: Surroundings,
        last: int,
    ) -> None:
        self.journal = journal
        self.ledger = ledger
        self.trace = trace
        self.around = around
        self.last = last
        self.clock = around.clock
        self.state: BaseModel | None = None
        self.usage: dict[str, Usage] = {}
        self.in_doubt: list[InDoubt] = []
        self.unsaved: dict[str, BaseModel] = {}
        self.store_failed_at = ""
        self.has_cut_saves = False
        self.skipped: dict[str, None] = {}
        self.ended: Stop | UnknownPrice | None = None
        self._let_go: asyncio.Event | None = None
        self._has_previews = trace.options.preview_bytes > 0
        self._started = self.clock.monotonic()

    @property
    def this_start_ms(self) -> float:
        """Active time of this start, in milliseconds."""
        return (self.clock.monotonic() - self._started) * 1000

    def budget_left(self) -> ExecutionBudget:
        """Return what is left of each limit."""
        return self.ledger.left(self.this_start_ms)

    def check_stop_request(self) -> None:
        """Begin nothing when the worker was asked to stop.

        Raises:
            Stopped: it was.
        """
        asked = self.around.stop_request
        if asked is not None and asked.is_made:
            error = StopRequested(
                f"run {self.journal.run_id!r}: the worker was asked to stop; what was under way "
                "is recorded, and the run waits for a worker"
            )
            raise Stopped(RunStatus.PENDING, str(error), error)

    async def pause(self, seconds: float) -> None:
        """Wait before the next attempt, unless the worker is asked to stop."""
        asked = self.around.stop_request
        if asked is None:
            await self.clock.sleep(seconds)
        else:
            await asked.cut_short(self.clock.sleep(seconds))

    def accept(self, step: Step, state: BaseModel, path: str) -> BaseModel:
        """Return the state as a step's input.

        Raises:
            Stopped: it does not fit.
        """
        try:
            return accept_state(step.takes, state, step.id, "input")
        except ContractViolation as exc:
            raise self.violated(exc, path) from exc

    def violated(self, exc: ContractViolation, path: str) -> Stopped:
        self.note_violation(exc, path)
        return Stopped(RunStatus.FAILED, str(exc), exc)

    def note_violation(self, exc: ContractViolation, path: str) -> None:
        self.note(
            "failed",
            exc.node_id,
            path,
            0,
            failure_class=FailureClass.TERMINAL.value,
            failure_message=str(exc),
        )

    def settle(self, node_id: str, scope: NodeScope) -> Usage:
        """Add what an attempt used to the run's account, in the place of what was set aside.

        An attempt of which nobody knows what it used is charged what was set aside, if that is
        more than what it reported.
        """
        usage, held = scope.usage, scope._held
        if held is not None:
            if scope._doubt:
                usage = larger_usage(held, usage)
            self.let_go(scope)
        if usage is NO_USAGE:
            return usage
        self.ledger.settle(usage)
        scope._used = scope._used.plus(usage)
        self.usage[node_id] = self.usage.get(node_id, NO_USAGE).plus(usage)
        return usage

    def let_go(self, scope: NodeScope) -> None:
        """Give back what was set aside for an attempt, and wake those that wait for it."""
        if scope._held is not None:
            self.ledger.let_go(scope._held)
            scope._held = None
            if self._let_go is not None:
                self._let_go.set()
                self._let_go = None

    async def until_let_go(self) -> None:
        """Wait until something that is set aside is given back."""
        if self._let_go is None:
            self._let_go = asyncio.Event()
        await self._let_go.wait()

    def save(
        self,
        step: Step,
        path: str,
        position: int,
        output: BaseModel,
        payload: bytes,
        usage: Usage,
        attempt: int,
        duration_ms: float,
    ) -> Awaitable[None] | None:
        """Record a result, and with the last one the end of the run.

        Returns:
            None if it is done, or else what to await. A store that answers at once costs
            no coroutine.

        Raises:
            StoreError: the store does not take it, after every try; it stands in `unsaved`.
        """
        digest = digest_of(payload)
        stop = None
        if position == self.last:
            self.ended = self.end()
            stop = self.ended if isinstance(self.ended, Stop) else None
        saving = self.journal.result(step, path, position, output, payload, digest, usage, stop)
        preview = self.trace.options.preview(payload) if self._has_previews else ""
        event: EventRow = (
            "succeeded",
            step.id,
            path,
            attempt,
            self.clock.now(),
            duration_ms,
            digest[:16],
            usage.model,
            usage.input_tokens + usage.output_tokens,
            usage.cost_usd,
            "",
            "",
            None,
            preview,
        )
        if saving is None:
            self.trace.add(event)
            return None
        return self._saved(saving, path, output, event)

    async def _saved(
        self, saving: Awaitable[None], path: str, output: BaseModel, event: EventRow
    ) -> None:
        try:
            await saving
        except StoreError:
            self.store_failed_at = self.store_failed_at or path
            self.unsaved[path] = output
            raise
        except asyncio.CancelledError:  # the save may have come to its end all the same
            self.unsaved[path] = output
            self.has_cut_saves = True
            raise
        self.trace.add(event)

    def end(self) -> Stop | UnknownPrice:
        """Return the record of a complete run, or why its budget cannot be told.

        The record says so when the last result crossed a limit.
        """
        try:
            self.ledger.check_prices()
        except UnknownPrice as exc:
            return exc
        crossed = self.ledger.crossed(self.this_start_ms)
        reason = f"complete, and over budget: {crossed}" if crossed else ""
        return Stop(RunStatus.COMPLETED, reason, self.ledger.spent)

    def skip(self, node_id: str, path: str) -> None:
        """Note that a recorded result is used."""
        self.skipped[node_id] = None
        self.note("skipped", node_id, path, 0, digest=self.journal.digest(path)[:16])

    def note(
        self,
        kind: EventKind,
        node_id: str,
        path: str,
        attempt: int,
        duration_ms: float = 0.0,
        digest: str = "",
        usage: Usage = NO_USAGE,
        failure_class: str = "",
        failure_message: str = "",
        retry_delay_seconds: float | None = None,
    ) -> None:
        """Add an event to the trace."""
        self.trace.add(
            (
                kind,
                node_id,
                path,
                attempt,
                self.clock.now(),
                duration_ms,
                digest,
                usage.model,
                usage.tokens,
                usage.cost_usd,
                failure_class,
                failure_message,
                retry_delay_seconds,
                "",
            )
        )
