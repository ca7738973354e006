"""Starts the examples as users do: as processes of their own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

from stroma.records import RecordHeader, RecordKey
from stroma.stores.sqlite import SQLiteStore
from tests.servers.process import not_measured

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
SETTINGS = ("OPENAI_BASE_URL", "OPENAI_API_KEY", "STROMA_STORE")


class Done(NamedTuple):
    """How a process ended."""

    code: int
    out: str
    err: str

    def line(self, start: str) -> str:
        """Return what follows a beginning in the one line of the output that has it."""
        (found,) = (line for line in self.out.splitlines() if line.startswith(start))
        return found.removeprefix(start)

    def tokens(self, start: str) -> int:
        """Return the tokens that a line tells."""
        return int(self.line(start).split()[0].replace(",", ""))


def start(
    example: str, *args: object, cwd: Path, env: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    inherited = not_measured(os.environ)  # what examples reach is reached without them, too
    kept = {name: value for name, value in inherited.items() if name not in SETTINGS}
    return subprocess.Popen(
        [sys.executable, str(EXAMPLES / example), *map(str, args)],
        cwd=cwd,
        env={**kept, "no_proxy": "127.0.0.1", **absolute_path(kept), **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hears_the_keyboard,  # noqa: PLW1509 - there are no threads here
    )


def hears_the_keyboard() -> None:
    """A shell has what it runs in the background ignore the keyboard, and children inherit it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def absolute_path(env: Mapping[str, str]) -> dict[str, str]:
    """Return PYTHONPATH as it is meant: relative to this process's folder, not to the other's."""
    folders = env.get("PYTHONPATH", "").split(os.pathsep)
    return {"PYTHONPATH": os.pathsep.join(str(Path(each).resolve()) for each in folders if each)}


def finish(process: subprocess.Popen[str], timeout_seconds: float = 60.0) -> Done:
    try:
        out, err = process.communicate(timeout=timeout_seconds)
    finally:
        process.kill()
        process.wait()
    return Done(process.returncode, out, err)


def run(example: str, *args: object, cwd: Path, env: Mapping[str, str] | None = None) -> Done:
    return finish(start(example, *args, cwd=cwd, env=env))


def kill(process: subprocess.Popen[str]) -> Done:
    process.kill()
    return finish(process)


async def kill_when(process: subprocess.Popen[str], is_time: Callable[[], Awaitable[bool]]) -> Done:
    """Kill a process as soon as something holds; it must not end before."""
    deadline = time.monotonic() + 30
    while not await is_time():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        await asyncio.sleep(0.001)
    return kill(process)


class Records(NamedTuple):
    """What a store has of a run.

    Attributes:
        headers: of the records, by path and attempt.
        items: numbers of the passages whose facts are recorded.
        tokens: what the records cost together.
        usd: and in dollars.
    """

    headers: dict[RecordKey, RecordHeader]

    @property
    def items(self) -> set[int]:
        paths = [key.path for key in self.headers if key.kind == "result"]
        return {int(path[8:-1]) for path in paths if path.startswith("extract[")}

    @property
    def tokens(self) -> int:
        return sum(header.usage.tokens for header in self.headers.values())

    @property
    def usd(self) -> Decimal:
        return sum((h.usage.cost_usd or Decimal(0) for h in self.headers.values()), Decimal(0))


async def records(database: Path, run_id: str) -> Records:
    """Return what a database has of a run, without claiming it."""
    if not database.exists():
        return Records({})
    store = SQLiteStore(database)
    try:
        return await records_in(store, run_id)
    finally:
        await store.aclose()


async def records_in(store: SQLiteStore, run_id: str) -> Records:
    found = await store.inspect(run_id)
    headers = found.headers if found else ()
    return Records({header.key: header for header in headers})


async def passages(database: Path, run_id: str) -> list[str]:
    """Return the texts that a run has split its input into, in order."""
    store = SQLiteStore(database)
    try:
        (record,) = await store.fetch(run_id, [RecordKey(run_id, 0, "split")])
    finally:
        await store.aclose()
    assert record is not None
    return [passage["text"] for passage in json.loads(record.payload)["passages"]]
