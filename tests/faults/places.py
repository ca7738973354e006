"""Where runs are kept in these tests: each durable store, on a real server of its kind."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import asyncpg
import pytest

from stroma.config import open_store
from stroma.records import unique_id
from stroma.testing import TcpProxy
from tests.faults.sidelog import Line, lines_of
from tests.faults.size import FULL, SIZE
from tests.faults.worker import Job
from tests.servers import postgres, redis, s3
from tests.servers.process import ServerProcess


@dataclass(frozen=True)
class Place:
    """A store of one test.

    Attributes:
        store: its name.
        folder: of the test, for side logs.
        options: of the store.
        address: host and port of its server; None where there is none.
        at: returns the options for a server that is reached elsewhere.
        lease_seconds: a short lease that its clock can tell.
        server: the server, if it is the test's own.
    """

    store: str
    folder: Path
    options: dict[str, Any]
    address: tuple[str, int] | None = None
    at: Callable[[str, int], dict[str, Any]] | None = None
    lease_seconds: float = 0.4
    server: ServerProcess | None = field(default=None, repr=False)

    @property
    def log(self) -> Path:
        """The side log of the test."""
        return self.folder / "calls.log"

    @property
    def lines(self) -> list[Line]:
        """What is in the side log."""
        return lines_of(self.log)

    def open(self) -> object:
        """Return a store object."""
        return open_store(self.store, self.options)

    def job(self, *runs: str, **changes: Any) -> Job:
        """Return a job on this store, with the short lease unless another is given."""
        return Job(
            self.store,
            self.options,
            str(self.log),
            runs,
            **{"lease_seconds": self.lease_seconds, **changes},
        )

    def job_at(self, host: str, port: int, *runs: str, **changes: Any) -> Job:
        """Return a job that reaches the server elsewhere."""
        assert self.at is not None
        job = self.job(*runs, **changes)
        return Job(**{**job.__dict__, "options": self.at(host, port)})

    @contextmanager
    def behind_a_proxy(self) -> Generator[TcpProxy]:
        """Put a proxy before the server."""
        assert self.address is not None
        with TcpProxy(*self.address) as proxy:
            yield proxy


def sqlite_place(folder: Path) -> Place:
    """Return a file. Its dead owners are told by a lock, so that no lease has to end."""
    return Place("sqlite", folder, {"path": str(folder / "runs.db")})


def redis_place(folder: Path, port: int, server: ServerProcess | None = None) -> Place:
    """Return keys of the test's own on a Redis or a Valkey of this machine."""
    prefix = f"faults-{unique_id()}"

    def at(host: str, port: int) -> dict[str, Any]:
        return {
            "url": f"redis://{host}:{port}",
            "key_prefix": prefix,
            "timeout_seconds": 1.0,
            "connect_timeout_seconds": 1.0,
        }

    address = "127.0.0.1", port
    return Place("redis", folder, at(*address), address, at, server=server)


def postgres_place(
    folder: Path, server: postgres.Server, process: ServerProcess | None = None
) -> Place:
    """Return a schema of the test's own on a PostgreSQL."""
    schema = f"faults_{unique_id()}"

    def at(host: str, port: int) -> dict[str, Any]:
        return {
            "dsn": server.at(host, port).dsn,
            "schema": schema,
            "max_connections": 4,
            "acquire_timeout_seconds": 2.0,
            "command_timeout_seconds": 2.0,
        }

    address = server.host, server.port
    return Place("postgres", folder, at(*address), address, at, server=process)


def s3_place(folder: Path, server: s3.S3Server) -> Place:
    """Return a bucket of the test's own on moto."""
    bucket = f"faults-{unique_id()}"
    client = server.client()
    client.create_bucket(Bucket=bucket)
    client.close()

    def at(host: str, port: int) -> dict[str, Any]:
        return {
            **server.options(bucket=bucket, max_attempts=2),
            "endpoint_url": f"http://{host}:{port}",
            "connect_timeout_seconds": 1.0,
            "read_timeout_seconds": 2.0,
        }

    address = "127.0.0.1", server.port
    # its clock tells seconds only
    return Place("s3", folder, at(*address), address, at, lease_seconds=1.0)


def run_sql(dsn: str, sql: str) -> None:
    """Run statements as the owner of everything."""

    async def body() -> None:
        connection = await asyncpg.connect(dsn)
        try:
            await connection.execute(sql)
        finally:
            await connection.close()

    asyncio.run(body())


def _servers(*names: str) -> list[Any]:
    """Return parameters; those with servers run on one Python, as they are about the stores."""
    marks = [pytest.mark.server, pytest.mark.slow]
    return [pytest.param(name, marks=marks if name != "sqlite" else []) for name in names]


DURABLE: Final = _servers("sqlite", "redis", "postgres", "s3")
SERVERS: Final = _servers("redis", "postgres", "s3")
EVERY: Final = _servers("sqlite", "redis", "valkey", "postgres", "s3")


def in_every_way(*ways: Any) -> list[Any]:
    """Return parameters for stores and ways to do something.

    At the small size only the first and the last way are tried on servers.
    """
    found = []
    for store in DURABLE:
        chosen = ways if SIZE is FULL or not store.marks else (ways[0], ways[-1])
        for way in chosen:
            name = "-".join(str(part) for part in (*way, *store.values))
            found.append(pytest.param(*store.values, *way, id=name, marks=store.marks))
    return found


@contextmanager
def place_of(name: str, folder: Path) -> Generator[Place]:
    """Make the place of a test on a server that all tests share, and clean up after it."""
    if name == "sqlite":
        yield sqlite_place(folder)
    elif name in ("redis", "valkey"):
        kind = redis.REDIS if name == "redis" else redis.VALKEY
        yield redis_place(folder, redis.shared_server(kind).port)
    elif name == "postgres":
        server = postgres.shared_server(postgres.OLDER)
        place = postgres_place(folder, server)
        yield place
        run_sql(server.dsn, f'DROP SCHEMA IF EXISTS "{place.options["schema"]}" CASCADE')
    else:
        yield s3_place(folder, s3.moto())


def stored(place: Place, run_id: str) -> tuple[Any, ...]:
    """Return all that a store has of a run: its record, its records' headers, its last result."""

    async def body() -> tuple[Any, ...]:
        store: Any = place.open()
        try:
            found = await store.inspect(run_id)
            return () if found is None else (found.run, tuple(found.headers), found.last)
        finally:
            await store.aclose()

    return asyncio.run(body())
