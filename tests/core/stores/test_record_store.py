"""What the built-in stores do beyond the rules of all stores, which are in tests/conformance."""

from __future__ import annotations

from stroma.cost import NO_USAGE
from stroma.records import RunQuery
from tests.core.stores.support import Awaited, ManualClock, commit, record, request


async def test_times_are_exactly_those_of_the_clock(store: Awaited, clock: ManualClock) -> None:
    run = (await store.open_run(request())).run
    assert (run.created_at, run.updated_at) == (clock.time, clock.time)
    assert run.lease_expires_at == clock.time + 60
    clock.time += 50.5
    await store.commit_many([commit(record())])
    (listed,) = (await store.runs(RunQuery())).runs
    assert listed == run
    await store.renew([("run", "alice")], 60_000)
    (listed,) = (await store.runs(RunQuery())).runs
    assert listed == run._replace(lease_expires_at=clock.time + 60)
    clock.time += 0.25
    await store.release("run", "alice")
    (listed,) = (await store.runs(RunQuery())).runs
    assert listed.updated_at == clock.time


async def test_no_usage_is_one_object(store: Awaited) -> None:
    await store.open_run(request())
    await store.commit_many([commit(record())])
    (header,) = (await store.open_run(request())).headers
    assert header.usage is NO_USAGE


async def test_a_purge_goes_on_over_many_pages(store: Awaited) -> None:
    for i in range(250):
        await store.open_run(request(f"r{i}"))
        await store.release(f"r{i}", "alice")
    assert await store.purge(RunQuery(limit=220)) == 220
    assert await store.purge(RunQuery(limit=220)) == 30
