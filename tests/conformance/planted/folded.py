"""A dict whose keys are not what they were, for defects."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Folded(dict[str, Any]):
    """Looks up each key in another form, so that keys of one form are one."""

    def __init__(self, form: Callable[[str], Any]) -> None:
        super().__init__()
        self._form = form

    def get(self, key: str, default: Any = None) -> Any:
        return super().get(self._form(key), default)

    def setdefault(self, key: str, default: Any = None) -> Any:
        return super().setdefault(self._form(key), default)

    def pop(self, key: str, default: Any = None) -> Any:
        return super().pop(self._form(key), default)

    def __delitem__(self, key: str) -> None:
        super().__delitem__(self._form(key))
