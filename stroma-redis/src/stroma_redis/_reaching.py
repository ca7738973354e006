"""What is wrong with how a server is reached, where that can be told from an outage."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from typing import Final, NamedTuple

from redis.exceptions import TimeoutError as DriverTimeout


class Problem(NamedTuple):
    """Why there is no connection.

    Attributes:
        hint: what is wrong, and what to do next.
        may_pass: it may as well be an outage.
    """

    hint: str
    may_pass: bool


def problem_in_reaching(error: Exception, address: str) -> Problem | None:
    """Return what kept a connection from being made, or None if nothing is known of it.

    A server without TLS waits for the end of the line that it takes a handshake for, and one
    that speaks only TLS closes what begins otherwise, as a server does that stops. Neither is
    proof. What is answered without TLS is. That a server wants a certificate of its client often
    gets lost, as it closes the connection at once.

    Args:
        error: what the driver raised.
        address: of the server; its scheme says whether TLS was spoken.
    """
    causes = list(_causes(error))
    for cause in causes:
        hint = _hint_of_tls(cause)
        if hint:
            return Problem(hint, may_pass=False)
    if address.startswith("rediss://"):
        if any(isinstance(cause, FileNotFoundError) for cause in causes):
            return Problem(_FILES, may_pass=False)
        if any(isinstance(cause, TimeoutError | DriverTimeout) for cause in causes):
            hint = "it could not be reached by TLS: if it speaks none, write redis:// in the URL"
            return Problem(hint, may_pass=True)
    if any(map(_is_broken_off, causes)):
        for scheme, hint in _BROKEN_OFF.items():
            if address.startswith(scheme):
                return Problem(f"it broke the connection off: {hint}", may_pass=True)
    return None


_ENDS: Final = (
    ConnectionResetError,
    BrokenPipeError,
    EOFError,
    ssl.SSLEOFError,
    ssl.SSLZeroReturnError,
)
_BROKEN_OFF: Final = {
    "redis://": "if it speaks only TLS, write rediss:// in the URL",
    "rediss://": "if it wants a certificate of this client, see ssl_certfile and ssl_keyfile",
}
_FILES: Final = (
    "a file that ssl_ca_certs, ssl_certfile or ssl_keyfile names is missing or of no use"
)


def _hint_of_tls(cause: BaseException) -> str:
    if isinstance(cause, ssl.SSLCertVerificationError):
        return (
            "its certificate is not accepted: correct the host in the URL, or name who signed it "
            "with ssl_ca_certs"
        )
    if not isinstance(cause, ssl.SSLError):
        return ""
    reason = cause.reason or ""
    if reason == "WRONG_VERSION_NUMBER":
        return (
            "it does not speak TLS here: write redis:// in the URL, or the port that it has for TLS"
        )
    if "ALERT" in reason and ("CERTIFICATE" in reason or "UNKNOWN_CA" in reason):
        return "it refuses this client's certificate: see ssl_certfile and ssl_keyfile"
    return _FILES if cause.library in ("X509", "PEM") or "PEM lib" in str(cause) else ""


def _is_broken_off(cause: BaseException) -> bool:
    return isinstance(cause, _ENDS) or "closed by server" in str(cause)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


__all__ = ["Problem", "problem_in_reaching"]
