"""What the driver's exceptions mean for a store."""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
from collections.abc import Generator, Sequence
from typing import Final

import asyncpg

from stroma.config import mask_passwords
from stroma.errors import (
    OutcomeUnknown,
    RecordTooLarge,
    StoreError,
    StoreUnavailable,
    StoreUnusable,
)
from stroma_postgres._names import Names
from stroma_postgres._url import unreadable_file

_Kind = type[StoreError]

# The first two characters of an SQLSTATE are its class:
# https://www.postgresql.org/docs/current/errcodes-appendix.html
# A class that is not here is of a server that is not as the store left it.
_BY_CLASS: Final[dict[str, _Kind]] = {
    "08": StoreUnavailable,  # connection
    "22": StoreError,  # a value
    "25": StoreUnavailable,  # read-only
    "40": StoreUnavailable,  # serialization, deadlock
    "53": StoreUnavailable,  # disk, memory, connections
    "54": RecordTooLarge,
    "55": StoreUnavailable,  # lock not available
    "57": StoreUnavailable,  # cancelled, shut down
    "58": StoreUnavailable,  # the system below
}
_SETUP_HINT: Final = (
    "call setup() with a role that may create tables, or have the SQL run that "
    "`{sql_command}` prints"
)
_POOLER_HINT: Final = (
    "a pooler in between keeps no prepared statements: set statement_cache_size=0 on the store, "
    "or on the pool that was handed in"
)
_HINTS: Final = {
    "25006": "this server, or this role, is read-only: connect to the primary",
    "26000": _POOLER_HINT,
    "28000": "look at the role, and at pg_hba.conf",
    "28P01": "look at the password",
    "3D000": "create the database, or look at its name",
    "3F000": _SETUP_HINT,
    "42501": "grant the role what it needs: `{sql_command} --grant-to ROLE`",
    "42883": _SETUP_HINT,
    "42P01": _SETUP_HINT,
    "42P05": _POOLER_HINT,
    "53100": "make room on the server's disk",
    "53300": "lower max_connections of the store, or raise the server's",
}
_REFUSED_SETTINGS: Final = frozenset({"22023", "42601", "42602", "42704", "55P02"})
"""While connecting: a wrong value, a word that sets nothing, what is no name, an unknown name, and
one that only the server's start can set."""

_SETTING_HINT: Final = (
    'the server refuses a setting: look at what follows "?" in the URL, also in options, and at '
    "server_settings in connect_options"
)
_REFUSED_BY_PGBOUNCER: Final = "unsupported startup parameter"
_STARTUP_HINT: Final = (
    "the pooler refuses this parameter of the URL, or of server_settings in connect_options: "
    "leave it out, or name it in ignore_startup_parameters of PgBouncer"
)
_NO_TLS_HINT: Final = (
    "the server offers no TLS, which sslmode in the URL, or ssl in connect_options, asks for: "
    "set ssl=on at the server, or another sslmode"
)
_TLS_HINT: Final = (
    "look at sslmode, sslrootcert, sslcert and sslkey in the URL, or at ssl in connect_options"
)
_OF_FILES: Final = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)
_CUT: Final = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)
"""The other side went away in the middle, as a server does that is stopped."""

_LOSSES: Final = frozenset({"57P01", "57P02", "57P03", "57P05"})
"""The server ends the session: shutdown, crash, starting up, idle for too long."""


NO_ANSWER: Final = "the server did not answer"


@contextlib.contextmanager
def timed(what: str, seconds: float, option: str) -> Generator[None]:
    """Have the driver's bare `TimeoutError` say what did not happen, and which option says when.

    Args:
        what: did not happen.
        seconds: how long it had.
        option: of the store, which says so.

    Raises:
        TimeoutError: it did not happen; one of the system's own is left as it is.
    """
    try:
        yield
    except TimeoutError as exc:
        raise timeout_told(exc, what, seconds, option) from exc.__cause__


def timeout_told(exc: TimeoutError, what: str, seconds: float, option: str) -> TimeoutError:
    """Return what `timed` raises, for what is done too often for a context manager."""
    return exc if exc.args else TimeoutError(f"{what} within {seconds:g} s ({option})")


def connect_error(
    exc: Exception, address: str, names: Names, dsn: str = "", hidden: Sequence[str] = ()
) -> StoreError:
    """Return what it means that no connection could be had: nothing was sent.

    Args:
        exc: what the driver raised.
        address: of the server.
        names: of the store's tables.
        dsn: the URL, of which parameters are named.
        hidden: values of settings that the server may repeat, and this must not.
    """
    if isinstance(exc, StoreError):
        return exc
    kind, hint = _refusal_of(exc, dsn)
    what = f"no connection to PostgreSQL at {address}"
    return _made(kind, what, exc, names, hint=hint, hidden=hidden)


