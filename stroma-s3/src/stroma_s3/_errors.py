"""What botocore raises, as Stroma's errors: what was surely not done, and what nobody knows."""

from __future__ import annotations

from enum import Enum
from typing import Final

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    HTTPClientError,
    IncompleteReadError,
    ProxyConnectionError,
    SSLError,
)
from botocore.exceptions import ConnectionError as BotoConnectionError

from stroma.config import mask_passwords
from stroma.errors import (
    OutcomeUnknown,
    RecordTooLarge,
    StoreError,
    StoreUnavailable,
    StoreUnusable,
)


class Verdict(Enum):
    """What a failed request means."""

    TAKEN = "the object is there already"
    MISSING = "there is no such object"
    REFUSED = "not done, and trying again may help"
    UNKNOWN = "nobody knows whether it was done"
    UNUSABLE = "not done, and trying again does not help"
    TOO_LARGE = "not done: the object is too large"


# Codes: Amazon S3 API Reference, "Error responses".
_BY_CODE: Final = {
    "PreconditionFailed": Verdict.TAKEN,
    "NoSuchKey": Verdict.MISSING,
    "InvalidRange": Verdict.MISSING,  # the object ends before what is asked for
    "NoSuchBucket": Verdict.UNUSABLE,
    "EntityTooLarge": Verdict.TOO_LARGE,
    "MaxMessageLengthExceeded": Verdict.TOO_LARGE,
    "ConditionalRequestConflict": Verdict.REFUSED,
    "OperationAborted": Verdict.REFUSED,
    "SlowDown": Verdict.REFUSED,
    "ServiceUnavailable": Verdict.REFUSED,
    "Throttling": Verdict.REFUSED,
    "ThrottlingException": Verdict.REFUSED,
    "RequestLimitExceeded": Verdict.REFUSED,
    "TooManyRequests": Verdict.REFUSED,
    "RequestTimeout": Verdict.REFUSED,  # the body did not come in time
    # The body was damaged on its way, or did not come whole.
    "BadDigest": Verdict.REFUSED,
    "XAmzContentSHA256Mismatch": Verdict.REFUSED,
    "IncompleteBody": Verdict.REFUSED,
    "RequestTimeTooSkewed": Verdict.UNUSABLE,
}
_BY_STATUS: Final = {
    404: Verdict.MISSING,
    408: Verdict.REFUSED,
    409: Verdict.REFUSED,
    412: Verdict.TAKEN,
    413: Verdict.TOO_LARGE,
    429: Verdict.REFUSED,
    501: Verdict.UNUSABLE,
    503: Verdict.REFUSED,
}
_NEVER_SENT: Final = (EndpointConnectionError, ConnectTimeoutError, ProxyConnectionError, SSLError)


def verdict_of(exc: Exception) -> Verdict:
    """Return what the failure of a request means for a write."""
    if isinstance(exc, ClientError):
        return _verdict_of_answer(exc)
    if isinstance(exc, _NEVER_SENT):
        return Verdict.REFUSED
    if isinstance(exc, (HTTPClientError, BotoConnectionError, IncompleteReadError, OSError)):
        return Verdict.UNKNOWN
    return Verdict.UNUSABLE


def _verdict_of_answer(exc: ClientError) -> Verdict:
    found = _BY_CODE.get(code_of(exc))
    if found is not None:
        return found
    status = status_of(exc)
    if status in _BY_STATUS:
        return _BY_STATUS[status]
    return Verdict.UNKNOWN if status >= 500 or status == 0 else Verdict.UNUSABLE


def code_of(exc: ClientError) -> str:
    """Return the code of an error answer, such as "NoSuchKey"."""
    return str(exc.response.get("Error", {}).get("Code", ""))


def status_of(exc: ClientError) -> int:
    """Return the HTTP status of an error answer; 0 if there is none."""
    return int(exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def store_error(exc: Exception, verdict: Verdict, what: str, *, is_write: bool) -> StoreError:
    """Return the error that a request which failed for good is told by; its cause is set.

    Args:
        exc: what botocore raised last.
        verdict: what it means.
        what: the request, such as "run 'r': reading s3://bucket/key".
        is_write: nothing is unknown about what only reads.
    """
    kind, advice = _TOLD_BY[verdict]
    if not is_write and verdict in {Verdict.UNKNOWN, Verdict.REFUSED}:
        kind, advice = StoreUnavailable, "try again"
    error = kind(f"{what}: {in_words(exc)}; {advice}")
    error.__cause__ = exc
    return error


_TOLD_BY: Final[dict[Verdict, tuple[type[StoreError], str]]] = {
    Verdict.TAKEN: (StoreUnusable, "the server should not have compared anything"),
    Verdict.MISSING: (StoreUnusable, "check the bucket and the endpoint"),
    Verdict.REFUSED: (StoreUnavailable, "nothing was written: try again"),
    Verdict.UNKNOWN: (OutcomeUnknown, "it may have been done: read back before deciding"),
    Verdict.UNUSABLE: (
        StoreUnusable,
        "check the bucket, the endpoint, the region, the credentials and what they may do",
    ),
    Verdict.TOO_LARGE: (RecordTooLarge, "return less, or a reference to it"),
}


def in_words(exc: Exception) -> str:
    """Return what the server or botocore said, in one line without secrets."""
    if isinstance(exc, ClientError):
        said = str(exc.response.get("Error", {}).get("Message", "")).strip().rstrip(".")
        text = f"the server answered {status_of(exc)} {code_of(exc)} ({said})"
    elif isinstance(exc, BotoCoreError):
        text = str(exc).strip().rstrip(".")
    else:
        text = f"{type(exc).__name__}: {exc}"
    return mask_passwords(" ".join(text.split()))
