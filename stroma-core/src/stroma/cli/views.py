"""Runs and records as plain values: what ``--json`` prints, and what tables are made of."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TypeAlias

from stroma.cost import NO_USAGE, Usage
from stroma.doubt import account_of
from stroma.errors import ConfigError
from stroma.ids import check_id, path_of
from stroma.records import (
    OpenedRun,
    PlanDocument,
    RecordHeader,
    RunPage,
    RunRecord,
    RunStatus,
    UnreadableRun,
)
from stroma.result import InDoubt

Json: TypeAlias = bool | int | float | str | Sequence["Json"] | Mapping[str, "Json"] | None
JsonObject: TypeAlias = dict[str, Json]

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
STORED_STATUSES = tuple(status for status in RunStatus if status is not RunStatus.RESUMED)


def run_view(run: RunRecord) -> JsonObject:
    """Return a run record without its payloads."""
    return {
        "run_id": run.run_id,
        "status": run.status.value,
        "stop_reason": run.stop_reason,
        "pipeline": run.pipeline,
        "version": run.version,
        "tags": list(run.tags),
        "owner": run.holder,
        "lease_expires_at": _time(run.lease_expires_at),
        "epoch": run.epoch.number,
        "spend": usage_view(run.spend),
        "active_ms": run.active_ms,
        "created_at": _time(run.created_at),
        "updated_at": _time(run.updated_at),
    }


def page_view(page: RunPage) -> JsonObject:
    """Return a page of runs."""
    return {
        "runs": [run_view(run) for run in page.runs],
        "unreadable": [unreadable_view(run) for run in page.unreadable],
        "cursor": page.cursor,
    }


def unreadable_view(run: UnreadableRun) -> JsonObject:
    """Return a run that cannot be read."""
    return {"run_id": run.run_id, "error": unreadable_text(run)}


def unreadable_text(run: UnreadableRun) -> str:
    """Return why a run cannot be read, with its id."""
    said, whose = str(run.error), f"run {run.run_id!r}"
    return said if said.startswith(whose) else f"{whose}: {said}"


def opened_view(opened: OpenedRun) -> JsonObject:
    """Return a run with its plan, its records and what they cost together.

    ``spend`` is the sum over the records of all epochs, and so what was paid for the run;
    the run record itself is brought up to date only when its status changes.
    """
    plan = PlanDocument.from_json(opened.run.plan)
    recorded = recorded_nodes(opened, plan)
    return {
        **run_view(opened.run),
        "spend": usage_view(total_usage(opened.headers)),
        "budget": dict(plan.budget),
        "plugins": list(plan.plugins),
        "in_doubt": [doubt_view(doubt) for doubt in in_doubt(opened)],
        "nodes": [{"node_id": id_, "is_recorded": id_ in recorded} for id_ in plan.node_ids],
        "records": [record_view(header) for header in opened.headers],
    }


def in_doubt(opened: OpenedRun) -> tuple[InDoubt, ...]:
    """Return the calls of a run of which nobody knows what became of them."""
    return tuple(doubt.told() for doubt in account_of(opened.headers).in_doubt)


def doubt_view(doubt: InDoubt) -> JsonObject:
    """Return a call in doubt."""
    return {
        "path": doubt.path,
        "attempt": doubt.attempt,
        "reason": doubt.reason,
        "charged": usage_view(doubt.charged),
    }


def recorded_nodes(opened: OpenedRun, plan: PlanDocument) -> set[str]:
    """Return the nodes whose results a continuation would use: no later epoch left them behind."""
    found = {h.path for h in opened.headers if h.kind == "result" and _is_used(h, opened.run)}
    return {node_id for node_id in plan.node_ids if path_of(node_id, ()) in found}


def _is_used(header: RecordHeader, run: RunRecord) -> bool:
    later = (epoch for epoch in run.epochs if epoch.number > header.epoch)
    return all(header.position < epoch.position for epoch in later)


def record_view(header: RecordHeader) -> JsonObject:
    """Return a record's header."""
    return {
        "path": header.path,
        "kind": header.kind,
        "epoch": header.epoch,
        "attempt": header.attempt,
        "schema": header.schema_ref,
        "usage": usage_view(header.usage),
        "active_ms": header.active_ms,
        "trace_parent": header.trace_parent,
        "created_at": _time(header.created_at),
    }


def usage_view(usage: Usage) -> JsonObject:
    """Return usage; money is text, so that no digit of it is lost."""
    return {
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "cost_usd": None if usage.cost_usd is None else f"{usage.cost_usd:f}",
        "model": usage.model,
        "price_source": usage.price_source,
    }


def total_usage(headers: Iterable[RecordHeader]) -> Usage:
    """Return what the calls cost together that these records are of, each call once."""
    total = NO_USAGE
    for header in account_of(headers).counted:
        total = total.plus(header.usage)
    return total


def _time(seconds: float) -> str | None:
    if not seconds:
        return None
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
    except (ValueError, OverflowError, OSError):  # it is no time, or after the year 9999
        return f"{seconds:g} s after 1970"


def seconds_of(text: str) -> float:
    """Return the seconds of a duration such as "90s", "45m", "12h", "30d" or "2w".

    Raises:
        ConfigError: it is none.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", text.strip().lower())
    if match is None:
        raise ConfigError(f"{text!r} is no duration: write one such as 90s, 45m, 12h, 30d or 2w")
    return float(match[1]) * _UNITS[match[2]]


def statuses_of(words: Iterable[str]) -> tuple[RunStatus, ...]:
    """Return the statuses that were named, in any case of letters.

    Raises:
        ConfigError: there is no such status in a store.
    """
    by_name = {status.value: status for status in STORED_STATUSES}
    found = []
    for word in words:
        if word.upper() not in by_name:
            raise ConfigError(f"no run has the status {word!r}; there are {', '.join(by_name)}")
        found.append(by_name[word.upper()])
    return tuple(found)


def tag_of(word: str | None) -> str | None:
    """Return a tag that runs are asked for by, or None for any.

    Raises:
        ConfigError: no run can have it, as an empty variable of a shell.
    """
    return None if word is None else check_id(word, "tag")
