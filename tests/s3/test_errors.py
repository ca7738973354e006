"""What goes wrong with a server, as errors that say what to do."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, ReadTimeoutError

from stroma.errors import (
    ConfigError,
    OutcomeUnknown,
    RecordTooLarge,
    StoreError,
    StoreUnavailable,
    StoreUnusable,
)
from stroma.records import ClaimQuery, RunQuery
from stroma.testing import TcpProxy
from stroma_s3 import S3Store, _client
from stroma_s3._clock import ServerClock, seconds_of
from stroma_s3._errors import Verdict, store_error, verdict_of
from tests.s3.support import commit, headers_of, keys_in, new_bucket, record, request
from tests.servers.process import free_port
from tests.servers.s3 import S3Server, swift

Make = Callable[..., S3Store]


@pytest.fixture
def proxy(server: S3Server) -> Iterator[TcpProxy]:
    with TcpProxy("127.0.0.1", server.port) as proxy:
        yield proxy


async def test_a_server_that_is_not_there(server: S3Server) -> None:
    port = free_port()
    store = S3Store("bucket", **server.options(endpoint_url=f"http://127.0.0.1:{port}"))
    with pytest.raises(StoreUnavailable, match="try again") as refused:
        await store.open_run(request())
    assert isinstance(refused.value.__cause__, EndpointConnectionError)
    outcome = await store.commit_many([commit(record())])
    assert isinstance(outcome[0], StoreUnavailable)
    await store.aclose()


async def test_what_is_no_cursor_is_refused_before_anything_is_sent(server: S3Server) -> None:
    store = S3Store("bucket", **server.options(endpoint_url=f"http://127.0.0.1:{free_port()}"))
    for limit in (0, 10):
        with pytest.raises(ConfigError, match=r"'\[1,2\]' is no cursor: pass the one"):
            await store.runs(RunQuery(limit=limit, cursor="[1,2]"))
        with pytest.raises(ConfigError, match=r"'\[1,2\]' is no cursor: pass the one"):
            await store.claimable(ClaimQuery(limit=limit, cursor="[1,2]"))
    await store.aclose()


async def test_a_bucket_that_is_not_there(server: S3Server) -> None:
    store = S3Store("no-such-bucket", **server.options())
    with pytest.raises(StoreUnusable, match=r"NoSuchBucket.*check the bucket"):
        await store.setup()
    await store.aclose()


async def test_wrong_credentials_are_told_of_without_them() -> None:
    server = swift()
    bucket = new_bucket(server)
    store = S3Store(bucket, **server.options(secret_access_key="hush"))
    with pytest.raises(StoreUnusable, match=r"SignatureDoesNotMatch.*credentials") as refused:
        await store.setup()
    assert "hush" not in str(refused.value)
    await store.aclose()


async def test_a_lost_reply_is_read_back(make: Make, proxy: TcpProxy, server: S3Server) -> None:
    store = make(endpoint_url=f"http://127.0.0.1:{proxy.port}")
    await store.setup()
    proxy.drop_reply()
    assert (await store.open_run(request())) is not None
    proxy.drop_reply()
    assert await store.commit_many([commit(record("a"))]) == [None]
    assert await headers_of(store) == ["a"]
    assert proxy.dropped == 2
    await store.aclose()


async def test_an_outcome_that_stays_unknown_is_settled_by_the_next_try(
    make: Make, proxy: TcpProxy
) -> None:
    store = make(endpoint_url=f"http://127.0.0.1:{proxy.port}", max_attempts=1)
    await store.open_run(request())
    lost = commit(record("a", commit_id="c1"))
    proxy.drop_reply()
    (unknown,) = await store.commit_many([lost])
    assert isinstance(unknown, OutcomeUnknown)
    assert "'run'" in str(unknown)
    assert await store.commit_many([lost]) == [None]
    assert await headers_of(store) == ["a"]
    await store.aclose()


async def test_a_server_that_restarts_does_not_end_the_store(
    make: Make, proxy: TcpProxy, server: S3Server, bucket: str
) -> None:
    store = make(endpoint_url=f"http://127.0.0.1:{proxy.port}")
    await store.open_run(request())
    proxy.refuse()
    proxy.reset()
    (refused,) = await store.commit_many([commit(record())])
    assert isinstance(refused, StoreUnavailable | OutcomeUnknown)
    with pytest.raises(StoreUnavailable):
        await store.runs(RunQuery())
    proxy.heal()
    assert await store.commit_many([commit(record("b", position=1))]) == [None]
    await store.health()
    assert [key for key in keys_in(server, bucket) if "probe" in key] == []
    await store.aclose()


@pytest.mark.parametrize("checksum", ["default", "sha256", "md5"])
async def test_swift_takes_every_kind_of_checksum(checksum: str) -> None:
    server = swift()
    bucket = new_bucket(server)
    required = "when_supported" if checksum == "default" else "when_required"
    store = S3Store(
        bucket, **server.options(checksum=checksum, request_checksum_calculation=required)
    )
    await store.open_run(request())
    assert await store.commit_many([commit(record("a"))]) == [None]
    assert await headers_of(store) == ["a"]
    await store.release("run", "alice")
    await store.delete("run")
    assert keys_in(server, bucket) == []
    await store.aclose()


@pytest.mark.parametrize("checksum", ["sha256", "md5"])
async def test_an_object_that_is_damaged_on_its_way_is_refused_and_may_be_sent_again(
    checksum: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Swift compares; here the checksum is that of another body."""
    server = swift()
    bucket = new_bucket(server)
    store = S3Store(
        bucket, **server.options(checksum=checksum, request_checksum_calculation="when_required")
    )
    await store.setup()
    of_body = _client._checksum_of
    monkeypatch.setattr(_client, "_checksum_of", lambda body, kind: of_body(b"another", kind))
    with pytest.raises(StoreUnavailable, match=r"BadDigest.*nothing was written"):
        await store.open_run(request())
    assert "open/" not in "".join(keys_in(server, bucket))
    monkeypatch.undo()
    assert await store.open_run(request()) is not None
    await store.aclose()


