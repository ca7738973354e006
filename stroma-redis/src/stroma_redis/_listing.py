"""Reads the indexes of runs in the order that listings promise."""

from __future__ import annotations

import heapq
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

from stroma.errors import RecordCorrupt, StoreError, StoreUnusable
from stroma.records import ClaimQuery, RunQuery, RunRecord, UnreadableRun
from stroma.stores.rules import cursor_position, matches
from stroma_redis import _scripts as scripts
from stroma_redis._codec import run_from, text
from stroma_redis._indexes import Indexes
from stroma_redis._keys import SHARDS, Keys, index_score
from stroma_redis._steps import Args, call

_SLACK: Final = index_score(1.0)
"""How far above the time of its run an entry may stand: it is written by the next command."""

_MIN_CHUNK: Final = 16
_MAX_CHUNK: Final = 500
_COLUMN_NAMES: Final = tuple(name.encode() for name in scripts.COLUMNS)


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

    def range(self) -> Args:
        top = b"+inf" if self.frontier == math.inf else repr(self.frontier).encode()
        options = (b"WITHSCORES", b"LIMIT", b"0", b"%d" % self.chunk)
        return (b"ZREVRANGEBYSCORE", self.key, top, b"-inf", *options)


class Listing(ABC):
    """What a query has found so far.

    Runs have places, and are listed from the highest down. The score of an entry is never below
    the place of its run, unless a write was lost. So a run may be listed when the runs of all
    entries above its place have been looked at. A run may be large, so that no more of them are
    than it takes. Entries that are wrong or left over are put right.

    Args:
        shards: keys of the sorted sets.
        top: the highest score of an entry that may be asked for.
        limit: how many runs are asked for.

    Attributes:
        unreadable: runs whose records cannot be read.
        healing: the commands that put entries right. Nothing depends on their success.
    """

    def __init__(self, shards: Sequence[bytes], top: float, limit: int) -> None:
        self._limit = limit
        chunk = min(max(_MIN_CHUNK, limit // SHARDS * 2), _MAX_CHUNK)
        self._shards = [_Shard(key, top, chunk) for key in shards]
        self._asked: list[_Shard] = []
        self._scores: dict[str, float] = {}
        self._waiting: list[tuple[float, str]] = []
        self._at_once = 0
        self._looked_at: list[str] = []
        self._found: list[RunRecord] = []
        self.unreadable: list[UnreadableRun] = []
        self.healing: list[Args] = []

    @abstractmethod
    def _look(self, run_id: str) -> Args:
        """Return the command that reads what `_read` takes."""

    @abstractmethod
    def _read(self, run_id: str, score: float, answer: Any) -> RunRecord | None:
        """Return the run that an entry names, if it is asked for; have the entry put right.

        Raises:
            RecordCorrupt: the run cannot be read.
            StoreUnusable: a later version wrote it.
        """

    @abstractmethod
    def _place(self, run: RunRecord) -> float:
        """Return the score that the entry of a run should have."""

    def ranges(self) -> list[Args]:
        """Return the commands that read entries; none when those to look at next are known."""
        lowest = self._lowest()
        self._asked = [s for s in self._shards if not s.is_exhausted and s.frontier >= lowest]
        return [shard.range() for shard in self._asked]

    def _lowest(self) -> float:
        """Return the lowest score of the entries whose runs are to be looked at next."""
        missing = self._limit + 1 - len(self._found)
        if missing <= 0:
            return self._place(self._found[-1])
        at_once = max(missing, self._at_once)
        if len(self._waiting) < at_once:
            return -math.inf
        return -heapq.nsmallest(at_once, self._waiting)[-1][0]

    def read_ranges(self, answers: Sequence[Any]) -> None:
        """Take in the answers to `ranges`."""
        for shard, answer in zip(self._asked, answers, strict=True):
            entries = _entries(answer)
            new = [entry for entry in entries if entry[0] not in self._scores]
            self._scores.update(new)
            for run_id, score in new:
                heapq.heappush(self._waiting, (-score, run_id))
            if len(entries) < shard.chunk:
                shard.is_exhausted = True
            elif entries[-1][1] == shard.frontier:
                shard.chunk *= 2  # more entries of one score than were asked for
            shard.frontier = entries[-1][1] if entries else -math.inf

    def looks(self) -> list[tuple[str, Args]]:
        """Return ids of runs, and the commands that read them; none when enough has been read."""
        lowest = self._lowest()
        self._looked_at = []
        while self._waiting and -self._waiting[0][0] >= lowest:
            self._looked_at.append(heapq.heappop(self._waiting)[1])
        # Where few runs are asked for, or entries are wrong, there are more at once each time.
        self._at_once = min(2 * max(self._at_once, len(self._looked_at)), _MAX_CHUNK)
        return [(run_id, self._look(run_id)) for run_id in self._looked_at]

    def read_runs(self, answers: Sequence[Any]) -> None:
        """Take in what the server answered to `looks`, or why it did not."""
        for run_id, answer in zip(self._looked_at, answers, strict=True):
            try:
                run = self._read(run_id, self._scores[run_id], answer)
            except (RecordCorrupt, StoreUnusable) as exc:  # it hides no other run
                self.unreadable.append(UnreadableRun(run_id, exc))
                continue
            if run is not None:
                self._found.append(run)
        self._found.sort(key=self._order)
        del self._found[self._limit + 1 :]

    def _order(self, run: RunRecord) -> tuple[float, str]:
        return -self._place(run), run.run_id

    def found(self) -> list[RunRecord]:
        """Return the runs in order, one more than the limit if there are so many."""
        return self._found


class RunListing(Listing):
    """Runs by the time of their last update, the newest first.

    Args:
        keys: of the store.
        indexes: of the store.
        query: which runs.

    Raises:
        ConfigError: the query's cursor is none.
    """

    def __init__(self, keys: Keys, indexes: Indexes, query: RunQuery) -> None:
        self._keys, self._indexes, self._query = keys, indexes, query
        self._after = cursor_position(query.cursor) if query.cursor else None
        shards = [keys.shard(i) for i in range(SHARDS)]
        super().__init__(shards, self._top(), query.limit)

    def _top(self) -> float:
        tops = [math.inf]
        if self._after is not None:
            tops.append(index_score(self._after[0]) + _SLACK)
        if self._query.updated_before is not None:
            tops.append(index_score(self._query.updated_before) + _SLACK)
        return min(tops)

    def _look(self, run_id: str) -> Args:
        return (b"HMGET", self._keys.run(run_id), *_COLUMN_NAMES)

    def _read(self, run_id: str, score: float, answer: Any) -> RunRecord | None:
        if isinstance(answer, list) and answer[0] is None:
            self.healing.append(self._indexes.heal(run_id, score, None))
            return None
        run = _run(run_id, answer)
        if self._place(run) != score:
            self.healing.append(self._indexes.heal(run_id, score, self._place(run)))
        return run if self._is_asked_for(run) else None

    def _is_asked_for(self, run: RunRecord) -> bool:
        if not matches(self._query, run):
            return False
        if self._after is None:
            return True
        updated_at, run_id = self._after
        return self._order(run) > (-index_score(updated_at), run_id)

    def _place(self, run: RunRecord) -> float:
        return index_score(run.updated_at)


class ClaimListing(Listing):
    """Runs that a worker may take up, the first created first.

    Each run is judged by a script where it is: by the clock that its lease was written by. Pages
    after the first begin at their cursor, and miss an entry whose run's time is not known yet:
    the first has put these right, and one that came since is of a run that was claimed since.

    Args:
        keys: of the store.
        indexes: of the store.
        query: which runs.

    Raises:
        ConfigError: the query's cursor is none.
    """

    def __init__(self, keys: Keys, indexes: Indexes, query: ClaimQuery) -> None:
        self._keys, self._indexes = keys, indexes
        self._pipelines = tuple(text(name) for name in query.pipelines)
        self._after = cursor_position(query.cursor) if query.cursor else None
        shards = [keys.unfinished(i) for i in range(SHARDS)]
        super().__init__(shards, -self._after[0] if self._after else math.inf, query.limit)

    def _look(self, run_id: str) -> Args:
        return call(scripts.CLAIMABLE, (self._keys.run(run_id),), *self._pipelines)

    def _read(self, run_id: str, score: float, answer: Any) -> RunRecord | None:
        if answer is None:
            self.healing.append(self._indexes.settle(run_id, score, None))
            return None
        if isinstance(answer, bytes):
            with suppress(ValueError):  # of a damaged one, which is told when it is asked for
                self._settle(run_id, score, float(answer))
            return None
        run = _run(run_id, answer)
        self._settle(run_id, score, run.created_at)
        is_on_an_earlier_page = self._after is not None and self._order(run) <= self._after
        return None if is_on_an_earlier_page else run

    def _settle(self, run_id: str, score: float, created_at: float) -> None:
        if -created_at != score:
            self.healing.append(self._indexes.settle(run_id, score, -created_at))

    def _place(self, run: RunRecord) -> float:
        return -run.created_at


def _run(run_id: str, answer: Any) -> RunRecord:
    """Return a run of its columns.

    Raises:
        RecordCorrupt: they cannot be read, or the key holds something else.
        StoreUnusable: a later version wrote them.
    """
    if isinstance(answer, StoreError):
        raise answer
    return run_from(run_id, answer)


def _entries(answer: Any) -> list[tuple[str, float]]:
    """Return run ids and scores: in one list by turns (RESP2), or in pairs (RESP3)."""
    if answer and isinstance(answer[0], list):
        return [(run_id.decode(), float(score)) for run_id, score in answer]
    turns = zip(answer[::2], answer[1::2], strict=True)
    return [(run_id.decode(), float(score)) for run_id, score in turns]
