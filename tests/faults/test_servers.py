"""Servers that are killed and restarted in the middle, full, or read only."""

from __future__ import annotations

import random
import resource
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis as driver

from tests.faults.oracle import Excuses, check
from tests.faults.places import Place, postgres_place, redis_place, run_sql
from tests.faults.size import Size
from tests.faults.test_paused import has_begun, until
from tests.faults.worker import Worker
from tests.servers import postgres, redis
from tests.servers.process import ServerProcess

pytestmark = [pytest.mark.crash, pytest.mark.timeout(7200)]

EVERYSEC = "redis everysec"
AOF = ("--appendonly", "yes", "--appendfsync")
FORGETS_SECONDS = 2.5
"""What a Redis with everysec may lose that is killed: it writes up to two seconds later when the
disk is busy (redis.conf, appendfsync)."""


@contextmanager
def own_place(name: str, folder: Path) -> Generator[Place]:
    """Make a place on a server of the test's own, which forgets nothing that it acknowledged."""
    if name == "postgres":
        process: ServerProcess = postgres.local_server(postgres.OLDER, "fsync=on")
        place = postgres_place(folder, postgres.address_of(process), process)
    else:
        every = "everysec" if name == EVERYSEC else "always"
        kind = redis.VALKEY if name == "valkey" else redis.REDIS
        process = redis.local_server(kind, *AOF, every)
        place = redis_place(folder, process.port, process)
    try:
        yield place
    finally:
        process.remove()


@pytest.fixture
def own(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    with own_place(request.param, tmp_path) as found:
        yield found


@pytest.mark.server
@pytest.mark.slow
@pytest.mark.parametrize("own", ["redis", EVERYSEC, "postgres"], indirect=True)
def test_a_server_killed_in_the_middle(
    own: Place, size: Size, seed: int, request: pytest.FixtureRequest
) -> None:
    """Workers go on when it is there again, and what was acknowledged is."""
    assert own.server is not None
    chance = random.Random(seed)
    forgets: list[tuple[float, float]] = []
    restarts, batch = 0, 0
    while restarts < size.restarts:
        runs = [f"run {batch}.{number}" for number in range(3)]
        worker = Worker(own.job(*runs, latency_seconds=0.03, lease_seconds=10.0, seed=seed))
        while not worker.is_over_within(chance.uniform(0.05, 0.3)):
            if restarts < size.restarts:
                own.server.kill()
                if request.node.callspec.params["own"] == EVERYSEC:
                    forgets.append((time.time() - FORGETS_SECONDS, time.time()))
                own.server.start()
                restarts += 1
        worker.wait()
        batch += 1

    excuses = Excuses(is_unsaved_known=True, lost_after=forgets)
    bill = check(own.open, own.lines, excuses=excuses, at_least=4 * 3 * batch)
    assert bill.runs == 3 * batch


def _postgres_read_only(place: Place) -> Callable[[], None]:
    dsn = place.options["dsn"]

    def set_to(value: str) -> None:
        run_sql(dsn, f"ALTER SYSTEM SET default_transaction_read_only = {value}")
        run_sql(dsn, "SELECT pg_reload_conf()")

    set_to("on")
    return lambda: set_to("off")


def _redis_read_only(place: Place) -> Callable[[], None]:
    """Make it a replica of a server that is not there."""
    with driver.Redis.from_url(place.options["url"]) as client:
        client.replicaof("127.0.0.1", 1)

    def heal() -> None:
        with driver.Redis.from_url(place.options["url"]) as client:
            client.replicaof("NO", "ONE")

    return heal


def _redis_full(place: Place) -> Callable[[], None]:
    """Let it take nothing more."""
    with driver.Redis.from_url(place.options["url"]) as client:
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("maxmemory", "1kb")

    def heal() -> None:
        with driver.Redis.from_url(place.options["url"]) as client:
            client.config_set("maxmemory", "0")

    return heal


@pytest.mark.server
@pytest.mark.slow
@pytest.mark.parametrize(
    ("own", "break_it"),
    [
        pytest.param("redis", _redis_read_only, id="redis-read-only"),
        pytest.param("redis", _redis_full, id="redis-full"),
        pytest.param("postgres", _postgres_read_only, id="postgres-read-only"),
    ],
    indirect=["own"],
)
def test_a_server_that_takes_nothing_for_a_while(
    own: Place, break_it: Callable[[Place], Callable[[], None]]
) -> None:
    """Saves are repeated until it takes them: no node is called again."""
    worker = Worker(own.job("run", latency_seconds=0.05, lease_seconds=30.0, save_retries=60))
    until(own, has_begun("extract[0]"))
    heal = break_it(own)
    time.sleep(0.7)
    before = len(own.lines)
    time.sleep(0.2)
    assert len(own.lines) == before, "it should not get any further"
    heal()
    worker.wait()

    bill = check(own.open, own.lines, at_least=8)
    assert bill.in_doubt == []


@pytest.mark.parametrize("place", ["sqlite"], indirect=True)
def test_a_disk_that_is_full_for_a_while(place: Place) -> None:
    """Files may not grow beyond a size; the first results fit."""
    order = place.job().order.model_copy(update={"padding": "x" * 30_000})
    job = place.job("run", order=order, latency_seconds=0.05, save_retries=60)
    worker = Worker(job)
    until(place, has_begun("split"))
    limit = 60_000  # the side log stays below; SQLite's log does not
    resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    time.sleep(0.7)
    before = len(place.lines)
    time.sleep(0.2)
    assert len(place.lines) == before, "it should not get any further"
    assert worker.is_alive, place.lines
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, unlimited)
    worker.wait()

    bill = check(place.open, place.lines, order=order, at_least=8)
    assert bill.in_doubt == []
