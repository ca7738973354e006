"""The conditions of listings, as SQL."""

from __future__ import annotations

import json
from typing import Final

from stroma.records import ClaimQuery, RunQuery
from stroma.stores._sqlite_schema import UNFINISHED, Row
from stroma.stores.rules import cursor_position

IS_FREE: Final = " AND NOT (owner <> '' AND lease_expires_at > ?)"
"""Nobody owns the run, as far as the lease tells; the mark is for the time."""

Conditions = tuple[str, Row]
"""SQL that follows a WHERE, and the values for its marks."""


def conditions_of(query: RunQuery) -> Conditions:
    """Return what a query asks for. It uses the function `has_tag`."""
    found: list[Conditions] = []
    if query.statuses:
        found.append(_any_of("status", tuple(map(str, query.statuses))))
    if query.pipeline is not None:
        found.append(("pipeline = ?", (query.pipeline,)))
    if query.tag is not None:
        found.append(("has_tag(tags, ?)", (query.tag,)))
    if query.updated_before is not None:
        found.append(("updated_at < ?", (query.updated_before,)))
    if query.cursor:
        updated_at, run_id = cursor_position(query.cursor)
        after = "(updated_at < ? OR (updated_at = ? AND run_id > ?))"
        found.append((after, (updated_at, updated_at, run_id)))
    return _all_of(found)


def conditions_of_claims(query: ClaimQuery, now: float) -> Conditions:
    """Return what a query of claimable runs asks for. It uses the function `is_dead`."""
    found: list[Conditions] = [
        (UNFINISHED, ()),
        ("(owner = '' OR lease_expires_at <= ? OR is_dead(lock))", (now,)),
    ]
    if query.pipelines:
        found.append(_any_of("pipeline", query.pipelines))
    if query.cursor:
        found.append(("(created_at, run_id) > (?, ?)", cursor_position(query.cursor)))
    return _all_of(found)


def _any_of(column: str, values: tuple[str, ...]) -> Conditions:
    return f"{column} IN ({', '.join('?' for _ in values)})", values


def _all_of(conditions: list[Conditions]) -> Conditions:
    where = " AND ".join(condition for condition, _ in conditions) or "1"
    return where, tuple(value for _, values in conditions for value in values)


def has_tag(tags: str, tag: str) -> bool:
    """Say whether a column of tags has a tag: an SQL function.

    One that cannot be read may have it: who reads the run then tells that it is damaged.
    """
    try:
        return tag in json.loads(tags)
    except (ValueError, TypeError):
        return True
