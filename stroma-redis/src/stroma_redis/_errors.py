"""What the driver raised, in Stroma's words."""

from __future__ import annotations

import re
from typing import Final, NamedTuple, TypeAlias

from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    ConnectionError,  # noqa: A004
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    ResponseError,
    TimeoutError,  # noqa: A004
)

from stroma.config import mask_passwords
from stroma.errors import OutcomeUnknown, StoreError, StoreUnavailable, StoreUnusable
from stroma_redis._reaching import problem_in_reaching

DRIVER_ERRORS: Final = (RedisError, RedisClusterException, OSError, EOFError)
"""What a driver raises when a server cannot be reached or refuses."""


class Failure(NamedTuple):
    """Stands for a reply that did not come, or that says what went wrong.

    Attributes:
        error: what the driver raised, or the server answered.
        was_sent: the command may have reached the server.
    """

    error: Exception
    was_sent: bool

    @property
    def is_answer(self) -> bool:
        """The server said so, and did nothing."""
        return isinstance(self.error, (ResponseError, *_REFUSED_AT_LOGIN, BusyLoadingError))

    @property
    def is_of_its_key(self) -> bool:
        """Another key may do: this one holds what no store of Stroma keeps there."""
        return self.is_answer and _code_of(self.error) == "WRONGTYPE"


Reply: TypeAlias = object
"""What a server answered, as bytes, numbers, None and lists of them; or a `Failure`."""

_REFUSED_AT_LOGIN: Final = (AuthenticationError, AuthorizationError)
_PASSES: Final = (
    "READONLY",
    "OOM",
    "LOADING",
    "MASTERDOWN",
    "CLUSTERDOWN",
    "TRYAGAIN",
    "BUSY",
    "MISCONF",
    "NOREPLICAS",
)
_NO_CLUSTER: Final = "no cluster"
"""Stands for a word that servers do not have."""
_HINTS: Final = (
    (("READONLY",), "it is a read-only replica: connect to the primary"),
    (("OOM",), "its memory is full: raise maxmemory, or remove runs with purge"),
    (("LOADING",), "it is loading its data"),
    (("MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN"), "a part of it is down"),
    (("MOVED", "ASK", "CROSSSLOT"), "it is a cluster: give the option cluster=True"),
    ((_NO_CLUSTER,), "it is no cluster: leave the option cluster out"),
    (("BUSY",), "another script keeps it busy"),
    (("MISCONF",), "it cannot write its data to disk"),
    (("NOREPLICAS",), "it has too few replicas"),
    (
        ("NOAUTH", "WRONGPASS"),
        "username or password are wrong or missing: correct the options, or the URL",
    ),
    (("NOPERM",), "the user lacks a permission: see the README for what the store needs"),
    (("WRONGTYPE",), "another program keeps something else under this key: use a key_prefix"),
)
_SAYS_NO_CLUSTER: Final = re.compile(
    r"cluster support disabled|unknown command '?`?cluster", re.IGNORECASE
)
_CODES: Final = re.compile(r"\b([A-Z]{3,})\b")
_CLASSES: Final = (
    (ReadOnlyError, "READONLY"),
    (OutOfMemoryError, "OOM"),
    (BusyLoadingError, "LOADING"),
    (NoPermissionError, "NOPERM"),
    (_REFUSED_AT_LOGIN, "WRONGPASS"),
)


def store_error(failure: Failure, address: str, what: str, *, is_write: bool) -> StoreError:
    """Return the error of the store that a failure is, with the driver's as its cause.

    Args:
        failure: what went wrong.
        address: of the server, without a password.
        what: what was attempted, such as "run 'digest-7'"; "" is nothing in particular.
        is_write: the command changes something.
    """
    code = _code_of(failure.error)
    known = [hint for codes, hint in _HINTS if code in codes]
    may_pass = _may_pass(failure.error, code)
    if not failure.was_sent and not failure.is_answer:
        problem = problem_in_reaching(failure.error, address)
        if problem is not None:
            known, may_pass = [problem.hint], problem.may_pass
    said = mask_passwords(str(failure.error)) or type(failure.error).__name__
    subject = f"{what}: {address}" if what else address
    error: StoreError
    if not failure.was_sent or failure.is_answer:
        kind = StoreUnavailable if may_pass else StoreUnusable
        because = known[0] if known else "it could not be reached" if not code else "it refused"
        effect = "nothing was written: " if is_write else ""
        error = kind(f"{subject}: {effect}{because} ({said})")
    elif is_write:
        error = OutcomeUnknown(f"{subject}: no answer: it may have been written ({said})")
    else:
        error = StoreUnavailable(f"{subject}: no answer ({said})")
    error.__cause__ = failure.error
    return error


def unreached(error: Exception) -> Failure:
    """Return the failure of making a connection.

    A client of a cluster wraps what the last node that it asked said, or what kept it from asking.
    """
    while isinstance(error, RedisClusterException):
        inner = error.__cause__ or error.__context__
        if not isinstance(inner, DRIVER_ERRORS):
            break
        error = inner
    return Failure(error, was_sent=False)


def closed(store: object) -> StoreUnusable:
    """Return the error of an operation on a store that was closed."""
    return StoreUnusable(f"{store!r} is closed: make another one")


def _may_pass(error: Exception, code: str) -> bool:
    """Say whether the same command may succeed later."""
    if isinstance(error, _REFUSED_AT_LOGIN):
        return False
    if not isinstance(error, ResponseError):
        return True
    return code in _PASSES or "max number of clients" in str(error)


def _code_of(error: Exception) -> str:
    """Return the word that a server's error begins with, wherever the driver left it.

    redis-py cuts the word off where it has a class for it, and Redis before 7 puts it in the
    middle of what a script raised.
    """
    for classes, code in _CLASSES:
        if isinstance(error, classes):
            return code
    if not isinstance(error, ResponseError):
        return ""
    if (name := type(error).__name__) in _NAMES:
        return _NAMES[name]
    if "unauthenticated" in str(error):  # too many arguments for somebody without a password
        return "NOAUTH"
    if _SAYS_NO_CLUSTER.search(str(error)):
        return _NO_CLUSTER
    known = {code for codes, _ in _HINTS for code in codes}
    words: list[str] = _CODES.findall(str(error))
    return next((word for word in words if word in known), "ERR")


_NAMES: Final = {
    "MasterDownError": "MASTERDOWN",
    "ClusterDownError": "CLUSTERDOWN",
    "TryAgainError": "TRYAGAIN",
    "MovedError": "MOVED",
    "AskError": "ASK",
    "ClusterCrossSlotError": "CROSSSLOT",
}

__all__ = [
    "DRIVER_ERRORS",
    "ConnectionError",
    "Failure",
    "Reply",
    "TimeoutError",
    "closed",
    "store_error",
    "unreached",
]
