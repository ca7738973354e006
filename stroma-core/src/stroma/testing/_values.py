"""What the clauses write: small states, records, requests, and ids that try a store."""

from __future__ import annotations

import datetime as dt
import uuid
from decimal import Decimal
from enum import Enum
from typing import Any, Final

from pydantic import BaseModel

from stroma.cost import NO_USAGE, Usage
from stroma.records import (
    CheckpointRecord,
    Commit,
    OpenRequest,
    RecordHeader,
    RecordKey,
    RecordKind,
    RunRecord,
    RunStatus,
    RunUpdate,
    digest_of,
    unique_id,
)

LONG_SECONDS: Final = 3600.0
"""A lease that no clause outlasts on a real clock."""

HOSTILE_IDS: Final = (
    *("*", "a*", "?", "[ab]", "b", "[", "%", "_", "%2F", "%00", "a%3Ab", "\\", "a\\", "\\*"),
    *(":", "a:b", "::", "/", "//", "a/b", "..", ".", "../a", "~", "-", "--", "|", "#", "&", "+"),
    *(
        "a",
        "A",
        "aa",
        "ab",
        "a b",
        " a",
        "a ",
        " ",
        "  ",
        "\t",
        "\n",
        "a\n",
        "\r\n",
        "\x1f",
        "\x7f",
    ),
    *("'", '"', "'; DROP TABLE runs; --", "{a}", "a{b}c", "${a}", "$1", "{0}", "%s", ":1"),
    *("null", "None", "0", "00", "1", "-1", "1e3", "true", "__proto__", "nan", "\u200b", "\ufeff"),
    *("\N{GRINNING FACE}", "\uffff", "\u00e9", "e\u0301", "\ufb01", "fi", "\u00df", "ss", "\u0130"),
    *("\u212a", "K", "k", "\u2028", "x" * 512, "x" * 511, "x" * 511 + "y", "\u00e9" * 256),
)
"""Patterns, separators, paths, case, spaces, quotes, numbers, forms of Unicode, and length."""

PATTERN_IDS: Final = ("*", "a*", "[ab]", "?", "%", "_", "\\*", "a\\", "..", "/", "A", " ", "\u00e9")
"""Those whose deletion would take others along if they were a pattern or a folded name."""

SPLIT_PAIRS: Final = tuple(
    pair
    for mark in (":", "/", "|", "\x1f", "-", "_", ".", "::", "#", ",", " ", "%3A", "%", "\\", "~")
    for pair in ((f"a{mark}b", "c"), ("a", f"b{mark}c"))
)
"""Run and node ids that are one if they are joined by a mark."""


class Note(BaseModel):
    """A small state."""

    text: str = ""


class Colour(Enum):
    RED = "red"
    GREEN = "green"


class Part(BaseModel):
    """A part of `Everything`."""

    names: list[str] = []
    amounts: dict[str, Decimal] = {}
    inner: Part | None = None


class Everything(BaseModel):
    """A state with most of what JSON can carry."""

    text: str
    count: int
    ratio: float
    is_done: bool
    nothing: str | None
    price: Decimal
    when: dt.datetime
    day: dt.date
    lasted: dt.timedelta
    id: uuid.UUID
    colour: Colour
    pair: tuple[int, str]
    parts: list[Part]


EVERYTHING: Final = Everything(
    text="Gr\u00fc\u00dfe, \u4f60\u597d, \N{GRINNING FACE}\n\t\"quoted\" \\ '%s' {0} \u2028 \x1f",
    count=2**53 + 1,
    ratio=0.1 + 0.2,
    is_done=True,
    nothing=None,
    price=Decimal("0.1000000000000000000000000001"),
    when=dt.datetime(2026, 3, 29, 2, 30, 0, 123456, tzinfo=dt.UTC),
    day=dt.date(2024, 2, 29),
    lasted=dt.timedelta(days=1, microseconds=1),
    id=uuid.UUID(int=7),
    colour=Colour.GREEN,
    pair=(1, "one"),
    parts=[Part(), Part(names=["", "a"], amounts={"x:y": Decimal("1.10")}, inner=Part())],
)


def new_run(run_id: str = "run", **columns: Any) -> RunRecord:
    """Return what a run is created from."""
    return RunRecord(run_id, RunStatus.PENDING, **columns)


def request(
    run_id: str = "run",
    token: str = "alice",
    *,
    lease_seconds: float = LONG_SECONDS,
    must_exist: bool = False,
    reopen: bool = False,
    **columns: Any,
) -> OpenRequest:
    """Return a claim by a worker that is named like its token."""
    new = None if must_exist else new_run(run_id, **columns)
    return OpenRequest(run_id, token, f"worker {token}", int(lease_seconds * 1000), new, reopen)


def record(
    run_id: str = "run",
    path: str = "node",
    *,
    epoch: int = 0,
    kind: RecordKind = "result",
    attempt: int = 0,
    position: int = 0,
    commit_id: str = "",
    payload: bytes = b'{"text":"x"}',
    usage: Usage = NO_USAGE,
    schema_ref: str = "stroma.testing:unregistered",
) -> CheckpointRecord:
    """Return a record as core would make it."""
    header = RecordHeader(
        run_id,
        epoch,
        path,
        kind,
        attempt,
        position,
        commit_id or unique_id(),
        path,
        schema_ref,
        "0123456789abcdef",
        digest_of(payload),
        usage,
        1.5,
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        1_700_000_000.25,
    )
    return CheckpointRecord(header, payload)


def commit(
    *records: CheckpointRecord,
    run_id: str = "",
    token: str = "alice",
    update: RunUpdate | None = None,
) -> Commit:
    """Return a commit of one run."""
    run_id = run_id or (records[0].header.run_id if records else "run")
    return Commit(run_id, token, records, update)


def key(run_id: str = "run", path: str = "node", epoch: int | None = 0) -> RecordKey:
    """Return the key of a result."""
    return RecordKey(run_id, epoch, path)


DONE: Final = RunUpdate(status=RunStatus.COMPLETED, release=True)
