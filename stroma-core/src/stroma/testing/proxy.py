"""A TCP proxy that loses replies, breaks connections and counts round trips, for tests."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self, TypeVar

T = TypeVar("T")

_CHUNK_BYTES: Final = 1 << 16
_ANSWER_SECONDS: Final = 10.0
_LOOPBACK: Final = "127.0.0.1"


class TcpProxy:
    """Stands between a client and its server, and fails in the ways that networks do.

    Use it as a context manager, and let the client connect to `host` and `port`. It works in a
    thread of its own. Everything may be called from any thread, and holds until `heal`. What
    is said of a reply is meant for each burst of data that a server sends after a request.

    Args:
        host: of the server.
        port: of the server.

    Attributes:
        host: where clients connect to: the loopback interface.
        port: a free port; 0 before the proxy is started.
        round_trips: requests that were answered, over all connections: turns from client to
            server and back, so that pipelined commands count once.
        accepted: connections that clients made.
        dropped: replies that were swallowed or cut.
    """

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self.host = _LOOPBACK
        self.port = 0
        self.round_trips = 0
        self.accepted = 0
        self.dropped = 0
        self._ends, self._flows = asyncio.Event(), asyncio.Event()
        self._links: set[_Link] = set()
        self._server: asyncio.Server | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._replies_to_drop: set[int] = set()
        self._replies = 0
        self._cut_after: int | None = None
        self._delay_seconds = 0.0

    def __repr__(self) -> str:
        return f"TcpProxy({self.host}:{self.port} to {self._target[0]}:{self._target[1]})"

    @property
    def open_connections(self) -> int:
        """How many connections there are now."""
        return len(self._links)

    def drop_reply(self, number: int = 1) -> None:
        """Swallow a reply, and close its connection: the server did it, and nobody hears.

        Args:
            number: which reply from now on, from 1.
        """
        self._do(lambda: self._replies_to_drop.add(self._replies + number))

    def cut_reply(self, after_bytes: int) -> None:
        """Pass on this many bytes of the next reply, and close its connection."""
        self._do(lambda: setattr(self, "_cut_after", after_bytes))

    def delay(self, seconds: float) -> None:
        """Hold every reply for this long."""
        self._do(lambda: setattr(self, "_delay_seconds", seconds))

    def pause(self) -> None:
        """Forward nothing in either direction, and close nothing: a half-open connection."""
        self._do(self._flows.clear)

    def resume(self) -> None:
        """Forward what was held back since `pause`."""
        self._do(self._flows.set)

    def reset(self) -> None:
        """Break every connection with a TCP reset."""
        self._do(self._reset_all)

    def half_close(self) -> None:
        """Say to every client that nothing more will come; what it sends is still taken."""
        self._do(self._half_close_all)

    def refuse(self) -> None:
        """Take no new connections: clients are refused, as by a server that is down."""
        self._do_async(self._stop_listening)

    def heal(self) -> None:
        """End every fault; connections that were broken stay so."""
        self._do_async(self._heal)

    def start(self) -> Self:
        """Begin to listen."""
        started = threading.Event()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve(started)), name="stroma-proxy", daemon=True
        )
        self._thread.start()
        if not started.wait(_ANSWER_SECONDS):
            raise RuntimeError("the proxy did not start")
        return self

    def close(self) -> None:
        """Break every connection, stop listening, and end the thread. Again does no harm."""
        thread, self._thread = self._thread, None
        if thread is None or self._loop is None:
            return
        with contextlib.suppress(RuntimeError):  # it has ended by itself
            self._loop.call_soon_threadsafe(self._ends.set)
        thread.join(_ANSWER_SECONDS)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # What follows runs in the proxy's thread.

    async def _serve(self, started: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        self._ends.clear()
        self._flows.set()
        await self._listen()
        started.set()
        await self._ends.wait()
        await self._stop_listening()
        links = list(self._links)
        self._reset_all()
        await asyncio.gather(*(link.ended.wait() for link in links))

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, self.host, self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _stop_listening(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.close()
            await asyncio.sleep(0)

    async def _heal(self) -> None:
        self._replies_to_drop.clear()
        self._cut_after = None
        self._delay_seconds = 0.0
        self._flows.set()
        if self._server is None:
            await self._listen()

    def _reset_all(self) -> None:
        for link in list(self._links):
            link.reset()

    def _half_close_all(self) -> None:
        for link in self._links:
            link.half_close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        link = _Link(reader, writer)
        self._links.add(link)
        try:
            await self._forward(link)
        finally:
            self._links.discard(link)
            link.close()
            link.ended.set()

    async def _forward(self, link: _Link) -> None:
        try:
            await link.connect(*self._target)
        except OSError:
            link.reset()
            return
        pumps: list[asyncio.Future[None]] = [
            asyncio.ensure_future(self._pass_requests(link)),
            asyncio.ensure_future(self._pass_replies(link)),
        ]
        link.pumps = pumps
        await asyncio.wait(pumps)
        for pump in pumps:
            if not pump.cancelled():
                pump.exception()  # a connection that broke is what this is for

    async def _pass_requests(self, link: _Link) -> None:
        while data := await link.from_client.read(_CHUNK_BYTES):
            await self._flows.wait()
            link.was_asked = True
            link.to_server.write(data)
            await link.to_server.drain()
        link.to_server.write_eof()

    async def _pass_replies(self, link: _Link) -> None:
        while data := await link.from_server.read(_CHUNK_BYTES):
            await self._flows.wait()
            if link.was_asked:
                link.was_asked = False
                self._replies += 1
                if self._is_dropped(link, data):
                    return
                self.round_trips += 1
            if self._delay_seconds:
                await asyncio.sleep(self._delay_seconds)
            link.to_client.write(data)
            await link.to_client.drain()
        link.half_close()

    def _is_dropped(self, link: _Link, data: bytes) -> bool:
        if self._cut_after is not None:
            link.to_client.write(data[: self._cut_after])
            self._cut_after = None
        elif self._replies in self._replies_to_drop:
            self._replies_to_drop.discard(self._replies)
        else:
            return False
        self.dropped += 1
        link.break_off()
        return True

    # What follows runs in the thread that asks.

    def _do(self, change: Callable[[], object]) -> None:
        async def body() -> None:
            change()

        self._do_async(body)

    def _do_async(self, change: Callable[[], object]) -> None:
        if self._loop is None or self._thread is None:
            raise RuntimeError("the proxy is not started: use it as a context manager")
        work: object = change()
        assert asyncio.iscoroutine(work)
        asyncio.run_coroutine_threadsafe(work, self._loop).result(_ANSWER_SECONDS)


class _Link:
    """One client's connection, and the one to the server that is made for it."""

    from_server: asyncio.StreamReader
    to_server: asyncio.StreamWriter

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.from_client = reader
        self.to_client = writer
        self.was_asked = False
        self.is_connected = False
        self.pumps: list[asyncio.Future[None]] = []
        self.ended = asyncio.Event()

    async def connect(self, host: str, port: int) -> None:
        self.from_server, self.to_server = await asyncio.open_connection(host, port)
        self.is_connected = True
        for writer in (self.to_client, self.to_server):
            found = writer.get_extra_info("socket")
            found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def half_close(self) -> None:
        """End what the client reads."""
        with contextlib.suppress(OSError, RuntimeError):
            self.to_client.write_eof()

    def reset(self) -> None:
        """Break both connections at once."""
        for writer in self._writers():
            found = writer.get_extra_info("socket")
            with contextlib.suppress(OSError):  # lingering for no time is what sends a reset
                found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        self._stop_pumps()

    def break_off(self) -> None:
        """Close both connections after what was written."""
        self.close()
        self._stop_pumps()

    def close(self) -> None:
        for writer in self._writers():
            writer.close()

    def _writers(self) -> list[asyncio.StreamWriter]:
        return [self.to_client, self.to_server] if self.is_connected else [self.to_client]

    def _stop_pumps(self) -> None:
        for pump in self.pumps:
            pump.cancel()
