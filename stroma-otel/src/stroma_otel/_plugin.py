"""What the entry point names. It is imported by `import stroma`, and so has to be light."""

from __future__ import annotations

from stroma import hookimpl
from stroma.registry import HooksRegistry
from stroma_otel._installed import installed_hooks

STROMA_API = 1


@hookimpl
def stroma_register_hooks(registry: HooksRegistry) -> None:
    """Offer the hooks, which take part in a run when OpenTelemetry is configured."""
    registry.add("otel", installed_hooks)
