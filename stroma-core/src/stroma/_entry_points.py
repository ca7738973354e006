"""Reads the installed distributions for entry points of one group."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from importlib.machinery import PathFinder
from importlib.metadata import (
    Distribution,
    DistributionFinder,
    EntryPoint,
    PathDistribution,
    distribution,
)
from pathlib import Path
from typing import Final, NamedTuple

_ENDINGS: Final = (".dist-info", ".egg-info")
Context = DistributionFinder.Context


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
    for candidate in _candidates(f"[{group}]"):
        if not _mentions(candidate, group):
            continue
        name, version = _name_and_version(candidate)
        if name.lower() in seen:
            continue
        seen.add(name.lower())
        for entry_point in _first_on_path(candidate, name).entry_points.select(group=group):
            yield Found(entry_point, name, version)


def _candidates(section: str) -> Iterator[Distribution]:
    """Yield the distributions whose entry points may have a section.

    Folders on the path, where nearly everything is, are read here: `importlib.metadata` takes
    six times as long. It reads all else: archives, eggs, and what other finders know of.
    """
    for finder in sys.meta_path:
        if finder is PathFinder:
            for entry in sys.path:
                yield from _on_path(entry, section)
        elif find := getattr(finder, "find_distributions", None):
            yield from find(Context())


def _on_path(entry: str, section: str) -> Iterator[Distribution]:
    if entry.endswith(".egg") or not Path(entry).is_dir():
        yield from PathFinder.find_distributions(Context(path=[entry]))
        return
    with os.scandir(entry or ".") as inside:
        places = [each.path for each in inside if each.name.lower().endswith(_ENDINGS)]
    for place in places:
        if _holds(f"{place}/entry_points.txt", section):
            yield PathDistribution(Path(place))


def _holds(path: str, section: str) -> bool:
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - a Path for each would take as long again
            return section.encode() in file.read()
    except OSError:  # there is none, or it is unreadable, and not ours to complain about
        return False


def _mentions(candidate: Distribution, group: str) -> bool:
    try:
        return f"[{group}]" in (candidate.read_text("entry_points.txt") or "")
    except Exception:  # unreadable, and not ours to complain about
        return False


def _name_and_version(candidate: Distribution) -> tuple[str, str]:
    """Return what the head of the metadata says; parsing all of it loads a parser of mail."""
    try:
        text = candidate.read_text("METADATA") or candidate.read_text("PKG-INFO") or ""
    except Exception:
        text = ""
    lines = text.partition("\n\n")[0].splitlines()
    head = {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return head.get("Name") or "unknown", head.get("Version") or "unknown"


def _first_on_path(candidate: Distribution, name: str) -> Distribution:
    """Return the installation that counts when a distribution is on the path twice.

    As for imports that is the first one, and it may have no entry points any more.
    """
    try:
        return distribution(name)
    except Exception:  # it cannot be looked up by its name: take what was found
        return candidate
