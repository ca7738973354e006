"""The page of the checkpointing API: stores, and the manager in front of them."""

import inspect

import pytest
from pydantic import BaseModel

from stroma import AsyncInMemoryStore, CheckpointManager, InMemoryStore
from stroma.checkpoint import AsyncCheckpointStore, CheckpointStore


class MyModel(BaseModel):
    value: int


class Wider(BaseModel):
    value: float
    unit: str = "m"


def test_a_sync_store_in_memory() -> None:
    store = InMemoryStore()

    store.save("run-1", "node-1", MyModel(value=42))

    assert store.load("run-1", "node-1") == MyModel(value=42)
    assert store.load("run-1", "node-2") is None
    store.delete("run-1")
    assert store.load("run-1", "node-1") is None


async def test_an_async_store_in_memory() -> None:
    store = AsyncInMemoryStore()

    await store.save("run-1", "node-1", MyModel(value=42))

    assert await store.load("run-1", "node-1") == MyModel(value=42)
    assert await store.load("run-2", "node-1") is None
    await store.delete("run-1")
    assert await store.load("run-1", "node-1") is None


def test_states_are_json_inside_so_that_no_object_is_shared() -> None:
    store = InMemoryStore()
    state = MyModel(value=1)

    store.save("run-1", "node-1", state)
    state.value = 2

    assert store.load("run-1", "node-1") == MyModel(value=1)


def test_a_schema_at_saving_and_at_loading() -> None:
    store = InMemoryStore()

    store.save_typed("run-1", "typed", MyModel(value=42), Wider)
    store.save("run-1", "plain", MyModel(value=42))

    assert store.load("run-1", "typed") == Wider(value=42.0)
    assert store.load_typed("run-1", "plain", Wider) == Wider(value=42.0)
    assert store.load_typed("run-1", "missing", Wider) is None


async def test_a_schema_in_an_async_store() -> None:
    store = AsyncInMemoryStore()

    await store.save_typed("run-1", "typed", MyModel(value=42), Wider)

    assert await store.load("run-1", "typed") == Wider(value=42.0)
    assert await store.load_typed("run-1", "typed", MyModel) == MyModel(value=42)


@pytest.mark.parametrize("make_store", [InMemoryStore, AsyncInMemoryStore])
async def test_the_manager(make_store: type[InMemoryStore] | type[AsyncInMemoryStore]) -> None:
    manager = CheckpointManager(make_store())

    await manager.checkpoint("run-1", "node-1", MyModel(value=42))

    assert await manager.resume("run-1", "node-1", MyModel) == MyModel(value=42)
    assert await manager.resume("run-1", "node-1", Wider) == Wider(value=42.0)
    assert await manager.resume("run-1", "node-2", MyModel) is None
    await manager.clear("run-1")
    assert await manager.resume("run-1", "node-1", MyModel) is None


async def test_what_is_of_another_type_is_refused_where_the_store_cannot_load_by_schema() -> None:
    class Untyped:
        def save(self, run_id: str, node_id: str, state: BaseModel) -> None: ...

        def load(self, run_id: str, node_id: str) -> BaseModel | None:
            return MyModel(value=42)

        def delete(self, run_id: str) -> None: ...

    manager = CheckpointManager(Untyped())

    assert await manager.resume("run-1", "node-1", MyModel) == MyModel(value=42)
    with pytest.raises(TypeError, match=r"MyModel.*Wider"):
        await manager.resume("run-1", "node-1", Wider)


@pytest.mark.parametrize("protocol", [CheckpointStore, AsyncCheckpointStore])
def test_the_protocols_have_three_methods(protocol: type) -> None:
    names = [name for name in vars(protocol) if not name.startswith("_")]

    assert names == ["save", "load", "delete"]
    assert inspect.iscoroutinefunction(protocol.save) is (protocol is AsyncCheckpointStore)
