"""What a server says about itself."""

from __future__ import annotations

from typing import Final

from stroma.checkpoint import Durability
from stroma_redis._errors import Reply

OLDEST: Final = (6, 2)
"""ZRANDMEMBER, which keeps the index small, came with Redis 6.2."""


def version_problem(answer: Reply) -> str:
    """Return what is wrong with the version in an answer to INFO, or nothing.

    Valkey says the version of Redis that it is compatible with, 7.2 or later.
    """
    found = _facts(answer).get("redis_version", "")
    numbers = found.split(".")[:2]
    if len(numbers) < len(OLDEST) or not all(number.isdecimal() for number in numbers):
        return ""  # a service that does not say its version
    if tuple(map(int, numbers)) >= OLDEST:
        return ""
    return f"this is Redis {found}, and the store needs Redis 6.2 or later, or Valkey"


def durability_of(persistence: Reply, fsync: Reply) -> Durability:
    """Return what a write survives, from answers to INFO and to CONFIG GET appendfsync.

    Without the append-only file, a write is on disk with the next snapshot, minutes later. What
    a user may not ask counts as the weaker answer.
    """
    if _facts(persistence).get("aof_enabled") != "1":
        return Durability.PROCESS
    policy = _policy(fsync)
    if policy == "always":
        return Durability.FSYNC
    return Durability.PROCESS if policy == "no" else Durability.INTERVAL_FSYNC


def _facts(answer: Reply) -> dict[str, str]:
    if isinstance(answer, dict):  # a cluster client has read it already
        return {_text(name): _text(value) for name, value in answer.items()}
    if not isinstance(answer, bytes):
        return {}
    lines = answer.decode("utf-8", "replace").splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line and line[0] != "#")


def _policy(answer: Reply) -> str:
    if isinstance(answer, dict):  # RESP3, or a cluster client
        return next(map(_text, answer.values()), "")
    return _text(answer[1]) if isinstance(answer, list) and len(answer) > 1 else ""


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
