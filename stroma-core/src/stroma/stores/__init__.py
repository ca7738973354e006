"""The stores that come with the core."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stroma.stores.memory import AsyncInMemoryStore, InMemoryStore

if TYPE_CHECKING:
    from stroma.stores.sqlite import SQLiteStore

__all__ = ["AsyncInMemoryStore", "InMemoryStore", "SQLiteStore"]


def __getattr__(name: str) -> object:
    # Only who asks for the SQLite store pays for importing sqlite3.
    if name == "SQLiteStore":
        from stroma.stores.sqlite import SQLiteStore

        return SQLiteStore
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
