"""The requests that the store makes, each with its retries; sync, for threads."""

from __future__ import annotations

import base64
import hashlib
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from botocore.exceptions import ClientError, IncompleteReadError

from stroma.errors import RecordTooLarge, StoreError, StoreUnusable
from stroma_s3._clock import ServerClock, seconds_of
from stroma_s3._documents import head_size
from stroma_s3._errors import Verdict, in_words, store_error, verdict_of
from stroma_s3._keys import MAX_KEY_BYTES
from stroma_s3._options import MAX_PUT_BYTES, S3Options

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

T = TypeVar("T")

DELETE_CHUNK: Final = 1000
"""Keys in one DeleteObjects at most: Amazon S3 API Reference, "DeleteObjects"."""

FIRST_BYTES: Final = 64 * 1024
"""How much of an object is read at first; nearly always its whole head."""

ASK_FIRST_BYTES: Final = 1024**2
"""From this size on, the server is asked whether it wants a body before it is sent."""

_SIZE: Final = "stroma_s3_body_bytes"
_LENGTHS: Final = {"content-length", "transfer-encoding"}
_BACKOFF_SECONDS: Final = 0.05
_BACKOFF_CAP_SECONDS: Final = 2.0


class Conditional(StrEnum):
    """What a server makes of ``If-None-Match: *``."""

    ATOMIC = "atomic"
    """Of two writes at a time, exactly one succeeds."""
    RACY = "racy"
    """It refuses a second write, but two at a time may both succeed."""
    ABSENT = "absent"
    """It ignores or refuses the header."""


class Listed(NamedTuple):
    """An object in a listing.

    Attributes:
        key: its key.
        modified: when it was written, in seconds since the epoch on the server's clock.
        etag: changes with its content.
    """

    key: str
    modified: float
    etag: str


