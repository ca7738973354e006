"""What every level 1 store decides alike: claims, refusals, and the selection of listings.

For authors of stores: a store that decides these in its own code uses the same functions as the
built-in ones; a store that decides in its server (SQL, a script) follows them.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from stroma.errors import AlreadyCommitted, ConfigError, RecordCorrupt, RunLocked, StaleOwner
from stroma.ids import check_id
from stroma.records import (
    CLAIMABLE,
    ClaimQuery,
    OpenRequest,
    RecordKey,
    RunPage,
    RunQuery,
    RunRecord,
    RunStatus,
    UnreadableRun,
)

Row = TypeVar("Row")


def claimed(run: RunRecord, request: OpenRequest, now: float, *, is_new: bool = False) -> RunRecord:
    """Return the run record as a claim leaves it."""
    return RunRecord(
        request.run_id,
        RunStatus.RUNNING,
        run.stop_reason,
        run.pipeline,
        run.version,
        run.tags,
        request.token,
        request.holder,
        now + request.lease_ms / 1000,
        run.epochs,
        run.input_payload,
        run.input_fingerprint,
        run.plan,
        run.spend,
        run.active_ms,
        run.trace_parent,
        run.created_at if run.created_at or not is_new else now,
        now,
    )


def is_closed_book(run: RunRecord, request: OpenRequest) -> bool:
    """Say whether the run is finished and the request only reads it."""
    return run.status is RunStatus.COMPLETED and not request.reopen


def is_held(owner: str, lease_expires_at: float, now: float) -> bool:
    """Say whether a worker owns the run, as far as the lease tells."""
    return owner != "" and lease_expires_at > now


def locked(run: RunRecord, now: float) -> RunLocked:
    """Return the refusal of a claim."""
    return RunLocked(run.run_id, run.holder, run.lease_expires_at - now)


def stale(run_id: str, holder: str | None) -> StaleOwner:
    """Return the refusal of a commit.

    Args:
        run_id: the run.
        holder: who owns it now: "" for nobody, None when the run does not exist.
    """
    if holder is None:
        return StaleOwner(
            f"run {run_id!r}: the run does not exist any more: it was deleted or has expired. "
            "Nothing was written; start it again to buy it again"
        )
    if holder:
        found = f"it is owned by {holder}"
    else:
        found = "another worker took it over and gave it up, or it ended"
    return StaleOwner(
        f"run {run_id!r}: this worker does not own it: {found}. Nothing was written; "
        "start the run again to go on from what is recorded"
    )


def already_committed(key: RecordKey) -> AlreadyCommitted:
    """Return the refusal of a record whose key another commit holds."""
    return AlreadyCommitted(
        f"run {key.run_id!r}, {key.path!r} ({key.kind}, epoch {key.epoch}, attempt "
        f"{key.attempt}): another commit holds this record, and records are written once"
    )


def matches(query: RunQuery, run: RunRecord) -> bool:
    """Say whether a query asks for a run, its cursor aside."""
    return (
        (not query.statuses or run.status in query.statuses)
        and (query.pipeline is None or run.pipeline == query.pipeline)
        and (query.tag is None or query.tag in run.tags)
        and (query.updated_before is None or run.updated_at < query.updated_before)
    )


def is_claimable(query: ClaimQuery, run: RunRecord, now: float) -> bool:
    """Say whether a query of claimable runs asks for a run, as far as the lease tells.

    Whose page it is on, its cursor decides: see `claimable_page`.
    """
    return (
        run.status in CLAIMABLE
        and (not query.pipelines or run.pipeline in query.pipelines)
        and not is_held(run.owner, run.lease_expires_at, now)
    )


def claimable_page(runs: Iterable[RunRecord], query: ClaimQuery, now: float) -> RunPage:
    """Return the page that a query of claimable runs asks for.

    Args:
        runs: all that may be claimable, in any order; others among them are left out.
        query: the query.
        now: the time on the store's clock.

    Raises:
        ConfigError: its cursor is none of a page.
    """
    after = cursor_position(query.cursor) if query.cursor else None
    found = [run for run in runs if is_claimable(query, run, now)]
    if after is not None:
        found = [run for run in found if (run.created_at, run.run_id) > after]
    found.sort(key=lambda run: (run.created_at, run.run_id))
    page = tuple(found[: max(0, query.limit)])
    has_more = 0 < len(page) < len(found)
    return RunPage(page, claim_cursor_after(page[-1]) if has_more else "")


def page_of_rows(
    rows: Sequence[Row],
    limit: int,
    run_of: Callable[[Row], RunRecord],
    place_of: Callable[[Row], tuple[float, str]],
) -> RunPage:
    """Return the page of runs that rows of a table are; one that is damaged is told.

    Args:
        rows: what the query found, in order, one more than its limit if there are so many.
        limit: of the query.
        run_of: reads a row; raises `RecordCorrupt` if it cannot.
        place_of: returns the time that the rows are in the order of, by `listed_time` or
            `queued_time`, and the id of the run.
    """
    limit = max(0, limit)
    runs: list[RunRecord] = []
    unreadable: list[UnreadableRun] = []
    for row in rows[:limit]:
        try:
            runs.append(run_of(row))
        except RecordCorrupt as exc:
            unreadable.append(UnreadableRun(place_of(row)[1], exc))
    cursor = _cursor_of(*place_of(rows[limit - 1])) if len(rows) > limit else ""
    return RunPage(tuple(runs), cursor, tuple(unreadable))


def claim_cursor_after(run: RunRecord) -> str:
    """Return the cursor of the page of claimable runs that begins after a run.

    `cursor_position` reads it: a time, which is when the run was created, and its id.
    """
    return _cursor_of(queued_time(run.created_at), run.run_id)


def cursor_after(run: RunRecord) -> str:
    """Return the cursor of the page that begins after a run."""
    return _cursor_of(listed_time(run.updated_at), run.run_id)


def listed_time(updated_at: object) -> float:
    """Return the time that a run stands at in a list that has the last updated first.

    A time that is none, of a damaged run, is later than all others, as databases sort it.
    """
    if isinstance(updated_at, (int, float)) and updated_at < math.inf:
        return updated_at
    return sys.float_info.max


def queued_time(created_at: object) -> float:
    """Return the time that a run stands at in a list that has the first created first.

    A time that is none, of a damaged run, is later than all others, as databases sort it.
    """
    if isinstance(created_at, (int, float)):
        return max(created_at, -sys.float_info.max)
    return math.inf


def _cursor_of(time: float, run_id: str) -> str:
    # No page can begin after a time that is none: these come last.
    return json.dumps([time, run_id]) if math.isfinite(time) else ""


def cursor_position(cursor: str) -> tuple[float, str]:
    """Return the time and run id that a page begins after.

    Raises:
        ConfigError: the text is no cursor of a page.
    """
    try:
        time, run_id = json.loads(cursor)
        if type(time) not in {int, float} or not math.isfinite(time):
            raise ValueError("it has no time")
        return float(time), check_id(run_id, "run id")
    except (ValueError, TypeError, OverflowError, RecursionError, ConfigError) as exc:
        raise ConfigError(
            f"{cursor!r:.200} is no cursor: pass the one that the page before came with"
        ) from exc
