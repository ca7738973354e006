"""Names of keys and fields: each run in one hash slot, and no two things under one name."""

from __future__ import annotations

import functools
import math
import zlib
from typing import Final, NamedTuple
from urllib.parse import quote

from stroma.records import PLAIN_EPOCH, RecordHeader, RecordKey

SHARDS: Final = 16
"""How many sorted sets an index of runs is spread over, so that a cluster shares its load."""

_RANK_POSITIONS: Final = 1 << 32
"""More than there are positions in a pipeline: one step of epoch outranks them all."""


class Keys(NamedTuple):
    """The keys of one store.

    What stands in braces decides the slot of a key in a cluster. Run ids are percent-encoded
    there, braces and all, so that every id has a key of its own and no id can move it elsewhere.

    Attributes:
        prefix: what all keys begin with.
    """

    prefix: str

    def run(self, run_id: str) -> bytes:
        """Return the key of the hash that holds everything of a run."""
        return _run_key(self.prefix, run_id)

    def index_of(self, run_id: str) -> bytes:
        """Return the key of the sorted set that lists a run."""
        return self.indexes_of(run_id)[0]

    def unfinished_of(self, run_id: str) -> bytes:
        """Return the key of the sorted set that lists a run until it ends."""
        return self.indexes_of(run_id)[1]

    def indexes_of(self, run_id: str) -> tuple[bytes, bytes]:
        """Return both, in the order in which scripts take them."""
        return _index_keys(self.prefix, _shard_of(run_id))

    def shard(self, number: int) -> bytes:
        """Return the key of one of the sorted sets."""
        return f"{self.prefix}:index:{{{number}}}".encode()

    def unfinished(self, number: int) -> bytes:
        """Return the key of one of those of unfinished runs; it is where `shard` is."""
        return f"{self.prefix}:unfinished:{{{number}}}".encode()

    def health(self, nonce: str) -> bytes:
        """Return the key that a health check writes."""
        return f"{self.prefix}:health:{{{nonce}}}".encode()


@functools.lru_cache(maxsize=1024)
def _run_key(prefix: str, run_id: str) -> bytes:
    name = run_id if run_id.isascii() and run_id.isalnum() else quote(run_id, safe="")
    return f"{prefix}:run:{{{name}}}".encode()


@functools.lru_cache(maxsize=1024)
def _index_keys(prefix: str, number: int) -> tuple[bytes, bytes]:
    keys = Keys(prefix)
    return keys.shard(number), keys.unfinished(number)


@functools.lru_cache(maxsize=1024)
def _shard_of(run_id: str) -> int:
    return zlib.crc32(run_id.encode()) % SHARDS


def index_score(updated_at: float) -> float:
    """Return the score of a run in the index of all runs: microseconds, as whole numbers.

    A small sorted set is a list that is searched from its beginning for the place of a new entry.
    There, Redis reads a score that is no whole number from its digits, each time: with a hundred
    entries, that takes forty microseconds.

    Args:
        updated_at: seconds since the epoch.
    """
    micros = updated_at * 1_000_000
    return float(round(micros)) if math.isfinite(micros) else micros


def field_of(header: RecordHeader) -> bytes:
    """Return the name of a record: the path comes last, as it may hold any character."""
    return f"{header[1]}:{header[3]}:{header[4]}:{header[2]}".encode()


def rest_of(key: RecordKey) -> bytes:
    """Return the name of a record without its epoch."""
    return f"{key.kind}:{key.attempt}:{key.path}".encode()


def epoch_of(key: RecordKey) -> bytes:
    """Return the epoch of a record; nothing for the plain record, or else the newest."""
    return b"" if key.epoch is None else str(key.epoch).encode()


def rank_of(header: RecordHeader) -> bytes:
    """Return a number that is highest for the last result, "-" if it can never be that.

    The same order as `stroma.records.last_result`.
    """
    if header.position < 0 or header.kind != "result" or header.epoch == PLAIN_EPOCH:
        return b"-"
    return b"%d" % (header.epoch * _RANK_POSITIONS + header.position)
