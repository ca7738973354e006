"""Every error that Stroma raises, in one tree.

An error says what happened, to which run, node or option, and what to do next. Drivers'
exceptions are chained as ``__cause__`` and never leak by themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal


class StromaError(Exception):
    """Base of everything that Stroma raises."""


class ConfigError(StromaError, ValueError):
    """Wrong use, found before anything runs: an option, a node, a contract or a name."""


class StateNotStorable(ConfigError):
    """A schema or a value that would not come back from a store as it went in.

    Attributes:
        fields: dotted names of the fields concerned.
        is_lossy: it can be written, and something else comes back.
    """

    def __init__(self, message: str, *, fields: Sequence[str] = (), is_lossy: bool = False) -> None:
        super().__init__(message)
        self.fields = tuple(fields)
        self.is_lossy = is_lossy


class PluginError(StromaError):
    """A name cannot be used because of the plugin that provides it, or because none does."""


class MissingPlugin(PluginError, ImportError):
    """A known name was asked for, and the distribution that provides it is not installed."""


class ContractViolation(StromaError):
    """A node's input or output does not fit its contract.

    Attributes:
        node_id: the node whose boundary it was.
        direction: which side of the node.
        problems: one "field: message" for each field that does not fit.
        raw: what was offered, kept because it may have been paid for. It is not part of the
            message, so that payloads stay out of logs.
    """

    def __init__(
        self,
        node_id: str,
        direction: Literal["input", "output"],
        problems: Sequence[str],
        raw: object = None,
    ) -> None:
        super().__init__(f"{node_id} ({direction}): {'; '.join(problems)}")
        self.node_id = node_id
        self.direction = direction
        self.problems = tuple(problems)
        self.raw = raw


class BudgetExceeded(StromaError):
    """A limit of the budget is reached, and there is work left.

    Attributes:
        limit: which one: "tokens", "cost_usd" or "latency_ms".
    """

    def __init__(self, message: str, *, limit: str) -> None:
        super().__init__(message)
        self.limit = limit


class CallInDoubt(StromaError):
    """Nobody knows what became of a call.

    A run that waits until somebody says it has this as its error. A node raises it, too, where
    only the node can tell: its request was sent, and no answer came.

    Attributes:
        path: the place; "" where a node raised it.
    """

    def __init__(self, message: str, *, path: str = "") -> None:
        super().__init__(message)
        self.path = path


class UnknownPrice(StromaError):
    """Tokens were used of a model that nobody can price, under a budget in USD."""


class NodeTimeout(StromaError, TimeoutError):
    """A node took longer than its timeout."""


class StopRequested(StromaError):
    """The worker that has the run was asked to stop: the run waits for another one."""


class ResumeError(StromaError):
    """A run cannot be continued as it was asked for."""


class RunNotFound(ResumeError):
    """``resume=True`` or ``resume_from`` was given, and the store has no such run."""


class RunInputMismatch(ResumeError):
    """The run id is in use for another input."""


class PipelineChanged(ResumeError):
    """The run is of another pipeline, or its recorded nodes are not the first ones of this."""


class CheckpointNotFound(ResumeError):
    """A record that the continuation needs is missing or has expired."""


class SchemaMismatch(ResumeError):
    """A recorded state does not fit the schema that the pipeline has now.

    Attributes:
        changes: one sentence for each field that was removed, renamed or retyped.
    """

    def __init__(self, message: str, *, changes: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.changes = tuple(changes)


class UnknownSchema(ResumeError):
    """A stored schema reference names no model, or several, that this process registered."""


class StoreError(StromaError):
    """Base of what a store raises."""


class StoreUnavailable(StoreError):
    """The store could not do it now, and nothing was changed: trying again may help."""


class OutcomeUnknown(StoreError):
    """The store did not answer: it may have done it. Read back before deciding."""


class StoreUnusable(StoreError):
    """The store cannot be used as it is: a foreign or damaged file, a newer format."""


class StaleOwner(StoreError):
    """Another worker owns the run now: nothing of this one becomes visible any more.

    Attributes:
        unsaved: outputs of this worker that were paid for and are not recorded, by path. The
            other worker buys them, too.
        in_doubt: its calls that were cut, as in `ExecutionResult.in_doubt`.
    """

    unsaved: Mapping[str, object] = MappingProxyType({})
    in_doubt: Sequence[object] = ()


class RunLocked(StoreError):
    """Another worker owns the run.

    Attributes:
        holder: who, as that worker described itself.
        until_seconds: seconds until its lease ends unless it is renewed.
    """

    def __init__(self, run_id: str, holder: str, until_seconds: float) -> None:
        super().__init__(
            f"run {run_id!r} is owned by {holder}, for at least {until_seconds:.1f} s more, and "
            "longer while it lives: wait for it, or start again when its lease has ended"
        )
        self.holder = holder
        self.until_seconds = until_seconds


class AlreadyCommitted(StoreError):
    """Another commit holds this record already. Records are written once."""


class RecordTooLarge(StoreError):
    """A payload is larger than the store takes."""


class RecordCorrupt(StoreError):
    """A stored record cannot be read, or does not have the digest that was stored with it."""
