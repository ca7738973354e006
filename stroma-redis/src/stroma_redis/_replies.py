"""Reads what a server answers in version 2 of the Redis protocol (RESP2)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from redis.exceptions import ConnectionError as LostConnection
from redis.exceptions import InvalidResponse

from stroma_redis._errors import Failure, Reply


async def read_reply(
    reader: asyncio.StreamReader, parse_error: Callable[[str], Exception]
) -> Reply:
    """Return the next reply: a number, bytes, None or a list of these, or a `Failure`.

    Args:
        reader: of a connection with nothing unread but replies.
        parse_error: makes redis-py's exception of an error's text.

    Raises:
        redis.exceptions.ConnectionError: the server closed the connection.
        redis.exceptions.InvalidResponse: it does not speak the protocol.
    """
    line = await reader.readline()
    if line[-2:] != b"\r\n":
        raise LostConnection("the server closed the connection")
    kind, rest = line[:1], line[1:-2]
    if kind == b":":
        return int(rest)
    if kind == b"+":
        return rest
    if kind == b"$":
        return await _bulk(reader, int(rest))
    if kind == b"*":
        return [await _value(reader, parse_error) for _ in range(max(0, int(rest)))]
    if kind == b"-":
        return Failure(parse_error(rest.decode(errors="replace")), was_sent=True)
    raise InvalidResponse(f"the server answered {line[:40]!r}, which is not RESP2")


async def _value(reader: asyncio.StreamReader, parse_error: Callable[[str], Exception]) -> Any:
    return await read_reply(reader, parse_error)


async def _bulk(reader: asyncio.StreamReader, size: int) -> bytes | None:
    if size < 0:
        return None
    try:
        data = await reader.readexactly(size + 2)
    except asyncio.IncompleteReadError as exc:
        raise LostConnection("the server closed the connection") from exc
    return data[:-2]
