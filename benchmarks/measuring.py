"""What the benchmarks share: the nodes that are run, rows of the table, and how time is taken."""

from __future__ import annotations

import gc
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


def compared(work: str, seconds: list[float], nodes: int, target: float | None) -> Row:
    """Return the row of two jobs that ran this many nodes each: the least, and Stroma's."""
    floor_us, ours_us = (each / nodes * 1e6 for each in seconds)
    return Row(work, f"{floor_us:.0f} µs", f"{ours_us:.0f} µs", ours_us / floor_us, target)


Timed = Callable[[], Awaitable[None]]


async def quickest(
    rounds: int,
    *jobs: Timed,
    clock: Callable[[], float] = time.process_time,
    of: Callable[[list[float]], float] = min,
) -> list[float]:
    """Return the seconds that each job took, run by turns: the least, or another measure."""
    taken: list[list[float]] = [[] for _ in jobs]
    for _ in range(rounds):
        for job, seconds in zip(jobs, taken, strict=True):
            gc.collect()
            began = clock()
            await job()
            seconds.append(clock() - began)
    return [of(seconds) for seconds in taken]
