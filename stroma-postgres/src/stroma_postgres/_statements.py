# ruff: noqa: S608  (what is put in are names that were checked, and columns of this package)
"""What the store sends: each operation is one statement, with the store's names put in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from stroma.record_codec import storable
from stroma.records import PLAIN_EPOCH, ClaimQuery, RunQuery
from stroma.stores.rules import cursor_position
from stroma_postgres._columns import (
    COMMIT,
    KEY,
    RECORD,
    ROW,
    RUN,
    UNFINISHED,
    UPDATE,
    arrays,
    base_type,
    names,
)
from stroma_postgres._functions import (
    CLAIM,
    COMMIT_ONE,
    DELETE,
    NO_RECORD,
    NO_RUN,
    OPEN,
    OPENED,
    PURGE,
    found_records,
    new_values,
    newest_result,
)
from stroma_postgres._functions import (
    COMMIT as COMMIT_V1,
)
from stroma_postgres._names import Names

Arguments = tuple[Any, ...]

_EPOCH_NOW: Final = "extract(epoch FROM clock_timestamp())::double precision"


class Statements(NamedTuple):
    """The SQL of one store.

    Attributes:
        look: server settings.
        has_tables: whether there is a table of this name.
        versions: what was done to the schema.
        open: a claim: it creates the run, or is `open_v1`.
        inspect: a run and its records, from one snapshot.
        add_one: a commit of one record and no update, if the token owns the run.
        commit_one: `commit_one_v1`, of one record and an update; a row if it was done.
        commit: `commit_v1`.
        renew: leases of those that own.
        release: ownership of one that owns.
        fetch: records by key.
        list_runs: runs, up to the conditions.
        list_without_documents: the same, without what of a run is large.
        claimable: runs that a worker may take up, after a place.
        delete: `delete_v1`.
        purge: `purge_v1`.
        touch: a write that changes nothing.
    """

    look: str
    has_tables: str
    versions: str
    open: str
    inspect: str
    add_one: str
    commit_one: str
    commit: str
    renew: str
    release: str
    fetch: str
    list_runs: str
    list_without_documents: str
    claimable: str
    delete: str
    purge: str
    touch: str


def statements(at: Names) -> Statements:
    """Return the statements of a store."""
    return Statements(
        look=_LOOK,
        has_tables="SELECT to_regclass($1) IS NOT NULL",
        versions=f"SELECT version, min_compatible FROM {at.migrations} "
        "ORDER BY version DESC LIMIT 1",
        open=_open(at),
        inspect=_inspect(at),
        add_one=_add_one(at),
        commit_one=f"SELECT 1 WHERE {at.of(COMMIT_ONE)}({_marks(len(UPDATE) + len(RECORD))})",
        commit=_commit(at),
        renew=_renew(at),
        release=f"UPDATE {at.runs} SET owner = '', holder = '', lease_expires_at = 0, "
        f"updated_at = {_EPOCH_NOW} WHERE run_id = $1 AND owner = $2",
        fetch=_fetch(at),
        list_runs=f"SELECT {names(RUN)} FROM {at.runs}",
        list_without_documents=f"SELECT {_without_documents()} FROM {at.runs}",
        claimable=_claimable(at),
        delete=f"SELECT {at.of(DELETE)}($1)",
        purge=f"SELECT {at.of(PURGE)}($1, $2, $3, $4, $5)",
        touch=f"UPDATE {at.migrations} SET checked_at = clock_timestamp()",
    )


_LOOK: Final = """
SELECT pg_backend_pid() AS backend_pid,
    current_setting('server_version_num')::integer AS server_version,
    current_setting('server_encoding') AS encoding,
    current_setting('fsync') AS fsync,
    current_setting('synchronous_commit') AS synchronous_commit,
    current_setting('synchronous_standby_names') AS standbys,
    current_setting('default_transaction_isolation') AS isolation
