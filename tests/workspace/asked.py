"""What the tests that were asked for are about, for a fixture that prepares it all at once."""

from __future__ import annotations

from typing import TypeVar

import pytest

T = TypeVar("T")


def asked_for(request: pytest.FixtureRequest, name: str, kind: type[T]) -> list[T]:
    """Return the values of this class that the session's tests have as this parameter, each once.

    Other tests of the session may have a parameter of that name, and of another class.
    """
    specs = [getattr(item, "callspec", None) for item in request.session.items]
    values = [spec.params[name] for spec in specs if spec and name in spec.params]
    return list({id(value): value for value in values if isinstance(value, kind)}.values())
