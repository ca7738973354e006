"""The side log: what happened, on the disk before the next thing happens, whoever dies then.

A provider's bill, in a file. Workers append a line, in one write that is flushed to the disk,
before and after each paid call, and when they are told that something is recorded.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

Event: TypeAlias = Literal["begun", "answered", "acknowledged", "charged", "ended", "lost", "said"]


class Line(NamedTuple):
    """One thing that happened.

    Attributes:
        number: its place in the log.
        event: "begun" and "answered" around a paid call; "acknowledged" when its result is
            recorded, "charged" when its failed attempt is; "ended" when `run()` returned; "lost"
            when it raised that the run is another worker's; "said" for what a test wants to know.
        pid: of the worker.
        at: seconds since the epoch.
        run: the run.
        path: the node's place, or "".
        call: the call's own id, or "".
        tokens: what the call costs.
        epoch: of the run.
        attempt: of this start, from 1.
        more: whatever else there is to say.
    """

    number: int
    event: Event
    pid: int
    at: float
    run: str
    path: str = ""
    call: str = ""
    tokens: int = 0
    epoch: int = 0
    attempt: int = 0
    more: dict[str, Any] = {}  # noqa: RUF012 - never changed


class SideLog:
    """A file that several processes append to; a line is on the disk when `write` returns.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, event: Event, run: str, **fields: Any) -> None:
        """Append a line."""
        line = {"event": event, "pid": os.getpid(), "at": time.time(), "run": run, **fields}
        os.write(self._file, json.dumps(line).encode() + b"\n")
        os.fdatasync(self._file)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def lines_of(path: Path | str) -> list[Line]:
    """Return what is in a side log, in order; a process that died in a write left no half line."""
    if not Path(path).exists():
        return []
    texts = Path(path).read_text(encoding="utf-8").splitlines()
    return [Line(number, **json.loads(text)) for number, text in enumerate(texts)]
