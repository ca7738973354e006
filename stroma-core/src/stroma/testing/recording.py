"""Paid calls, recorded once and replayed: tests that cost nothing."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Generator, Iterable, Mapping
from functools import wraps
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, NamedTuple, ParamSpec, Self, TypeAlias, TypeVar, cast

from stroma.errors import ConfigError
from stroma.failures import error_text
from stroma.testing._answers import (
    AnswerCodec,
    RecordedError,
    failed,
    returned_by,
)
from stroma.testing._arguments import SECRET_NAMES, PlainArguments, arguments_of
from stroma.testing._cassette import (
    Answer,
    CallKey,
    Calls,
    canonical,
    nearest,
    read_calls,
    write_calls,
)

__all__ = ["RecordedCalls", "RecordedError", "UnknownCall", "recorded_calls"]

P = ParamSpec("P")
R = TypeVar("R")
Mode: TypeAlias = Literal["record", "replay", "auto"]
MODES: Final = ("record", "replay", "auto")
Redact: TypeAlias = Callable[[str, Mapping[str, object]], Mapping[str, object]]
"""Returns the arguments, by name, of a call of a function as they may be written."""


class UnknownCall(ConfigError):
    """A call is not recorded, and is not made either."""


class _Call(NamedTuple):
    key: CallKey
    arguments: PlainArguments


class RecordedCalls:
    """Calls with their recorded answers; made by `recorded_calls`, and used with ``with``.

    Safe to use from several threads and event loops; two processes must not record in one file.

    Attributes:
        path: the file.
        mode: "record", "replay" or "auto".
    """

    def __init__(
        self, path: Path, mode: Mode, hidden: frozenset[str], redact: Redact | None
    ) -> None:
        self.path = path
        self.mode = mode
        self._hidden = hidden
        self._redact = redact
        self._lock = threading.Lock()
        self._calls: Calls = {}
        self._used: Counter[CallKey] = Counter()
        self._functions: dict[str, object] = {}
        self._is_open = False

    def __enter__(self) -> Self:
        calls = None if self.mode == "record" else read_calls(self.path)
        if calls is None and self.mode != "record" and not self._may_call():
            raise ConfigError(
                f'there are no recorded calls at {self.path}: run once with mode="record"'
            )
        self._calls = calls or {}
        self._used.clear()
        self._is_open = True
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._is_open = False

    @property
    def unused(self) -> tuple[str, ...]:
        """The recorded calls that were not asked for, as "ask(…)", each as often as it is left."""
        with self._lock:
            left = {key: len(found) - self._used[key] for key, found in self._calls.items()}
        return tuple(str(key) for key in sorted(left) for _ in range(left[key]))

    def wrap(
        self, function: Callable[P, R], *, returns: object = None, name: str | None = None
    ) -> Callable[P, R]:
        """Return a function that gives recorded answers, and is called for others.

        Answers belong to the name and the arguments. Several of one call come back in the order
        in which they came, each once.

        Args:
            function: what costs, sync or async. Its arguments and its answer must have a JSON
                form: plain data, models, dataclasses, times, and so on.
            returns: the type of its answer, which is made again of the JSON; as annotated if
                not given.
            name: what the file calls it; the function's name if not given.

        Raises:
            ConfigError: the name is in use or missing, or a type cannot be resolved.
        """
        if not callable(function):
            raise ConfigError(f"wrap() takes a function, not {type(function).__name__}")
        called = name or getattr(function, "__name__", "")
        if not called or called == "<lambda>":
            raise ConfigError(f"{function!r} has no name of its own: give wrap(…, name=…)")
        if self._functions.setdefault(called, function) != function:
            raise ConfigError(f"two functions are called {called!r}: give one wrap(…, name=…)")
        plain = cast("Callable[..., object]", function)
        gives, is_awaited = returned_by(plain, called, sys._getframe(1).f_locals, returns)
        codec = AnswerCodec(called, gives)
        wrapped = self._wrapped_async if is_awaited else self._wrapped
        return cast("Callable[P, R]", wrapped(plain, called, codec))

    def _wrapped_async(
        self, function: Callable[..., object], called: str, codec: AnswerCodec
    ) -> Callable[..., Awaitable[object]]:
        @wraps(function)
        async def wrapper(*args: object, **kwargs: object) -> object:
            call = self._call(function, called, args, kwargs)
            found = self._find(call.key)
            if found is not None:
                return codec.replay(found)
            with self._noting_failure(call):
                value = await cast("Awaitable[object]", function(*args, **kwargs))
            self._add(call.key, codec.record(value))
            return value

        return wrapper

    def _wrapped(
        self, function: Callable[..., object], called: str, codec: AnswerCodec
    ) -> Callable[..., object]:
        @wraps(function)
        def wrapper(*args: object, **kwargs: object) -> object:
            call = self._call(function, called, args, kwargs)
            found = self._find(call.key)
            if found is not None:
                return codec.replay(found)
            with self._noting_failure(call):
                value = function(*args, **kwargs)
            self._add(call.key, codec.record(value))
            return value

        return wrapper

    def _call(
        self,
        function: Callable[..., object],
        called: str,
        args: tuple[object, ...],
        kwargs: Mapping[str, object],
    ) -> _Call:
        if not self._is_open:
            raise ConfigError(
                f"{called} was called outside of `with recorded_calls(…)`, where nothing is "
                "recorded or replayed"
            )
        given: Mapping[str, object] = arguments_of(function, args, kwargs)
        if self._redact is not None:
            given = self._redact(called, given)
        plain = PlainArguments(self._hidden)
        try:
            return _Call(CallKey(called, canonical(plain.of(given))), plain)
        except ConfigError as exc:
            raise ConfigError(
                f"a call of {called} cannot be recorded: {exc}. Arguments that do not matter "
                "are left out with redact="
            ) from exc

    def _may_call(self) -> bool:
        return self.mode == "record" or (self.mode == "auto" and not _is_ci())

    def _find(self, key: CallKey) -> Answer | None:
        """Return the next recorded answer of a call, or None if the call is to be made.

        Raises:
            UnknownCall: there is none, and the call is not to be made.
        """
        if self.mode == "record":
            return None
        with self._lock:
            answers, used = self._calls.get(key, []), self._used[key]
            if used < len(answers):
                self._used[key] += 1
                return answers[used]
            if self._may_call():
                return None
            raise UnknownCall(self._unknown(key, len(answers)))

    def _unknown(self, key: CallKey, recorded: int) -> str:
        if recorded:
            times = "once" if recorded == 1 else f"{recorded} times"
            found = f"it is recorded {times}, and was made once more"
        else:
            near = nearest(key, self._calls)
            found = "nothing is" if near is None else f"the nearest that is recorded is {near}"
        why = ' (mode "auto" makes no calls where CI is set)' if self.mode == "auto" else ""
        return (
            f"{key} is not recorded in {self.path}{why}: {found}. "
            'Run once with mode="record" to buy it'
        )

    @contextlib.contextmanager
    def _noting_failure(self, call: _Call) -> Generator[None]:
        try:
            yield
        except Exception as exc:
            self._add(call.key, failed(exc, call.arguments.without_secrets(error_text(exc))))
            raise

    def _add(self, key: CallKey, answer: Answer) -> None:
        with self._lock:
            self._calls.setdefault(key, []).append(answer)
            self._used[key] += 1
            write_calls(self.path, self._calls)


def recorded_calls(
    path: str | Path, *, mode: Mode = "auto", redact: Iterable[str] | Redact = ()
) -> RecordedCalls:
    """Record paid calls in a file, and replay them from it::

        with recorded_calls("calls.json") as calls:
            monkeypatch.setattr(app, "ask", calls.wrap(app.ask))

    An answer is in the file, synced to the disk, before the caller gets it.

    Args:
        path: the file: JSON, sorted, to be committed.
        mode: "record" makes every call, and writes the file anew. "replay" makes none. "auto"
            replays what is recorded and makes the rest; where the environment variable CI is
            set, it makes none.
        redact: names of arguments, and of fields at any depth in them, whose values are not
            written and do not matter; or a function of a call's name and its arguments by name
            that returns them as they may be written. What is called api_key, authorization,
            password, secret or the like is never written. Answers are written as they are.

    Raises:
        ConfigError: the mode is unknown; and, on entering it, the file cannot be used.
    """
    if mode not in MODES:
        raise ConfigError(f"mode must be one of {', '.join(MODES)}, not {mode!r}")
    if isinstance(redact, str):
        raise ConfigError(f"redact must be a list of names or a function: write [{redact!r}]")
    if callable(redact):
        return RecordedCalls(Path(path), mode, SECRET_NAMES, redact)
    return RecordedCalls(Path(path), mode, SECRET_NAMES.union(redact), None)


def _is_ci() -> bool:
    return os.environ.get("CI", "").lower() not in ("", "0", "false")
