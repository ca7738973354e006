"""How the answer of a recorded call becomes JSON and comes back; no stored name is imported."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from types import SimpleNamespace
from typing import Any, Final, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from stroma.errors import ConfigError
from stroma.nodes import is_async
from stroma.schemas import describe
from stroma.testing._cassette import Answer, canonical, plain_json, shortened


class RecordedError(Exception):
    """What stands for an exception that was recorded. Its class is not imported again.

    What was recorded of a `TimeoutError` or a `ConnectionError` is one of these, too, so that
    it is retried as it was then.

    Attributes:
        name: the name of its class.
        message: what it said.
    """

    def __init__(self, name: str, message: str) -> None:
        super().__init__(f"{name}: {message}")
        self.name = name
        self.message = message


class _RecordedTimeout(RecordedError, TimeoutError):
    pass


class _RecordedConnectionError(RecordedError, ConnectionError):
    pass


_FAMILIES: Final[Mapping[str, tuple[type[Exception], type[RecordedError]]]] = {
    "TimeoutError": (TimeoutError, _RecordedTimeout),
    "ConnectionError": (ConnectionError, _RecordedConnectionError),
}


def failed(exc: Exception, message: str) -> Answer:
    """Return the answer of a call that raised."""
    families = [name for name, (base, _) in _FAMILIES.items() if isinstance(exc, base)]
    return Answer(None, type(exc).__name__, message, families[0] if families else "")


class AnswerCodec:
    """Turns the answers of one function into JSON and back.

    Args:
        called: the function's name.
        gives: the type of its answers, or None for plain JSON data.
    """

    def __init__(self, called: str, gives: object) -> None:
        self._called = called
        type_of: Any = gives
        self._adapter: TypeAdapter[Any] | None = None if gives is None else TypeAdapter(type_of)

    def record(self, value: object) -> Answer:
        """Return an answer for the file.

        Raises:
            ConfigError: it would not come back as it is. The call was made, and is not recorded.
        """
        try:
            data = self._dump(value)
            again = self._load(data)
            is_same = bool(again == value)
        except Exception as exc:
            raise self._refusal(value, f"{exc}".partition("\n")[0]) from exc
        if not is_same:
            raise self._refusal(value, f"a {type(again).__name__} comes back that is not equal")
        return Answer(data)

    def _dump(self, value: object) -> Any:
        if self._adapter is None:
            return plain_json(canonical(value))
        text = self._adapter.dump_json(value, by_alias=False, round_trip=True, warnings="error")
        return plain_json(text)

    def _load(self, data: object) -> Any:
        text = canonical(data)
        if self._adapter is None:
            return plain_json(text)
        return self._adapter.validate_json(text, by_alias=False, by_name=True)

    def _refusal(self, value: object, problem: str) -> ConfigError:
        hint = "" if self._adapter is not None else "; say what it is with wrap(…, returns=Model)"
        return ConfigError(
            f"{self._called} was called, and its answer, a {type(value).__name__}, cannot be "
            f"recorded: {shortened(problem)}{hint}"
        )

    def replay(self, answer: Answer) -> object:
        """Return what was returned, or raise what stands for what was raised.

        Raises:
            RecordedError: it raised.
            ConfigError: the recorded answer does not fit the type any more.
        """
        if answer.error:
            _, kind = _FAMILIES.get(answer.family, (Exception, RecordedError))
            raise kind(answer.error, answer.message)
        try:
            return self._load(answer.value)
        except ValidationError as exc:
            raise ConfigError(
                f"a recorded answer of {self._called} does not fit its type any more "
                f'({"; ".join(describe(exc))}): record it again with mode="record"'
            ) from exc


def returned_by(
    function: Callable[..., object], called: str, localns: Mapping[str, object], given: object
) -> tuple[object, bool]:
    """Return the type that a function gives, or None, and whether it is to be awaited for it.

    Args:
        function: the function.
        called: what it is called.
        localns: the variables where it is used, which may have the type.
        given: the type as the caller says it, before all annotations, or None.

    Raises:
        ConfigError: the annotation cannot be resolved.
    """
    target = inspect.unwrap(function)
    if not inspect.isroutine(target):
        target = type(target).__call__
    annotation = getattr(target, "__annotations__", {}).get("return")
    alone: Any = SimpleNamespace(__annotations__={"return": annotation})  # the others may be wrong
    try:
        names = {**getattr(target, "__globals__", {}), **localns}
        gives = get_type_hints(alone, names, include_extras=True)["return"]
    except NameError as exc:
        if given is not None:
            return given, is_async(function)
        raise ConfigError(
            f"{called}: an annotation cannot be resolved ({exc}): give wrap(…, returns=…)"
        ) from exc
    origin, is_awaited = get_origin(gives), is_async(function)
    if origin is Awaitable or origin is Coroutine:
        gives, is_awaited = get_args(gives)[-1], True
    if annotation is None or gives is Any or gives is object:
        gives = None
    return gives if given is None else given, is_awaited
