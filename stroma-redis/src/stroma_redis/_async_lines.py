"""How the async store's requests reach a server or a cluster, in one event loop."""

from __future__ import annotations

import asyncio
from typing import Any, Final, Protocol

from redis.asyncio import (
    BlockingConnectionPool,
    Connection,
    ConnectionPool,
    Redis,
    RedisCluster,
    SSLConnection,
    UnixDomainSocketConnection,
)
from redis.asyncio.retry import Retry
from redis.exceptions import ResponseError

from stroma.errors import ConfigError
from stroma_redis._errors import DRIVER_ERRORS, Failure, Reply, unreached
from stroma_redis._listener import Held, Listener, Silence
from stroma_redis._options import RedisOptions
from stroma_redis._replies import read_reply
from stroma_redis._steps import Request
from stroma_redis._wire import NO_BACKOFF, copied, for_cluster, packed, unanswered

_CAN_READ: Final = "can_read" if hasattr(Connection, "can_read") else "can_read_destructive"
"""What tells whether there is something to read; redis-py 8 renamed it."""


class Line(Protocol):
    """Carries requests. It belongs to one event loop.

    Attributes:
        one_by_one: commands without keys must not share a request.
    """

    one_by_one: bool

    async def ask(self, request: Request) -> list[Reply]:
        """Return what each command was answered, in order; what failed as a `Failure`."""
        ...

    async def aclose(self) -> None:
        """Close what this line opened. Doing it again does no harm."""
        ...


class PooledLine:
    """A line to one server, over a pool of redis-py's.

    One connection is kept at hand: taking it out of the pool and putting it back would take as
    long as the request itself. Those who wait at the pool get it first.

    Args:
        pool: makes the connections, and bounds their number.
        timeout_seconds: how long to wait for a server that says nothing.
        is_own: close the pool with the line.
        is_plain: its connections speak RESP2 and decode nothing. Then replies are read here:
            redis-py takes as long for that as the server for all of it.
    """

    one_by_one = False

    def __init__(
        self,
        pool: ConnectionPool,
        timeout_seconds: float,
        *,
        is_own: bool,
        is_plain: bool = False,
    ) -> None:
        self._pool: Any = pool
        self._timeout_seconds = timeout_seconds
        self._is_own = is_own
        self._is_plain = is_plain
        self._at_hand: Held | None = None
        self._waiting = 0
        self._is_closed = False

    async def ask(self, request: Request) -> list[Reply]:
        """See `Line.ask`."""
        commands = request.commands
        held = self._at_hand
        if held is not None and held.is_sound:
            self._at_hand = None
        else:
            try:
                held = await self._take()
            except DRIVER_ERRORS as exc:
                return [unreached(self._in_words(exc))] * len(commands)
        replies: list[Reply] = []
        silence = held.silence
        data = request.packed or packed(commands)
        silence.begin()
        try:
            if held.listener is None:
                await held.connection.send_packed_command(data, check_health=False)
            else:
                heard = await held.listener.ask(data, len(commands))
                if heard is not None:
                    return heard
            while len(replies) < len(commands):
                replies.append(await _reply(held))
                silence.begin()  # it is silence that is bounded, not the work
        except Exception as exc:  # asyncio has errors of its own where a connection breaks
            await held.connection.disconnect(nowait=True)
            error = TimeoutError() if silence.was_too_long else exc
            lost = Failure(self._in_words(error), was_sent=True)
            replies += [lost] * (len(commands) - len(replies))
        except BaseException:
            await held.connection.disconnect(nowait=True)
            raise
        finally:
            silence.end()
            if not self._keeps(held):
                silence.close()
                await self._release(held.connection)
        return replies

    def _in_words(self, error: Exception) -> Exception:
        return unanswered(error, self._timeout_seconds)

    async def _take(self) -> Held:
        """Return a connection that works, as far as can be told before anything is sent."""
        held, self._at_hand = self._at_hand, None
        if held is not None:
            connection = held.connection
            if connection.is_connected and not await _is_spoilt(connection):
                return self._hold(connection, held.silence)
            held.silence.close()
        async with asyncio.timeout(self._timeout_seconds):
            connection = await self._from_pool() if held is None else held.connection
            try:
                if not connection.is_connected or await _is_spoilt(connection):
                    await connection.disconnect(nowait=True)
                    await connection.connect()
            except BaseException:
                await self._release(connection)
                raise
        return self._hold(connection, Silence(connection, self._timeout_seconds))

    def _hold(self, connection: Any, silence: Silence) -> Held:
        if not self._is_plain:
            return Held(connection, None, silence)
        listener = Listener.on(connection)
        listener.is_silent = True
        return Held(connection, listener, silence)

    async def _from_pool(self) -> Any:
        self._waiting += 1
        try:
            return await self._pool.get_connection()
        finally:
            self._waiting -= 1

    def _keeps(self, held: Held) -> bool:
        """Keep a connection at hand, unless there is one, or somebody waits at the pool."""
        is_wanted = self._at_hand is None and not self._waiting and not self._is_closed
        if not is_wanted or not held.connection.is_connected:
            return False
        self._at_hand = held
        return True

    async def _release(self, connection: Any) -> None:
        if self._is_closed and self._is_own:  # it was connecting when the others were closed
            await connection.disconnect()
        await asyncio.shield(self._pool.release(connection))

    async def aclose(self) -> None:
        """See `Line.aclose`; what is under way ends, and closes its connection."""
        self._is_closed = True
        held, self._at_hand = self._at_hand, None
        if held is not None:
            held.silence.close()
            await self._pool.release(held.connection)
        if self._is_own:
            await self._pool.disconnect()


