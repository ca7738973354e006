"""What a server says arrives whole, in pieces, or without having been asked for."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from stroma.errors import StaleOwner
from stroma_redis._async_lines import PooledLine
from tests.core.stores.support import commit, record, request
from tests.redis.support import opened
from tests.servers.redis import Address

pytestmark = pytest.mark.server


class Relay:
    """Stands between a store and its server, in the same event loop.

    Attributes:
        port: where it listens.
        is_slow: it passes replies on byte by byte.
        adds: what it adds to the next reply.
    """

    def __init__(self, server: Address) -> None:
        self._server = server
        self.port = 0
        self.is_slow = False
        self.adds = b""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, onward = await asyncio.open_connection(self._server.host, self._server.port)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._pass_on(reader, onward, is_reply=False))
                tasks.create_task(self._pass_on(there, writer, is_reply=True))
        finally:
            onward.close()
            writer.close()

    async def _pass_on(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_reply: bool
    ) -> None:
        while data := await reader.read(1 << 16):
            if is_reply:
                data, self.adds = data + self.adds, b""
            step = 1 if is_reply and self.is_slow else len(data)
            for at in range(0, len(data), step):
                writer.write(data[at : at + step])
                await writer.drain()
                await asyncio.sleep(0)
        with contextlib.suppress(OSError):
            writer.write_eof()


@asynccontextmanager
async def relay_to(server: Address) -> AsyncIterator[Relay]:
    relay = Relay(server)
    listening = await asyncio.start_server(relay.serve, "127.0.0.1", 0)
    relay.port = listening.sockets[0].getsockname()[1]
    async with listening:
        yield relay


async def test_replies_that_come_byte_by_byte(server: Address, prefix: str) -> None:
    async with (
        relay_to(server) as relay,
        opened(f"redis://127.0.0.1:{relay.port}", key_prefix=prefix) as store,
    ):
        relay.is_slow = True
        await store.open_run(request())
        one = record()
        assert await store.commit_many([commit(one)]) == [None]
        assert await store.fetch("run", [one.header.key]) == [one]
        (refused,) = await store.commit_many([commit(record(path="b"), token="mallory")])
        assert isinstance(refused, StaleOwner)


async def test_a_reply_that_nobody_asked_for_answers_nothing(server: Address, prefix: str) -> None:
    """Not even when it looks like the reply to a commit, and comes together with one."""
    async with (
        relay_to(server) as relay,
        opened(f"redis://127.0.0.1:{relay.port}", key_prefix=prefix) as store,
    ):
        await store.open_run(request())
        await store.commit_many([commit(record())])
        relay.adds = b":1\r\n"
        assert await store.commit_many([commit(record(path="b"))]) == [None]
        (refused,) = await store.commit_many([commit(record(path="c"), token="mallory")])
        assert isinstance(refused, StaleOwner)

        relay.adds = b":1\r\n"
        claimed = await store.open_run(request("another"))
        assert claimed is not None
        assert claimed.is_new
        (refused,) = await store.commit_many([commit(record("another"), token="mallory")])
        assert isinstance(refused, StaleOwner)


async def test_a_claim_of_a_new_run_is_heard_without_a_stream(server: Address, prefix: str) -> None:
    """Otherwise the connection would be looked at before the next commit, which takes as long."""
    async with opened(server.url, key_prefix=prefix) as store:
        await store.open_run(request())
        await store.commit_many([commit(record())])
        line = store._lines.get().line
        assert isinstance(line, PooledLine)
        for number in range(3):
            await store.open_run(request(f"run-{number}"))
            held = line._at_hand
            assert held is not None
            assert held.is_sound
