"""The stores that come with the core."""

from __future__ import annotations

from stroma.stores.memory import AsyncInMemoryStore, InMemoryStore

__all__ = ["AsyncInMemoryStore", "InMemoryStore"]
