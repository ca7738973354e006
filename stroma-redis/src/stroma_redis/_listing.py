"""Reads the index of runs in the order that listings promise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

from stroma.records import RunQuery, RunRecord
from stroma.stores.rules import cursor_position, matches
from stroma_redis._codec import run_from
from stroma_redis._keys import SHARDS, Keys

_SLACK_SECONDS: Final = 1.0
"""How far above the time of its run an entry may stand: it is written by the next command."""

_MIN_CHUNK: Final = 16
_MAX_CHUNK: Final = 500


class _Shard:
    """One sorted set, read from the top.

    Attributes:
        frontier: every entry above this score has been read.
        chunk: how many entries to ask for next.
    """

    def __init__(self, key: bytes, frontier: float, chunk: int) -> None:
        self.key = key
        self.frontier = frontier
        self.chunk = chunk
        self.is_exhausted = False

    def range(self) -> tuple[bytes, ...]:
        top = b"+inf" if self.frontier == math.inf else repr(self.frontier).encode()
        options = (b"WITHSCORES", b"LIMIT", b"0", b"%d" % self.chunk)
        return (b"ZREVRANGEBYSCORE", self.key, top, b"-inf", *options)


class Listing:
    """What a query has found so far.

    The score of an entry is never below the time of its run's last update, unless a write was
    lost: it is written right after it, by the same server's clock. So a run may be listed when
    all entries above its time have been read. Entries that are wrong or left over are noted, to
    be put right.

    Args:
        keys: of the store.
        query: which runs.

    Attributes:
        unread: ids of runs that entries name, whose records are to be read next.
        wrong: run id, score that was seen and the right one (None if the run is gone).

    Raises:
        ConfigError: the query's cursor is none.
    """

    def __init__(self, keys: Keys, query: RunQuery) -> None:
        self._query = query
        self._after = cursor_position(query.cursor) if query.cursor else None
        chunk = min(max(_MIN_CHUNK, query.limit // SHARDS * 2), _MAX_CHUNK)
        self._shards = [_Shard(keys.shard(i), self._top(), chunk) for i in range(SHARDS)]
        self._asked: list[_Shard] = []
        self._scores: dict[str, float] = {}
        self._found: list[RunRecord] = []
        self.unread: list[str] = []
        self.wrong: list[tuple[str, float, float | None]] = []

    def _top(self) -> float:
        tops = [math.inf]
        if self._after is not None:
            tops.append(self._after[0] + _SLACK_SECONDS)
        if self._query.updated_before is not None:
            tops.append(self._query.updated_before + _SLACK_SECONDS)
        return min(tops)

    def ranges(self) -> list[tuple[bytes, ...]]:
        """Return the commands that read on; none when enough has been read."""
        wanted = self._query.limit + 1
        enough = self._found[wanted - 1].updated_at if len(self._found) >= wanted else -math.inf
        self._asked = [s for s in self._shards if not s.is_exhausted and s.frontier >= enough]
        return [shard.range() for shard in self._asked]

    def read_ranges(self, answers: Sequence[Any]) -> None:
        """Take in the answers to `ranges`."""
        self.unread = []
        for shard, answer in zip(self._asked, answers, strict=True):
            entries = _entries(answer)
            new = [entry for entry in entries if entry[0] not in self._scores]
            self._scores.update(new)
            self.unread += [run_id for run_id, _ in new]
            if len(entries) < shard.chunk:
                shard.is_exhausted = True
            elif entries[-1][1] == shard.frontier:
                shard.chunk *= 2  # more entries of one score than were asked for
            shard.frontier = entries[-1][1] if entries else -math.inf

    def read_runs(self, rows: Sequence[Any]) -> None:
        """Take in the columns of the runs in `unread`."""
        for run_id, row in zip(self.unread, rows, strict=True):
            score = self._scores[run_id]
            if row[0] is None:
                self.wrong.append((run_id, score, None))
                continue
            run = run_from(run_id, row)
            if run.updated_at != score:
                self.wrong.append((run_id, score, run.updated_at))
            if self._is_asked_for(run):
                self._found.append(run)
        self.unread = []
        self._found.sort(key=lambda run: (-run.updated_at, run.run_id))
        del self._found[self._query.limit + 1 :]

    def _is_asked_for(self, run: RunRecord) -> bool:
        if not matches(self._query, run):
            return False
        if self._after is None:
            return True
        updated_at, run_id = self._after
        return (-run.updated_at, run.run_id) > (-updated_at, run_id)

    def found(self) -> list[RunRecord]:
        """Return the runs in order, one more than the limit if there are so many."""
        return self._found


def _entries(answer: Any) -> list[tuple[str, float]]:
    """Return run ids and scores: in one list by turns (RESP2), or in pairs (RESP3)."""
    if answer and isinstance(answer[0], list):
        return [(run_id.decode(), float(score)) for run_id, score in answer]
    turns = zip(answer[::2], answer[1::2], strict=True)
    return [(run_id.decode(), float(score)) for run_id, score in turns]
