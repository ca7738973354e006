"""What is sent: commands in the Redis protocol, and the settings of redis-py's connections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from redis.backoff import NoBackoff

NO_BACKOFF: Final = NoBackoff()

_NOT_COPIED: Final = ("maint", "orig_", "oss_cluster", "event_dispatcher", "parser_class")


def packed(commands: Sequence[tuple[bytes, ...]]) -> bytes:
    """Return commands as one piece of the protocol (RESP, arrays of bulk strings).

    redis-py's own packer takes text and numbers, too, and three times as long.
    """
    return b"".join([b"*%d\r\n%b" % (len(command), framed(command)) for command in commands])


def framed(args: tuple[bytes, ...]) -> bytes:
    """Return arguments of a command as they are sent."""
    return b"".join([b"$%d\r\n%b\r\n" % (len(arg), arg) for arg in args])


def copied(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a pool's connections, for another pool of the same kind.

    What redis-py ties to the pool itself is left out.
    """
    return {name: v for name, v in settings.items() if not name.startswith(_NOT_COPIED)}


def unanswered(error: Exception, timeout_seconds: float) -> Exception:
    """Return what to say of a server that did not answer in time; asyncio says nothing."""
    if str(error) or not isinstance(error, TimeoutError):
        return error
    return TimeoutError(f"it said nothing for {timeout_seconds:g} s")


def address_of(client: Any) -> str:
    """Return where a ready client connects to, for people: without a password."""
    pool = getattr(client, "connection_pool", None)
    settings = getattr(pool, "connection_kwargs", None)
    if not isinstance(settings, dict):
        return "a Redis Cluster"
    if "path" in settings:
        return f"unix://{settings['path']}?db={settings.get('db', 0)}"
    host, port = settings.get("host", "localhost"), settings.get("port", 6379)
    kinds = [kind.__name__ for kind in getattr(pool, "connection_class", object).__mro__]
    scheme = "rediss" if "SSLConnection" in kinds else "redis"
    return f"{scheme}://{host}:{port}/{settings.get('db', 0)}"


def for_cluster(command: tuple[bytes, ...]) -> tuple[bytes | str, ...]:
    """Return a command as redis-py's cluster client reads it: it looks at names as text."""
    name, *args = command
    if name == b"CONFIG":
        return (b" ".join(command[:2]).decode(), *args[1:])
    return (name.decode(), *args)
