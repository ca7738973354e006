"""Who owns a run: how a worker claims it, and what it calls itself."""

from __future__ import annotations

import functools
import os
import socket
from typing import NamedTuple

from stroma.records import unique_id


class Claim(NamedTuple):
    """A worker's hold on a run.

    Attributes:
        run_id: the run.
        token: the claim's own; "" where the store cannot guard runs.
        lease_ms: milliseconds until the hold lapses unless it is renewed.
    """

    run_id: str
    token: str
    lease_ms: int


def new_claim(run_id: str, lease_seconds: float) -> Claim:
    """Return a claim that no other worker has made."""
    return Claim(run_id, unique_id(), int(lease_seconds * 1000))


@functools.cache
def describe_worker() -> str:
    """Return what people are told about this worker: "process 4711 on host"."""
    return f"process {os.getpid()} on {socket.gethostname()}"


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=describe_worker.cache_clear)
