"""Who lost a run makes nothing visible any more, wherever its writes were when it was lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from stroma.errors import AlreadyCommitted, RunLocked, StaleOwner
from stroma.records import RunStatus, RunUpdate
from stroma_s3 import S3Store
from tests.s3.support import DONE, Held, commit, headers_of, keys_in, record, request
from tests.servers.s3 import S3Server

Make = Callable[..., S3Store]
SHORT = 0.3


def is_put_of_a_step(method: str, url: str) -> bool:
    return method == "PUT" and "/logs/" in url


async def lapse() -> None:
    await asyncio.sleep(SHORT + 0.2)


async def test_a_commit_after_a_takeover_is_refused_at_once(make: Make) -> None:
    alice, bob = make(), make()
    await alice.open_run(request(lease_seconds=SHORT))
    await lapse()
    await bob.open_run(request(token="bob"))
    (refused,) = await alice.commit_many([commit(record())])
    assert isinstance(refused, StaleOwner)
    assert "worker bob" in str(refused)
    assert await headers_of(make()) == []


async def test_a_write_that_arrives_after_the_claim_is_refused(make: Make) -> None:
    alice, bob = make(), make()
    await alice.open_run(request(lease_seconds=SHORT))
    held = Held(alice, is_put_of_a_step)
    writing = asyncio.create_task(alice.commit_many([commit(record("late"))]))
    await asyncio.to_thread(held.is_reached.wait, 30)
    await lapse()
    opened = await bob.open_run(request(token="bob"))
    assert opened is not None
    assert list(opened.headers) == []
    held.let_go()
    assert isinstance((await writing)[0], StaleOwner)
    assert await headers_of(make()) == []


async def test_a_write_that_arrives_while_the_claim_reads_is_kept_and_seen(make: Make) -> None:
    """The claim has listed the log, and finds its place taken: it reads on, and tries again."""
    alice, bob = make(), make()
    await alice.open_run(request(lease_seconds=SHORT))
    await lapse()
    await bob.setup()
    held = Held(bob, is_put_of_a_step)
    claiming = asyncio.create_task(bob.open_run(request(token="bob")))
    await asyncio.to_thread(held.is_reached.wait, 30)
    assert await alice.commit_many([commit(record("in time"))]) == [None]
    held.let_go()
    opened = await claiming
    assert opened is not None
    assert [header.path for header in opened.headers] == ["in time"]
    assert opened.last is not None
    assert isinstance((await alice.commit_many([commit(record("late"))]))[0], StaleOwner)


async def test_a_renewal_that_arrives_while_the_claim_reads_keeps_the_run(make: Make) -> None:
    alice, bob = make(), make()
    await alice.open_run(request(lease_seconds=SHORT))
    await lapse()
    await bob.setup()
    held = Held(bob, is_put_of_a_step)
    claiming = asyncio.create_task(bob.open_run(request(token="bob")))
    await asyncio.to_thread(held.is_reached.wait, 30)
    assert await alice.renew([("run", "alice")], 60_000) == [True]
    held.let_go()
    with pytest.raises(RunLocked, match="worker alice"):
        await claiming


@pytest.mark.parametrize("last", ["commit", "update", "renew", "release"])
async def test_everything_after_a_takeover_says_so_and_changes_nothing(
    make: Make, last: str
) -> None:
    alice, bob = make(), make()
    await alice.open_run(request(lease_seconds=SHORT))
    await lapse()
    await bob.open_run(request(token="bob"))
    before = await make().inspect("run")
    if last == "renew":
        assert await alice.renew([("run", "alice")], 60_000) == [False]
    elif last == "release":
        await alice.release("run", "alice")
    else:
        update = RunUpdate(RunStatus.FAILED) if last == "update" else None
        (refused,) = await alice.commit_many([commit(record(), update=update)])
        assert isinstance(refused, StaleOwner)
    assert await make().inspect("run") == before


async def test_renewals_and_commits_of_one_owner_do_not_refuse_each_other(store: S3Store) -> None:
    await store.open_run(request())
    work = [store.commit_many([commit(record(f"n{i}", position=i))]) for i in range(20)]
    renewals = [store.renew([("run", "alice")], 60_000) for _ in range(20)]
    results = await asyncio.gather(*work, *renewals)
    assert results == [[None]] * 20 + [[True]] * 20
    assert await store.commit_many([commit(update=DONE)]) == [None]


async def test_two_store_objects_with_one_token_share_the_run(make: Make) -> None:
    one, two = make(), make()
    await one.open_run(request())
    first = record("a", commit_id="c1")
    assert await two.commit_many([commit(first)]) == [None]
    assert await one.commit_many([commit(record("b", position=1))]) == [None]
    assert await one.commit_many([commit(first)]) == [None]
    (refused,) = await one.commit_many([commit(record("a", commit_id="c2"), update=DONE)])
    assert isinstance(refused, AlreadyCommitted)
    assert await two.commit_many([commit(record("c", position=2), update=DONE)]) == [None]
    (after,) = await one.commit_many([commit(record("d"))])
    assert isinstance(after, StaleOwner)
    assert await headers_of(make()) == ["a", "b", "c"]


async def test_of_many_that_create_a_run_one_does(make: Make) -> None:
    stores = [make() for _ in range(6)]
    claims = [store.open_run(request(token=f"w{i}")) for i, store in enumerate(stores)]
    results = await asyncio.gather(*claims, return_exceptions=True)
    assert sum(isinstance(result, RunLocked) for result in results) == 5


async def test_a_worker_whose_run_is_deleted_elsewhere_is_told(
    make: Make, server: S3Server, bucket: str
) -> None:
    alice, other = make(), make()
    await alice.open_run(request())
    await alice.commit_many([commit(record("a"))])
    await other.delete("run")
    (refused,) = await alice.commit_many([commit(record("b"))])
    assert isinstance(refused, StaleOwner)
    assert "does not exist" in str(refused)
    assert len(keys_in(server, bucket)) == 1  # the end of the log, for the worker to find
    opened = await other.open_run(request(token="bob"))
    assert opened is not None
    assert opened.is_new
    await other.release("run", "bob")
    await other.delete("run")
    assert keys_in(server, bucket) == []


async def test_so_is_one_whose_lease_had_ended(make: Make, server: S3Server, bucket: str) -> None:
    alice, other = make(), make()
    await alice.open_run(request(lease_seconds=SHORT))
    await lapse()
    await other.delete("run")
    (refused,) = await alice.commit_many([commit(record())])
    assert isinstance(refused, StaleOwner)
    assert keys_in(server, bucket) == []


async def test_a_run_that_is_deleted_and_created_again_begins_empty(make: Make) -> None:
    alice, other = make(), make()
    await alice.open_run(request())
    await alice.commit_many([commit(record("old"))])
    await other.delete("run")
    await other.open_run(request(token="bob"))
    (refused,) = await alice.commit_many([commit(record("late"))])
    assert isinstance(refused, StaleOwner)
    assert await headers_of(make()) == []
