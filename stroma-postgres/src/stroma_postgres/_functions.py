# ruff: noqa: S608  (what is put in are names that were checked, and columns of this package)
"""The functions in the database: claims, commits, removal. Version 1 of each.

Why functions. A commit checks who owns a run and writes, and both have to see the same moment.
In one SQL statement they do not: under READ COMMITTED every part of it sees the snapshot that was
taken when it began, and a claim that commits while the statement waits for the run's row is seen
by the row lock alone (PostgreSQL manual, 13.2.1). In a function each statement takes a snapshot of
its own, so that what follows ``FOR NO KEY UPDATE`` sees what the lock waited for. It stays one
statement for the client: one round trip, one transaction, nothing held afterwards, which is what
PgBouncer in transaction mode asks for. The commit of a single record is plain SQL
(`_statements.ADD_ONE`), as it reads nothing but the row that it locks.

Every writer of a run locks its row first, several in the order of their ids: writers of one run
come one after the other, and batches that overlap cannot deadlock.

The names end in a version. A later version of the store adds functions and leaves these as they
are, so that both work on the same tables.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from stroma.records import PLAIN_EPOCH
from stroma_postgres._columns import (
    KEY,
    RECORD,
    ROW,
    RUN,
    UPDATE,
    USAGE,
    Column,
    base_type,
    names,
)
from stroma_postgres._names import Names

OPEN: Final = "open_v1"
COMMIT: Final = "commit_v1"
COMMIT_ONE: Final = "commit_one_v1"
DELETE: Final = "delete_v1"
PURGE: Final = "purge_v1"

OPENED: Final = (
    Column("outcome", "text"),
    Column("status_before", "text"),
    Column("server_time", "double precision"),
    *(Column(f"run_{c.name}", base_type(c)) for c in RUN),
    *(Column(f"rec_{c.name}", base_type(c)) for c in RECORD),
    Column("seq", "bigint"),
)
"""What `open_v1` returns: a row of the run, then a row of each record."""

NEW_RUN: Final = tuple(
    column
    for column in RUN
    if column.name not in {"run_id", "status", "owner", "holder", "lease_expires_at", "updated_at"}
)
"""The columns that a new run brings along."""

CLAIM: Final = (
    Column("run_id", "text"),
    Column("token", "text"),
    Column("holder", "text"),
    Column("lease_ms", "bigint"),
    Column("reopen", "boolean"),
    Column("is_new", "boolean"),
    *NEW_RUN,
)
"""What a claim is given, in the order of the parameters of `open_v1`."""

_NOW: Final = "extract(epoch FROM clock_timestamp())::double precision"
NO_RUN: Final = ", ".join(f"NULL::{base_type(column)}" for column in RUN)
"""What stands in the row of a record, or of a new run, for the columns of a run."""
NO_RECORD: Final = ", ".join(f"NULL::{base_type(column)}" for column in RECORD) + ", 0::bigint"
"""What stands in the row of the run for the columns of a record."""

# A plan is kept for the life of a connection. One that was made when the tables were empty must
# not read all of them later.
_SETTINGS: Final = """
SET enable_seqscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
""".strip()


def functions(at: Names) -> str:
    """Return the SQL that creates all functions."""
    return "\n".join((_open(at), _commit(at), _commit_one(at), _delete(at), _purge(at)))


def found_records(at: Names, run_id: str, newest: str) -> str:
    """Return the query of a run's headers, with the payload of one record.

    Args:
        at: the names of the store.
        run_id: SQL of the run's id.
        newest: SQL of the sequence number of the record whose payload is wanted.
    """
    header = ", ".join(f"k.{column.name}" for column in RECORD[:-1])
    return (
        f"SELECT 'record'::text, NULL::text, NULL::double precision, {NO_RUN}, {header}, "
        f"CASE WHEN k.seq = {newest} THEN k.payload END, k.seq FROM {at.records} k "
        f"WHERE k.run_id = {run_id} AND k.epoch <> {PLAIN_EPOCH}"
    )


def newest_result(at: Names, run_id: str) -> str:
    """Return the query of the sequence number of a run's `OpenedRun.last`."""
    return (
        f"SELECT k.seq FROM {at.records} k WHERE k.run_id = {run_id} AND k.kind = 'result' "
        f"AND k.position >= 0 AND k.epoch <> {PLAIN_EPOCH} "
        "ORDER BY k.epoch DESC, k.position DESC LIMIT 1"
    )