def answer(status: int, code: str) -> ClientError:
    meta = {"HTTPStatusCode": status}
    return ClientError({"Error": {"Code": code}, "ResponseMetadata": meta}, "PutObject")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("exc", "kind"),
    [
        (answer(503, "SlowDown"), StoreUnavailable),
        (answer(409, "ConditionalRequestConflict"), StoreUnavailable),
        (answer(400, "BadDigest"), StoreUnavailable),
        (answer(400, "XAmzContentSHA256Mismatch"), StoreUnavailable),
        (answer(400, "IncompleteBody"), StoreUnavailable),
        (answer(500, "InternalError"), OutcomeUnknown),
        (answer(504, ""), OutcomeUnknown),
        (ReadTimeoutError(endpoint_url="http://s"), OutcomeUnknown),
        (answer(403, "AccessDenied"), StoreUnusable),
        (answer(403, "InvalidAccessKeyId"), StoreUnusable),
        (answer(404, "NoSuchBucket"), StoreUnusable),
        (answer(501, "NotImplemented"), StoreUnusable),
        (answer(400, "EntityTooLarge"), RecordTooLarge),
    ],
)
def test_what_a_write_that_failed_is_told_as(exc: Exception, kind: type[StoreError]) -> None:
    assert type(store_error(exc, verdict_of(exc), "writing", is_write=True)) is kind


def test_nothing_is_unknown_about_a_read() -> None:
    exc = answer(500, "InternalError")
    for verdict in (Verdict.UNKNOWN, Verdict.REFUSED):
        told = store_error(exc, verdict, "reading", is_write=False)
        assert type(told) is StoreUnavailable
        assert str(told).endswith("; try again")


class TestClock:
    @pytest.mark.parametrize("skew", [-3600.0, 0.0, 3600.0])
    def test_it_is_the_servers_whatever_the_local_one_says(self, skew: float) -> None:
        local = [1000.0 + skew]
        clock = ServerClock(lambda: local[0])
        for step in range(200):
            sent = local[0]
            date = float(int(5_000_000 + step * 0.37 + 0.01))
            local[0] += 0.02
            clock.observe(date, sent, local[0])
            local[0] += 0.35
        assert clock.now() == pytest.approx(5_000_000 + 200 * 0.37, abs=0.05)

    def test_it_does_not_go_back_when_it_learns(self) -> None:
        local = [0.0]
        clock = ServerClock(lambda: local[0])
        clock.observe(100, 0, 0.9)
        first = clock.now()
        clock.observe(100, 0.9, 0.9)
        assert clock.now() > first

    def test_after_a_sleep_it_begins_anew(self) -> None:
        local = [0.0]
        clock = ServerClock(lambda: local[0])
        clock.observe(100, 0, 0)
        clock.observe(8000, 1, 1)
        local[0] = 1
        assert clock.now() == pytest.approx(8000.5)

    def test_before_any_answer_it_is_the_local_one(self) -> None:
        clock = ServerClock()
        assert clock.now() == pytest.approx(time.time(), abs=5)
        assert not clock.is_set

    def test_a_header_that_is_none(self) -> None:
        assert seconds_of("Sat, 21 Nov 2026 06:40:41 GMT") == 1795243241
        assert seconds_of("") is None
