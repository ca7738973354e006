"""Reads the installed distributions for entry points of one group."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import Distribution, EntryPoint, distribution, distributions
from typing import NamedTuple


class Found(NamedTuple):
    """An entry point, and whose it is.

    Attributes:
        entry_point: what to load.
        distribution: name of the distribution.
        version: of the distribution.
    """

    entry_point: EntryPoint
    distribution: str
    version: str


def entry_points_of(group: str) -> Iterator[Found]:
    """Yield the entry points of a group.

    This looks at everything that is installed, as nothing else tells, but parses only what
    mentions the group: `importlib.metadata.entry_points` parses all of it, at every import.
    """
    seen = set()
    for candidate in distributions():
        if not _mentions(candidate, group):
            continue
        name, version = _name_and_version(candidate)
        if name.lower() in seen:
            continue
        seen.add(name.lower())
        for entry_point in _first_on_path(candidate, name).entry_points.select(group=group):
            yield Found(entry_point, name, version)


def _mentions(candidate: Distribution, group: str) -> bool:
    try:
        return f"[{group}]" in (candidate.read_text("entry_points.txt") or "")
    except Exception:  # unreadable, and not ours to complain about
        return False


def _name_and_version(candidate: Distribution) -> tuple[str, str]:
    try:
        return candidate.metadata["Name"] or "unknown", candidate.metadata["Version"] or "unknown"
    except Exception:
        return "unknown", "unknown"


def _first_on_path(candidate: Distribution, name: str) -> Distribution:
    """Return the installation that counts when a distribution is on the path twice.

    As for imports that is the first one, and it may have no entry points any more.
    """
    try:
        return distribution(name)
    except Exception:  # it cannot be looked up by its name: take what was found
        return candidate