def _open(at: Names) -> str:
    parameters = ", ".join(f"p_{c.name} {base_type(c)}" for c in CLAIM)
    returns = ", ".join(f"o_{c.name} {c.type}" for c in OPENED)
    values = new_values("p_{}".format)
    run = ", ".join(f"v.{c.name}" for c in RUN)
    return f"""
CREATE OR REPLACE FUNCTION {at.of(OPEN)}(
    {parameters}
) RETURNS TABLE ({returns})
LANGUAGE plpgsql
{_SETTINGS}
AS $body$
DECLARE
    v {at.runs}%ROWTYPE;
    v_now double precision;
    v_outcome text := 'claimed';
    v_before text;
    v_newest bigint;
BEGIN
    LOOP
        SELECT r.* INTO v FROM {at.runs} r WHERE r.run_id = p_run_id FOR NO KEY UPDATE;
        EXIT WHEN FOUND OR NOT p_is_new;
        v_now := {_NOW};
        INSERT INTO {at.runs} AS r ({names(RUN)}) VALUES ({values})
            ON CONFLICT (run_id) DO NOTHING RETURNING r.* INTO v;
        IF FOUND THEN
            RETURN QUERY SELECT 'new'::text, NULL::text, v_now, {run}, {NO_RECORD};
            RETURN;
        END IF;
    END LOOP;
    IF v.run_id IS NULL THEN
        RETURN;
    END IF;
    v_now := {_NOW};
    IF v.status = 'COMPLETED' AND NOT p_reopen THEN
        v_outcome := 'closed';
    ELSIF v.owner <> '' AND v.owner <> p_token AND v.lease_expires_at > v_now THEN
        RETURN QUERY SELECT 'locked'::text, NULL::text, v_now, {run}, {NO_RECORD};
        RETURN;
    ELSE
        v_before := v.status;
        UPDATE {at.runs} AS r
            SET status = 'RUNNING', owner = p_token, holder = p_holder,
                lease_expires_at = v_now + p_lease_ms / 1000.0, updated_at = v_now
            WHERE r.run_id = p_run_id RETURNING r.* INTO v;
    END IF;
    RETURN QUERY SELECT v_outcome, v_before, v_now, {run}, {NO_RECORD};
    v_newest := ({newest_result(at, "p_run_id")});
    RETURN QUERY {found_records(at, "p_run_id", "v_newest")} ORDER BY k.seq;
END
$body$;"""


def new_values(given: Callable[[str], str]) -> str:
    """Return what a run is created with, in the order of its columns, at the time ``v_now``.

    Args:
        given: returns the SQL of one of the columns of `CLAIM`.
    """
    fixed = {
        "status": "'RUNNING'",
        "owner": given("token"),
        "lease_expires_at": f"v_now + {given('lease_ms')} / 1000.0",
        "created_at": f"CASE WHEN {given('created_at')} = 0 THEN v_now "
        f"ELSE {given('created_at')} END",
        "updated_at": "v_now",
    }
    return ", ".join(fixed.get(column.name) or given(column.name) for column in RUN)


