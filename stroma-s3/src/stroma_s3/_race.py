"""Writes one object from several threads at a time, so that a server shows what it makes of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Final

from stroma.records import unique_id
from stroma_s3._client import Bucket

_BEGIN_SECONDS: Final = 2.0
"""How long the requests may take to begin: a server that takes one after the other lets one."""

_HELD_SECONDS: Final = 0.1
"""How long all of them stand open, for the server to look at each while there is no object yet."""

_EVENT: Final = "before-send.s3.PutObject"


def race(bucket: Bucket, key: str, bodies: Sequence[bytes], about: str) -> list[bool]:
    """Write an object by as many requests as there are bodies, if there is none with this key.

    Each request is sent but for the last byte of its body. When all have begun, they stand open
    for a moment, and then they end. Without that, a quick server may answer one after the other.

    Returns:
        Which of them succeeded.
    """
    together = threading.Barrier(len(bodies))
    racing = set[int]()

    def hold(request: Any, **_: object) -> None:
        if threading.get_ident() in racing:  # a ready client may be at other work, too
            body = request.body
            request.body = _held(body if isinstance(body, bytes) else body.read(), together)

    def write(body: bytes) -> bool:
        racing.add(threading.get_ident())
        return bucket.put_new(key, body, about)

    name = unique_id()
    bucket.events.register(_EVENT, hold, unique_id=name)
    try:
        with ThreadPoolExecutor(len(bodies), "stroma-s3-race") as threads:
            return list(threads.map(write, bodies))
    finally:
        bucket.events.unregister(_EVENT, unique_id=name)


def _held(body: bytes, together: threading.Barrier) -> Iterator[bytes]:
    yield body[:-1]
    with suppress(threading.BrokenBarrierError):  # they do not come together: go on alone
        together.wait(_BEGIN_SECONDS)
        time.sleep(_HELD_SECONDS)
    yield body[-1:]