class Bucket:
    """The objects of one bucket.

    Args:
        client: boto3's; it may be used from several threads (boto3 Guide, "Low-level clients").
        options: see `S3Options`.
        clock: told the date of every answer.
        is_own_client: the client repeats nothing by itself, so that an error of the connection
            tells what happened.

    Attributes:
        conditional: what the server makes of conditional writes.
    """

    def __init__(
        self, client: S3Client, options: S3Options, clock: ServerClock, *, is_own_client: bool
    ) -> None:
        self._client = client
        self._bucket = options.bucket
        self._attempts = options.max_attempts
        self._checksum = options.checksum
        self._with_each_put = _put_arguments(options)
        self._is_own_client = is_own_client
        self.clock = clock
        self.conditional = Conditional.ATOMIC

    @property
    def endpoint(self) -> str:
        """The address of the server."""
        return str(self._client.meta.endpoint_url)

    def url(self, key: str) -> str:
        """Return an object's address, for messages."""
        return f"s3://{self._bucket}/{key}"

    def put(self, key: str, body: bytes, about: str) -> None:
        """Write an object, in the place of one that is there.

        Args:
            key: its key.
            body: what it holds.
            about: whose it is, for messages, such as "run 'r'".
        """
        self._put(key, body, about, {})

    @property
    def events(self) -> Any:
        """What happens to the client's requests (botocore's `HierarchicalEmitter`)."""
        return self._client.meta.events

    def put_new(self, key: str, body: bytes, about: str) -> bool:
        """Write an object if there is none with this key.

        Returns:
            False if there is one. It may be this very write, if an answer was lost.
        """
        if self.conditional is Conditional.ABSENT:
            if self.exists(key, about):
                return False
            self._put(key, body, about, {})
            return True
        return self._put(key, body, about, {"IfNoneMatch": "*"})

    def _put(self, key: str, body: bytes, about: str, condition: Mapping[str, str]) -> bool:
        _check_limits(key, body, about)
        checksum = _checksum_of(body, self._checksum)
        arguments: Any = {**self._with_each_put, **checksum, **condition}

        def request() -> Mapping[str, Any]:
            return self._client.put_object(Bucket=self._bucket, Key=key, Body=body, **arguments)

        what = f"{about}: writing {self.url(key)}"
        return self._ask(request, what, Verdict.TAKEN, is_write=True) is not None

    def exists(self, key: str, about: str) -> bool:
        """Say whether there is an object."""

        def request() -> Mapping[str, Any]:
            return self._client.head_object(Bucket=self._bucket, Key=key)

        what = f"{about}: looking for {self.url(key)}"
        return self._ask(request, what, Verdict.MISSING) is not None

    def get(self, key: str, about: str, start: int = 0, size: int | None = None) -> bytes | None:
        """Return the bytes of an object from ``start`` on, or None if there is none."""
        span = f"bytes={start}-{'' if size is None else start + size - 1}"
        arguments: Any = {} if start == 0 and size is None else {"Range": span}

        def request() -> Mapping[str, Any]:
            answer = self._client.get_object(Bucket=self._bucket, Key=key, **arguments)
            with closing(answer["Body"]) as stream:
                return {**answer, "data": stream.read()}

        answer = self._ask(request, f"{about}: reading {self.url(key)}", Verdict.MISSING)
        return None if answer is None else answer["data"]

    def get_head(self, key: str, about: str) -> bytes | None:
        """Return the beginning of an object, all of its head at least, or None."""
        data = self.get(key, about, 0, FIRST_BYTES)
        if data is None or len(data) < FIRST_BYTES or (size := head_size(data, key)) <= len(data):
            return data
        rest = self.get(key, about, len(data), size - len(data))
        return None if rest is None else data + rest

    def list(self, prefix: str, about: str, after: str = "") -> Iterator[Listed]:
        """Yield the objects whose keys begin with ``prefix``, by key, a page at a time.

        Listings and reads see every write that was answered before (Amazon S3 User Guide,
        "Amazon S3 data consistency model").

        Args:
            prefix: what the keys begin with.
            about: for messages.
            after: a key; only those after it.
        """
        arguments: dict[str, str] = {"StartAfter": after} if after else {}
        while True:
            page = self._page(prefix, about, arguments)
            for found in page.get("Contents", ()):
                modified = found["LastModified"].timestamp()
                yield Listed(found["Key"], modified, found.get("ETag", ""))
            if not page.get("IsTruncated"):
                return
            arguments = {"ContinuationToken": page["NextContinuationToken"]}

    def _page(self, prefix: str, about: str, arguments: Any) -> Mapping[str, Any]:
        def request() -> Mapping[str, Any]:
            return self._client.list_objects_v2(Bucket=self._bucket, Prefix=prefix, **arguments)

        answer = self._ask(request, f"{about}: listing {self.url(prefix)}")
        assert answer is not None
        return answer

    def delete(self, keys: Sequence[str], about: str) -> None:
        """Remove objects; those that are gone already count as removed."""
        for start in range(0, len(keys), DELETE_CHUNK):
            self._delete_chunk(keys[start : start + DELETE_CHUNK], about)

    def _delete_chunk(self, keys: Sequence[str], about: str) -> None:
        wanted: Any = {"Objects": [{"Key": key} for key in keys], "Quiet": True}

        def request() -> Mapping[str, Any]:
            return _checked_deletion(
                self._client.delete_objects(Bucket=self._bucket, Delete=wanted)
            )

        what = f"{about}: removing {len(keys)} objects, {self.url(keys[0])} first"
        self._ask(request, what, is_write=True)

    def delete_one(self, key: str, about: str) -> None:
        """Remove one object; it may be gone already."""

        def request() -> Mapping[str, Any]:
            return self._client.delete_object(Bucket=self._bucket, Key=key)

        what = f"{about}: removing {self.url(key)}"
        self._ask(request, what, Verdict.MISSING, is_write=True)

    def _ask(
        self,
        request: Callable[[], Mapping[str, Any]],
        what: str,
        expected: Verdict | None = None,
        *,
        is_write: bool = False,
    ) -> Mapping[str, Any] | None:
        """Send a request, again while that may help.

        Returns:
            The answer; None if it is the expected refusal.
        """
        is_unknown = False
        for attempt in range(1, self._attempts + 1):
            sent = time.monotonic()
            try:
                answer = _whole(request())
            except Exception as exc:
                verdict = self._verdict(exc, sent)
                if verdict is expected:
                    return None
                is_unknown = is_unknown or verdict is Verdict.UNKNOWN
                may_help = verdict in {Verdict.REFUSED, Verdict.UNKNOWN}
                if not may_help or attempt == self._attempts:
                    told = Verdict.UNKNOWN if is_unknown and may_help else verdict
                    raise store_error(exc, told, what, is_write=is_write) from exc
                _back_off(attempt)
                continue
            self._observe(answer, sent)
            return answer
        raise AssertionError("there is one attempt at least")

    def _verdict(self, exc: Exception, sent: float) -> Verdict:
        if isinstance(exc, ClientError):
            self._observe(exc.response, sent)
            return verdict_of(exc)
        found = verdict_of(exc)
        if found is Verdict.REFUSED and not self._is_own_client:
            return Verdict.UNKNOWN  # it may have sent the request before
        return found

    def _observe(self, answer: Mapping[str, Any], sent: float) -> None:
        headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
        date = seconds_of(headers.get("date", ""))
        if date is not None:
            self.clock.observe(date, sent, time.monotonic())

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


