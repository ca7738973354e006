"""What a run that cannot be read does to listings and purges of all the others: nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from stroma.errors import RecordCorrupt
from stroma.records import RunQuery
from stroma_s3 import S3Store
from stroma_s3._documents import NewerFormat
from tests.s3.support import BODIES, DONE, all_pages, commit, damage, keys_in, request
from tests.servers.s3 import S3Server

Make = Callable[..., S3Store]
LONG = "long" * 100


@pytest.mark.parametrize("kind", BODIES)
@pytest.mark.parametrize("name", ["runs/", "logs/"])
async def test_a_damaged_run_is_told_not_purged_and_hides_no_other(
    make: Make, server: S3Server, bucket: str, name: str, kind: str
) -> None:
    store = make()
    for run_id in ("a/b", "fine", "last"):
        await store.open_run(request(run_id))
        assert await store.commit_many([commit(run_id=run_id, update=DONE)]) == [None]
    damage(server, bucket, name, BODIES[kind], but=("fine", "last"))
    reader = make()

    runs, told = await all_pages(reader.runs, RunQuery(limit=1))
    assert runs == ["last", "fine"]
    assert told.keys() == {"a/b"}
    assert type(told["a/b"]) is (NewerFormat if "newer" in kind else RecordCorrupt)
    assert name in str(told["a/b"])
    assert await reader.purge(RunQuery()) == 2
    page = await reader.runs(RunQuery())
    assert (page.runs, [each.run_id for each in page.unreadable]) == ((), ["a/b"])
    if "newer" in kind:  # what this version does not know, it does not remove
        return
    await store.delete("a/b")
    assert (await reader.runs(RunQuery())).unreadable == ()


async def test_a_long_id_of_a_damaged_head_is_told_by_its_hash(
    make: Make, server: S3Server, bucket: str
) -> None:
    store = make()
    await store.open_run(request(LONG))
    (key,) = keys_in(server, bucket, "runs/")
    client = server.client()
    client.put_object(Bucket=bucket, Key=key, Body=b"junk")
    client.close()

    (told,) = (await make().runs(RunQuery())).unreadable

    assert f"runs/{told.run_id}" == key
