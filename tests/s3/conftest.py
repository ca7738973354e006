from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from stroma_s3 import S3Store
from tests.s3.support import known_bucket
from tests.servers.s3 import S3Server, moto


@pytest.fixture
def server() -> S3Server:
    return moto()


@pytest.fixture
def bucket(server: S3Server) -> str:
    """A bucket of this test's own, so that prefixes and listings can be looked at."""
    return known_bucket(server)


@pytest.fixture
def make(server: S3Server, bucket: str) -> Iterator[Callable[..., S3Store]]:
    """Makes stores on the bucket, and closes them."""
    made: list[S3Store] = []

    def one(**options: Any) -> S3Store:
        store = S3Store(bucket, **server.options(**options))
        made.append(store)
        return store

    yield one
    for store in made:
        close(store)


@pytest.fixture
def store(make: Callable[..., S3Store]) -> S3Store:
    return make()


def close(store: S3Store) -> None:
    import asyncio

    asyncio.run(store.aclose())
