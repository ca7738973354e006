"""The clock that a test turns."""

from __future__ import annotations

import asyncio
import threading

import pytest
from pydantic import BaseModel

import stroma
from stroma import FailurePolicy, RunConfig, RunStatus, StromaRunner
from stroma.testing import FakeClock


class Text(BaseModel):
    text: str


def test_it_stands_still_until_it_is_turned() -> None:
    clock = FakeClock(start=1000.0)
    assert (clock.now(), clock.monotonic()) == (1000.0, 0.0)
    clock.advance(2.5)
    assert (clock.now(), clock.monotonic()) == (1002.5, 2.5)


def test_it_does_not_go_back() -> None:
    with pytest.raises(ValueError, match="does not go back"):
        FakeClock().advance(-1)


async def test_sleep_returns_when_it_was_turned_far_enough() -> None:
    clock = FakeClock()
    short, long = asyncio.create_task(clock.sleep(5)), asyncio.create_task(clock.sleep(10))
    await clock.until_asleep(2)
    clock.advance(4)
    await asyncio.sleep(0)
    assert clock.sleepers == 2
    clock.advance(1)
    await short
    assert not long.done()
    clock.advance(100)
    await long
    assert (clock.sleepers, clock.slept) == (0, [5, 10])


async def test_nothing_to_sleep_for_gives_the_loop_a_turn() -> None:
    clock = FakeClock()
    await clock.sleep(0)
    await clock.sleep(-1)
    assert clock.now() == FakeClock().now()


async def test_a_sleeper_that_was_cancelled_is_not_counted() -> None:
    clock = FakeClock()
    task = asyncio.create_task(clock.sleep(5))
    await clock.until_asleep()
    task.cancel()
    await asyncio.wait({task})
    assert clock.sleepers == 0
    clock.advance(10)


def test_it_is_turned_from_another_thread() -> None:
    clock = FakeClock()

    async def body() -> None:
        await clock.sleep(60)

    thread = threading.Thread(target=lambda: asyncio.run(body()))
    thread.start()
    while not clock.sleepers:
        pass
    clock.advance(60)
    thread.join(5)
    assert not thread.is_alive()


def test_a_sleeper_of_a_loop_that_ended_is_forgotten() -> None:
    clock = FakeClock()

    async def body() -> None:
        task = asyncio.create_task(clock.sleep(1))
        await clock.until_asleep()
        del task

    asyncio.run(body())
    clock.advance(2)
    assert clock.sleepers == 0


async def test_retries_take_no_time() -> None:
    clock = FakeClock(auto_advance=True)
    calls = 0

    @stroma.node(policy=FailurePolicy(max_retries=2, base_delay_seconds=30))
    async def flaky(state: Text) -> Text:
        nonlocal calls
        calls += 1
        if calls < 3:
            raise ConnectionError("no line")
        return state

    config = RunConfig(clock=clock, random=lambda: 0.5)
    result = await StromaRunner(config=config).run([flaky], Text(text="x"))
    assert result.status is RunStatus.COMPLETED
    assert len(clock.slept) == 2
    assert clock.monotonic() == sum(clock.slept)
