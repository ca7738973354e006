"""The columns of the two tables, in the one order that SQL and rows share."""

from __future__ import annotations

from typing import Final, NamedTuple

from stroma.records import CLAIMABLE


class Column(NamedTuple):
    """A column of a table.

    Attributes:
        name: of the column.
        type: in SQL, without constraints.
    """

    name: str
    type: str


_TEXT: Final = "text"
# Bytes decide the order of ids, as they do in Python; and no locale has to be looked up.
_ID: Final = 'text COLLATE "C"'
_FLOAT: Final = "double precision"

USAGE: Final = (
    Column("input_tokens", "bigint"),
    Column("output_tokens", "bigint"),
    Column("cost_usd", "numeric"),
    Column("model", _TEXT),
    Column("price_source", _TEXT),
)
NULLABLE: Final = frozenset({"cost_usd"})
"""NULL is a price that nobody knows."""

RUN: Final = (
    Column("run_id", _ID),
    Column("status", _TEXT),
    Column("stop_reason", _TEXT),
    Column("pipeline", _TEXT),
    Column("version", _TEXT),
    Column("tags", "text[]"),
    Column("owner", _TEXT),
    Column("holder", _TEXT),
    Column("lease_expires_at", _FLOAT),
    Column("epochs", _TEXT),
    Column("input_payload", "bytea"),
    Column("input_fingerprint", _TEXT),
    Column("plan", "bytea"),
    *USAGE,
    Column("active_ms", _FLOAT),
    Column("trace_parent", _TEXT),
    Column("created_at", _FLOAT),
    Column("updated_at", _FLOAT),
)
UNFINISHED: Final = "status IN ({})".format(", ".join(f"'{each.value}'" for each in CLAIMABLE))
"""What is true of runs that go on by themselves: the condition of their index, word for word."""

RECORD: Final = (
    Column("run_id", _ID),
    Column("epoch", "integer"),
    Column("path", _ID),
    Column("kind", _ID),
    Column("attempt", "integer"),
    Column("position", "integer"),
    Column("commit_id", _TEXT),
    Column("contract_id", _TEXT),
    Column("schema_ref", _TEXT),
    Column("fingerprint", _TEXT),
    Column("digest", _TEXT),
    *USAGE,
    Column("active_ms", _FLOAT),
    Column("trace_parent", _TEXT),
    Column("created_at", _FLOAT),
    Column("payload", "bytea"),
)
KEY: Final = ("run_id", "path", "kind", "attempt", "epoch")
"""The primary key of records: what `fetch` and the headers of a run are found by."""

ROW: Final = (
    Column("commit_no", "integer"),
    *RECORD[1:-1],
    Column("payload_start", "integer"),
    Column("payload_size", "integer"),
)
"""A record of a commit; all payloads are in one value, one after the other, from 1."""

COMMIT: Final = (
    Column("run_id", _TEXT),
    Column("token", _TEXT),
    Column("is_broken", "boolean"),
)
"""A commit without its records and its update."""

UPDATE: Final = (
    Column("commit_no", "integer"),
    Column("status", _TEXT),
    Column("stop_reason", _TEXT),
    Column("epochs", _TEXT),
    Column("version", _TEXT),
    Column("plan", "bytea"),
    Column("has_spend", "boolean"),
    *USAGE,
    Column("active_ms", _FLOAT),
    Column("is_release", "boolean"),
)
"""What changes a run, beside a commit; NULL leaves a column as it is."""


def base_type(column: Column) -> str:
    """Return the type of a parameter or a result of this column."""
    return column.type.removesuffix(' COLLATE "C"')


def arrays(columns: tuple[Column, ...], start: int) -> str:
    """Return the parameters of arrays, one of each column, for a call.

    They are sent as text. For arrays of anything else the driver would ask the server for the
    type, on each new connection, by a query that takes longer than all commits of a run.
    """
    return ", ".join(f"${n}::text[]::{base_type(c)}[]" for n, c in enumerate(columns, start))


def names(columns: tuple[Column, ...], prefix: str = "") -> str:
    """Return a list of columns for SQL."""
    return ", ".join(f"{prefix}{column.name}" for column in columns)
