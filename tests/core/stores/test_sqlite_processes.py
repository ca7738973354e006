"""Many processes on one file, and processes that are killed in the middle of it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from stroma.records import RunQuery
from stroma.stores.sqlite import SQLiteStore
from tests.core.stores.support import Note, commit, in_child, record, request, speaking_child

PROCESSES = 8
SAVES = 100


def test_many_processes_write_at_once(database: Path) -> None:
    """The file does not even exist when they start."""

    def work(worker: int) -> str:
        async def save_all() -> None:
            store = SQLiteStore(database)
            for i in range(SAVES):
                await store.save(f"run{worker}", f"n{i}", Note(text=str(i)))
            await store.aclose()

        asyncio.run(save_all())
        return "saved"

    children = [in_child(lambda i=i: work(i)) for i in range(PROCESSES)]  # type: ignore[misc]
    assert [child.read() for child in children] == ["saved"] * PROCESSES

    async def count() -> int:
        store = SQLiteStore(database)
        found = 0
        for worker in range(PROCESSES):
            for i in range(SAVES):
                state = await store.load_typed(f"run{worker}", f"n{i}", Note)
                found += state == Note(text=str(i))
        await store.aclose()
        return found

    assert asyncio.run(count()) == PROCESSES * SAVES


def test_many_processes_create_the_file_at_once(tmp_path: Path) -> None:
    def create(database: Path) -> str:
        async def setup() -> None:
            for _ in range(3):
                store = SQLiteStore(database)
                await store.setup()
                await store.aclose()

        asyncio.run(setup())
        return "created"

    for i in range(10):
        database = tmp_path / f"{i}.db"
        children = [in_child(lambda path=database: create(path)) for _ in range(6)]  # type: ignore[misc]
        assert [child.read() for child in children] == ["created"] * 6


def test_of_many_processes_one_owns_the_run(database: Path) -> None:
    def work(worker: int) -> str:
        async def claim() -> str:
            store = SQLiteStore(database)
            try:
                await store.open_run(request(token=f"w{worker}"))
                await store.commit_many([commit(record(), token=f"w{worker}")])
                await store.release("run", f"w{worker}")
                return "claimed"
            finally:
                await store.aclose()

        return asyncio.run(claim())

    children = [in_child(lambda i=i: work(i)) for i in range(4)]  # type: ignore[misc]
    said = [child.read() for child in children]
    assert all(text == "claimed" or "RunLocked" in text for text in said)

    async def headers() -> int:
        store = SQLiteStore(database)
        opened = await store.open_run(request(token="later"))
        await store.aclose()
        assert opened is not None
        return len(opened.headers)

    assert asyncio.run(headers()) == 1


@pytest.mark.crash
@pytest.mark.parametrize("seed", range(5))
def test_killed_amid_commits(database: Path, seed: int) -> None:
    """What was acknowledged is stored, whole; what is stored was attempted."""
    acknowledged = random.Random(seed).randrange(5, 60)

    def work(say: Callable[[str], None]) -> None:
        async def commit_on() -> None:
            store = SQLiteStore(database)
            await store.open_run(request())
            for i in range(100_000):
                pair = (record(path=f"a{i}", commit_id=f"a{i}"), record(path=f"b{i}"))
                say(f"attempted {i}")
                assert await store.commit_many([commit(*pair)]) == [None]
                say(f"acknowledged {i}")

        asyncio.run(commit_on())

    said: list[str] = []
    with speaking_child(work) as child:
        for line in child.lines():
            said.append(line)
            if line == f"acknowledged {acknowledged}":
                child.kill()

    async def stored() -> set[str]:
        store = SQLiteStore(database)
        opened = await store.open_run(request(token="next"))
        assert opened is not None
        await store.health()
        assert len((await store.runs(RunQuery())).runs) == 1
        await store.aclose()
        return {header.path for header in opened.headers}

    paths = asyncio.run(stored())
    numbers = {
        word: {line.split()[1] for line in said if line.startswith(word)}
        for word in ("attempted", "acknowledged")
    }
    assert {p[1:] for p in paths if p[0] == "a"} == {p[1:] for p in paths if p[0] == "b"}
    assert numbers["acknowledged"] <= {p[1:] for p in paths} <= numbers["attempted"]
    assert len(numbers["acknowledged"]) > acknowledged