def _whole(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return an answer whose headers came to their end.

    http.client takes a connection that breaks among the headers for their end: what was read or
    listed would seem to be empty. One of the two headers says how long the body is, unless there
    is none (RFC 9112, section 6.3).
    """
    meta = answer.get("ResponseMetadata", {})
    headers = meta.get("HTTPHeaders", {})
    if meta.get("HTTPStatusCode") != 204 and not headers.keys() & _LENGTHS:
        raise IncompleteReadError(actual_bytes=0, expected_bytes=1)
    return answer


def _check_limits(key: str, body: bytes, about: str) -> None:
    if len(key.encode()) > MAX_KEY_BYTES:
        raise StoreUnusable(f"{about}: key {key!r} has more than {MAX_KEY_BYTES} bytes")
    if len(body) > MAX_PUT_BYTES:
        raise RecordTooLarge(
            f"{about}: {len(body)} bytes are too much for one PUT, which takes {MAX_PUT_BYTES}: "
            "return less, or a reference to it"
        )


def _put_arguments(options: S3Options) -> dict[str, Any]:
    wanted = {
        "ServerSideEncryption": options.sse,
        "SSEKMSKeyId": options.sse_kms_key_id,
        "StorageClass": options.storage_class,
    }
    return {name: value for name, value in wanted.items() if value is not None}


def _checksum_of(body: bytes, kind: str) -> dict[str, str]:
    if kind == "sha256":
        return {"ChecksumSHA256": _in_base64(hashlib.sha256(body).digest())}
    if kind == "md5":
        return {"ContentMD5": _md5(body)}
    return {}


def _md5(body: bytes) -> str:
    return _in_base64(hashlib.md5(body, usedforsecurity=False).digest())


def _in_base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()


def _checked_deletion(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the answer; an object that could not be removed is in it, not in the status."""
    for problem in answer.get("Errors", ()):
        if problem.get("Code") != "NoSuchKey":
            raise ClientError(
                {
                    "Error": {
                        "Code": str(problem.get("Code", "")),
                        "Message": f"{problem.get('Key')}: {problem.get('Message', '')}",
                    },
                    "ResponseMetadata": answer["ResponseMetadata"],
                },
                "DeleteObjects",
            )
    return answer


def _back_off(attempt: int) -> None:
    time.sleep(random.uniform(0, min(_BACKOFF_CAP_SECONDS, _BACKOFF_SECONDS * 2**attempt)))


def make_client(options: S3Options, connections: int) -> S3Client:
    """Return boto3's client for a store; it has not connected yet.

    It repeats nothing by itself: only who knows every attempt can say what surely was not done.

    Raises:
        StoreUnusable: boto3 cannot make one of these options.
    """
    import boto3
    from botocore.config import Config

    from stroma_s3._version import __version__

    def secret(value: Any) -> str | None:
        return None if value is None else str(value.get_secret_value())

    config = Config(
        max_pool_connections=connections,
        connect_timeout=options.connect_timeout_seconds,
        read_timeout=options.read_timeout_seconds,
        retries={"total_max_attempts": 1, "mode": "standard"},
        s3={"addressing_style": options.addressing_style},
        request_checksum_calculation=options.request_checksum_calculation,
        response_checksum_validation=options.request_checksum_calculation,
        user_agent_extra=f"stroma-s3/{__version__}",
    )
    try:
        session = boto3.Session(
            profile_name=options.profile,
            region_name=options.region,
            aws_access_key_id=options.access_key_id,
            aws_secret_access_key=secret(options.secret_access_key),
            aws_session_token=secret(options.session_token),
        )
        client = session.client("s3", endpoint_url=options.endpoint_url, config=config)
    except StoreError:
        raise
    except Exception as exc:
        raise StoreUnusable(f"no client for s3://{options.bucket}: {in_words(exc)}") from exc
    client.meta.events.register_first("provide-client-params.s3.PutObject", _note_size)
    client.meta.events.register("before-sign.s3.PutObject", _without_asking)
    if options.checksum == "md5":
        client.meta.events.register("before-call.s3.DeleteObjects", _with_md5)
    return client


def _without_asking(request: Any, **_: object) -> None:
    """Have small objects sent at once.

    botocore asks with ``Expect: 100-continue`` before it sends any: one round trip more.
    """
    if int(request.context.get(_SIZE, ASK_FIRST_BYTES)) < ASK_FIRST_BYTES:
        del request.headers["Expect"]


def _note_size(params: dict[str, Any], context: dict[str, Any], **_: object) -> None:
    """Keep the size of an object, which is wrapped before it is sent."""
    context[_SIZE] = len(params["Body"])


def _with_md5(params: dict[str, Any], **_: object) -> None:
    """Have DeleteObjects carry Content-MD5, which older servers ask for."""
    params["headers"]["Content-MD5"] = _md5(params["body"])
    params.get("context", {}).get("checksum", {}).pop("request_algorithm", None)
