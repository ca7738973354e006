"""How the sync store's requests reach a server or a cluster, from any thread."""

from __future__ import annotations

from typing import Any, Protocol

from redis import (
    BlockingConnectionPool,
    Connection,
    ConnectionPool,
    Redis,
    RedisCluster,
    SSLConnection,
    UnixDomainSocketConnection,
)
from redis.exceptions import ResponseError
from redis.retry import Retry

from stroma_redis._errors import DRIVER_ERRORS, Failure, Reply, unreached
from stroma_redis._options import RedisOptions
from stroma_redis._steps import Request
from stroma_redis._wire import NO_BACKOFF, for_cluster, packed


class Line(Protocol):
    """Carries requests of any thread.

    Attributes:
        one_by_one: commands without keys must not share a request.
    """

    one_by_one: bool

    def ask(self, request: Request) -> list[Reply]:
        """Return what each command was answered, in order; what failed as a `Failure`."""
        ...

    def close(self) -> None:
        """Close what this line opened. Doing it again does no harm."""
        ...


class PooledLine:
    """A line to one server, over a pool of redis-py's, which begins anew in a forked process.

    Args:
        pool: makes the connections, and bounds their number.
        is_own: close the pool with the line.
    """

    one_by_one = False

    def __init__(self, pool: ConnectionPool, *, is_own: bool) -> None:
        self._pool: Any = pool
        self._is_own = is_own

    def ask(self, request: Request) -> list[Reply]:
        """See `Line.ask`."""
        commands = request.commands
        try:
            connection = self._pool.get_connection()
        except DRIVER_ERRORS as exc:
            return [unreached(exc)] * len(commands)
        replies: list[Reply] = []
        try:
            data = request.packed or packed(commands)
            connection.send_packed_command([data], check_health=False)
            replies.extend(_reply(connection) for _ in commands)  # also those before an error
        except DRIVER_ERRORS as exc:
            connection.disconnect()
            replies += [Failure(exc, was_sent=True)] * (len(commands) - len(replies))
        except BaseException:
            connection.disconnect()
            raise
        finally:
            self._pool.release(connection)
        return replies

    def close(self) -> None:
        """See `Line.close`."""
        if self._is_own:
            self._pool.disconnect()


def _reply(connection: Any) -> Reply:
    try:
        return connection.read_response(disable_decoding=True)
    except ResponseError as exc:
        return Failure(exc, was_sent=True)


class ClusterLine:
    """A line to a Redis Cluster, over a client of redis-py's, which finds the nodes.

    Args:
        options: to make a client with on first use, as making one connects.
        client: a ready one, which somebody else closes.
    """

    one_by_one = True

    def __init__(self, options: RedisOptions, client: RedisCluster | None = None) -> None:
        self._options = options
        self._client = client
        self._is_own = client is None

    def ask(self, request: Request) -> list[Reply]:
        """See `Line.ask`."""
        commands = request.commands
        try:
            client: Any = self._connected()
        except DRIVER_ERRORS as exc:
            return [unreached(exc)] * len(commands)
        try:
            if len(commands) == 1:
                return [client.execute_command(*for_cluster(commands[0]), NEVER_DECODE=True)]
            pipeline = client.pipeline()
            for command in commands:
                pipeline.execute_command(*for_cluster(command), NEVER_DECODE=True)
            replies = pipeline.execute(raise_on_error=False)
        except DRIVER_ERRORS as exc:
            return [Failure(exc, was_sent=True)] * len(commands)
        return [Failure(r, was_sent=True) if isinstance(r, Exception) else r for r in replies]

    def _connected(self) -> RedisCluster:
        if self._client is None:
            self._client = _cluster(self._options)
        return self._client

    def close(self) -> None:
        """See `Line.close`."""
        if self._is_own and self._client is not None:
            self._client.close()
            self._client = None


def line_to(options: RedisOptions) -> Line:
    """Return a line to the server that options name; nothing is connected yet."""
    if options.cluster:
        return ClusterLine(options)
    kinds: dict[str, type[Any]] = {"redis": Connection, "rediss": SSLConnection}
    make: Any = BlockingConnectionPool  # whose types leave out the most
    pool = make(
        connection_class=kinds.get(options.scheme, UnixDomainSocketConnection),
        max_connections=options.max_connections,
        timeout=options.timeout_seconds,
        protocol=2,
        **_settings(options),
    )
    return PooledLine(pool, is_own=True)


def line_of(client: Redis | RedisCluster, options: RedisOptions) -> Line:
    """Return a line over a client that somebody else closes."""
    if isinstance(client, RedisCluster):
        return ClusterLine(options, client)
    return PooledLine(client.connection_pool, is_own=False)


def _cluster(options: RedisOptions) -> RedisCluster:
    settings = _settings(options)
    del settings["db"]
    settings["ssl"] = options.scheme == "rediss"
    return RedisCluster(**settings, max_connections=options.max_connections)


def _settings(options: RedisOptions) -> dict[str, Any]:
    settings = options.connection()
    settings["socket_timeout"] = options.timeout_seconds
    settings["retry"] = Retry(NO_BACKOFF, 0)
    return settings
