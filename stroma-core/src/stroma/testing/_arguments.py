"""The arguments of a call as JSON data: in one form, and without secrets."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from pydantic import BaseModel, SecretStr
from pydantic_core import PydanticSerializationError, to_jsonable_python

from stroma.errors import ConfigError
from stroma.testing._cassette import canonical

REDACTED: Final = "[redacted]"
SECRET_NAMES: Final = frozenset(
    {
        "access_token",
        "api_key",
        "apikey",
        "authorization",
        "client_secret",
        "password",
        "secret",
        "x_api_key",
    }
)
"""Names of arguments and fields whose values no file gets, in any case, with "-" as "_"."""


def arguments_of(
    function: Callable[..., object], args: tuple[object, ...], kwargs: Mapping[str, object]
) -> dict[str, object]:
    """Return the arguments of a call by name, with defaults, however they were given."""
    try:
        bound = inspect.signature(function).bind(*args, **kwargs)
    except (TypeError, ValueError):  # it says no signature, or refuses the call, as it should
        positional: dict[str, object] = {str(number): value for number, value in enumerate(args)}
        return {**positional, **kwargs}
    bound.apply_defaults()
    return dict(bound.arguments)


class PlainArguments:
    """Turns arguments into JSON data.

    Args:
        hidden: names whose values are left out.

    Attributes:
        secrets: the texts that were left out, so that they are left out of messages, too.
    """

    def __init__(self, hidden: frozenset[str]) -> None:
        self._hidden = frozenset(map(_normal, hidden))
        self.secrets: list[str] = []

    def of(self, arguments: Mapping[str, object]) -> dict[str, Any]:
        """Return arguments by name as JSON data.

        Raises:
            ConfigError: one of them has no JSON form.
        """
        try:
            return {name: self._member(name, value, name) for name, value in arguments.items()}
        except RecursionError as exc:
            raise ConfigError("an argument contains itself") from exc

    def without_secrets(self, text: str) -> str:
        """Return a text in which the values that were left out do not stand either."""
        for secret in self.secrets:
            text = text.replace(secret, REDACTED)
        return text

    def _member(self, name: object, value: object, where: str) -> Any:
        if isinstance(name, str) and _normal(name) in self._hidden:
            self._keep_secret(value)
            return REDACTED
        return self._plain(value, where)

    def _keep_secret(self, value: object) -> None:
        text = value.get_secret_value() if isinstance(value, SecretStr) else value
        if isinstance(text, str) and text:
            self.secrets.append(text)

    def _plain(self, value: object, where: str) -> Any:
        if isinstance(value, SecretStr):
            self._keep_secret(value)
            return REDACTED
        if isinstance(value, BaseModel):
            return {name: self._member(name, each, f"{where}.{name}") for name, each in value}
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            named = (
                (field.name, getattr(value, field.name)) for field in dataclasses.fields(value)
            )
            return {name: self._member(name, each, f"{where}.{name}") for name, each in named}
        if isinstance(value, Mapping):
            items = value.items()
            return {str(key): self._member(key, each, f"{where}.{key}") for key, each in items}
        if isinstance(value, list | tuple):
            return [self._plain(each, f"{where}[{n}]") for n, each in enumerate(value)]
        if isinstance(value, set | frozenset):  # whose order differs from process to process
            return sorted((self._plain(each, where) for each in value), key=canonical)
        return _leaf(value, where)


def _leaf(value: object, where: str) -> Any:
    problem = f"{where} is of {type(value).__name__}, which has no JSON form"
    if isinstance(value, Iterator):
        raise ConfigError(f"{problem} that leaves it as it is")
    try:
        data = to_jsonable_python(value, bytes_mode="base64")
    except (PydanticSerializationError, UnicodeError) as exc:
        raise ConfigError(problem) from exc
    if isinstance(data, float) and data - data != 0:
        raise ConfigError(f"{where} is {data}, which JSON does not have")
    return data


def _normal(name: str) -> str:
    return name.lower().replace("-", "_")
