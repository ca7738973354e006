from __future__ import annotations

import itertools
import os
from collections.abc import Iterator

import pytest
import redis

from stroma.records import unique_id
from tests.servers.process import ServerProcess
from tests.servers.redis import KINDS, REDIS, Address, Kind, local_server, shared_server

_numbers = itertools.count()


@pytest.fixture(scope="session", params=KINDS, ids=[kind.program for kind in KINDS])
def server(request: pytest.FixtureRequest) -> Address:
    """A running Redis, then a running Valkey."""
    kind: Kind = request.param
    return shared_server(kind)


@pytest.fixture
def prefix() -> str:
    """What this test's keys begin with."""
    return f"test-{os.getpid()}-{next(_numbers)}-{unique_id()}"


@pytest.fixture
def client(server: Address) -> Iterator[redis.Redis]:
    """A plain client, to look behind the store."""
    with redis.Redis(host=server.host, port=server.port) as client:
        yield client


@pytest.fixture
def own() -> Iterator[ServerProcess]:
    """A Redis of the test's own, to be stopped or filled."""
    process = local_server(REDIS)
    yield process
    process.remove()