def _commit(at: Names) -> str:
    updates = ", ".join(f"u_{c.name} {base_type(c)}[]" for c in UPDATE)
    rows = ", ".join(f"r_{c.name} {base_type(c)}[]" for c in ROW)
    update_arrays = ", ".join(f"u_{c.name}" for c in UPDATE)
    row_arrays = ", ".join(f"r_{c.name}" for c in ROW)
    key = " AND ".join(f"k.{name} = r.{name}" for name in KEY if name != "run_id")
    row = ", ".join(f"r.{c.name}" for c in RECORD[1:-1])
    row += ", substring(payloads FROM r.payload_start FOR r.payload_size)"
    replaced = ", ".join(f"{c.name} = excluded.{c.name}" for c in RECORD if c.name not in KEY)
    spend = ",\n            ".join(
        f"{c.name} = CASE WHEN u.has_spend THEN u.{c.name} ELSE x.{c.name} END" for c in USAGE
    )
    # The names of commit and record numbers, for what the arrays are unnested to.
    commits = "unnest(c_run_id, c_token) WITH ORDINALITY c(run_id, token, n)"
    records = f"unnest({row_arrays}) WITH ORDINALITY r({names(ROW)}, n)"
    return f"""
CREATE OR REPLACE FUNCTION {at.of(COMMIT)}(
    c_run_id text[], c_token text[], c_is_broken boolean[],
    {updates},
    {rows}, payloads bytea
) RETURNS TABLE (o_commit_no integer, o_refusal text, o_holder text, o_record_no integer)
LANGUAGE plpgsql
{_SETTINGS}
AS $body$
DECLARE
    v_refused integer[] := '{{}}';
    v_taken integer[];
BEGIN
    PERFORM 1 FROM {at.runs} x WHERE x.run_id = ANY (c_run_id)
        ORDER BY x.run_id FOR NO KEY UPDATE;

    FOR o_commit_no, o_holder IN
        SELECT c.n::integer, x.holder FROM {commits}
        LEFT JOIN {at.runs} x ON x.run_id = c.run_id
        WHERE c.token <> '' AND x.owner IS DISTINCT FROM c.token
    LOOP
        o_refusal := 'stale';
        v_refused := v_refused || o_commit_no;
        RETURN NEXT;
    END LOOP;

    o_holder := NULL;
    v_taken := v_refused;
    FOR o_commit_no, o_record_no IN
        SELECT r.commit_no, r.n::integer FROM {records}
        CROSS JOIN LATERAL (
            SELECT k.commit_id FROM {at.records} k
            WHERE k.run_id = c_run_id[r.commit_no] AND {key}
        ) AS found
        WHERE c_token[r.commit_no] <> '' AND found.commit_id <> r.commit_id
        UNION ALL
        SELECT n::integer, NULL FROM unnest(c_is_broken) WITH ORDINALITY b(is_broken, n)
        WHERE is_broken
        ORDER BY 1, 2
    LOOP
        CONTINUE WHEN o_commit_no = ANY (v_taken);
        o_refusal := 'taken';
        v_taken := v_taken || o_commit_no;
        RETURN NEXT;
    END LOOP;
    v_refused := v_taken;

    INSERT INTO {at.records} ({names(RECORD)})
        SELECT c_run_id[r.commit_no], {row} FROM {records}
        WHERE c_token[r.commit_no] <> '' AND r.commit_no <> ALL (v_refused)
        ORDER BY r.n
        ON CONFLICT ({", ".join(KEY)}) DO NOTHING;

    IF '' = ANY (c_token) THEN
        INSERT INTO {at.records} ({names(RECORD)})
            SELECT c_run_id[r.commit_no], {row} FROM {records}
            WHERE c_token[r.commit_no] = ''
            ORDER BY c_run_id[r.commit_no], r.path, r.kind, r.attempt, r.epoch
            ON CONFLICT ({", ".join(KEY)}) DO UPDATE SET {replaced}, seq = DEFAULT;
    END IF;

    IF cardinality(u_commit_no) > 0 THEN
        UPDATE {at.runs} AS x SET
            updated_at = {_NOW},
            status = coalesce(u.status, x.status),
            stop_reason = coalesce(u.stop_reason, x.stop_reason),
            epochs = coalesce(u.epochs, x.epochs),
            version = coalesce(u.version, x.version),
            plan = coalesce(u.plan, x.plan),
            active_ms = coalesce(u.active_ms, x.active_ms),
            {spend},
            owner = CASE WHEN u.is_release THEN '' ELSE x.owner END,
            holder = CASE WHEN u.is_release THEN '' ELSE x.holder END,
            lease_expires_at = CASE WHEN u.is_release THEN 0 ELSE x.lease_expires_at END
            FROM unnest({update_arrays}) u({names(UPDATE)})
            WHERE x.run_id = c_run_id[u.commit_no] AND u.commit_no <> ALL (v_refused);
    END IF;
END
$body$;"""