"""


def _open(at: Names) -> str:
    """Return the statement of a claim. Most runs are new, and `open_v1` would take longer."""
    given = {c.name: f"${n}::{base_type(c)}" for n, c in enumerate(CLAIM, 1)}
    return (
        f"WITH created AS (INSERT INTO {at.runs} ({names(RUN)}) "
        f"SELECT {new_values(given.__getitem__)} FROM (SELECT {_EPOCH_NOW} AS v_now) t "
        f"WHERE {given['is_new']} ON CONFLICT (run_id) DO NOTHING RETURNING updated_at) "
        f"SELECT 'new'::text, NULL::text, updated_at, {NO_RUN}, {NO_RECORD} FROM created "
        f"UNION ALL SELECT * FROM {at.of(OPEN)}({', '.join(given.values())}) "
        "WHERE NOT EXISTS (SELECT FROM created)"
    )


def _marks(count: int, start: int = 1) -> str:
    return ", ".join(f"${n}" for n in range(start, start + count))


def _commit(at: Names) -> str:
    columns = (*COMMIT, *UPDATE, *ROW)
    return f"SELECT * FROM {at.of(COMMIT_V1)}({arrays(columns, 1)}, ${len(columns) + 1})"


def _inspect(at: Names) -> str:
    run = ", ".join(f"x.{column.name}" for column in RUN)
    newest = f"({newest_result(at, '$1')})"
    return (
        f"SELECT 'closed'::text, NULL::text, NULL::double precision, {run}, {NO_RECORD} "
        f"FROM {at.runs} x WHERE x.run_id = $1 "
        f"UNION ALL {found_records(at, '$1', newest)} ORDER BY {len(OPENED)}"
    )


def _add_one(at: Names) -> str:
    """Return the commonest commit as one statement of SQL.

    Sound without a function: the run's row is the only thing that it reads, and a row that it
    had to wait for is judged again as it is then (PostgreSQL manual, 13.2.1). Nothing added
    means that it was refused, or that it is there already: `commit_v1` says which.
    """
    return (
        f"INSERT INTO {at.records} ({names(RECORD)}) "
        f"SELECT x.run_id, {_marks(len(RECORD) - 1, 3)} FROM ("
        f"SELECT r.run_id FROM {at.runs} r WHERE r.run_id = $1 AND r.owner = $2 "
        f"FOR NO KEY UPDATE) x ON CONFLICT ({', '.join(KEY)}) DO NOTHING RETURNING 1"
    )


def _renew(at: Names) -> str:
    return (
        f"UPDATE {at.runs} AS x SET lease_expires_at = {_EPOCH_NOW} + $3::bigint / 1000.0 "
        f"FROM (SELECT r.run_id, r.owner FROM {at.runs} r "
        "WHERE (r.run_id, r.owner) IN (SELECT * FROM unnest($1::text[], $2::text[])) "
        "AND r.owner <> '' ORDER BY r.run_id FOR NO KEY UPDATE) AS mine "
        "WHERE x.run_id = mine.run_id AND x.owner = mine.owner RETURNING x.run_id, x.owner"
    )


def _fetch(at: Names) -> str:
    columns = ", ".join(f"found.{column.name}" for column in RECORD)
    return (
        f"SELECT wanted.n, {columns} "
        "FROM unnest($2::text[]::integer[], $3::text[], $4::text[], $5::text[]::integer[]) "
        "WITH ORDINALITY AS wanted(epoch, path, kind, attempt, n) "
        f"CROSS JOIN LATERAL (SELECT * FROM {at.records} k WHERE k.run_id = $1 "
        "AND k.path = wanted.path AND k.kind = wanted.kind AND k.attempt = wanted.attempt "
        "AND (wanted.epoch IS NULL OR k.epoch = wanted.epoch) "
        f"ORDER BY k.epoch = {PLAIN_EPOCH} DESC, k.epoch DESC LIMIT 1) AS found"
    )


def _without_documents() -> str:
    documents = {"input_payload", "plan"}
    return ", ".join("''::bytea" if c.name in documents else c.name for c in RUN)


def _claimable(at: Names) -> str:
    """Return the statement that reads the index of unfinished runs from a place on.

    The states are written out: with parameters, a plan that is kept could not use the index. It
    leaves out who owns the runs, so that a renewal changes no index.
    """
    return (
        f"SELECT {names(RUN)} FROM {at.runs} WHERE {UNFINISHED} "
        "AND (created_at, run_id) > ($2, $3) "
        "AND (cardinality($1::text[]) = 0 OR pipeline = ANY ($1)) "
        "AND (owner = '' OR lease_expires_at <= extract(epoch FROM now())::double precision) "
        "ORDER BY created_at, run_id LIMIT $4"
    )


def listing(list_runs: str, query: RunQuery) -> tuple[str, Arguments]:
    """Return the statement of a page of runs and its arguments; one run more than asked for."""
    conditions: list[str] = []
    arguments: list[Any] = []

    def add(condition: str, *values: object) -> None:
        first = len(arguments) + 1
        arguments.extend(values)
        conditions.append(condition.format(*(f"${first + i}" for i in range(len(values)))))

    if query.statuses:
        add("status = ANY ({}::text[])", [status.value for status in query.statuses])
    if query.pipeline is not None:
        add("pipeline = {}", storable(query.pipeline))
    if query.tag is not None:
        add("{} = ANY (tags)", storable(query.tag))
    if query.updated_before is not None:
        add("updated_at < {}", query.updated_before)
    if query.cursor:
        updated_at, run_id = cursor_position(query.cursor)
        # The first condition is what an index on the time can begin at.
        add("updated_at <= {0} AND (updated_at < {0} OR run_id > {1})", updated_at, run_id)
    where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
    arguments.append(query.limit + 1)
    order = f" ORDER BY updated_at DESC, run_id LIMIT ${len(arguments)}"
    return list_runs + where + order, tuple(arguments)


def claiming(query: ClaimQuery) -> Arguments:
    """Return the arguments of `Statements.claimable`, for one run more than asked for."""
    after_time, after_id = cursor_position(query.cursor) if query.cursor else (-math.inf, "")
    return [storable(name) for name in query.pipelines], after_time, after_id, query.limit + 1


def purging(query: RunQuery, run_ids: Sequence[str]) -> Arguments:
    """Return the arguments of `Statements.purge`."""
    return (
        list(run_ids),
        [status.value for status in query.statuses],
        None if query.pipeline is None else storable(query.pipeline),
        None if query.tag is None else storable(query.tag),
        query.updated_before,
    )
