"""Forked processes: what a store does when another process writes, or is killed."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final

IO_NAMES: Final = frozenset(
    [
        *("send", "sendall", "sendmsg", "sendto", "sendfile", "connect", "connect_ex"),
        *("recv", "recv_into", "recvmsg", "read", "readinto", "write", "writev", "do_handshake"),
        *("execute", "executemany", "executescript", "commit", "rollback"),
        *("fsync", "fdatasync", "flush", "open", "replace", "rename", "renames", "link", "symlink"),
        *("unlink", "remove", "rmdir", "mkdir", "truncate", "ftruncate", "flock", "lockf", "close"),
    ]
)
"""Names of the built-in functions at whose calls a process is killed, or an operation waits."""

_COUNTED_IN_A_ROW: Final = 8
_CHILD_SECONDS: Final = 60.0
_POLL_SECONDS: Final = 0.002


class IoPoints:
    """Counts I/O calls in the watched threads of this process, and does something at one.

    Each call of a built-in function whose name is in `IO_NAMES` is two points: before it and
    after it. Drivers that are compiled are seen where they call Python's sockets or files. Of
    calls of one function in a row only the first four count: a document that grows with every
    run is written in more and more of them, and the points after it would never be reached.

    Args:
        at: at which point to act; None counts only.
        act: what is done there, in the thread that makes the call.
    """

    def __init__(self, at: int | None, act: Callable[[], object]) -> None:
        self._at = at
        self._act = act
        self._lock = threading.Lock()
        self._last = ""
        self._in_a_row = 0
        self.count = 0
        self.is_armed = False

    def watch(self) -> None:
        """Watch this thread, and those that start from now on, once armed."""
        threading.setprofile(self._profile)
        sys.setprofile(self._profile)

    @contextmanager
    def watching(self) -> Generator[None]:
        """Watch the threads that start meanwhile, once armed."""
        before = threading.getprofile()
        threading.setprofile(self._profile)
        try:
            yield
        finally:
            threading.setprofile(before)

    def _profile(self, frame: FrameType, event: str, arg: Any) -> None:
        if not self.is_armed or not event.startswith("c_"):
            return
        name = getattr(arg, "__name__", "")
        if name in IO_NAMES:
            self._pass(name)

    def _pass(self, name: str) -> None:
        with self._lock:
            self._in_a_row = self._in_a_row + 1 if name == self._last else 1
            self._last = name
            if self._in_a_row > _COUNTED_IN_A_ROW:
                return
            number, self.count = self.count, self.count + 1
        if number == self._at:
            self._act()


def kill_this_process() -> None:
    """End this process as a power cut would."""
    os.kill(os.getpid(), signal.SIGKILL)


class Child:
    """A forked process, and what it said."""

    def __init__(self, pid: int, reading: int) -> None:
        self.pid = pid
        self._reading = reading
        self._status: int | None = None

    def wait(self) -> Any:
        """Wait for its end and return what it said, or None if it was killed.

        Raises:
            AssertionError: it failed, or did not end in time.
        """
        text = self._read_until_end()
        if not text:
            return None
        said = json.loads(text)
        assert "error" not in said, f"in a forked process: {said['error']}"
        return said["value"]

    def wait_for_line(self) -> Any:
        """Wait for what it says first, and leave it running."""
        with os.fdopen(os.dup(self._reading), "rb") as pipe:
            line = pipe.readline()
        assert line, "a forked process ended without a word"
        said = json.loads(line)
        assert "error" not in said, f"in a forked process: {said['error']}"
        return said["value"]

    def kill(self) -> None:
        """End it as a power cut would."""
        self.end()
        os.close(self._reading)

    def end(self) -> None:
        """End it, and let what it said be read."""
        if self._status is None:
            os.kill(self.pid, signal.SIGKILL)
            self._reap()

    def _read_until_end(self) -> bytes:
        watchdog = threading.Timer(_CHILD_SECONDS, lambda: os.kill(self.pid, signal.SIGKILL))
        watchdog.daemon = True
        watchdog.start()
        try:
            with os.fdopen(self._reading, "rb") as pipe:
                text = pipe.read()
            self._reap()
        finally:
            hangs = not watchdog.is_alive()
            watchdog.cancel()
        assert not hangs, (
            f"a forked process did not end within {_CHILD_SECONDS:g} s: the store hangs in a "
            "process that was forked while it was in use"
        )
        return text

    def _reap(self) -> None:
        _, self._status = os.waitpid(self.pid, 0)


def fork(body: Callable[[Callable[[object], None]], object]) -> Child:
    """Run ``body`` in a forked process, which ends without touching what is the parent's.

    Args:
        body: gets a function that says something to the parent while it runs; what it returns
            is said at its end.
    """
    reading, writing = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    with warnings.catch_warnings():
        # Python warns of forks beside other threads; that a store lives with them is asked for.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        _be_child(body, reading, writing)
    os.close(writing)
    return Child(pid, reading)


def _be_child(
    body: Callable[[Callable[[object], None]], object], reading: int, writing: int
) -> None:
    def say(value: object) -> None:
        os.write(writing, json.dumps({"value": value}).encode() + b"\n")

    try:
        os.close(reading)
        warnings.simplefilter("ignore")
        say(body(say))
    except BaseException:
        os.write(writing, json.dumps({"error": traceback.format_exc(limit=-8)}).encode())
    finally:
        os._exit(0)


def until_killed() -> None:
    """Stay until the parent sends SIGKILL, or has ended itself."""
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(_POLL_SECONDS * 100)