def _commit_one(at: Names) -> str:
    """What `commit_v1` does, for a commit of one record and an update: without arrays, in a third
    of the time.

    It only says whether it was done; `commit_v1` finds out why not.
    """
    update = ", ".join(f"u_{c.name} {base_type(c)}" for c in UPDATE[1:])
    record = ", ".join(f"r_{c.name} {base_type(c)}" for c in RECORD[1:])
    row = ", ".join(f"r_{c.name}" for c in RECORD[1:])
    spend = ",\n        ".join(
        f"{c.name} = CASE WHEN u_has_spend THEN u_{c.name} ELSE x.{c.name} END" for c in USAGE
    )
    return f"""
CREATE OR REPLACE FUNCTION {at.of(COMMIT_ONE)}(
    c_run_id text, c_token text, {update}, {record}
) RETURNS boolean
LANGUAGE plpgsql
AS $body$
BEGIN
    PERFORM 1 FROM {at.runs} x WHERE x.run_id = c_run_id AND x.owner = c_token
        FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    INSERT INTO {at.records} ({names(RECORD)}) VALUES (c_run_id, {row})
        ON CONFLICT ({", ".join(KEY)}) DO NOTHING;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    UPDATE {at.runs} AS x SET
        updated_at = {_NOW},
        status = coalesce(u_status, x.status),
        stop_reason = coalesce(u_stop_reason, x.stop_reason),
        epochs = coalesce(u_epochs, x.epochs),
        version = coalesce(u_version, x.version),
        plan = coalesce(u_plan, x.plan),
        active_ms = coalesce(u_active_ms, x.active_ms),
        {spend},
        owner = CASE WHEN u_is_release THEN '' ELSE x.owner END,
        holder = CASE WHEN u_is_release THEN '' ELSE x.holder END,
        lease_expires_at = CASE WHEN u_is_release THEN 0 ELSE x.lease_expires_at END
        WHERE x.run_id = c_run_id;
    RETURN true;
END
$body$;"""


def _delete(at: Names) -> str:
    return f"""
CREATE OR REPLACE FUNCTION {at.of(DELETE)}(p_run_id text) RETURNS void
LANGUAGE plpgsql
{_SETTINGS}
AS $body$
BEGIN
    -- The run first: its row is the lock, and what is committed before it is seen below.
    DELETE FROM {at.runs} WHERE run_id = p_run_id;
    DELETE FROM {at.records} WHERE run_id = p_run_id;
END
$body$;"""


def _purge(at: Names) -> str:
    return f"""
CREATE OR REPLACE FUNCTION {at.of(PURGE)}(
    p_ids text[], p_statuses text[], p_pipeline text, p_tag text,
    p_updated_before double precision
) RETURNS integer
LANGUAGE plpgsql
{_SETTINGS}
AS $body$
DECLARE
    v_ids text[];
BEGIN
    -- The caller has read these runs. They are judged again as they are now; one that is locked
    -- now is being used now.
    SELECT coalesce(array_agg(f.run_id), '{{}}') INTO v_ids FROM (
        SELECT x.run_id FROM {at.runs} x
        WHERE x.run_id = ANY (p_ids)
            AND (cardinality(p_statuses) = 0 OR x.status = ANY (p_statuses))
            AND (p_pipeline IS NULL OR x.pipeline = p_pipeline)
            AND (p_tag IS NULL OR p_tag = ANY (x.tags))
            AND (p_updated_before IS NULL OR x.updated_at < p_updated_before)
            AND NOT (x.owner <> '' AND x.lease_expires_at > {_NOW})
        FOR NO KEY UPDATE SKIP LOCKED
    ) AS f;
    DELETE FROM {at.runs} WHERE run_id = ANY (v_ids);
    DELETE FROM {at.records} WHERE run_id = ANY (v_ids);
    RETURN cardinality(v_ids);
END
$body$;"""
