"""What the kits look at from outside: the log, the world, and the plugins that are installed."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from types import FrameType
from typing import Final

from stroma.plugins import list_plugins

_OUTSIDE: Final = (
    "open",
    "os.system",
    "shutil.",
    "socket.",
    "sqlite3.connect",
    "subprocess.",
    "urllib.",
)
"""Beginnings of the audit events of what touches the world."""


class _Watch(threading.local):
    seen: list[str] | None = None


_watch = _Watch()


@contextmanager
def outside_acts() -> Generator[list[str]]:
    """Collect what this thread does meanwhile to files and the network, and whether it sleeps."""
    _install()
    seen: list[str] = []

    def note_sleep(frame: FrameType, event: str, arg: object) -> None:
        if event == "c_call" and arg is time.sleep:  # audited from Python 3.13 on only
            seen.append("time.sleep")

    before = sys.getprofile()
    _watch.seen = seen
    sys.setprofile(note_sleep)
    try:
        yield seen
    finally:
        sys.setprofile(before)
        _watch.seen = None


@cache
def _install() -> None:
    """Add the one hook of this process: an audit hook is never removed."""
    sys.addaudithook(_note)


def _note(event: str, args: tuple[object, ...]) -> None:
    if _watch.seen is not None and event.startswith(_OUTSIDE):
        _watch.seen.append(event)
    if _unpickled and event == "pickle.find_class":
        for seen in _unpickled:
            seen.append(".".join(map(str, args)))


_unpickled: Final[list[list[str]]] = []


@contextmanager
def unpickled_classes() -> Generator[list[str]]:
    """Collect the classes that are unpickled meanwhile, in any thread: drivers have their own."""
    _install()
    seen: list[str] = []
    _unpickled.append(seen)
    try:
        yield seen
    finally:
        _unpickled.remove(seen)


_collecting: ContextVar[list[str] | None] = ContextVar("stroma_warnings", default=None)


class _Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if _collecting.get() is not self.lines:
            return  # of a run of another clause, that goes on in its thread
        cause = record.exc_info[1] if record.exc_info else None
        text = record.getMessage()
        self.lines.append(text if cause is None else f"{text}: {type(cause).__name__}: {cause}")


@contextmanager
def stroma_warnings() -> Generator[list[str]]:
    """Collect the warnings of `stroma` in this context: what core passes over, it logs."""
    handler, logger = _Lines(), logging.getLogger("stroma")
    logger.addHandler(handler)
    token = _collecting.set(handler.lines)
    try:
        yield handler.lines
    finally:
        _collecting.reset(token)
        logger.removeHandler(handler)


def installed_plugins() -> frozenset[str]:
    """Return the names of all plugins, to switch them off where only one thing is looked at."""
    return frozenset(info.name for info in list_plugins())
