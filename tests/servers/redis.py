"""Redis and Valkey for tests: from the environment, from Docker, or started here."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.servers.process import ServerProcess, find_program, has_docker, missing


class Kind(NamedTuple):
    """A server that the tests run against.

    Attributes:
        name: for people.
        variable: environment variable with the address of a running one.
        image: for Docker.
        program: what a local one is started with.
    """

    name: str
    variable: str
    image: str
    program: str


REDIS = Kind("Redis 7", "STROMA_TEST_REDIS_URL", "redis:7", "redis-server")
VALKEY = Kind("Valkey 8", "STROMA_TEST_VALKEY_URL", "valkey/valkey:8", "valkey-server")
KINDS = (REDIS, VALKEY)


class Address(NamedTuple):
    """Where a server listens."""

    host: str
    port: int

    @property
    def url(self) -> str:
        """The server as a URL, without user and database."""
        return f"redis://{self.host}:{self.port}"


@functools.cache
def shared_server(kind: Kind) -> Address:
    """Return a server that tests share; each has its keys under a prefix of its own."""
    url = os.environ.get(kind.variable)
    if url:
        parts = urlsplit(url)
        return Address(parts.hostname or "localhost", parts.port or 6379)
    if has_docker():
        return _in_docker(kind)
    return Address("127.0.0.1", local_server(kind).port)


def _in_docker(kind: Kind) -> Address:
    from testcontainers.community.redis import RedisContainer

    container = RedisContainer(kind.image)
    container.start()  # its own watchdog removes it when this process has ended
    return Address(container.get_container_host_ip(), int(container.get_exposed_port(6379)))


def local_server(kind: Kind = REDIS, *settings: str) -> ServerProcess:
    """Start a server of the test's own, to be stopped, filled or configured at will.

    Args:
        kind: which one.
        settings: added to its command line.
    """
    program = find_program(kind.program)
    if program is None:
        missing(kind.name, f"install {kind.program}, or set {kind.variable} for the shared tests")

    def command(folder: Path, port: int) -> list[str]:
        quiet = ("--save", "", "--bind", "127.0.0.1", "--dir", str(folder))
        return [program, "--port", str(port), *quiet, *settings]

    return ServerProcess(command, is_ready=is_ready).start()


def is_ready(port: int) -> bool:
    """Say whether a server answers, if only that it wants a password."""
    try:
        with redis.Redis(port=port, socket_timeout=1, retry=Retry(NoBackoff(), 0)) as client:
            return bool(client.ping())
    except redis.AuthenticationError:
        return True
    except (redis.ConnectionError, redis.TimeoutError):
        return False
