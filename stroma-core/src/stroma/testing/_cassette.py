"""The file that recorded calls are kept in: readable JSON, in one order, written at once."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any, Final, NamedTuple

from stroma.errors import ConfigError

FORMAT: Final = 1
_ENCODING: Final = ("utf-8", "surrogatepass")


class Answer(NamedTuple):
    """What one call gave.

    Attributes:
        value: what it returned, as JSON data; None where it raised.
        error: name of the class that it raised, or "".
        message: what the exception said.
        family: the built-in class that it is one of, for the rules of retries, or "".
    """

    value: Any = None
    error: str = ""
    message: str = ""
    family: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the answer as it stands in the file."""
        if not self.error:
            return {"returned": self.value}
        raised = {"class": self.error, "message": self.message}
        return {"raised": {**raised, "is_a": self.family} if self.family else raised}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Answer:
        """Return the answer that `to_dict` wrote."""
        if "returned" in data:
            return cls(data["returned"])
        raised = data["raised"]
        return cls(None, str(raised["class"]), str(raised["message"]), str(raised.get("is_a", "")))


class CallKey(NamedTuple):
    """Which calls are one and the same: the function, and its arguments as canonical JSON."""

    function: str
    arguments: str

    def __str__(self) -> str:
        return f"{self.function}({shortened(self.arguments[1:-1])})"


def canonical(data: object) -> str:
    """Return JSON data as its one text.

    Raises:
        ValueError: it holds NaN or infinity, which JSON has not.
    """
    return json.dumps(data, sort_keys=True, ensure_ascii=False, allow_nan=False)


def shortened(text: str, length: int = 300) -> str:
    """Return a text, or its beginning."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


Calls = dict[CallKey, list[Answer]]


def read_calls(path: Path) -> Calls | None:
    """Return what a file holds, or None if there is none.

    Raises:
        ConfigError: it is no file of recorded calls.
    """
    try:
        text = path.read_bytes().decode(*_ENCODING)
    except FileNotFoundError:
        return None
    try:
        document = json.loads(text)
        if document["stroma_calls"] != FORMAT:
            raise ConfigError(
                f"{path} has recorded calls in format {document['stroma_calls']!r}, and this "
                f"version reads {FORMAT}: record them again"
            )
        return {
            CallKey(call["function"], canonical(call["arguments"])): [
                Answer.from_dict(answer) for answer in call["answers"]
            ]
            for call in document["calls"]
        }
    except ConfigError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError) as exc:
        raise ConfigError(
            f"{path} holds no recorded calls ({type(exc).__name__}: {exc}): give another path, "
            "or remove it and record them again"
        ) from exc


def write_calls(path: Path, calls: Calls) -> None:
    """Replace the file by these calls: wholly or, if the process dies, not at all."""
    listed = [
        {
            "function": key.function,
            "arguments": json.loads(key.arguments),
            "answers": [answer.to_dict() for answer in answers],
        }
        for key, answers in sorted(calls.items())
    ]
    document = {"stroma_calls": FORMAT, "calls": listed}
    text = json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(f"{text}\n".encode(*_ENCODING))
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)  # it is read by others, and mkstemp lets nobody
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            Path(name).unlink()
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # some systems open no folders
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def nearest(wanted: CallKey, calls: Calls) -> CallKey | None:
    """Return the recorded call that is most like one, of the same function if there is any."""
    import difflib

    same = [key for key in calls if key.function == wanted.function]
    texts = {f"{key.function} {key.arguments}"[:2000]: key for key in same or list(calls)}
    text = f"{wanted.function} {wanted.arguments}"[:2000]
    found = difflib.get_close_matches(text, texts, 1, cutoff=0.0)
    return texts[found[0]] if found else None


def plain_json(text: str | bytes) -> Any:
    """Return JSON as data."""
    return json.loads(text)
