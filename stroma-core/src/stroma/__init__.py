"""Stroma: a reliability layer for async Python that spends money.

Typed contracts at every node boundary, classified retries, checkpoints in a store that you
already run, and an account of spend that survives the crash.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from stroma import errors, plugins
from stroma._version import __version__
from stroma.contracts import ContractRegistry, NodeContract
from stroma.cost import (
    ExecutionBudget,
    ModelFallback,
    Price,
    Pricer,
    PriceTable,
    Usage,
)
from stroma.errors import (
    AlreadyCommitted,
    BudgetExceeded,
    CallInDoubt,
    CheckpointNotFound,
    ConfigError,
    ContractViolation,
    MissingPlugin,
    NodeTimeout,
    OutcomeUnknown,
    PipelineChanged,
    PluginError,
    RecordCorrupt,
    RecordTooLarge,
    ResumeError,
    RunInputMismatch,
    RunLocked,
    RunNotFound,
    SchemaMismatch,
    StaleOwner,
    StateNotStorable,
    StopRequested,
    StoreError,
    StoreUnavailable,
    StoreUnusable,
    StromaError,
    UnknownPrice,
    UnknownSchema,
)
from stroma.events import (
    AttemptEnd,
    AttemptStart,
    BudgetDetails,
    RetryDetails,
    RunInterrupted,
    RunOpening,
    RunStart,
    StepEnd,
    StepStart,
)
from stroma.failures import (
    Classifier,
    FailureClass,
    FailurePolicy,
    FailureVerdict,
    NodeContext,
    default_policy_map,
)
from stroma.hooks import NodeHooks
from stroma.nodes import fan_out, node, parallel, stroma_node
from stroma.pipeline import Pipeline
from stroma.records import RunStatus
from stroma.result import ExecutionResult, InDoubt, Submitted
from stroma.schemas import register_models
from stroma.scope import Estimate, NodeScope, current, report_usage
from stroma.trace import ExecutionTrace, TraceDifference, TraceEvent, TraceOptions

if TYPE_CHECKING:
    from stroma.backlog import LeftAlone
    from stroma.checkpoint import (
        AsyncCheckpointStore,
        CheckpointManager,
        CheckpointStore,
        RecordStore,
    )
    from stroma.hookspecs import hookimpl
    from stroma.recovery import Recovery, recover
    from stroma.run_config import RunConfig
    from stroma.runner import StromaRunner
    from stroma.stores.memory import AsyncInMemoryStore, InMemoryStore
    from stroma.stores.sqlite import SQLiteStore
    from stroma.worker import Worker

__all__ = [
    "AlreadyCommitted",
    "AsyncCheckpointStore",
    "AsyncInMemoryStore",
    "AttemptEnd",
    "AttemptStart",
    "BudgetDetails",
    "BudgetExceeded",
    "CallInDoubt",
    "CheckpointManager",
    "CheckpointNotFound",
    "CheckpointStore",
    "Classifier",
    "ConfigError",
    "ContractRegistry",
    "ContractViolation",
    "Estimate",
    "ExecutionBudget",
    "ExecutionResult",
    "ExecutionTrace",
    "FailureClass",
    "FailurePolicy",
    "FailureVerdict",
    "InDoubt",
    "InMemoryStore",
    "LeftAlone",
    "MissingPlugin",
    "ModelFallback",
    "NodeContext",
    "NodeContract",
    "NodeHooks",
    "NodeScope",
    "NodeTimeout",
    "OutcomeUnknown",
    "Pipeline",
    "PipelineChanged",
    "PluginError",
    "Price",
    "PriceTable",
    "Pricer",
    "RecordCorrupt",
    "RecordStore",
    "RecordTooLarge",
    "Recovery",
    "ResumeError",
    "RetryDetails",
    "RunConfig",
    "RunInputMismatch",
    "RunInterrupted",
    "RunLocked",
    "RunNotFound",
    "RunOpening",
    "RunStart",
    "RunStatus",
    "SQLiteStore",
    "SchemaMismatch",
    "StaleOwner",
    "StateNotStorable",
    "StepEnd",
    "StepStart",
    "StopRequested",
    "StoreError",
    "StoreUnavailable",
    "StoreUnusable",
    "StromaError",
    "StromaRunner",
    "Submitted",
    "TraceDifference",
    "TraceEvent",
    "TraceOptions",
    "UnknownPrice",
    "UnknownSchema",
    "Usage",
    "Worker",
    "__version__",
    "current",
    "default_policy_map",
    "errors",
    "fan_out",
    "hookimpl",
    "node",
    "parallel",
    "recover",
    "register_models",
    "report_usage",
    "stroma_node",
]


_LAZY = {
    "AsyncCheckpointStore": "stroma.checkpoint",
    "AsyncInMemoryStore": "stroma.stores.memory",
    "CheckpointManager": "stroma.checkpoint",
    "CheckpointStore": "stroma.checkpoint",
    "InMemoryStore": "stroma.stores.memory",
    "LeftAlone": "stroma.backlog",
    "RecordStore": "stroma.checkpoint",
    "Recovery": "stroma.recovery",
    "RunConfig": "stroma.run_config",
    "SQLiteStore": "stroma.stores.sqlite",
    "StromaRunner": "stroma.runner",
    "Worker": "stroma.worker",
    "recover": "stroma.recovery",
}
"""What is loaded when it is used: what only runs and workers need, and their stores."""


def __getattr__(name: str) -> object:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    return plugins.lazy_attribute(name)


plugins.discover()  # last: plugins import from stroma
