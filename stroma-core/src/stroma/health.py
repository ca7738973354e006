"""A small HTTP server that tells a supervisor whether a worker lives, and whether it is ready."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Final, TypeAlias

from stroma.errors import ConfigError

Probe: TypeAlias = Callable[[], Awaitable[str]]
"""Returns "" when all is well, or else what is not, in a few words."""

REQUEST_SECONDS: Final = 5.0
"""How long a client may take to ask, and to take the answer."""
MOST_CLIENTS: Final = 64
"""How many are served at once; others are turned away."""
_CLOSING_SECONDS: Final = 1.0
_LONGEST_REQUEST_BYTES: Final = 8192


class HealthServer:
    """Answers GET and HEAD of some paths with 200 or 503, and knows nothing else of HTTP.

    Args:
        probes: by path, such as "/livez".
    """

    def __init__(self, probes: Mapping[str, Probe]) -> None:
        self._probes = dict(probes)
        self._server: asyncio.Server | None = None
        self._clients: dict[asyncio.Task[object], asyncio.StreamWriter] = {}

    @property
    def port(self) -> int:
        """Where it listens."""
        assert self._server is not None, "the server was started"
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def start(self, host: str, port: int) -> None:
        """Listen.

        Raises:
            ConfigError: nobody can listen there.
        """
        try:
            self._server = await asyncio.start_server(
                self._serve, host, port, limit=_LONGEST_REQUEST_BYTES
            )
        except (OSError, OverflowError) as exc:
            raise ConfigError(f"the health server cannot listen on {host}:{port}: {exc}") from exc

    async def aclose(self) -> None:
        """Listen no more, and let go of the clients."""
        if self._server is not None:
            self._server.close()
        for writer in self._clients.values():
            writer.transport.abort()
        if self._clients:
            await asyncio.wait(self._clients, timeout=_CLOSING_SECONDS)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None, "a coroutine runs in a task"
        self._clients[task] = writer
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                if len(self._clients) <= MOST_CLIENTS:
                    writer.write(await self._answer(reader))
                writer.close()
                await writer.wait_closed()
        except (TimeoutError, ConnectionError):
            pass  # a slow client, or one that is gone
        finally:
            writer.transport.abort()
            del self._clients[task]

    async def _answer(self, reader: asyncio.StreamReader) -> bytes:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            return _response(HTTPStatus.BAD_REQUEST, "this is no request")
        words = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            return _response(HTTPStatus.BAD_REQUEST, "this is no request")
        method, target, _ = words
        if method not in ("GET", "HEAD"):
            return _response(HTTPStatus.METHOD_NOT_ALLOWED, "only GET and HEAD")
        probe = self._probes.get(target.partition("?")[0])
        if probe is None:
            known = ", ".join(self._probes)
            return _response(HTTPStatus.NOT_FOUND, f"there is {known}", is_head=method == "HEAD")
        problem = await probe()
        status = HTTPStatus.SERVICE_UNAVAILABLE if problem else HTTPStatus.OK
        return _response(status, problem or "ok", is_head=method == "HEAD")


def _response(status: HTTPStatus, text: str, *, is_head: bool = False) -> bytes:
    body = f"{text}\n".encode()
    allowed = "Allow: GET, HEAD\r\n" if status is HTTPStatus.METHOD_NOT_ALLOWED else ""
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\n"
        "Content-Type: text/plain; charset=utf-8\r\n"
        f"Content-Length: {len(body)}\r\n"
        f"{allowed}"
        "Cache-Control: no-store\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode() + (b"" if is_head else body)


def host_and_port(address: str) -> tuple[str, int]:
    """Return the parts of "HOST:PORT"; the host may be an IPv6 address in brackets.

    Raises:
        ConfigError: it is no such text.
    """
    host, colon, port = address.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    if not colon or not host or not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f"{address!r} is no HOST:PORT, such as 127.0.0.1:8080")
    return host, int(port)
