"""What is in the bucket: which objects, with which attributes, and what removal leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel

from stroma.errors import RecordCorrupt, RecordTooLarge, StoreUnusable
from stroma.records import RunQuery, RunStatus
from stroma_s3 import S3Store, _client, _listing
from tests.s3.support import DONE, commit, counted, events_of, headers_of, keys_in, record, request
from tests.servers.s3 import S3Server

Make = Callable[..., S3Store]


class Note(BaseModel):
    text: str = ""


async def everything(store: S3Store, run_id: str = "run") -> None:
    await store.open_run(request(run_id, input_payload=b'{"a":1}'))
    await store.commit_many([commit(record("a", run_id=run_id), run_id=run_id)])
    await store.commit_many(
        [commit(record("b", run_id=run_id, position=1), run_id=run_id, update=DONE)]
    )
    await store.save(run_id, "plain", Note(text=run_id))


async def test_encryption_and_storage_class_go_with_every_object(
    make: Make, server: S3Server, bucket: str
) -> None:
    store = make(
        prefix="new", sse="aws:kms", sse_kms_key_id="alias/ours", storage_class="STANDARD_IA"
    )
    await everything(store)
    await store.open_run(request("open"))
    client = server.client()
    for key in [*keys_in(server, bucket), "new/stroma-s3.json"]:
        found = client.head_object(Bucket=bucket, Key=key)
        assert found["ServerSideEncryption"] == "aws:kms", key
        assert found["SSEKMSKeyId"] == "alias/ours", key
        assert found["StorageClass"] == "STANDARD_IA", key
    client.close()


async def test_all_keys_are_below_the_prefix(make: Make, server: S3Server, bucket: str) -> None:
    store = make(prefix="team/a")
    await everything(store)
    await store.open_run(request("open"))
    await store.aclose()
    found = keys_in(server, bucket)
    assert all(key.startswith("team/a/") for key in found)
    assert len(found) == 4 + 2


@pytest.mark.slow
async def test_stores_with_other_prefixes_do_not_see_each_other(
    make: Make, server: S3Server, bucket: str
) -> None:
    prefixes = ["", "a", "a/b", "a/runs", "a/logs", "a/plain", "ab"]
    stores = [make(prefix=prefix) for prefix in prefixes]
    for store in stores:
        for run_id in ("r", "runs", "logs", "plain"):
            await everything(store, run_id)
    for run_id in ("r", "runs", "logs", "plain"):
        await stores[1].delete(run_id)
    assert (await stores[1].runs(RunQuery())).runs == ()
    for store in (stores[0], *stores[2:]):
        assert len((await store.runs(RunQuery())).runs) == 4
        for run_id in ("r", "runs", "logs", "plain"):
            assert await headers_of(store, run_id) == ["a", "b"]
            assert await store.load(run_id, "plain") == Note(text=run_id)


async def test_what_is_removed_leaves_nothing(make: Make, server: S3Server, bucket: str) -> None:
    store = make()
    for run_id in ("one", "two"):
        await everything(store, run_id)
    await store.delete("one")
    assert [key for key in keys_in(server, bucket) if "one" in key] == []
    assert await store.purge(RunQuery()) == 1
    assert keys_in(server, bucket) == []


@pytest.mark.slow
async def test_more_than_a_thousand_objects_are_removed(
    make: Make, server: S3Server, bucket: str
) -> None:
    """One request may name a thousand."""
    store = make()
    saves = [store.save("run", f"n{i}", Note()) for i in range(1001)]
    await asyncio.gather(*saves)
    with counted(store) as sent:
        await store.delete("run")
    assert len([line for line in sent if line.startswith("POST")]) == 2
    assert keys_in(server, bucket) == []


async def test_a_log_of_several_pages_is_read_whole(make: Make) -> None:
    """A listing has a thousand keys at most; here ten, which moto keeps to as well."""
    store, reader = make(), make()
    for each in (store, reader):
        await each.setup()
        events_of(each).register(
            "provide-client-params.s3.ListObjectsV2",
            lambda params, **_: {**params, "MaxKeys": 10},
        )
    await store.open_run(request())
    for i in range(25):
        assert await store.commit_many([commit(record(f"n{i}", position=i))]) == [None]
    with counted(reader) as sent:
        assert len(await headers_of(reader)) == 25
    assert len([line for line in sent if "list-type=2" in line]) == 3
    assert await store.commit_many([commit(record("last", position=25), update=DONE)]) == [None]
    assert (await headers_of(reader))[-1] == "last"
    assert (await reader.runs(RunQuery())).runs[0].status is RunStatus.COMPLETED


async def test_long_ids_are_hashed_in_keys_and_whole_in_objects(
    make: Make, server: S3Server, bucket: str
) -> None:
    store = make()
    ids = ["\N{GRINNING FACE}" * 128, "\N{GRINNING FACE}" * 127 + "abcd", "x" * 512]
    for id_ in ids:
        await store.open_run(request(id_))
        await store.commit_many([commit(record(id_, run_id=id_), run_id=id_)])
        await store.save(id_, id_, Note(text=id_))
    listed = {run.run_id for run in (await make().runs(RunQuery())).runs}
    assert listed == set(ids)
    for id_ in ids:
        assert await headers_of(make(), id_) == [id_]
        assert await store.load(id_, id_) == Note(text=id_)
    assert all(len(key) < 1024 for key in keys_in(server, bucket))


async def test_large_inputs_and_payloads_come_back(make: Make) -> None:
    store, large = make(), b'"' + b"x" * 3_000_000 + b'"'
    await store.open_run(request(input_payload=large))
    written = record("a", payload=large)
    await store.commit_many([commit(written)])
    for reader in (store, make()):
        found = await reader.inspect("run")
        assert found is not None
        assert found.run.input_payload == large
        assert found.last == written
        assert (await reader.runs(RunQuery())).runs == (found.run,)
        assert await reader.fetch("run", [written.header.key]) == [written]


async def test_headers_are_read_without_the_payloads(make: Make) -> None:
    store, large = make(), b"x" * 5_000_000
    await store.open_run(request())
    for i in range(4):
        await store.commit_many([commit(record(f"n{i}", position=i, payload=large))])
    reader = make()
    await reader.setup()
    received: list[int] = []
    services = reader._here().services()
    services.bucket._client.meta.events.register(
        "after-call.s3.GetObject",
        lambda parsed, **_: received.append(parsed["ContentLength"]),
    )
    await reader.inspect("run")
    assert sum(received) < 6_000_000  # the last result, and the beginnings of the others


async def test_what_is_too_large_is_refused_before_it_is_sent(make: Make) -> None:
    store = make(max_payload_bytes=10)
    await store.open_run(request())
    too_large = commit(record("a", payload=b"x" * 11))
    (refused, kept) = await store.commit_many([too_large, commit(record("b", payload=b"1"))])
    assert isinstance(refused, RecordTooLarge)
    assert "'a'" in str(refused)
    assert kept is None


async def test_what_is_too_large_for_one_put_is_refused_before_it_is_sent(
    store: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S3 takes 5 GiB; here a little, so that the test need not write as much."""
    await store.open_run(request())
    monkeypatch.setattr(_client, "MAX_PUT_BYTES", 2000)
    halves = [record(path, payload=b"x" * 1500) for path in ("a", "b")]
    with counted(store) as sent:
        (refused,) = await store.commit_many([commit(*halves)])
    assert isinstance(refused, RecordTooLarge)
    assert "run 'run'" in str(refused)
    assert "one PUT, which takes 2000" in str(refused)
    assert sent == []
    assert await store.commit_many([commit(record("c"))]) == [None]
    assert await headers_of(store) == ["c"]


