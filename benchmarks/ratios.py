"""What Stroma costs next to the least that would do the same job, measured in one run.

Each row runs Stroma and a bare loop by turns in one process, or in fresh ones where that is
what matters. Rows without a disk count the processor's time and take the quickest of each: other
work on the machine only ever adds to it. With a disk or a server, which are quick by luck, it is
the median of the rounds, and of their ratios.

    python benchmarks/ratios.py            the table
    python benchmarks/ratios.py --quick    fewer rounds
    python benchmarks/ratios.py --check    exit 1 if a target is missed
    python benchmarks/ratios.py --write docs/explanation/speed.md
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import resource
import sqlite3
import subprocess
import sys
import tempfile
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import stroma
from benchmarks.measuring import (
    NODES,
    START,
    Row,
    State,
    bare,
    compared,
    numbered,
    paired,
    quickest,
)


def children_time() -> float:
    """Return the processor's seconds of the processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


async def memory(rounds: int) -> Row:
    runs = 50
    nodes = numbered(NODES)

    async def floor() -> None:
        for _ in range(runs):
            state = START
            for _ in range(NODES):
                state = State.model_validate(await bare(state))

    async def ours() -> None:
        for number in range(runs):
            result = await runner.run(nodes, START, run_id=f"run-{number}")
            assert result.is_complete
        for number in range(runs):
            store.delete(f"run-{number}")

    store = stroma.InMemoryStore()
    runner = stroma.StromaRunner.quick(store=store)
    await ours()  # checks the nodes, once

    taken = await quickest(rounds * 5, floor, ours)
    return compared("memory store, per node", taken, runs * NODES, 8)


async def sqlite(rounds: int) -> Row:
    runs = 20
    nodes = numbered(NODES)
    with tempfile.TemporaryDirectory() as folder:
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1) as worker:
            connection = await loop.run_in_executor(worker, _by_hand, f"{folder}/floor.db")
            statement = (
                "INSERT INTO results VALUES (?, ?, ?) "
                "ON CONFLICT (run, node) DO UPDATE SET state = excluded.state"
            )
            made = iter(range(sys.maxsize))

            async def floor() -> None:
                for _ in range(runs):
                    state, run = START, next(made)
                    for number in range(NODES):
                        state = State.model_validate(await bare(state))
                        row = (f"run-{run}", f"node-{number}", state.model_dump_json())
                        await loop.run_in_executor(worker, connection.execute, statement, row)

            async with stroma.StromaRunner.quick(store=f"sqlite:///{folder}/ours.db") as runner:
                await runner.run(nodes, START)  # opens the file

                async def ours() -> None:
                    for _ in range(runs):
                        result = await runner.run(nodes, START)
                        assert result.is_complete

                taken = await paired(rounds * 4, floor, ours)
            await loop.run_in_executor(worker, connection.close)
    return compared("SQLite, one run, per node", taken, runs * NODES, 1.2)


def _by_hand(path: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute(
        "CREATE TABLE results (run TEXT, node TEXT, state BLOB, PRIMARY KEY (run, node))"
    )
    return connection


async def growth(rounds: int) -> Row:
    few, many = numbered(10), numbered(1000)
    runner = stroma.StromaRunner.quick(store=stroma.InMemoryStore())

    async def short() -> None:
        for _ in range(100):
            await runner.run(few, START)

    async def long() -> None:
        await runner.run(many, START)

    await short()
    await long()
    taken = await quickest(rounds * 2, short, long)
    return compared("1,000 nodes against 10, per node", taken, 1000, 1.1)


async def memory_kept(rounds: int) -> Row:
    nodes = numbered(100, payload_bytes=100_000)
    with tempfile.TemporaryDirectory() as folder:
        async with stroma.StromaRunner.quick(store=f"sqlite:///{folder}/kept.db") as runner:
            await runner.run(nodes, START)
            gc.collect()
            tracemalloc.start()
            before = tracemalloc.get_traced_memory()[0]
            result = await runner.run(nodes, START)
            gc.collect()
            kept = tracemalloc.get_traced_memory()[0] - before
            tracemalloc.stop()
            assert result.is_complete
    kept_mb = kept / 1e6
    return Row(
        "kept after 100 nodes of 100 KB, SQLite", "0.1 MB", f"{kept_mb:.2f} MB", kept_mb, 0.5, "MB"
    )


_BASE = """
import asyncio
import pydantic
class Model(pydantic.BaseModel):
    value: int
"""


async def imports(rounds: int) -> Row:
    environment = {**os.environ}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)

    def run(program: str) -> None:
        subprocess.run([sys.executable, "-c", program], check=True, env=environment)

    async def floor() -> None:
        run(_BASE)

    async def ours() -> None:
        run(_BASE + "import stroma")

    await ours()  # writes the bytecode
    taken = await quickest(rounds * 6, floor, ours, clock=children_time)
    floor_ms, ours_ms = (f"{seconds * 1000:.0f} ms" for seconds in taken[:2])
    work = "import, next to asyncio, pydantic and one model"
    return Row(work, floor_ms, ours_ms, taken.ratio, 1.15)


HEAD = """| Work | At the least | Stroma | Ratio | Target | |
|---|---|---|---|---|---|"""
BEGIN, END = "<!-- measured by benchmarks/ratios.py -->", "<!-- end of what is measured -->"


async def measure(rounds: int) -> list[Row]:
    from benchmarks.otel import unobserved
    from benchmarks.servers import postgres_rows, redis_rows

    rows: list[Row] = []
    print(HEAD)
    for benchmark in (
        memory,
        sqlite,
        redis_rows,
        postgres_rows,
        growth,
        memory_kept,
        unobserved,
        imports,
    ):
        found = await benchmark(rounds)
        for row in [found] if isinstance(found, Row) else found:
            rows.append(row)
            print(row.line(), flush=True)
    return rows


def write(page: Path, machine: str, rows: list[Row]) -> None:
    """Replace the table of a page by these rows."""
    before, rest = page.read_text().split(BEGIN)
    _, after = rest.split(END)
    table = "\n".join([HEAD, *(row.line() for row in rows)])
    page.write_text(f"{before}{BEGIN}\n\n{machine}\n\n{table}\n\n{END}{after}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--check", action="store_true", help="exit 1 if a target is missed")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the table into a page")
    options = parser.parse_args()
    version = ".".join(map(str, sys.version_info[:3]))
    machine = f"Python {version}, {os.cpu_count()} cores, Stroma {stroma.__version__}."
    print(machine)
    rows = asyncio.run(measure(2 if options.quick else 6))
    if options.write:
        write(options.write, machine, rows)
    return int(options.check and not all(row.is_reached for row in rows))


if __name__ == "__main__":
    sys.exit(main())
