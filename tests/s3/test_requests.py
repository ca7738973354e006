"""How many requests what takes: each costs money, and a round trip."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from pydantic import BaseModel

import stroma
from stroma.records import RunQuery, RunStatus, RunUpdate
from stroma.testing import TcpProxy
from stroma_s3 import S3Store
from tests.s3.support import DONE, commit, counted, headers_of, record, request
from tests.servers.s3 import S3Server

Make = Callable[..., S3Store]


class Text(BaseModel):
    text: str


def node(id_: str) -> object:
    @stroma.node(id=id_)
    async def longer(state: Text) -> Text:
        return Text(text=state.text + "+")

    return longer


def nodes(count: int) -> list[object]:
    return [node(f"n{i}") for i in range(count)]


@pytest.mark.parametrize("count", [1, 2, 10])
async def test_a_clean_run_of_n_nodes_takes_n_plus_1_requests_and_its_marker(
    store: S3Store, count: int
) -> None:
    await store.setup()
    runner = stroma.StromaRunner.quick(store=store)
    with counted(store) as sent:
        result = await runner.run(nodes(count), Text(text="x"), run_id="run")
        await store.aclose()
    assert result.final_state == Text(text="x" + "+" * count)
    assert [line.split()[0] for line in sent] == ["PUT"] * (count + 2) + ["DELETE"]
    written, removed = sent[0].split()[1], sent[-1].split()[1]
    assert written == removed
    assert "/open/" in written
    assert [line for line in sent[1:-1] if "/open/" in line] == []


async def test_submitting_a_run_takes_four_and_a_removal(store: S3Store) -> None:
    """Two markers, as the second one tells others that the run can be claimed at once."""
    await store.setup()
    with counted(store) as sent:
        await store.open_run(request())
        submitted = RunUpdate(status=RunStatus.PENDING, release=True)
        assert await store.commit_many([commit(update=submitted)]) == [None]
        await store.aclose()
    assert [line.split()[0] for line in sent] == ["PUT"] * 4 + ["DELETE"]


async def test_on_the_wire_each_of_them_is_one_round_trip(server: S3Server, make: Make) -> None:
    with TcpProxy("127.0.0.1", server.port) as proxy:
        store = make(endpoint_url=f"http://127.0.0.1:{proxy.port}")
        await store.setup()
        before = proxy.round_trips
        await store.open_run(request())
        await store.commit_many([commit(record("a"))])
        await store.commit_many([commit(record("b"), update=DONE)])
        await store.aclose()
        assert proxy.round_trips - before == 2 + 1 + 1 + 1  # the marker comes first, and goes last


async def test_setup_takes_one_request_once_the_bucket_is_known(make: Make) -> None:
    await make().setup()
    store = make()
    await store.setup()
    with counted(store) as sent:
        await store.setup()
        await store.open_run(request())
    assert len(sent) == 2  # its marker and its head


async def test_a_retry_that_was_paid_for_rides_on_the_result(store: S3Store) -> None:
    await store.open_run(request())
    with counted(store) as sent:
        assert await store.commit_many([commit(record("a"), record("b"), record("c"))]) == [None]
    assert len(sent) == 1


async def test_what_waits_together_shares_an_object(store: S3Store) -> None:
    await store.open_run(request())
    commits = [commit(record(f"item[{i}]", position=-1)) for i in range(300)]
    with counted(store) as sent:
        assert await store.commit_many(commits) == [None] * 300
    assert len(sent) < 20
    assert len(await headers_of(store)) == 300


async def test_opening_a_finished_run_does_not_take_a_request_for_each_node(
    make: Make,
) -> None:
    store, other = make(), make()
    await store.open_run(request())
    for i in range(30):
        await store.commit_many([commit(record(f"n{i}", position=i))])
    await store.commit_many([commit(record("last", position=30), update=DONE)])
    await other.setup()
    with counted(other) as sent:
        opened = await other.open_run(request(token="bob"))
        await other.aclose()
    assert opened is not None
    assert len(opened.headers) == 31
    assert opened.last is not None
    assert opened.last.header.path == "last"
    assert len(sent) == 7


async def test_a_renewal_takes_two_requests(store: S3Store) -> None:
    await store.open_run(request())
    with counted(store) as sent:
        assert await store.renew([("run", "alice")], 60_000) == [True]
    assert len(sent) == 2


@pytest.mark.slow
async def test_a_page_does_not_read_every_run(store: S3Store) -> None:
    for i in range(80):
        if i == 70:
            await asyncio.sleep(5)  # S3 tells times of objects in whole seconds
        await store.open_run(request(f"r{i:03d}"))
        await store.commit_many([commit(run_id=f"r{i:03d}", update=DONE)])
    with counted(store) as sent:
        page = await store.runs(RunQuery(limit=2))
    assert [run.run_id for run in page.runs] == ["r079", "r078"]
    assert len(sent) <= 132  # two listings, and two objects of each of the 64 + 1 runs
