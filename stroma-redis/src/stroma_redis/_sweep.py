"""Keeps the index of runs from growing: entries of runs that have expired, found by sampling."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Sequence
from typing import Final, NamedTuple

from stroma_redis import _scripts as scripts
from stroma_redis._errors import Reply
from stroma_redis._keys import Keys

_EVERY: Final = 8
_AT_ONCE: Final = 2 * _EVERY
_MAX_WAITING: Final = 64


class Entry(NamedTuple):
    """An entry of the index, as it was seen."""

    run_id: bytes
    score: bytes


class Sweep:
    """Rides on claims: each adds one entry to the index at the most, and they look at two each.

    Every eighth claim samples sixteen entries of the sorted set that it writes to. The next claim
    asks whether the runs of the old ones among them exist, and the one after that removes those
    that do not, unless their entry has changed meanwhile. Nobody waits for it. Where runs expire
    as fast as new ones come, about half of the entries are of expired ones at the most.

    Args:
        ttl_seconds: an entry that is younger is not asked about.
    """

    def __init__(self, ttl_seconds: float) -> None:
        self._ttl_seconds = ttl_seconds
        self._suspects: deque[Entry] = deque(maxlen=_MAX_WAITING)
        self._dead: deque[Entry] = deque(maxlen=_MAX_WAITING)
        self._claims = itertools.count()

    def sample(self) -> int:
        """Return how many entries the next claim is to sample."""
        return 0 if next(self._claims) % _EVERY else _AT_ONCE

    def plan(self, keys: Keys) -> tuple[list[Entry], list[tuple[bytes, ...]]]:
        """Return the entries to ask about, and the commands: these questions come first."""
        if not self._suspects and not self._dead:
            return [], []
        asked = _taken(self._suspects)
        commands: list[tuple[bytes, ...]] = [
            (b"EXISTS", keys.run(entry.run_id.decode())) for entry in asked
        ]
        for run_id, score in _taken(self._dead):
            shard = keys.index_of(run_id.decode())
            commands.append((b"EVALSHA", scripts.HEAL.sha, b"1", shard, run_id, score, b""))
        return asked, commands

    def learn(
        self, sampled: Reply, asked: Sequence[Entry], answers: Sequence[Reply], now: float
    ) -> None:
        """Take in what a claim sampled, and the answers to what `plan` asked.

        Args:
            sampled: run ids and scores by turns, or a failure.
            asked: the entries that were asked about.
            answers: to all of the plan's commands.
            now: seconds since the epoch, roughly.
        """
        for entry, answer in zip(asked, answers, strict=False):
            if answer == 0:
                self._dead.append(entry)
        if not isinstance(sampled, list):
            return
        for run_id, score in zip(sampled[::2], sampled[1::2], strict=False):
            if float(score) < now - self._ttl_seconds:
                self._suspects.append(Entry(run_id, score))


def _taken(entries: deque[Entry]) -> list[Entry]:
    taken: list[Entry] = []
    while len(taken) < _AT_ONCE:
        try:
            taken.append(entries.popleft())
        except IndexError:  # another thread was faster
            break
    return taken
