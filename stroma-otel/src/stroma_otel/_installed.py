"""The hooks of an environment in which the distribution is installed, without OpenTelemetry.

They ask at each start of a run whether a provider is configured, in a way that costs next to
nothing, and import the rest when one is.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import Any, Final

from stroma.hooks import NodeHooks

EVENTS: Final = (
    "on_run_open",
    "on_run_start",
    "on_run_end",
    "on_run_interrupted",
    "on_step_start",
    "on_step_end",
    "on_attempt_start",
    "on_attempt_end",
    "on_budget",
)
"""What the hooks listen to."""


def installed_hooks() -> NodeHooks:
    """Return hooks on the global providers, which begin to work once there is one."""
    hooks = NodeHooks(
        name="otel",
        is_active=is_configured,
        trace_parent=lambda run_id: _real().trace_parent(run_id),
    )
    for event in EVENTS:
        setattr(hooks, event, _later(event))
    return hooks


def _later(event: str) -> Callable[..., None]:
    def call(told: object) -> None:
        getattr(_real(), event)(told)

    return call


@functools.cache
def _real() -> Any:
    from stroma_otel._observer import Observer

    return Observer(None, None, None, is_explicit=False)


def is_configured() -> bool:
    """Say whether somebody has set a global provider of tracers or meters."""
    return (
        _IS_IN_ENVIRONMENT
        or _is_set("opentelemetry.trace", "_TRACER_PROVIDER", "get_tracer_provider")
        or _is_set("opentelemetry.metrics._internal", "_METER_PROVIDER", "get_meter_provider")
    )


def _is_set(module_name: str, variable: str, function: str) -> bool:
    module = sys.modules.get(module_name)
    if module is None or getattr(module, variable, _UNKNOWN) is None:
        return False
    provider = getattr(module, function)()
    # Something may stand in for a provider that nobody has set yet.
    return type(provider).__name__ not in ("ProxyTracerProvider", "_ProxyMeterProvider")


_UNKNOWN: Final = object()
"""Where the variable that holds the provider has another name: the function says it, slower."""

_IS_IN_ENVIRONMENT: Final = not {
    "OTEL_PYTHON_TRACER_PROVIDER",
    "OTEL_PYTHON_METER_PROVIDER",
}.isdisjoint(os.environ)
"""Looked up once: that takes longer than all the rest."""
