"""Keeps the indexes of runs from growing: entries of runs that have gone, or ended, are removed."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Sequence
from typing import Final, NamedTuple

from stroma_redis._errors import Reply
from stroma_redis._keys import index_score

_EVERY: Final = 32
_AT_ONCE: Final = 2 * _EVERY
_MAX_WAITING: Final = 4 * _AT_ONCE


class Entry(NamedTuple):
    """An entry of an index, as it was seen."""

    run_id: bytes
    score: bytes


class Plan(NamedTuple):
    """What rides on the next claim.

    Attributes:
        asked: entries whose runs may have expired.
        dead: entries of runs that have.
        ended: entries of unfinished runs, of such as have ended.
    """

    asked: list[Entry]
    dead: list[Entry]
    ended: list[Entry]


class Sweep:
    """Rides on claims: each adds one entry to the index at the most, and they look at two each.

    Every 32nd claim samples 64 entries of the sorted set that it writes to. The next claim
    asks whether the runs of the old ones among them exist, and the one after that removes those
    that do not, unless their entry has changed meanwhile. Nobody waits for it. Where runs expire
    as fast as new ones come, about half of the entries are of expired ones at the most.

    In a cluster, where a run that ends cannot take its entry along, that is removed here, too.

    Args:
        ttl_seconds: an entry that is younger is not asked about.
    """

    def __init__(self, ttl_seconds: float) -> None:
        self._ttl_seconds = ttl_seconds
        self._suspects: deque[Entry] = deque(maxlen=_MAX_WAITING)
        self._dead: deque[Entry] = deque(maxlen=_MAX_WAITING)
        self._ended: deque[Entry] = deque(maxlen=_MAX_WAITING)
        self._claims = itertools.count()

    def sample(self) -> int:
        """Return how many entries the next claim is to sample."""
        return 0 if next(self._claims) % _EVERY else _AT_ONCE

    def has_plan(self) -> bool:
        """Say whether there is something to be done beside the next claim."""
        return bool(self._suspects or self._dead or self._ended)

    def plan(self) -> Plan:
        """Return what is to be done beside the next claim, which is then forgotten here."""
        return Plan(_taken(self._suspects), _taken(self._dead), _taken(self._ended))

    def sampled(self, entries: Sequence[bytes], now: float) -> None:
        """Take in run ids and scores by turns, and the time, roughly."""
        for run_id, score in zip(entries[::2], entries[1::2], strict=False):
            if float(score) < index_score(now - self._ttl_seconds):
                self._suspects.append(Entry(run_id, score))

    def answered(self, asked: Sequence[Entry], answers: Sequence[Reply]) -> None:
        """Take in whether the runs of entries exist."""
        for entry, answer in zip(asked, answers, strict=False):
            if answer == 0:
                self._dead.append(entry)

    def ended(self, run_id: str, score: bytes) -> None:
        """Take in the entry that a run had when it had ended."""
        self._ended.append(Entry(run_id.encode(), score))


def _taken(entries: deque[Entry]) -> list[Entry]:
    taken: list[Entry] = []
    while entries and len(taken) < _AT_ONCE:
        try:
            taken.append(entries.popleft())
        except IndexError:  # another thread was faster
            break
    return taken