async def test_a_key_that_is_too_long_is_refused_before_it_is_sent(
    store: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ids are shortened, so that no key is; the check is for the day when one is forgotten."""
    await store.setup()
    monkeypatch.setattr(_client, "MAX_KEY_BYTES", 40)
    with counted(store) as sent, pytest.raises(StoreUnusable, match="more than 40 bytes"):
        await store.open_run(request())
    assert sent == []


@pytest.mark.parametrize(
    ("checksum", "header"),
    [
        ("default", "x-amz-checksum-crc32"),
        ("sha256", "x-amz-checksum-sha256"),
        ("md5", "content-md5"),
    ],
)
async def test_each_object_is_sent_with_the_checksum_that_was_asked_for(
    make: Make, checksum: str, header: str
) -> None:
    """That a server compares it is shown on Swift, in test_errors."""
    required = "when_supported" if checksum == "default" else "when_required"
    store = make(checksum=checksum, request_checksum_calculation=required)
    await store.setup()
    sent: list[set[str]] = []
    events_of(store).register(
        "before-send.s3.PutObject",
        lambda request, **_: sent.append({name.lower() for name in request.headers}),
    )
    await store.open_run(request())
    await store.commit_many([commit(record())])
    assert len(sent) == 3
    assert all(header in names for names in sent), sent


@pytest.mark.parametrize("key", ["head", "step", "plain"])
@pytest.mark.parametrize("body", [b"junk", b"stroma-s3 1 5\n[1,2]", b"stroma-s3 1 99\n{}"])
async def test_a_damaged_object_is_told_of(
    make: Make, server: S3Server, bucket: str, key: str, body: bytes
) -> None:
    store = make()
    await everything(store)
    name = {"head": "runs/", "step": "logs/", "plain": "plain/"}[key]
    client = server.client()
    for damaged in keys_in(server, bucket, name):
        client.put_object(Bucket=bucket, Key=damaged, Body=body)
    client.close()
    reader = make()
    with pytest.raises(RecordCorrupt, match=name):
        await (reader.load("run", "plain") if key == "plain" else reader.inspect("run"))
    await store.delete("run")  # a damaged run can be removed


async def test_a_step_that_is_missing_is_told_of(make: Make, server: S3Server, bucket: str) -> None:
    store = make()
    await store.open_run(request())
    for i in range(3):
        await store.commit_many([commit(record(f"n{i}", position=i))])
    client = server.client()
    client.delete_object(Bucket=bucket, Key=keys_in(server, bucket, "logs/")[1])
    client.close()
    with pytest.raises(RecordCorrupt, match="missing"):
        await make().inspect("run")


async def test_what_a_killed_deletion_left_is_swept_by_a_purge_a_day_later(
    make: Make, server: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make()
    await everything(store)
    await store.open_run(request("owned"))
    client = server.client()
    client.delete_object(Bucket=bucket, Key="runs/run")
    client.close()
    await store.delete("nothing")
    assert await store.purge(RunQuery()) == 0
    assert keys_in(server, bucket, "logs/run/") != []
    monkeypatch.setattr(_listing, "_SWEEP_SECONDS", -5.0)
    assert await store.purge(RunQuery()) == 0
    assert keys_in(server, bucket, "logs/run/") == []
    assert (await store.runs(RunQuery())).runs[0].run_id == "owned"


async def test_a_purge_that_dies_after_its_claim_leaves_the_run_as_it_was(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make()
    await everything(store)
    before = await store.inspect("run")
    removal = store._here().services().removal
    monkeypatch.setattr(_listing, "_FENCE_SECONDS", 0.0)

    def dies(*_: Any, **__: Any) -> None:
        raise RuntimeError("killed")

    monkeypatch.setattr(removal, "delete", dies)
    with pytest.raises(RuntimeError):
        await store.purge(RunQuery())
    after = await make().inspect("run")
    assert before is not None
    assert after is not None
    assert list(after.headers) == list(before.headers)
    assert after.last == before.last
    assert after.run._replace(owner="", holder="", lease_expires_at=0.0) == before.run
