"""Kits for authors: what a store is, as tests; clocks, faults and a proxy to test with.

Needs the extra `testing`. Nothing here is imported by `stroma` itself.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stroma.testing.classifiers import ClassifierConformance
    from stroma.testing.clock import FakeClock
    from stroma.testing.faulty import Fault, FaultKind, FaultyStore, Injected
    from stroma.testing.hooks import HookConformance
    from stroma.testing.injection import (
        FailingNodes,
        FailingPipeline,
        FiredFailure,
        InjectedFailure,
        failing,
    )
    from stroma.testing.proxy import TcpProxy
    from stroma.testing.recording import RecordedCalls, RecordedError, UnknownCall, recorded_calls
    from stroma.testing.single_node import run_node, run_node_sync
    from stroma.testing.stores import StoreConformance
    from stroma.testing.subject import StoreSubject

__all__ = [
    "ClassifierConformance",
    "FailingNodes",
    "FailingPipeline",
    "FakeClock",
    "Fault",
    "FaultKind",
    "FaultyStore",
    "FiredFailure",
    "HookConformance",
    "Injected",
    "InjectedFailure",
    "RecordedCalls",
    "RecordedError",
    "StoreConformance",
    "StoreSubject",
    "TcpProxy",
    "UnknownCall",
    "failing",
    "recorded_calls",
    "run_node",
    "run_node_sync",
]

# Who needs a clock only does not wait for pytest and hypothesis.
_MODULES = {
    "ClassifierConformance": "classifiers",
    "FailingNodes": "injection",
    "FailingPipeline": "injection",
    "FakeClock": "clock",
    "Fault": "faulty",
    "FaultKind": "faulty",
    "FaultyStore": "faulty",
    "FiredFailure": "injection",
    "HookConformance": "hooks",
    "Injected": "faulty",
    "InjectedFailure": "injection",
    "RecordedCalls": "recording",
    "RecordedError": "recording",
    "StoreConformance": "stores",
    "StoreSubject": "subject",
    "TcpProxy": "proxy",
    "UnknownCall": "recording",
    "failing": "injection",
    "recorded_calls": "recording",
    "run_node": "single_node",
    "run_node_sync": "single_node",
}


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
