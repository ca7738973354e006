"""The stores in memory: threads, and what they share."""

from __future__ import annotations

import asyncio
import threading

from stroma.checkpoint import Durability, is_record_store
from stroma.errors import AlreadyCommitted
from stroma.stores.memory import AsyncInMemoryStore, InMemoryStore
from tests.core.stores.support import Note, commit, record, request


def test_the_sync_store_is_used_without_a_loop() -> None:
    store = InMemoryStore()
    store.save("run-1", "node-1", Note(text="kept"))
    assert store.load("run-1", "node-1") == Note(text="kept")
    assert store.load_typed("run-1", "node-1", Note) == Note(text="kept")
    store.delete("run-1")
    assert store.load("run-1", "node-1") is None
    store.close()


def test_states_go_through_json() -> None:
    store, note = InMemoryStore(), Note(text="before")
    store.save("run", "node", note)
    note.text = "after"
    assert store.load("run", "node") == Note(text="before")


async def test_closing_keeps_what_is_there() -> None:
    store = AsyncInMemoryStore()
    await store.save("run", "node", Note())
    await store.aclose()
    assert await store.load("run", "node") == Note()


def test_both_are_record_stores_in_memory() -> None:
    for store in (InMemoryStore(), AsyncInMemoryStore()):
        assert is_record_store(store)
        assert store.capabilities.durability is Durability.MEMORY


def test_of_two_threads_on_one_key_one_wins() -> None:
    store = InMemoryStore()
    store.open_run(request())
    won: list[int] = []

    def write(worker: int) -> None:
        for i in range(1000):
            (refused,) = store.commit_many([commit(record(path=f"n{i}"))])
            if refused is None:
                won.append(worker)
            else:
                assert isinstance(refused, AlreadyCommitted)

    threads = [threading.Thread(target=write, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1000


def test_one_object_serves_several_event_loops() -> None:
    store = AsyncInMemoryStore()
    for i in range(3):
        asyncio.run(store.save("run", f"n{i}", Note(text=str(i))))
    found = [asyncio.run(store.load("run", f"n{i}")) for i in range(3)]
    assert found == [Note(text=str(i)) for i in range(3)]
