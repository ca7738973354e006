"""What the benchmarks share: the nodes that are run, rows of the table, and how time is taken."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from pydantic import BaseModel

import stroma
from stroma.nodes import NodeLike

NODES = 10


class State(BaseModel):
    """About 200 bytes of JSON."""

    title: str
    body: str
    author: str
    words: int
    score: float


def new_state() -> dict[str, object]:
    return {
        "title": "A page about checkpoints",
        "body": "Each result is recorded before anything that may fail touches it. " + "x" * 30,
        "author": "somebody",
        "words": 12,
        "score": 0.5,
    }


START = State.model_validate(new_state())


async def bare(state: State) -> dict[str, object]:
    return new_state()


def numbered(count: int, payload_bytes: int = 0) -> list[NodeLike]:
    def make(number: int) -> NodeLike:
        @stroma.node(id=f"node-{number}", input=State, output=State)
        async def work(state: State) -> dict[str, object]:
            made = new_state()
            if payload_bytes:
                made["body"] = "x" * payload_bytes
            return made

        return work

    return [make(number) for number in range(count)]


class Row(NamedTuple):
    """One measured row.

    Attributes:
        work: what was done.
        floor: what it takes at the least.
        ours: what it takes with Stroma.
        ratio: how they compare, or the measured value.
        target: what is to be reached, or None where nothing is promised.
        unit: of the ratio.
    """

    work: str
    floor: str
    ours: str
    ratio: float
    target: float | None
    unit: str = "x"

    @property
    def is_reached(self) -> bool:
        return self.target is None or self.ratio <= self.target

    def line(self) -> str:
        row = f"| {self.work} | {self.floor} | {self.ours} | {self.ratio:.2f} {self.unit} "
        if self.target is None:
            return f"{row}| | |"
        verdict = "reached" if self.is_reached else "MISSED"
        return f"{row}| ≤ {self.target:g} {self.unit} | {verdict} |"


class Taken(NamedTuple):
    """What two jobs took, run by turns.

    Attributes:
        floor_seconds: the least that does it.
        our_seconds: Stroma.
        ratio: how they compare.
    """

    floor_seconds: float
    our_seconds: float
    ratio: float


def compared(work: str, taken: Taken, nodes: int, target: float | None) -> Row:
    """Return the row of two jobs that ran this many nodes each."""
    floor, ours = (_microseconds(each / nodes) for each in taken[:2])
    return Row(work, floor, ours, taken.ratio, target)


def _microseconds(seconds: float) -> str:
    micros = seconds * 1e6
    return f"{micros:.0f} µs" if micros >= 100 else f"{micros:.2f} µs"


Timed = Callable[[], Awaitable[None]]


async def quickest(
    rounds: int, floor: Timed, ours: Timed, clock: Callable[[], float] = time.process_time
) -> Taken:
    """Compare the quickest rounds of two jobs, in seconds of the processor."""
    taken = await _by_turns(rounds, floor, ours, clock)
    floor_seconds, our_seconds = map(min, taken)
    return Taken(floor_seconds, our_seconds, our_seconds / floor_seconds)


async def paired(rounds: int, floor: Timed, ours: Timed) -> Taken:
    """Compare the medians of two jobs that wait for something, in seconds of the clock.

    The ratio is the median of those of the rounds: a disk or a machine that becomes slower on the
    way becomes so for both jobs of a round.
    """
    taken = await _by_turns(rounds, floor, ours, time.perf_counter)
    ratios = [
        our_seconds / floor_seconds for floor_seconds, our_seconds in zip(*taken, strict=True)
    ]
    return Taken(*map(statistics.median, taken), statistics.median(ratios))


async def _by_turns(
    rounds: int, floor: Timed, ours: Timed, clock: Callable[[], float]
) -> tuple[list[float], list[float]]:
    """Return what each round took of either job. The one that begins takes turns, too."""
    taken: tuple[list[float], list[float]] = ([], [])
    jobs = [(floor, taken[0]), (ours, taken[1])]
    for _ in range(rounds):
        for job, seconds in jobs:
            gc.collect()
            began = clock()
            await job()
            seconds.append(clock() - began)
        jobs.reverse()
    return taken
