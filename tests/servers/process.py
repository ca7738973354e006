"""Real servers for tests: found in the environment, in Docker, or started here on a free port.

A server that is missing fails the tests in CI and skips them elsewhere.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytest

START_SECONDS = 30.0


def missing(server: str, how: str) -> NoReturn:
    """Say that a server is not there: an error in CI, where all must be, else a skip.

    Args:
        server: such as "Redis 7".
        how: what to install or set to have it.
    """
    message = f"{server} is missing: {how}"
    if os.environ.get("CI"):
        pytest.fail(message, pytrace=False)
    pytest.skip(message)


def find_program(name: str, *folders: str) -> str | None:
    """Return the path of a program on PATH or in one of the folders, or None."""
    found = shutil.which(name)
    if found is not None:
        return found
    return next((str(p) for f in folders if os.access(p := Path(f, name), os.X_OK)), None)


def free_port() -> int:
    """Return a port of the loopback interface that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(port: int) -> bool:
    """Say whether somebody listens on a port."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def not_measured(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment whose processes run without coverage, which would slow them down."""
    return {k: v for k, v in environment.items() if not k.startswith("COVERAGE_")}


@functools.cache
def has_docker() -> bool:
    """Say whether a Docker engine answers, so that testcontainers can be used."""
    try:
        import docker
    except ImportError:
        return False
    # docker's client leaves the socket open that it could not connect.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        has_answered = _docker_answers(docker.from_env)
        gc.collect()
    return has_answered


def _docker_answers(client: Callable[..., Any]) -> bool:
    try:
        with contextlib.closing(client(timeout=2)) as engine:
            engine.ping()
    except Exception:
        return False
    return True


class ServerProcess:
    """A server that was started here, with a folder of its own, until `stop` or the exit.

    Args:
        command: returns the command line for a folder and a port.
        is_ready: says whether the server on a port takes requests.
        user: the user to run as, where root may not; the folder becomes theirs.
        environment: added to this process's.
        stop_signal: ends the server orderly.
    """

    def __init__(
        self,
        command: Callable[[Path, int], Sequence[str]],
        *,
        is_ready: Callable[[int], bool] = answers,
        user: str | None = None,
        environment: Mapping[str, str] | None = None,
        stop_signal: signal.Signals = signal.SIGTERM,
    ) -> None:
        self._command = command
        self._is_ready = is_ready
        self.user = user if user is not None and os.geteuid() == 0 else None
        self._environment = environment
        self._stop_signal = stop_signal
        self._process: subprocess.Popen[bytes] | None = None
        self.folder = Path(tempfile.mkdtemp(prefix="stroma-server-"))
        self.folder.chmod(0o755)
        if self.user is not None:
            shutil.chown(self.folder, self.user)
        self.port = free_port()
        self._owner_pid = os.getpid()
        atexit.register(self.remove)

    @property
    def pid(self) -> int:
        """The server's process id."""
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> Path:
        """What the server printed."""
        return self.folder / "server.log"

    def start(self) -> ServerProcess:
        """Start the server, on the same port and folder as before, and wait until it is ready."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command(self.folder, self.port),
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                user=self.user,
                env={**not_measured(os.environ), **(self._environment or {})},
                cwd=self.folder,
                start_new_session=True,  # Ctrl-C is for the tests
            )
        deadline = time.monotonic() + START_SECONDS
        while not self._is_ready(self.port):
            if self._process.poll() is not None or time.monotonic() > deadline:
                text = self._last_words()
                self.kill()
                raise RuntimeError(f"the server did not start:\n{text}")
            time.sleep(0.01)
        return self

    def _last_words(self) -> str:
        return self.log.read_text(errors="replace")[-4000:]

    def check(self) -> None:
        """Say so if the server has ended by itself, with the last that it printed."""
        if self._process is not None and (status := self._process.poll()) is not None:
            raise RuntimeError(f"the server exited with status {status}:\n{self._last_words()}")

    def stop(self) -> None:
        """End the server in the orderly way; its data stay."""
        self._end(self._stop_signal)

    def kill(self) -> None:
        """End the server as a power cut would; its data stay."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Kill the server and start it again on its data."""
        self.kill()
        self.start()

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(how)
        try:
            process.wait(START_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def remove(self) -> None:
        """Stop the server and remove its folder; a forked process leaves both alone."""
        if os.getpid() != self._owner_pid:
            return
        self._end(self._stop_signal)
        shutil.rmtree(self.folder, ignore_errors=True)
