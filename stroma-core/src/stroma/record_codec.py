"""Run records and headers as JSON: the one format of stores that keep them as documents.

Members are named as the fields are. Reading ignores members that it does not know and takes the
default for those that are missing, so that versions of Stroma side by side read each other.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final, TypeAlias

from pydantic_core import PydanticSerializationError, to_json

from stroma.cost import NO_USAGE, Usage
from stroma.errors import RecordCorrupt
from stroma.records import (
    RecordHeader,
    RunRecord,
    RunStatus,
    epochs_from_text,
    epochs_to_text,
)

UsageRow: TypeAlias = tuple[int, int, str, str, str]
"""Input tokens, output tokens, dollars as text ("" is unknown), model, price source."""

_NO_USAGE_ROW: Final[UsageRow] = (0, 0, "0", "", "")

_dumps: Final = json.JSONEncoder(separators=(",", ":")).encode
_epochs_text: Final = functools.lru_cache(maxsize=64)(epochs_to_text)


def run_to_json(run: RunRecord) -> bytes:
    """Return a run record as a JSON document, in ASCII."""
    members = run._asdict()
    members["status"] = run.status.value
    members["epochs"] = _epochs_text(run.epochs)
    members["spend"] = usage_to_row(run.spend)
    members["input_payload"] = _bytes_to_text(run.input_payload)
    members["plan"] = _bytes_to_text(run.plan)
    return _dumps(members).encode()


def run_from_json(data: bytes | str) -> RunRecord:
    """Return the run record that `run_to_json` wrote.

    Raises:
        RecordCorrupt: it is no such document.
    """
    try:
        members = _members(data, RunRecord._fields)
        if "status" in members:
            members["status"] = RunStatus(members["status"])
        if "epochs" in members:
            members["epochs"] = epochs_from_text(members["epochs"])
        if "spend" in members:
            members["spend"] = usage_from_row(members["spend"])
        for name in ("input_payload", "plan"):
            if name in members:
                members[name] = _bytes_from_text(members[name])
        if "tags" in members:
            members["tags"] = tuple(map(str, members["tags"]))
        return RunRecord(**members)
    except (ValueError, TypeError, ArithmeticError, AttributeError) as exc:
        raise RecordCorrupt(f"a run's record cannot be read: {exc}") from exc


def header_to_json(header: RecordHeader) -> bytes:
    """Return a header as a JSON document, in UTF-8."""
    members = {  # one by one: `_asdict` takes as long as all the rest
        "run_id": header.run_id,
        "epoch": header.epoch,
        "path": header.path,
        "kind": header.kind,
        "attempt": header.attempt,
        "position": header.position,
        "commit_id": header.commit_id,
        "contract_id": header.contract_id,
        "schema_ref": header.schema_ref,
        "fingerprint": header.fingerprint,
        "digest": header.digest,
        "usage": usage_to_row(header.usage),
        "active_ms": header.active_ms,
        "trace_parent": header.trace_parent,
        "created_at": header.created_at,
    }
    try:
        return to_json(members)
    except PydanticSerializationError:  # half a surrogate pair, which only escapes can hold
        return _dumps(members).encode()


def header_from_json(data: bytes | str) -> RecordHeader:
    """Return the header that `header_to_json` wrote.

    Raises:
        RecordCorrupt: it is no such document.
    """
    try:
        members = _members(data, RecordHeader._fields)
        members["usage"] = usage_from_row(members["usage"])
        return RecordHeader(**members)
    except (KeyError, ValueError, TypeError, ArithmeticError, AttributeError) as exc:
        raise RecordCorrupt(f"a record's header cannot be read: {exc}") from exc


def usage_to_row(usage: Usage) -> UsageRow:
    """Return a usage as the five columns that stores keep; names in it as `storable` has them."""
    if usage is NO_USAGE:
        return _NO_USAGE_ROW
    input_tokens, output_tokens, cost_usd, model, price_source = usage
    cost = "" if cost_usd is None else str(cost_usd)
    return input_tokens, output_tokens, cost, storable(model), storable(price_source)


def usage_from_row(row: Any) -> Usage:
    """Return the usage that `usage_to_row` was given.

    Raises:
        ValueError, TypeError, ArithmeticError: the columns hold something else.
    """
    input_tokens, output_tokens, cost, model, price_source = row
    if (input_tokens, output_tokens, cost, model, price_source) == _NO_USAGE_ROW:
        return NO_USAGE
    cost_usd = Decimal(cost) if cost else None
    return Usage(input_tokens, output_tokens, cost_usd, model, price_source)


def storable(text: str) -> str:
    """Return free text, such as another library's error message, as UTF-8 can hold it.

    Lone surrogates and NUL, which PostgreSQL refuses, become escapes.
    """
    if text.isprintable():  # neither is, and this takes a tenth of the time
        return text
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")


def _members(data: bytes | str, known: tuple[str, ...]) -> dict[str, Any]:
    found: Mapping[str, Any] = json.loads(data)
    return {name: found[name] for name in known if name in found}


# Payloads are UTF-8 JSON when core wrote them; other bytes come back all the same.
def _bytes_to_text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _bytes_from_text(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
