"""Stroma's runs in OpenTelemetry: spans, metrics, and fields of log records.

`import stroma` finds the plugin in this package; OpenTelemetry is imported by the first run for
which a provider is configured.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from stroma_otel._version import __version__

if TYPE_CHECKING:
    from stroma_otel._hooks import otel_hooks
    from stroma_otel._logs import LOG_FIELDS, LogContextFilter, add_log_context

_PLACES = {
    "LOG_FIELDS": "_logs",
    "LogContextFilter": "_logs",
    "add_log_context": "_logs",
    "otel_hooks": "_hooks",
}

__all__ = ["LOG_FIELDS", "LogContextFilter", "__version__", "add_log_context", "otel_hooks"]


def __getattr__(name: str) -> object:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