def _refusal_of(exc: Exception, dsn: str) -> tuple[_Kind, str]:
    """Return what it means that no connection could be had, and what to do beside `_HINTS`."""
    if isinstance(exc, asyncpg.PostgresError):
        state = _state(exc)
        if state == "08P01" and str(exc).startswith(_REFUSED_BY_PGBOUNCER):
            return StoreUnusable, _STARTUP_HINT
        if state in _REFUSED_SETTINGS:
            return StoreUnusable, _SETTING_HINT
        kind = _BY_CLASS.get(state[:2], StoreUnusable)
        return (StoreUnusable if kind is StoreError else kind), ""  # a value among the options
    if isinstance(exc, _OF_FILES) and (option := unreadable_file(dsn)):
        return StoreUnusable, f"the file that {option} names cannot be read"
    if isinstance(exc, ssl.SSLError) and not isinstance(exc, _CUT):
        return StoreUnusable, _TLS_HINT
    if isinstance(exc, ConnectionError) and str(exc).endswith("rejected SSL upgrade"):
        return StoreUnusable, _NO_TLS_HINT
    if isinstance(exc, (asyncpg.InterfaceError, ValueError, TypeError)):
        return StoreUnusable, ""  # an option that the driver refuses
    return StoreUnavailable, ""


def operation_error(
    exc: Exception,
    address: str,
    names: Names,
    what: str,
    *,
    is_lost_write: bool,
    hidden: Sequence[str] = (),
) -> StoreError:
    """Return what it means that an operation failed.

    Args:
        exc: what the driver raised.
        address: of the server.
        names: of the store's tables.
        what: was done, to which run.
        is_lost_write: a write may have been done, and the answer is lost.
        hidden: as for `connect_error`.
    """
    if is_lost_write:
        lost = f"{what}: PostgreSQL at {address} did not answer, and may have done it"
        return _made(OutcomeUnknown, lost, exc, names, hidden=hidden)
    if isinstance(exc, StoreError):
        return exc
    refused = f"{what}: PostgreSQL at {address} could not do it"
    return _made(_kind_of(exc), refused, exc, names, hidden=hidden)


def _kind_of(exc: Exception) -> _Kind:
    if is_value_error(exc):
        return RecordTooLarge if _state(exc).startswith("54") else StoreError
    if isinstance(exc, asyncpg.PostgresError) and not is_loss(exc):
        return _BY_CLASS.get(_state(exc)[:2], StoreUnusable)
    if isinstance(exc, (OSError, asyncio.TimeoutError)) or is_loss(exc):
        return StoreUnavailable
    return StoreUnusable


def is_loss(exc: BaseException) -> bool:
    """Say whether the connection is gone, so that another one may do."""
    if isinstance(exc, asyncpg.PostgresError):
        return _state(exc).startswith("08") or _state(exc) in _LOSSES
    if isinstance(exc, asyncpg.InterfaceError):
        return not isinstance(exc, ValueError)
    # The second is what the driver says when it finds a goodbye of the server's unread.
    return isinstance(exc, (ConnectionError, asyncpg.InternalClientError))


def lacks_tables(exc: BaseException) -> bool:
    """Say whether a table or function is missing that was there at setup."""
    return _state(exc) in {"3F000", "42883", "42P01"}


def is_unsent(exc: BaseException) -> bool:
    """Say whether the driver refused to send: it knew that the connection is gone."""
    return isinstance(exc, asyncpg.InterfaceError)


def is_unanswered(exc: BaseException) -> bool:
    """Say whether the server may have done it. An error that it reports has undone it."""
    return isinstance(exc, (asyncio.TimeoutError, OSError)) or (is_loss(exc) and not is_unsent(exc))


def is_value_error(exc: BaseException) -> bool:
    """Say whether it is about a value, so that other commits of the batch may do without it."""
    if isinstance(exc, asyncpg.PostgresError):
        return _state(exc)[:2] in {"22", "54"}
    # The driver's own DataError, which it does not export.
    return isinstance(exc, (asyncpg.InterfaceError, OverflowError)) and isinstance(
        exc, (ValueError, OverflowError)
    )


def _state(exc: BaseException) -> str:
    return getattr(exc, "sqlstate", None) or ""


def _made(
    kind: _Kind,
    what: str,
    exc: Exception,
    names: Names,
    *,
    hint: str = "",
    hidden: Sequence[str] = (),
) -> StoreError:
    if not isinstance(exc, asyncpg.PostgresError):
        hidden = ()  # it is the server that repeats settings
    detail = _masked(f"{type(exc).__name__}: {exc}".removesuffix(": "), hidden)
    hint = hint or _HINTS.get(_state(exc), "").format(sql_command=names.sql_command)
    error = kind(f"{what} ({detail})" + (f"; {hint}" if hint else ""))
    # A cause is printed with the error; one that holds a password is left out.
    error.__cause__ = exc if _masked(repr(exc), hidden) == repr(exc) else None
    return error


def _masked(text: str, hidden: Sequence[str]) -> str:
    for value in hidden:
        text = re.sub(rf"(?<!\w){re.escape(value)}(?!\w)", "***", text)
    return mask_passwords(text)
