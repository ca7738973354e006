"""Texts that are no cursor, and what a store has to say of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import pytest

from stroma.errors import ConfigError

_NO_CURSORS: Final = {
    "a word": "junk",
    "not ASCII": "\u00e9",
    "NUL": "\0",
    "a lone surrogate": "\ud800",
    "null": "null",
    "a number": "0",
    "a string of two": '"1a"',
    "an object of two": '{"1":0,"a":0}',
    "an empty list": "[]",
    "no id": "[1]",
    "one too many": '[1,"a","b"]',
    "a word for a time": '["x","y"]',
    "a number in quotes": '["1","a"]',
    "no time": '[null,"a"]',
    "true for a time": '[true,"a"]',
    "a list for a time": '[[1],"a"]',
    "NaN": '[NaN,"a"]',
    "Infinity": '[Infinity,"a"]',
    "-Infinity": '[-Infinity,"a"]',
    "more than a float holds": '[1e400,"a"]',
    "an integer of 400 digits": f'[{"9" * 400},"a"]',
    "an integer of 5,000 digits": f'[{"9" * 5_000},"a"]',
    "a number for an id": "[1,2]",
    "no text for an id": "[1,null]",
    "a list for an id": '[1,["a"]]',
    "an empty id": '[1,""]',
    "an id with NUL": '[1,"a\\u0000"]',
    "an id with a bare NUL": '[1,"a\0"]',
    "an id with a lone surrogate": '[1,"\\ud800"]',
    "an id with a bare surrogate": '[1,"\ud800"]',
    "an id of 513 bytes": f'[1,"{"x" * 513}"]',
    "lists in lists": "[" * 100_000,
}


def refuses_all(ask: Callable[[str], object]) -> None:
    """Fail unless asking with any of them raises a `ConfigError` that says that it is the cursor.

    Args:
        ask: asks the store for something, with a cursor.
    """
    for name, text in _NO_CURSORS.items():
        try:
            answer = ask(text)
        except ConfigError as exc:
            said = str(exc)
        else:
            pytest.fail(f"a cursor ({name}: {text!r:.80}) was taken, and gave {answer!r:.200}")
        about = f"of a cursor ({name}: {text!r:.80}), the error"
        assert "cursor" in said, f"{about} does not say that it is the cursor: {said!r:.300}"
        assert said.isprintable(), f"{about} cannot be printed as it is: {said!r:.300}"
        assert len(said) < 1_000, f"{about} has {len(said):,} characters"
