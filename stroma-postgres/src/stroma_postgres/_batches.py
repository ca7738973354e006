"""Commits as the arguments of one statement."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from stroma.errors import StoreError
from stroma.records import CheckpointRecord, Commit, RecordKey, RunUpdate
from stroma.stores.rules import already_committed, stale
from stroma_postgres._columns import COMMIT, ROW, UPDATE
from stroma_postgres._rows import Row, header_row, record_row, text_arrays, update_row

if TYPE_CHECKING:
    from asyncpg import Record

MAX_STATEMENT_BYTES: Final = 32_000_000
"""Payloads of one statement. The server copies an array some times over before it writes it."""


def is_one_record(commit: Commit) -> bool:
    """Say whether a commit adds one record to an owned run, whatever else it does."""
    return len(commit.records) == 1 and commit.token != ""


def add_one_arguments(commit: Commit) -> Row:
    """Return the arguments of `Statements.add_one`: of one record and no update."""
    return (commit.run_id, commit.token, *record_row(commit.records[0]))


def commit_one_arguments(commit: Commit, update: RunUpdate) -> Row:
    """Return the arguments of `Statements.commit_one`: of one record and its update."""
    changes = update_row(1, update)[1:]
    return (commit.run_id, commit.token, *changes, *record_row(commit.records[0]))


def statements_of(commits: Sequence[Commit]) -> Iterator[list[int]]:
    """Yield the positions of the commits that go into one statement; nearly always all of them.

    Within a statement nothing comes before anything else. So a commit that depends on another
    one goes into the next: one of a run that was changed or given up, or one with a key again.
    """
    group: list[int] = []
    changed: set[str] = set()
    keys: set[tuple[object, ...]] = set()
    size = 0
    for position, commit in enumerate(commits):
        mine = {(commit.run_id, *record.header[1:5]) for record in commit.records}
        length = sum(len(record.payload) for record in commit.records)
        depends = commit.run_id in changed or not keys.isdisjoint(mine)
        if group and (depends or size + length > MAX_STATEMENT_BYTES):
            yield group
            group, changed, keys, size = [], set(), set(), 0
        group.append(position)
        keys |= mine
        size += length
        if commit.update is not None:
            changed.add(commit.run_id)
    if group:
        yield group


def commit_arguments(commits: Sequence[Commit]) -> list[Any]:
    """Return the arguments of `commit_v1`. Commits, records and bytes are counted from 1."""
    heads: list[Row] = []
    updates: list[Row] = []
    rows: list[Row] = []
    payloads: list[bytes] = []
    start = 1
    for number, commit in enumerate(commits, 1):
        is_broken = commit.token != "" and _contradicts_itself(commit) is not None
        heads.append((commit.run_id, commit.token, is_broken))
        if commit.update is not None and commit.token:
            updates.append(update_row(number, commit.update))
        for header, payload in _distinct(commit):
            rows.append((number, *header_row(header), start, len(payload)))
            payloads.append(payload)
            start += len(payload)
    return [
        *text_arrays(heads, len(COMMIT)),
        *text_arrays(updates, len(UPDATE)),
        *text_arrays(rows, len(ROW)),
        b"".join(payloads),
    ]


def refusals_of(commits: Sequence[Commit], rows: Sequence[Record]) -> list[StoreError | None]:
    """Return the outcome of each commit from what `commit_v1` returned: a row of each refusal."""
    outcomes: list[StoreError | None] = [None] * len(commits)
    records = [record for commit in commits for record in _distinct(commit)]
    for commit_no, refusal, holder, record_no in rows:
        commit = commits[commit_no - 1]
        if refusal == "stale":
            outcomes[commit_no - 1] = stale(commit.run_id, holder)
            continue
        key = records[record_no - 1].header.key if record_no else _contradicts_itself(commit)
        assert key is not None
        outcomes[commit_no - 1] = already_committed(key)
    return outcomes


def _distinct(commit: Commit) -> Sequence[CheckpointRecord]:
    """Return the records of a commit, the last of each key: two of a key cannot be replaced."""
    if len(commit.records) < 2:
        return commit.records
    return list({record.header[1:5]: record for record in commit.records}.values())


def _contradicts_itself(commit: Commit) -> RecordKey | None:
    """Return the key that two commit ids of one commit claim, or None."""
    if len(commit.records) < 2:
        return None
    ids: dict[tuple[object, ...], str] = {}
    for header, _ in commit.records:
        if ids.setdefault(header[1:5], header.commit_id) != header.commit_id:
            return header.key
    return None
