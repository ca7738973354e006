"""How to install what is missing: the one place that says it."""

from __future__ import annotations

from typing import Final

INSTALL_COMMAND: Final = "in a clone of Stroma's repository: pip install {targets}"
"""Stroma is not on a package index yet. pip has to get all its distributions in one command, or
else it would look for the core there, where another project has the name."""

PLUGIN_DISTRIBUTIONS: Final = {
    "redis": "stroma-redis",
    "postgres": "stroma-postgres",
    "s3": "stroma-s3",
    "otel": "stroma-otel",
    "llm": "stroma-llm",
}
"""The distributions that are developed together with the core, by the name of their plugin."""

STORE_NAMES: Final = {
    "redis": "redis",
    "rediss": "redis",
    "redis+unix": "redis",
    "postgres": "postgres",
    "postgresql": "postgres",
    "s3": "s3",
}
"""The plugin behind each name and URL scheme of their stores."""


def plugin_hint(plugin: str) -> str:
    """Return what to type to install one of our plugins.

    Args:
        plugin: a key of `PLUGIN_DISTRIBUTIONS`.
    """
    return INSTALL_COMMAND.format(targets=f"./stroma-core ./{PLUGIN_DISTRIBUTIONS[plugin]}")


def extra_hint(extra: str) -> str:
    """Return what to type to install an extra of the core, such as "cli"."""
    return INSTALL_COMMAND.format(targets=f"'./stroma-core[{extra}]'")
