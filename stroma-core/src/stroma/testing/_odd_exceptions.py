"""Exceptions that a classifier may meet: those of the standard library, and odd ones."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Final, TypeAlias

from pydantic import BaseModel, ValidationError

from stroma.errors import NodeTimeout, StoreUnavailable, StromaError

Make: TypeAlias = Callable[[], Exception]

RETRY_AFTER_SECONDS: Final = 20.0
"""What the servers of `with_headers` ask for."""


class Odd(Exception):
    """An exception with whatever attributes it is given."""

    def __init__(self, *args: object, **attributes: object) -> None:
        super().__init__(*args)
        self.__dict__.update(attributes)


class Unprintable(Exception):
    """An exception that says nothing, not even its name."""

    def __str__(self) -> str:
        raise RuntimeError("this exception has no text")

    __repr__ = __str__


class Unreadable(Exception):
    """An exception of which no attribute can be read that HTTP clients have."""

    def _refuse(self) -> object:
        raise RuntimeError("this attribute cannot be read")

    body = code = error = headers = response = status = status_code = property(_refuse)


class Response:
    """What HTTP clients keep at an exception."""

    def __init__(self, status: object = None, headers: object = None) -> None:
        self.status_code = self.status = status
        self.headers = headers
        self.text = ""

    def json(self) -> object:
        """Refuse, as a body that was read or is no JSON does."""
        raise ValueError("no JSON")


class _Model(BaseModel):
    number: int


def table() -> dict[str, Make]:
    """Return functions that make an exception each, by name; a new one at every call."""
    return {**dict(_standard()), **dict(_odd()), **dict(_statuses()), **dict(with_headers())}


def _standard() -> Iterator[tuple[str, Make]]:
    kinds: tuple[type[Exception], ...] = (
        ArithmeticError,
        AssertionError,
        asyncio.QueueFull,
        AttributeError,
        BrokenPipeError,
        ConnectionError,
        ConnectionRefusedError,
        ConnectionResetError,
        EOFError,
        Exception,
        FileNotFoundError,
        ImportError,
        IndexError,
        KeyError,
        LookupError,
        MemoryError,
        NameError,
        NodeTimeout,
        NotImplementedError,
        OSError,
        PermissionError,
        RecursionError,
        RuntimeError,
        socket.gaierror,
        ssl.SSLError,
        StopAsyncIteration,
        StopIteration,
        StoreUnavailable,
        StromaError,
        SyntaxError,
        TimeoutError,
        TypeError,
        UnicodeError,
        ValueError,
    )
    for kind in kinds:
        yield kind.__name__, _maker(kind, "it failed")
    yield "no arguments", ValueError
    yield "arguments that are no text", _maker(ValueError, 429, None, b"\xff", {"a": 1})
    yield "empty text", _maker(RuntimeError, "")
    yield "JSONDecodeError", _maker(json.JSONDecodeError, "no JSON", "{", 1)
    yield "ValidationError", _validation_error
    yield "UnicodeDecodeError", _maker(UnicodeDecodeError, "utf-8", b"\xff", 0, 1, "invalid")


def _maker(kind: Callable[..., Exception], *args: object, **attributes: object) -> Make:
    return lambda: kind(*args, **attributes)


def _validation_error() -> Exception:
    try:
        _Model.model_validate({"number": "x"})
    except ValidationError as exc:
        return exc.with_traceback(None)
    raise AssertionError("the model took what it should not")


def _odd() -> Iterator[tuple[str, Make]]:
    yield "a text that raises", Unprintable
    yield "attributes that raise", Unreadable
    yield "a very long text", _maker(RuntimeError, "429 " * 100_000)
    yield "a text that is no UTF-8", _maker(RuntimeError, "\ud800 rate limit \0")
    yield "a group", _group
    yield "a group of groups", lambda: ExceptionGroup("outer", [_group(), Unprintable()])
    yield "a cause", lambda: _caused(RuntimeError("outer"), TimeoutError("inner"))
    yield (
        "a cause that is a cancellation",
        lambda: _caused(RuntimeError("outer"), asyncio.CancelledError()),
    )
    yield "a context", lambda: _in_context(KeyError("outer"), ConnectionError("inner"))
    yield "a long chain of causes", _long_chain
    yield "notes", _noted


def _group() -> Exception:
    return ExceptionGroup("several", [TimeoutError("slow"), ValueError("wrong")])


def _caused(outer: Exception, inner: BaseException) -> Exception:
    outer.__cause__ = inner
    return outer


def _in_context(outer: Exception, inner: BaseException) -> Exception:
    outer.__context__ = inner
    return outer


def _long_chain() -> Exception:
    exc: Exception = TimeoutError("innermost")
    for number in range(2_000):
        exc = _caused(RuntimeError(f"{number}"), exc)
    return exc


def circle() -> Exception:
    """Return an exception whose chain of causes comes back to it."""
    first, second = Odd("first"), Odd("second")
    first.__cause__, second.__cause__ = second, first
    return first


def _noted() -> Exception:
    exc = ValueError("with notes")
    exc.add_note("seen at 10:00")
    return exc


def _statuses() -> Iterator[tuple[str, Make]]:
    values: tuple[object, ...] = (0, -1, 200, 400, 401, 404, 408, 409, 429, 500, 501, 503, 529)
    strange: tuple[object, ...] = (
        None,
        "429",
        "",
        "x",
        429.0,
        float("nan"),
        True,
        [429],
        {},
        b"429",
    )
    for value in (*values, *strange, object()):
        shown = "an object" if type(value) is object else repr(value)
        yield f"status {shown}", _maker(Odd, "failed", status=value, status_code=value, code=value)
        yield f"response with status {shown}", _maker(Odd, response=Response(value))
    for value in (None, "a text", 429, {}, {"Error": None}, {"ResponseMetadata": {}}, []):
        yield f"response {value!r}", _maker(Odd, "failed", response=value, body=value, error=value)


def with_headers() -> Iterator[tuple[str, Make]]:
    """Yield makers of exceptions whose server says when to come back."""
    long_ago = format_datetime(datetime(2001, 1, 1, tzinfo=UTC), usegmt=True)
    endless = ("inf", "nan", "-5", "1e400", "9" * 400, "", "soon", "²", long_ago)
    for value in (f"{RETRY_AFTER_SECONDS:.0f}", *endless, None, 20, b"20"):
        shown = repr(value)[:40]
        yield f"Retry-After {shown}", _limited({"retry-after": value})
        yield f"retry-after-ms {shown}", _limited({"retry-after-ms": value})
    for headers in (None, [], "retry-after: 20", [("retry-after", "20")]):
        yield f"headers {headers!r}", _limited(headers)


def polite_server() -> Exception:
    """Return an exception whose server asks for `RETRY_AFTER_SECONDS`."""
    return _limited({"retry-after": f"{RETRY_AFTER_SECONDS:.0f}"})()


def _limited(headers: Mapping[str, object] | object) -> Make:
    def make() -> Exception:
        attributes = {"status_code": 429, "status": 429, "headers": headers}
        return Odd("rate limited", response=Response(429, headers), **attributes)

    return make
