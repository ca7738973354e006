"""What the tests of the S3 store share: buckets, records to write, requests to watch."""

from __future__ import annotations

import asyncio
import atexit
import functools
import itertools
import json
import os
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Final

from stroma.records import CheckpointRecord, RunPage, RunStatus, RunUpdate
from stroma_s3 import S3Store
from stroma_s3._client import Conditional
from stroma_s3._documents import FORMAT
from stroma_s3._keys import Keys
from tests.core.stores import support
from tests.core.stores.support import commit, request
from tests.servers.s3 import S3Server

__all__ = [
    "BODIES",
    "DONE",
    "Held",
    "all_pages",
    "commit",
    "counted",
    "damage",
    "events_of",
    "headers_of",
    "keys_in",
    "known_bucket",
    "new_bucket",
    "record",
    "request",
    "verdict_on",
    "vouch",
]

DONE = RunUpdate(status=RunStatus.COMPLETED, release=True)

MARKER = Keys("").marker

_numbers = itertools.count()


def new_bucket(server: S3Server) -> str:
    """Create an empty bucket."""
    name = f"stroma-{os.getpid()}-{next(_numbers)}"
    _client(server).create_bucket(Bucket=name)
    return name


def known_bucket(server: S3Server) -> str:
    """Create a bucket in which it is written down what its server makes of conditional writes.

    The store finds that out with some dozens of requests, which each test would wait for.
    """
    bucket = new_bucket(server)
    vouch(server, bucket)
    return bucket


def vouch(server: S3Server, bucket: str, *urls: str) -> None:
    """Write down that conditional writes are atomic at a server, if a store once found them so.

    Args:
        server: the bucket's.
        bucket: where to write it.
        urls: other addresses of this server.
    """
    if verdict_on(server) is Conditional.ATOMIC:
        members = {"format": FORMAT, "atomic_at": [server.url, *urls]}
        _client(server).put_object(Bucket=bucket, Key=MARKER, Body=json.dumps(members).encode())


@functools.cache
def verdict_on(server: S3Server) -> Conditional:
    """Return what a store finds out about a server; it is asked once."""
    store = S3Store(new_bucket(server), **server.options())

    async def asked() -> Conditional:
        await store.setup()
        found = store._here().services().bucket.conditional
        await store.aclose()
        return found

    with ThreadPoolExecutor(1) as beside_the_tests_loop:
        return beside_the_tests_loop.submit(asyncio.run, asked()).result()


@functools.cache
def _client(server: S3Server) -> Any:
    client = server.client()
    atexit.register(client.close)
    return client


def keys_in(server: S3Server, bucket: str, prefix: str = "") -> list[str]:
    """Return the keys of all objects, but not of what `setup` wrote down."""
    pages = _client(server).get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    found: list[Any] = [each["Key"] for page in pages for each in page.get("Contents", ())]
    return [key for key in found if not key.endswith(MARKER)]


def record(
    path: str = "node",
    *,
    run_id: str = "run",
    position: int = 0,
    commit_id: str = "",
    payload: bytes = b'{"text":"x"}',
) -> CheckpointRecord:
    return support.record(run_id, path, position=position, commit_id=commit_id, payload=payload)


BODIES: Final = {
    "junk": b"junk",
    "no run": b"stroma-s3 1 5\n[1,2]",
    "of a newer version": b"stroma-s3 99 2\n{}",
}
"""What may stand in the place of a run, and is none that can be read."""


def damage(server: S3Server, bucket: str, prefix: str, body: bytes, *, but: Sequence[str]) -> None:
    """Replace the objects below a prefix, except those that have one of these words in them."""
    for key in keys_in(server, bucket, prefix):
        if not any(word in key for word in but):
            _client(server).put_object(Bucket=bucket, Key=key, Body=body)


async def all_pages(
    listing: Callable[[Any], Awaitable[RunPage]], query: Any
) -> tuple[list[str], dict[str, Exception]]:
    """Return the ids that a listing finds, page by page, and what it could not read."""
    runs: list[str] = []
    told: dict[str, Exception] = {}
    cursor: str | None = ""
    while cursor is not None:
        page = await listing(query._replace(cursor=cursor))
        runs += [run.run_id for run in page.runs]
        told |= dict(page.unreadable)
        cursor = page.cursor or None
    return runs, told


async def headers_of(store: S3Store, run_id: str = "run") -> list[str]:
    """Return the paths of a run's records, as anybody sees them."""
    found = await store.inspect(run_id)
    return [] if found is None else [header.path for header in found.headers]


def events_of(store: S3Store) -> Any:
    """Return the event system of the store's client, which sees every request."""
    return store._here().services().bucket._client.meta.events


@contextmanager
def counted(store: S3Store) -> Iterator[list[str]]:
    """Collect the requests that the store sends, as "PUT /bucket/key".

    Markers are removed while the caller goes on: close the store within to have them all.
    """
    sent: list[str] = []

    def note(request: Any, **_: object) -> None:
        sent.append(f"{request.method} {request.url.partition('://')[2].partition('/')[2]}")

    events = events_of(store)
    events.register("before-send.s3", note)
    yield sent
    events.unregister("before-send.s3", note)


class Held:
    """Holds back a request until it is let go, as a slow network would."""

    def __init__(self, store: S3Store, is_wanted: Callable[[str, str], bool]) -> None:
        self._is_wanted = is_wanted
        self.is_reached = threading.Event()
        self._may_go = threading.Event()
        events_of(store).register("before-send.s3", self._hold)

    def _hold(self, request: Any, **_: object) -> None:
        if not self.is_reached.is_set() and self._is_wanted(request.method, request.url):
            self.is_reached.set()
            assert self._may_go.wait(60)

    def let_go(self) -> None:
        self._may_go.set()
