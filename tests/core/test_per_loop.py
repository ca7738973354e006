"""Clients of servers: one for each event loop, none inherited by a fork."""

from __future__ import annotations

import asyncio
import threading

import pytest

from stroma.per_loop import PerLoop
from tests.core.stores.support import in_child


class Client:
    def __init__(self) -> None:
        self.closed_in: asyncio.AbstractEventLoop | None = None
        self.is_abandoned = False

    async def close(self) -> None:
        self.closed_in = asyncio.get_running_loop()

    def abandon(self) -> None:
        self.is_abandoned = True


def clients() -> PerLoop[Client]:
    return PerLoop(Client, Client.close, Client.abandon)


async def test_a_loop_has_one() -> None:
    kept = clients()
    assert kept.get() is kept.get()


def test_each_loop_has_its_own_and_that_of_a_closed_loop_is_let_go() -> None:
    kept = clients()

    async def ask() -> Client:
        return kept.get()

    first, second = asyncio.run(ask()), asyncio.run(ask())
    assert first is not second
    assert (first.is_abandoned, second.is_abandoned) == (True, False)


def test_outside_of_a_loop_there_is_none() -> None:
    with pytest.raises(RuntimeError):
        clients().get()


async def test_what_is_closed_is_closed_in_its_own_loop() -> None:
    kept, mine = clients(), asyncio.Event()
    here, theirs = asyncio.get_running_loop(), []

    async def elsewhere() -> None:
        client = kept.get()
        theirs.append((client, asyncio.get_running_loop()))
        here.call_soon_threadsafe(mine.set)
        while client.closed_in is None:
            await asyncio.sleep(0.001)

    thread = threading.Thread(target=asyncio.run, args=(elsewhere(),))
    thread.start()
    await mine.wait()
    own = kept.get()
    await kept.aclose()
    await asyncio.to_thread(thread.join)
    ((client, loop),) = theirs
    assert own.closed_in is here
    assert client.closed_in is loop
    assert kept.is_closed


async def test_what_is_discarded_is_made_anew() -> None:
    kept = clients()
    first = kept.get()
    assert kept.discard(first)
    assert not kept.discard(first)
    assert kept.get() is not first
    assert first.closed_in is None


def test_a_forked_process_makes_its_own_and_leaves_the_parents_alone() -> None:
    kept = clients()

    async def ask() -> Client:
        return kept.get()

    with asyncio.Runner() as runner:
        before = runner.run(ask())

        def in_the_child() -> str:
            after = asyncio.run(ask())
            return f"{after is before} {before.is_abandoned} {before.closed_in}"

        assert in_child(in_the_child).read() == "False False None"
        assert runner.run(ask()) is before
