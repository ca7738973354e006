"""Hears what a server says on a connection of redis-py's, without a stream where that is enough."""

from __future__ import annotations

import asyncio
from typing import Any, Final, NamedTuple

from stroma_redis._errors import Reply
from stroma_redis._prompt import PromptFuture

_DONE: Final = b":1\r\n"
"""What a commit is answered when it is written, in version 2 of the Redis protocol."""
_END: Final = b"\r\n"


class Listener(asyncio.Protocol):
    """Stands between a connection and its stream.

    Most requests are commits, and their replies are the number 1, which comes in one piece.
    Telling that takes one comparison. A claim of a new run is answered by a text as short. All
    other replies go on into the stream.

    Args:
        stream: the protocol that the connection was opened with.
        transport: of the connection.

    Attributes:
        is_silent: nothing has been heard but what was asked for, and the connection stands.
    """

    def __init__(self, stream: Any, transport: Any) -> None:
        self._stream = stream
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._waiter: PromptFuture[list[Reply] | None] | None = None
        self._count = 0
        self.is_silent = True

    @classmethod
    def on(cls, connection: Any) -> Listener:
        """Return what listens on a connection; it begins now if nothing does."""
        transport = connection._writer.transport
        found = transport.get_protocol()
        if not isinstance(found, cls):
            found = cls(found, transport)
            transport.set_protocol(found)
        return found

    def ask(self, data: bytes, count: int) -> PromptFuture[list[Reply] | None]:
        """Send commands.

        Args:
            data: in the Redis protocol.
            count: how many there are.

        Returns:
            Their replies, if they were heard here. If not, they come by the stream, as far as
            the connection does not break.
        """
        self._count = count
        waiter: PromptFuture[list[Reply] | None] = PromptFuture(self._loop)
        self._waiter = waiter
        self._transport.write(data)
        return waiter

    def data_received(self, data: bytes) -> None:
        """Hear a reply, or a part of one."""
        replies = None if self._waiter is None else replies_in(data, self._count)
        if replies is None:
            self._stream.data_received(data)
        self._answer(replies)

    def eof_received(self) -> bool | None:
        """Hear that the server says no more."""
        keep_open: bool | None = self._stream.eof_received()
        self._answer(None)
        return keep_open

    def connection_lost(self, exc: Exception | None) -> None:
        """Hear that the connection broke, or was closed."""
        self._stream.connection_lost(exc)
        self._answer(None)

    def pause_writing(self) -> None:
        """Hear that the server does not keep up."""
        self._stream.pause_writing()

    def resume_writing(self) -> None:
        """Hear that it does again."""
        self._stream.resume_writing()

    def _answer(self, replies: list[Reply] | None) -> None:
        waiter, self._waiter = self._waiter, None
        if replies is None:
            self.is_silent = False
        if waiter is not None and not waiter.done():
            waiter.set_result(replies)


def replies_in(data: bytes, count: int) -> list[Reply] | None:
    """Return the replies to some commands if each of them is 1, or the only one a whole text."""
    if data == _DONE * count:
        done: list[Reply] = [1]
        return done * count
    if count == 1 and data[:1] == b"$" and data[-2:] == _END:
        size, _, rest = data[1:-2].partition(_END)
        if size.isdigit() and int(size) == len(rest):
            return [rest]
    return None


class Silence:
    """Breaks a connection off whose server says nothing for too long.

    One timer looks after many requests: to set one for each would take as long as sending it.

    Args:
        connection: of redis-py's.
        seconds: how long is too long.

    Attributes:
        was_too_long: it did.
    """

    __slots__ = ("_connection", "_loop", "_seconds", "_since", "_timer", "was_too_long")

    def __init__(self, connection: Any, seconds: float) -> None:
        self._connection = connection
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._since: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.was_too_long = False

    def begin(self) -> None:
        """Begin to wait: something is sent, or the server has said something."""
        self._since = self._loop.time()
        if self._timer is None:
            self._timer = self._loop.call_later(self._seconds, self._look)

    def end(self) -> None:
        """Wait no more."""
        self._since = None

    def close(self) -> None:
        """Wait never again."""
        self._since = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        if self._since is None:
            return
        left = self._since + self._seconds - self._loop.time()
        if left > 0:
            self._timer = self._loop.call_later(left, self._look)
            return
        self.was_too_long = True
        writer = self._connection._writer
        if writer is not None:
            writer.transport.abort()


class Held(NamedTuple):
    """A connection that is out of the pool.

    Attributes:
        connection: of redis-py's.
        listener: hears its replies; None if redis-py reads them.
        silence: bounds how long they are waited for.
    """

    connection: Any
    listener: Listener | None
    silence: Silence

    @property
    def is_sound(self) -> bool:
        """It works, as far as can be told at once; if not, it has to be looked at."""
        listener = self.listener
        return listener is not None and listener.is_silent and self.connection.is_connected
