"""What the tests of the stores share: a clock to turn, records to write, other processes."""

from __future__ import annotations

import asyncio
import os
import signal
import traceback
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pydantic import BaseModel

from stroma._aio import settled
from stroma.cost import NO_USAGE, Usage
from stroma.records import (
    CheckpointRecord,
    Commit,
    OpenRequest,
    RecordHeader,
    RecordKind,
    RunRecord,
    RunStatus,
    RunUpdate,
    digest_of,
    unique_id,
)


class Note(BaseModel):
    """A small state."""

    text: str = ""


class ManualClock:
    """A clock that stands still until it is turned."""

    def __init__(self, now: float = 1_000_000.0) -> None:
        self.time = now

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        self.time += seconds


class Awaited:
    """A store of either kind behind coroutine methods, so that one suite serves all."""

    def __init__(self, store: Any) -> None:
        self.inner = store

    @property
    def capabilities(self) -> Any:
        return self.inner.capabilities

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        method = getattr(self.inner, name)

        async def call(*args: Any) -> Any:
            return await settled(method(*args))

        return call


def new_run(run_id: str = "run", **columns: Any) -> RunRecord:
    return RunRecord(run_id, RunStatus.PENDING, **columns)


def request(
    run_id: str = "run",
    token: str = "alice",
    *,
    lease_seconds: float = 60.0,
    must_exist: bool = False,
    reopen: bool = False,
    **columns: Any,
) -> OpenRequest:
    """Return a claim by a worker that is named like its token."""
    new = None if must_exist else new_run(run_id, **columns)
    return OpenRequest(run_id, token, f"worker {token}", int(lease_seconds * 1000), new, reopen)


def record(
    run_id: str = "run",
    path: str = "node",
    *,
    epoch: int = 0,
    kind: RecordKind = "result",
    attempt: int = 0,
    position: int = 0,
    commit_id: str = "",
    payload: bytes = b'{"text":"x"}',
    usage: Usage = NO_USAGE,
) -> CheckpointRecord:
    header = RecordHeader(
        run_id,
        epoch,
        path,
        kind,
        attempt,
        position,
        commit_id or unique_id(),
        path,
        "tests:Note",
        "0123456789abcdef",
        digest_of(payload),
        usage,
        1.5,
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        1_000_000.25,
    )
    return CheckpointRecord(header, payload)


def commit(
    *records: CheckpointRecord,
    run_id: str = "",
    token: str = "alice",
    update: RunUpdate | None = None,
) -> Commit:
    return Commit(
        run_id or (records[0].header.run_id if records else "run"), token, records, update
    )


def in_child(body: Callable[[], object]) -> Child:
    """Fork, run ``body`` in the child, and let it end without touching the parent's things."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        try:
            text = str(body())
        except BaseException:
            text = "failed: " + traceback.format_exc()
        os.write(writing, text.encode())
        os._exit(0)
    os.close(writing)
    return Child(pid, reading)


class Child:
    """A forked process and what it said."""

    def __init__(self, pid: int, reading: int) -> None:
        self.pid = pid
        self._reading = reading
        self._ended = False

    def read(self) -> str:
        """Return all that it says until its end."""
        with os.fdopen(self._reading, "rb") as pipe:
            text = pipe.read().decode()
        self._wait()
        return text

    def lines(self) -> Iterator[str]:
        """Yield what it says, line by line."""
        with os.fdopen(self._reading, "rb") as pipe:
            for line in pipe:
                yield line.decode().rstrip("\n")

    def kill(self) -> None:
        """End it as a power cut would, and wait for its end."""
        os.kill(self.pid, signal.SIGKILL)
        self._wait()

    def _wait(self) -> None:
        if not self._ended:
            os.waitpid(self.pid, 0)
            self._ended = True


@contextmanager
def speaking_child(body: Callable[[Callable[[str], None]], object]) -> Iterator[Child]:
    """Fork a child that says lines while it works, and kill it in the end."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        try:
            body(lambda line: os.write(writing, f"{line}\n".encode()) and None)
        except BaseException:
            os.write(writing, f"failed: {traceback.format_exc()}\n".encode())
        os._exit(0)
    os.close(writing)
    child = Child(pid, reading)
    try:
        yield child
    finally:
        if not child._ended:
            child.kill()


async def steps(count: int) -> None:
    """Let the event loop go round."""
    for _ in range(count):
        await asyncio.sleep(0)
