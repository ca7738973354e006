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
from stroma.records import OpenRequest
from stroma.testing import _values
from stroma.testing._values import commit, new_run, record

__all__ = [
    "Awaited",
    "ManualClock",
    "Note",
    "commit",
    "in_child",
    "new_run",
    "record",
    "request",
]


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


def request(
    run_id: str = "run", token: str = "alice", *, lease_seconds: float = 60.0, **others: Any
) -> OpenRequest:
    """Return a claim by a worker that is named like its token."""
    return _values.request(run_id, token, lease_seconds=lease_seconds, **others)


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
