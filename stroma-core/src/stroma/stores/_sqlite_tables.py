"""The record operations on one SQLite connection. Transactions are the caller's."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from typing import Final

from stroma.clock import Clock
from stroma.errors import RecordCorrupt, StoreError
from stroma.record_codec import storable, usage_to_row
from stroma.records import (
    PLAIN_EPOCH,
    CheckpointRecord,
    ClaimQuery,
    Commit,
    OpenedRun,
    OpenRequest,
    RecordHeader,
    RecordKey,
    RunPage,
    RunQuery,
    RunRecord,
    RunUpdate,
    last_result,
)
from stroma.stores._owner_lock import OwnerLock
from stroma.stores._sqlite_errors import UNSTORABLE, unstorable
from stroma.stores._sqlite_queries import (
    IS_FREE,
    conditions_of,
    conditions_of_claims,
    has_tag,
)
from stroma.stores._sqlite_schema import (
    HEADER_COLUMNS,
    RUN_COLUMNS,
    Row,
    epochs_text,
    header_of,
    place_of,
    record_row,
    run_of,
    run_row,
    updated_place_of,
)
from stroma.stores.rules import (
    already_committed,
    claimed,
    is_closed_book,
    is_held,
    locked,
    page_of_rows,
    stale,
)


def _marks(columns: str) -> str:
    return ", ".join("?" for _ in columns.split(","))


_FIND_RUN: Final = (
    "SELECT " + RUN_COLUMNS + ", input_payload, plan "
    "FROM runs CROSS JOIN run_documents USING (run_id) WHERE run_id = ?"
)
_ADD_RUN: Final = (
    "INSERT INTO runs (" + RUN_COLUMNS + ") VALUES (" + _marks(RUN_COLUMNS) + ")"  # noqa: S608
)
_ADD_DOCUMENTS: Final = "INSERT INTO run_documents (run_id, input_payload, plan) VALUES (?, ?, ?)"
_CLAIM: Final = (
    "UPDATE runs SET status = ?, owner = ?, holder = ?, lock = ?, lease_expires_at = ?, "
    "updated_at = ? WHERE run_id = ?"
)
_OWNER: Final = "SELECT owner, holder FROM runs WHERE run_id = ?"
_EXTEND: Final = "UPDATE runs SET lease_expires_at = ? WHERE run_id = ? AND owner = ?"
_RELEASE: Final = (
    "UPDATE runs SET owner = '', holder = '', lock = '', lease_expires_at = 0, updated_at = ? "
    "WHERE run_id = ? AND owner = ?"
)
_UPDATE_RUN: Final = (
    "UPDATE runs SET updated_at = ?, status = COALESCE(?, status), "
    "stop_reason = COALESCE(?, stop_reason), epochs = COALESCE(?, epochs), "
    "version = COALESCE(?, version), input_tokens = COALESCE(?, input_tokens), "
    "output_tokens = COALESCE(?, output_tokens), cost_usd = COALESCE(?, cost_usd), "
    "model = COALESCE(?, model), price_source = COALESCE(?, price_source), "
    "active_ms = COALESCE(?, active_ms), lease_expires_at = COALESCE(?, lease_expires_at), "
    "owner = COALESCE(?, owner), holder = COALESCE(?, holder), lock = COALESCE(?, lock) "
    "WHERE run_id = ?"
)
_UPDATE_PLAN: Final = "UPDATE run_documents SET plan = ? WHERE run_id = ?"
_VALUES: Final = (
    "INTO records (" + HEADER_COLUMNS + ", payload) VALUES (" + _marks(HEADER_COLUMNS) + ", ?)"
)
_ADD_RECORD: Final = (
    "INSERT " + _VALUES + " ON CONFLICT (run_id, path, kind, attempt, epoch) DO NOTHING"
)
_ADD_OWNED: Final = (
    "INSERT INTO records (" + HEADER_COLUMNS + ", payload) "  # noqa: S608
    "SELECT " + _marks(HEADER_COLUMNS) + ", ? "
    "WHERE EXISTS (SELECT 1 FROM runs WHERE run_id = ? AND owner = ?) "
    "ON CONFLICT (run_id, path, kind, attempt, epoch) DO NOTHING"
)
_REPLACE_RECORD: Final = "INSERT OR REPLACE " + _VALUES
_TAKE_BACK: Final = (
    "DELETE FROM records WHERE run_id = ? AND epoch = ? AND path = ? AND kind = ? AND attempt = ?"
)
_COMMIT_ID: Final = (
    "SELECT commit_id FROM records "
    "WHERE run_id = ? AND epoch = ? AND path = ? AND kind = ? AND attempt = ?"
)
_SELECT_RECORD: Final = "SELECT " + HEADER_COLUMNS + ", payload "
_FETCH: Final = (
    _SELECT_RECORD + "FROM records "
    "WHERE run_id = ? AND epoch = ? AND path = ? AND kind = ? AND attempt = ?"
)
_FETCH_NEWEST: Final = (
    _SELECT_RECORD + "FROM records "
    "WHERE run_id = ? AND path = ? AND kind = ? AND attempt = ? "
    "ORDER BY epoch = ? DESC, epoch DESC LIMIT 1"
)
_HEADERS: Final = (
    "SELECT " + HEADER_COLUMNS + " FROM records WHERE run_id = ? AND epoch <> ? ORDER BY seq"  # noqa: S608
)
_LIST: Final = (
    "SELECT " + RUN_COLUMNS + ", input_payload, plan "
    "FROM runs CROSS JOIN run_documents USING (run_id) WHERE "
)
# Without being told, SQLite reads every unfinished run by its status, and sorts them.
_LIST_UNFINISHED: Final = _LIST.replace("FROM runs ", "FROM runs INDEXED BY runs_unfinished ")
_LIST_WITHOUT_DOCUMENTS: Final = "SELECT " + RUN_COLUMNS + ", x'', x'' FROM runs WHERE "  # noqa: S608
_NEWEST_FIRST: Final = " ORDER BY updated_at DESC, run_id"
_OLDEST_FIRST: Final = " ORDER BY created_at, run_id"
_DELETE: Final = (
    "DELETE FROM records WHERE run_id = ?",
    "DELETE FROM run_documents WHERE run_id = ?",
    "DELETE FROM runs WHERE run_id = ?",
)


class Tables:
    """What `RecordStore` asks for, on one connection.

    A refusal leaves the transaction that it is part of as it was.

    Args:
        connection: to a database that has the tables.
        clock: what leases and times are measured by.
        lock: of the store object that claims runs here.
    """

    def __init__(self, connection: sqlite3.Connection, clock: Clock, lock: OwnerLock) -> None:
        connection.create_function("has_tag", 2, has_tag, deterministic=True)
        connection.create_function("is_dead", 1, lock.is_dead)
        self._execute = connection.cursor().execute
        self._now = clock.now
        self._lock = lock
        self._seq = 0

    def open_run(self, request: OpenRequest) -> OpenedRun | None:
        """Claim a run, creating it if the request says how."""
        row = self._execute(_FIND_RUN, (request.run_id,)).fetchone()
        if row is None:
            return self._create(request)
        run, lock = run_of(row), row[8]
        if is_closed_book(run, request):
            return self._opened(run, is_claimed=False)
        now = self._now()
        if (
            run.owner != request.token
            and is_held(run.owner, run.lease_expires_at, now)
            and not self._lock.is_dead(lock)
        ):
            raise locked(run, now)
        opened = self._opened(claimed(run, request, now), is_claimed=True)
        opened = opened._replace(status_before=run.status)
        run = opened.run
        self._execute(
            _CLAIM,
            (
                run.status.value,
                run.owner,
                storable(run.holder),
                self._lock.hold(),
                run.lease_expires_at,
                now,
                run.run_id,
            ),
        )
        return opened

    def inspect(self, run_id: str) -> OpenedRun | None:
        """Return a run as it is."""
        row = self._execute(_FIND_RUN, (run_id,)).fetchone()
        return None if row is None else self._opened(run_of(row), is_claimed=False)

    def _create(self, request: OpenRequest) -> OpenedRun | None:
        if request.new is None:
            return None
        run = claimed(request.new, request, self._now(), is_new=True)
        self._execute(_ADD_RUN, run_row(run, self._lock.hold()))
        self._execute(_ADD_DOCUMENTS, (run.run_id, run.input_payload, run.plan))
        return OpenedRun(run, is_new=True)

    def _opened(self, run: RunRecord, *, is_claimed: bool) -> OpenedRun:
        headers = self._headers(run.run_id)
        last = last_result(headers)
        record = None if last is None else self._find(last.key)
        return OpenedRun(run, headers, record, is_claimed=is_claimed)

    def _headers(self, run_id: str) -> list[RecordHeader]:
        rows = self._execute(_HEADERS, (run_id, PLAIN_EPOCH)).fetchall()
        if rows:
            self._seq = max(self._seq, rows[-1][-1])
        return [header_of(row) for row in rows]

    def commit(self, commit: Commit) -> StoreError | None:
        """Write one commit, or return why not."""
        run_id, token = commit.run_id, commit.token
        if not token:
            return self._replace(commit)
        added: list[RecordHeader] = []
        try:
            refused = self._add(commit.records, added) or self._change_run(commit)
        except UNSTORABLE as exc:
            refused = unstorable(commit.run_id, exc)
        if refused is None:
            return None
        for header in added:  # nobody has seen them: the transaction goes on
            self._execute(_TAKE_BACK, header[:5])
        owner, holder = self._owner(run_id)
        return refused if owner == token else stale(run_id, holder)

    def commit_alone(self, commit: Commit) -> bool:
        """Write a commit of one record by one statement, which is its own transaction.

        Returns:
            Whether it was written. If not, nothing was changed, and `commit` says why.
        """
        (record,) = commit.records
        row = (*record_row(record, self._next_seq()), commit.run_id, commit.token)
        try:
            return self._execute(_ADD_OWNED, row).rowcount == 1
        except UNSTORABLE:
            return False

    def _next_seq(self) -> int:
        """Return a number above that of every record of the runs that were opened here.

        A worker opens a run before it adds to it. So the order holds even if the machine's
        clock was turned back since another process wrote.
        """
        self._seq = max(self._seq + 1, time.time_ns())
        return self._seq

    def _replace(self, commit: Commit) -> StoreError | None:
        try:
            for record in commit.records:
                self._execute(_REPLACE_RECORD, record_row(record, self._next_seq()))
        except UNSTORABLE as exc:
            return unstorable(commit.run_id, exc)
        return None

    def _add(
        self, records: Sequence[CheckpointRecord], added: list[RecordHeader]
    ) -> StoreError | None:
        """Add records until one is refused; list those that were not there before."""
        for record in records:
            header = record.header
            if self._execute(_ADD_RECORD, record_row(record, self._next_seq())).rowcount == 1:
                added.append(header)
            elif self._execute(_COMMIT_ID, header[:5]).fetchone() != (header.commit_id,):
                return already_committed(header.key)
        return None

    def _change_run(self, commit: Commit) -> StoreError | None:
        """Change the run's row, if the token owns the run."""
        run_id, token, _, update = commit
        owner, holder = self._owner(run_id)
        if owner != token:
            return stale(run_id, holder)
        if update is not None:
            self._execute(_UPDATE_RUN, _changes(run_id, update, self._now()))
            if update.plan is not None:
                self._execute(_UPDATE_PLAN, (update.plan, run_id))
        return None

    def _owner(self, run_id: str) -> tuple[str, str | None]:
        """Return token and holder of a run; the holder is None if there is no run."""
        return self._execute(_OWNER, (run_id,)).fetchone() or ("", None)

    def renew(self, claims: Sequence[tuple[str, str]], lease_ms: int) -> list[bool]:
        """Extend the leases of those that own."""
        expires_at = self._now() + lease_ms / 1000
        return [
            token != "" and self._execute(_EXTEND, (expires_at, run_id, token)).rowcount == 1
            for run_id, token in claims
        ]

    def release(self, run_id: str, token: str) -> None:
        """Give up a run, if the token owns it."""
        if token:
            self._execute(_RELEASE, (self._now(), run_id, token))

    def fetch(self, run_id: str, keys: Sequence[RecordKey]) -> list[CheckpointRecord | None]:
        """Return the record of each key, or None."""
        return [self._find(key._replace(run_id=run_id)) for key in keys]

    def _find(self, key: RecordKey) -> CheckpointRecord | None:
        if key.epoch is None:
            row = self._execute(_FETCH_NEWEST, (key.run_id, *key[2:], PLAIN_EPOCH)).fetchone()
        else:
            row = self._execute(_FETCH, key).fetchone()
        return None if row is None else CheckpointRecord(header_of(row), row[-1])

    def runs(self, query: RunQuery) -> RunPage:
        """List runs, the last updated first; equal times by run id."""
        where, values = conditions_of(query)
        found = self._select(_LIST + where + _NEWEST_FIRST, values, query.limit)
        return page_of_rows(found, query.limit, run_of, updated_place_of)

    def claimable(self, query: ClaimQuery) -> RunPage:
        """List unfinished runs without a living owner, the first created first."""
        where, values = conditions_of_claims(query, self._now())
        found = self._select(_LIST_UNFINISHED + where + _OLDEST_FIRST, values, query.limit)
        return page_of_rows(found, query.limit, run_of, place_of)

    def _select(self, statement: str, values: Row, limit: int) -> list[Row]:
        """Return what a listing finds, one row more than its limit; nothing if it asks for none."""
        if limit < 1:
            return []
        return self._execute(statement + " LIMIT ?", (*values, limit + 1)).fetchall()

    def delete(self, run_id: str) -> None:
        """Remove the run and all its records."""
        for statement in _DELETE:
            self._execute(statement, (run_id,))

    def purge(self, query: RunQuery) -> int:
        """Remove runs that a query finds and nobody owns, up to its limit; no unreadable ones."""
        where, values = conditions_of(query)
        statement = _LIST_WITHOUT_DOCUMENTS + where + IS_FREE + _NEWEST_FIRST
        found = self._execute(statement, (*values, self._now()))
        doomed = list(islice(_ids_of_readable(found), max(0, query.limit)))
        for run_id in doomed:
            self.delete(run_id)
        return len(doomed)

    def touch(self) -> None:
        """Write without changing anything, to see whether writing works."""
        (version,) = self._execute("PRAGMA user_version").fetchone()
        self._execute(f"PRAGMA user_version = {int(version)}")


def _ids_of_readable(rows: Iterable[Row]) -> Iterator[str]:
    """Yield the ids of the runs of which the whole row can be read, and so whether it is owned."""
    for row in rows:
        with suppress(RecordCorrupt):
            yield run_of(row).run_id


def _changes(run_id: str, update: RunUpdate, now: float) -> Row:
    """Return the values of `_UPDATE_RUN`."""
    return (
        now,
        None if update.status is None else update.status.value,
        None if update.stop_reason is None else storable(update.stop_reason),
        None if update.epochs is None else epochs_text(update.epochs),
        update.version,
        *((None,) * 5 if update.spend is None else usage_to_row(update.spend)),
        update.active_ms,
        *((0.0, "", "", "") if update.release else (None,) * 4),
        run_id,
    )
