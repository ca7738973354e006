"""Records that are damaged, cut short or gone: said loudly, and nothing is bought instead."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable

import pytest
import redis as driver

from stroma import CheckpointNotFound, RecordCorrupt, RunNotFound, RunStatus
from stroma.errors import StromaError
from stroma.result import ExecutionResult
from stroma.testing import failing
from tests.faults.oracle import check
from tests.faults.places import DURABLE, Place, run_sql
from tests.faults.sidelog import SideLog
from tests.faults.worker import runner_for, work
from tests.faults.workload import PIPELINE, Order, Provider, closing, paying


async def _run(
    place: Place, run_id: str, *, fails: bool = False, **wanted: bool
) -> ExecutionResult:
    log = SideLog(place.log)
    nodes = failing(PIPELINE, at="join", error=ValueError("a bug"), attempt=None)
    async with closing(runner_for(place.job(run_id), log)) as runner:
        with paying(Provider(log)):
            found: ExecutionResult = await runner.run(
                nodes if fails else PIPELINE,
                None if wanted else Order(),
                run_id=run_id,
                **wanted,
            )
            return found


def left_before_the_last_node(place: Place) -> int:
    """Have a run stop at its last node; return how many calls it made."""
    assert asyncio.run(_run(place, "run", fails=True)).status is RunStatus.FAILED
    return len(place.lines)


Damage = Callable[[bytes], bytes]
DAMAGES: dict[str, Damage] = {
    "truncated": lambda payload: payload[: len(payload) // 2],
    "emptied": lambda payload: b"",
    "one bit": lambda payload: payload[:-2] + bytes([payload[-2] ^ 1]) + payload[-1:],
    "another value": lambda payload: payload.replace(b"1", b"2"),
}


def damage(place: Place, change: Damage) -> None:
    """Change every stored payload of results, behind the store's back."""
    if place.store == "sqlite":
        with sqlite3.connect(place.options["path"]) as connection:
            connection.create_function("damaged", 1, change)
            connection.execute("UPDATE records SET payload = damaged(payload)")
        connection.close()
    elif place.store == "redis":
        with driver.Redis.from_url(place.options["url"]) as client:
            for key in client.scan_iter(f"{place.options['key_prefix']}*", _type="hash"):
                fields = client.hgetall(key)
                changed = {f: change(v) for f, v in fields.items() if f.startswith(b"p:")}  # type: ignore[union-attr]
                if changed:
                    client.hset(key, mapping=changed)  # type: ignore[arg-type]
    elif place.store == "postgres":
        table = f'"{place.options["schema"]}"."stroma_records"'
        rows = asyncio.run(_payloads(place, table))
        for seq, payload in rows:
            hexed = change(payload).hex()
            run_sql(
                place.options["dsn"],
                f"UPDATE {table} SET payload = decode('{hexed}', 'hex') WHERE seq = {seq}",
            )


async def _payloads(place: Place, table: str) -> list[tuple[int, bytes]]:
    import asyncpg

    connection = await asyncpg.connect(place.options["dsn"])
    try:
        return [tuple(row) for row in await connection.fetch(f"SELECT seq, payload FROM {table}")]
    finally:
        await connection.close()


@pytest.mark.parametrize("place", DURABLE[:3], indirect=True)  # S3: tests/s3/test_objects.py
@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_result_is_told_and_not_bought_again(place: Place, how: str) -> None:
    made = left_before_the_last_node(place)
    damage(place, DAMAGES[how])

    with pytest.raises(RecordCorrupt, match="does not have its digest"):
        asyncio.run(_run(place, "run"))

    assert len(place.lines) == made, "a node was called"


def test_a_result_that_is_gone_is_told_and_not_bought_again(place: Place) -> None:
    made = left_before_the_last_node(place)
    with sqlite3.connect(place.options["path"]) as connection:
        connection.execute("DELETE FROM records WHERE path = 'both'")
    connection.close()

    with pytest.raises(CheckpointNotFound, match="gone from the store"):
        asyncio.run(_run(place, "run"))

    assert len(place.lines) == made, "a node was called"


def test_a_file_cut_short_is_told(place: Place) -> None:
    """Half a database file: an error of Stroma's, and no run from its beginning."""
    made = left_before_the_last_node(place)
    path = place.folder / "runs.db"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    with pytest.raises(StromaError):
        asyncio.run(_run(place, "run", resume=True))

    assert len(place.lines) == made, "a node was called"


@pytest.mark.server
@pytest.mark.parametrize("place", ["redis", "valkey"], indirect=True)
def test_a_run_that_expired_is_told(place: Place) -> None:
    """After its time to live, a run that has to exist is not begun anew in silence."""
    place.options["ttl_seconds"] = 1
    made = left_before_the_last_node(place)
    time.sleep(1.2)

    with pytest.raises(RunNotFound, match="expired"):
        asyncio.run(_run(place, "run", resume=True))

    assert len(place.lines) == made, "a node was called"


@pytest.mark.server
@pytest.mark.parametrize("place", ["redis"], indirect=True)
def test_a_live_run_does_not_expire(place: Place) -> None:
    """A node takes longer than the time to live: renewals keep the run."""
    place.options["ttl_seconds"] = 1
    work(place.job("run", slow=("extract[0]",), slow_seconds=2.0))

    assert check(place.open, place.lines, at_least=8).runs == 1
