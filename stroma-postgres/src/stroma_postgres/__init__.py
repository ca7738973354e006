"""Keeps the runs and checkpoints of Stroma in PostgreSQL."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Final

from stroma_postgres._version import __version__

if TYPE_CHECKING:
    from stroma_postgres._migrations import migrations_sql
    from stroma_postgres._options import PostgresOptions
    from stroma_postgres.store import PostgresStore

__all__ = ["PostgresOptions", "PostgresStore", "__version__", "migrations_sql"]

# `import stroma` imports this package for its plugin, and must not pay for the driver.
_HOMES: Final = {
    "PostgresOptions": "stroma_postgres._options",
    "PostgresStore": "stroma_postgres.store",
    "migrations_sql": "stroma_postgres._migrations",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'stroma_postgres' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
