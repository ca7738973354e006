"""One store object in several loops, threads and processes."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable

import pytest
from pydantic import BaseModel

from stroma.errors import StoreUnusable
from stroma_s3 import S3Store
from tests.core.stores.support import in_child
from tests.s3.support import DONE, Held, commit, headers_of, record, request
from tests.servers.s3 import S3Server

Make = Callable[..., S3Store]


class Note(BaseModel):
    text: str = ""


def test_three_loops_one_after_the_other(store: S3Store) -> None:
    asyncio.run(store.save("run", "n", Note(text="1")))
    assert asyncio.run(store.load("run", "n")) == Note(text="1")
    asyncio.run(store.save("run", "n", Note(text="2")))
    assert asyncio.run(store.load("run", "n")) == Note(text="2")


def test_three_loops_at_the_same_time_commit_to_one_run(store: S3Store) -> None:
    asyncio.run(store.open_run(request()))
    failed: list[object] = []

    def work(name: str) -> None:
        async def body() -> None:
            for i in range(10):
                outcome = await store.commit_many([commit(record(f"{name}{i}", position=-1))])
                failed.extend(each for each in outcome if each is not None)

        asyncio.run(body())

    threads = [threading.Thread(target=work, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert len(asyncio.run(headers_of(store))) == 30


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_process_has_connections_of_its_own(store: S3Store) -> None:
    asyncio.run(store.open_run(request()))
    asyncio.run(store.commit_many([commit(record("parent"))]))
    parents = store._here()

    def body() -> str:
        assert store._here() is not parents
        outcome = asyncio.run(store.commit_many([commit(record("child", position=1))]))
        asyncio.run(store.aclose())
        return f"{outcome} {os.getpid() != parents.pid}"

    assert in_child(body).read() == "[None] True"
    assert asyncio.run(store.commit_many([commit(record("after", position=2))])) == [None]
    assert asyncio.run(headers_of(store)) == ["parent", "child", "after"]


async def test_a_commit_whose_caller_is_cancelled_lands(make: Make) -> None:
    store = make()
    await store.open_run(request())
    held = Held(store, lambda method, url: method == "PUT")
    saving = asyncio.create_task(store.commit_many([commit(record("a"))]))
    await asyncio.to_thread(held.is_reached.wait, 30)
    saving.cancel()
    await asyncio.sleep(0)
    assert not saving.done()  # it waits for what it cannot cut
    held.let_go()
    with pytest.raises(asyncio.CancelledError):
        await saving
    assert await headers_of(store) == ["a"]


async def test_after_its_end_a_store_says_so(make: Make) -> None:
    store = make()
    await store.open_run(request())
    await store.aclose()
    await store.aclose()
    for operation in (store.open_run(request()), store.commit_many([commit(update=DONE)])):
        with pytest.raises(StoreUnusable, match="closed: make another"):
            await operation


async def test_a_client_that_was_handed_in_stays_open(server: S3Server, bucket: str) -> None:
    client = server.client()
    store = S3Store(bucket, client=client)
    await store.save("run", "n", Note(text="1"))
    await store.aclose()
    assert client.list_objects_v2(Bucket=bucket)["KeyCount"] == 2
    client.close()
