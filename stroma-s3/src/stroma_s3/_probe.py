"""What the server makes of conditional writes: tried once, and written down in the bucket."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final

from botocore.exceptions import ClientError

from stroma.errors import StoreUnusable
from stroma.records import unique_id
from stroma_s3._client import Bucket, Conditional
from stroma_s3._documents import FORMAT
from stroma_s3._errors import status_of
from stroma_s3._keys import Keys
from stroma_s3._race import race

ROUNDS: Final = 3
WRITERS: Final = 6
"""Swift's interface shows its race in the first round: its requests stand open side by side."""

_ENDPOINTS: Final = 20
"""A bucket may have several addresses; so many are written down."""

_ABOUT: Final = "setup"


def setup(bucket: Bucket, keys: Keys) -> Conditional:
    """Return what the server makes of conditional writes.

    That they are atomic is written down in the bucket, so that the next process asks one
    question and not some twenty. Any other finding is looked into again.

    Raises:
        StoreUnusable: a newer version wrote what is there, or the bucket cannot be used.
    """
    stored = bucket.get(keys.marker, _ABOUT)
    atomic_at = [] if stored is None else _known_atomic(stored, bucket, keys)
    if bucket.endpoint in atomic_at:
        return Conditional.ATOMIC
    found = probe(bucket, keys)
    if found is Conditional.ATOMIC:
        atomic_at = [*atomic_at, bucket.endpoint][-_ENDPOINTS:]
    members = {"format": FORMAT, "atomic_at": atomic_at}
    bucket.put(keys.marker, json.dumps(members).encode(), _ABOUT)
    return found


def _known_atomic(stored: bytes, bucket: Bucket, keys: Keys) -> list[str]:
    """Return the addresses where conditional writes were found to be atomic."""
    try:
        members = json.loads(stored)
        written_as, endpoints = int(members["format"]), list(map(str, members["atomic_at"]))
    except (ValueError, KeyError, TypeError) as exc:
        raise StoreUnusable(
            f"{bucket.url(keys.marker)} was not written by stroma-s3: choose another prefix"
        ) from exc
    if written_as > FORMAT:
        raise StoreUnusable(
            f"{bucket.url(keys.marker)} has format {written_as}, and this version reads {FORMAT}: "
            "install a newer stroma-s3"
        )
    return endpoints


def probe(bucket: Bucket, keys: Keys) -> Conditional:
    """Return what the server makes of conditional writes, by trying; nothing is left behind."""
    name = unique_id()
    tried = [keys.probe(f"{name}.{number}") for number in range(ROUNDS + 1)]
    try:
        if not _refuses_a_second(bucket, tried[0]):
            return Conditional.ABSENT
        return _verdict(bucket, tried[1:])
    finally:
        bucket.delete(tried, _ABOUT)


def _refuses_a_second(bucket: Bucket, key: str) -> bool:
    try:
        return bucket.put_new(key, b"first", _ABOUT) and not bucket.put_new(key, b"2", _ABOUT)
    except StoreUnusable as exc:
        if isinstance(exc.__cause__, ClientError) and status_of(exc.__cause__) in {400, 501}:
            return False  # the server says that it does not know the header
        raise


def _verdict(bucket: Bucket, keys: Sequence[str]) -> Conditional:
    bodies = [b"writer %d" % number for number in range(WRITERS)]
    found = Conditional.RACY
    for key in keys:
        won = race(bucket, key, bodies, _ABOUT)
        winners = [body for body, is_winner in zip(bodies, won, strict=True) if is_winner]
        if not winners:
            continue  # the winner's answer was lost, which proves nothing
        if winners != [bucket.get(key, _ABOUT)]:
            return Conditional.RACY
        found = Conditional.ATOMIC
    return found
