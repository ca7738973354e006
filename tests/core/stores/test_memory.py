"""The stores in memory, beyond the rules of all stores, which are in tests/conformance."""

from __future__ import annotations

from stroma.checkpoint import Durability, is_record_store
from stroma.stores.memory import AsyncInMemoryStore, InMemoryStore
from tests.core.stores.support import Note


def test_the_sync_store_is_used_without_a_loop() -> None:
    store = InMemoryStore()
    store.save("run-1", "node-1", Note(text="kept"))
    assert store.load("run-1", "node-1") == Note(text="kept")
    assert store.load_typed("run-1", "node-1", Note) == Note(text="kept")
    store.delete("run-1")
    assert store.load("run-1", "node-1") is None
    store.close()


async def test_closing_keeps_what_is_there() -> None:
    store = AsyncInMemoryStore()
    await store.save("run", "node", Note())
    await store.aclose()
    assert await store.load("run", "node") == Note()


def test_both_are_record_stores_in_memory() -> None:
    for store in (InMemoryStore(), AsyncInMemoryStore()):
        assert is_record_store(store)
        assert store.capabilities.durability is Durability.MEMORY
