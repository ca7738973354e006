"""The pipelines of the golden files: what wrote them, and what continues them."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter

from pydantic import BaseModel

import stroma
from stroma import FailurePolicy, Pipeline, fan_out, parallel

ONCE = FailurePolicy(max_retries=0)

calls: Counter[str] = Counter()
is_up = False
"""Whether the site is there that some nodes need."""


class Part(BaseModel):
    number: int


class Topic(BaseModel):
    name: str
    parts: list[Part] = []


class Notes(BaseModel):
    text: str


class Count(BaseModel):
    n: int


class Mended(BaseModel):
    n: int | str


class Length(BaseModel):
    length: int


class Lines(BaseModel):
    lines: list[str]


@stroma.node
async def research(topic: Topic) -> tuple[Notes, int, int, str]:
    calls["research"] += 1
    return Notes(text=f"{topic.name} is wide: ü"), 1200, 300, "gpt-4o"


@stroma.node(policy=ONCE)
async def draft(notes: Notes) -> tuple[Notes, int, int, str]:
    calls["draft"] += 1
    stroma.report_usage(input_tokens=50, output_tokens=5, model="gpt-4o")
    if not is_up:
        raise TimeoutError("the site is down")
    return Notes(text=notes.text + ", and deep"), 100, 20, "gpt-4o"


@stroma.node
async def publish(notes: Notes) -> Notes:
    calls["publish"] += 1
    return notes


@stroma.node
async def die(notes: Notes) -> Notes:
    calls["die"] += 1
    if not is_up:
        os.kill(os.getpid(), signal.SIGKILL)
    return notes


@stroma.node(id="count")
async def count_words(topic: Topic) -> Count:
    calls["count"] += 1
    return {"n": "many"}  # type: ignore[return-value]


@stroma.node(id="count")
async def count_mended(topic: Topic) -> Mended:
    calls["count"] += 1
    return Mended(n=0)


@stroma.node
async def measure(topic: Topic) -> tuple[Length, int]:
    calls["measure"] += 1
    return Length(length=len(topic.name)), 7


@stroma.node(policy=ONCE)
async def take(part: Part) -> tuple[Part, int]:
    calls[f"take {part.number}"] += 1
    if part.number > 1 and not is_up:
        await asyncio.sleep(0.2)  # so that the first ones are recorded
        raise TimeoutError("the site is down")
    return Part(number=part.number * 10), 3


@stroma.node(id="research")
async def research_lines(topic: Topic) -> Lines:
    calls["research"] += 1
    return Lines(lines=[])


@stroma.node(id="draft")
async def draft_lines(lines: Lines) -> Lines:
    calls["draft"] += 1
    return lines


report = Pipeline("report", [research, draft, publish], version="1")
short = Pipeline("short", [research, publish], version="1")
killed = Pipeline("killed", [research, die, publish], version="1")
counted = Pipeline("counted", [count_words], version="1")
mended = Pipeline("counted", [count_mended], version="2")
nested = Pipeline(
    "nested",
    [parallel(measure, fan_out(take, over="parts", into="taken", input=Topic, max_concurrency=2))],
    version="1",
)
lined = Pipeline(
    "report",
    [research_lines, draft_lines],
    version="2",
    upcasters={"research": lambda state: {"lines": [state["text"]]}},
)

SEA = Topic(name="The sea", parts=[Part(number=n) for n in range(4)])
