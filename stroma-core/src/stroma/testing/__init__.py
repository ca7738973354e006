"""Kits for authors: what a store is, as tests; clocks, faults and a proxy to test with.

Needs the extra `testing`. Nothing here is imported by `stroma` itself.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stroma.testing.clock import FakeClock
    from stroma.testing.faulty import Fault, FaultKind, FaultyStore, Injected
    from stroma.testing.proxy import TcpProxy
    from stroma.testing.stores import StoreConformance
    from stroma.testing.subject import StoreSubject

__all__ = [
    "FakeClock",
    "Fault",
    "FaultKind",
    "FaultyStore",
    "Injected",
    "StoreConformance",
    "StoreSubject",
    "TcpProxy",
]

# Who needs a clock only does not wait for pytest and hypothesis.
_MODULES = {
    "FakeClock": "clock",
    "Fault": "faulty",
    "FaultKind": "faulty",
    "FaultyStore": "faulty",
    "Injected": "faulty",
    "StoreConformance": "stores",
    "StoreSubject": "subject",
    "TcpProxy": "proxy",
}


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