async def _reply(held: Held) -> Reply:
    """Read a reply from the stream of a connection."""
    connection = held.connection
    if held.listener is not None:
        return await read_reply(connection._reader, connection._parser.parse_error)
    try:
        return await connection.read_response(disable_decoding=True)
    except ResponseError as exc:
        return Failure(exc, was_sent=True)


async def _is_spoilt(connection: Any) -> bool:
    """Say whether the server has closed a connection, or said what nobody asked for."""
    reader = getattr(connection, "_reader", None)
    if isinstance(reader, asyncio.StreamReader) and reader.exception() is not None:
        return True  # a reset, which redis-py does not look for
    try:
        return bool(await getattr(connection, _CAN_READ)())
    except DRIVER_ERRORS:
        return True


class ClusterLine:
    """A line to a Redis Cluster, over a client of redis-py's, which finds the nodes.

    Args:
        client: of the cluster.
        is_own: close it with the line.
    """

    one_by_one = True

    def __init__(self, client: RedisCluster, *, is_own: bool) -> None:
        self._client = client
        self._is_own = is_own

    async def ask(self, request: Request) -> list[Reply]:
        """See `Line.ask`."""
        commands = request.commands
        try:
            await self._client.initialize()
        except DRIVER_ERRORS as exc:
            return [unreached(exc)] * len(commands)
        try:
            if len(commands) == 1:
                answer = self._client.execute_command(*for_cluster(commands[0]), NEVER_DECODE=True)
                return [await answer]
            pipeline = self._client.pipeline()
            for command in commands:
                pipeline.execute_command(*for_cluster(command), NEVER_DECODE=True)
            replies = await pipeline.execute(raise_on_error=False)
        except DRIVER_ERRORS as exc:
            return [Failure(exc, was_sent=True)] * len(commands)
        return [Failure(r, was_sent=True) if isinstance(r, Exception) else r for r in replies]

    async def aclose(self) -> None:
        """See `Line.aclose`."""
        if self._is_own:
            await self._client.aclose()


def line_to(options: RedisOptions) -> Line:
    """Return a line of one's own to the server that options name; nothing is connected yet."""
    settings: dict[str, Any] = {
        **options.connection(),
        "protocol": 2,
        "retry": Retry(NO_BACKOFF, 0),
    }
    if options.cluster:
        del settings["db"]
        settings["ssl"] = options.scheme == "rediss"
        settings["socket_timeout"] = options.timeout_seconds
        settings["max_connections"] = options.max_connections
        del settings["protocol"]
        return ClusterLine(RedisCluster(**settings), is_own=True)
    kinds: dict[str, type[Any]] = {"redis": Connection, "rediss": SSLConnection}
    pool = BlockingConnectionPool(
        connection_class=kinds.get(options.scheme, UnixDomainSocketConnection),
        max_connections=options.max_connections,
        timeout=options.timeout_seconds,
        socket_timeout=None,  # the line measures its own
        **settings,
    )
    return PooledLine(pool, options.timeout_seconds, is_own=True, is_plain=True)


def line_of(client: Redis | RedisCluster, options: RedisOptions) -> Line:
    """Return a line over a client that somebody else closes."""
    if isinstance(client, RedisCluster):
        return ClusterLine(client, is_own=False)
    return PooledLine(client.connection_pool, options.timeout_seconds, is_own=False)


def line_like(client: Redis | RedisCluster, options: RedisOptions) -> Line:
    """Return a line of one's own with the settings of a client that serves another loop.

    Raises:
        ConfigError: it is a client of a cluster.
    """
    if isinstance(client, RedisCluster):
        raise ConfigError(
            "a ready client of a cluster serves one event loop: give the store a URL and "
            "cluster=True, so that it opens connections in each"
        )
    pool = client.connection_pool
    another = BlockingConnectionPool(
        connection_class=pool.connection_class,
        max_connections=min(pool.max_connections, options.max_connections),
        timeout=options.timeout_seconds,
        **copied(pool.connection_kwargs),
    )
    return PooledLine(another, options.timeout_seconds, is_own=True)
