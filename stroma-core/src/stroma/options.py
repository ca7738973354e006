"""What the models of options have in common: they are checked where they are made."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from stroma.errors import ConfigError
from stroma.ids import check_id
from stroma.schemas import describe


class Options(BaseModel):
    """Base of the options that users make: what is wrong with them is a `ConfigError`.

    Validation inside another model, and by pydantic's own methods, is pydantic's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    def __init__(self, /, **data: Any) -> None:
        try:
            super().__init__(**data)
        except ValidationError as exc:
            problems = "; ".join(describe(exc, whole=""))
            raise ConfigError(f"{type(self).__name__}: {problems}") from exc

    # Pydantic's own mark: inside other models it validates at once, and names the inner field.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]  # pyright: ignore[reportFunctionMemberAccess]


def no_bool(value: object) -> object:
    """Refuse True and False where a number is expected, which they are to Python."""
    if isinstance(value, bool):
        raise ValueError("must be a number, not a bool")
    return value


def list_of_names(value: object, what: str) -> tuple[str, ...]:
    """Return names, each of which every store can keep.

    Args:
        value: the names.
        what: what one of them is, for the message.

    Raises:
        ConfigError: it is no list of names.
    """
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise ConfigError(f"must be a list of names, not {value!r}")
    return tuple(check_id(name, what) for name in value)


def finite(value: object) -> float | None:
    """Return a number as a float, or None if it is no finite one."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
