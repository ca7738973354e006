"""What `setup` finds out about a server, and what the store does where less is to be had."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from botocore.awsrequest import AWSResponse
from pydantic import BaseModel

import stroma
from stroma.errors import AlreadyCommitted, RunLocked, StoreUnusable
from stroma.records import RunQuery
from stroma.testing import TcpProxy
from stroma_s3 import S3Store
from stroma_s3._client import Conditional
from stroma_s3._race import race
from tests.s3.conftest import close
from tests.s3.support import (
    DONE,
    commit,
    counted,
    headers_of,
    keys_in,
    new_bucket,
    record,
    request,
)
from tests.servers.s3 import S3Server, swift

Make = Callable[..., S3Store]


class Text(BaseModel):
    text: str


@stroma.node
async def echo(state: Text) -> Text:
    return state


class RawResponse(io.BytesIO):
    """A body as botocore reads it."""

    def stream(self, **_: object) -> Iterator[bytes]:
        while chunk := self.read():
            yield chunk


@pytest.fixture
def bucket(server: S3Server) -> str:
    """A bucket that no store has used: nothing is known of its server."""
    return new_bucket(server)


@pytest.fixture
def on_swift() -> Iterator[S3Store]:
    server = swift()
    store = S3Store(new_bucket(server), **server.options())
    yield store
    close(store)


async def test_a_server_whose_conditional_writes_are_atomic_can_fence(
    store: S3Store, server: S3Server, bucket: str
) -> None:
    await store.setup()
    assert store.capabilities.fencing
    assert store.capabilities.refuses_stale_commits
    assert keys_in(server, bucket) == []


async def test_one_where_two_writes_at_a_time_succeed_cannot(on_swift: S3Store) -> None:
    assert on_swift.capabilities.fencing  # nobody knows better before
    await on_swift.setup()
    assert not on_swift.capabilities.fencing
    assert not on_swift.capabilities.refuses_stale_commits


async def test_writers_there_meet_each_time(on_swift: S3Store) -> None:
    """However quick the server is: none of the requests ends before all have begun."""
    await on_swift.setup()
    bucket = on_swift._here().services().bucket
    for number in range(5):
        won = race(bucket, f"probe/{number}", [b"one", b"two", b"three"], "a test")
        assert won.count(True) > 1


async def test_a_lost_answer_says_nothing_of_a_server(server: S3Server, bucket: str) -> None:
    """The winner of a round is refused when it asks again, and nobody has won."""
    with TcpProxy("127.0.0.1", server.port) as proxy:
        there = server.options(endpoint_url=f"http://127.0.0.1:{proxy.port}")
        store = S3Store(bucket, **there)
        proxy.drop_reply(4)  # after what is known, a first and a second write
        await store.setup()
        assert proxy.dropped == 1
        assert store.capabilities.fencing
        await store.aclose()


async def test_a_run_there_is_started_with_a_warning(
    on_swift: S3Store, caplog: pytest.LogCaptureFixture
) -> None:
    runner = stroma.StromaRunner.quick(store=on_swift)
    for run_id in ("one", "two"):
        result = await runner.run([echo], Text(text="x"), run_id=run_id)
        assert result.final_state == Text(text="x")
    (warning,) = [each.getMessage() for each in caplog.records if each.name == "stroma"]
    assert "S3Store cannot keep a worker that lost its run from writing" in warning


@pytest.mark.parametrize("server_says", ["nothing", "NotImplemented"])
async def test_a_server_that_does_not_know_the_header_cannot(
    server: S3Server, bucket: str, server_says: str
) -> None:
    """None that can be had here is so old: the header is taken away, or refused, on its way."""
    client = server.client()

    def without_it(request: Any, **_: object) -> AWSResponse | None:
        if b"If-None-Match" not in {name.encode() for name in request.headers}:
            return None
        if server_says == "nothing":
            del request.headers["If-None-Match"]
            return None
        body = RawResponse(b"<Error><Code>NotImplemented</Code><Message>no</Message></Error>")
        return AWSResponse(request.url, 501, {"content-length": "76"}, body)

    client.meta.events.register("before-send.s3.PutObject", without_it)
    store = S3Store(bucket, client=client)
    await store.setup()
    assert not store.capabilities.fencing
    await store.open_run(request())
    assert await store.commit_many([commit(record())]) == [None]
    with pytest.raises(RunLocked):
        await store.open_run(request(token="bob"))
    await store.aclose()
    client.close()


async def test_there_workers_that_do_not_meet_are_kept_apart_all_the_same(
    on_swift: S3Store,
) -> None:
    await on_swift.open_run(request())
    with pytest.raises(RunLocked):
        await on_swift.open_run(request(token="bob"))
    assert await on_swift.commit_many([commit(record())]) == [None]
    assert isinstance((await on_swift.commit_many([commit(record())]))[0], AlreadyCommitted)


async def test_where_the_header_is_not_known_the_store_looks_before_it_writes(
    make: Make,
) -> None:
    """No server that can be had here ignores the header; so it is not sent."""
    alice, bob = make(), make()
    for store in (alice, bob):
        await store.setup()
        store._here().services().bucket.conditional = Conditional.ABSENT
        assert not store.capabilities.fencing
    await alice.open_run(request())
    assert await alice.commit_many([commit(record())]) == [None]
    with pytest.raises(RunLocked):
        await bob.open_run(request(token="bob"))
    with counted(alice) as sent:
        assert await alice.commit_many([commit(record("b", position=1), update=DONE)]) == [None]
        await alice.aclose()
    assert [line.split()[0] for line in sent] == ["HEAD", "PUT", "DELETE"]
    opened = await bob.open_run(request(token="bob"))
    assert opened is not None
    assert not opened.is_claimed
    assert await headers_of(bob) == ["node", "b"]


async def test_what_was_found_is_asked_for_anew_at_another_address(
    make: Make, server: S3Server, bucket: str
) -> None:
    await make().setup()
    client = server.client()
    client.put_object(
        Bucket=bucket, Key="stroma-s3.json", Body=b'{"format":1,"atomic_at":["http://elsewhere"]}'
    )
    store = make()
    await store.setup()
    found = client.get_object(Bucket=bucket, Key="stroma-s3.json")["Body"].read()
    client.close()
    assert json.loads(found)["atomic_at"] == ["http://elsewhere", server.url]


@pytest.mark.parametrize(
    ("body", "message"),
    [(b'{"format":2,"atomic_at":[]}', "newer stroma-s3"), (b"hello", "another prefix")],
)
async def test_a_prefix_that_is_not_ours_or_newer_is_refused(
    store: S3Store, server: S3Server, bucket: str, body: bytes, message: str
) -> None:
    client = server.client()
    client.put_object(Bucket=bucket, Key="stroma-s3.json", Body=body)
    client.close()
    for _ in range(2):
        with pytest.raises(StoreUnusable, match=message):
            await store.runs(RunQuery())
