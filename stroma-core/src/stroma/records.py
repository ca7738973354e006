"""What a store keeps: run records and checkpoint records, and what is asked of them."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from itertools import count
from types import MappingProxyType
from typing import Final, Literal, NamedTuple, TypeAlias

from stroma.cost import NO_USAGE, Usage
from stroma.errors import RecordCorrupt, StoreError

PLAIN_EPOCH: Final = -1
"""Epoch of records that `save` wrote by itself, outside any run."""

RecordKind: TypeAlias = Literal["result", "attempt", "reserved", "resolved", "once"]


class RunStatus(StrEnum):
    """Where a run stands, as stored and in results."""

    PENDING = "PENDING"
    """Submitted, or given back by a worker: it waits for one."""
    RUNNING = "RUNNING"
    """Claimed by a worker, or left by one that died."""
    WAITING = "WAITING"
    """Stopped until somebody says what became of a call."""
    COMPLETED = "COMPLETED"
    """Every node has its result."""
    RESUMED = "RESUMED"
    """Completed, with recorded nodes skipped. In results only: stored as COMPLETED."""
    PARTIAL = "PARTIAL"
    """Stopped by something that may pass; start it again."""
    FAILED = "FAILED"
    """Stopped by something that somebody has to look at; then start it again."""
    CANCELLED = "CANCELLED"
    """Cancelled by its caller; start it again to go on."""


class Epoch(NamedTuple):
    """One deliberate beginning of a run.

    Attributes:
        number: 0 for the first.
        position: index of the node that it began at: results of nodes before it, from earlier
            epochs, are adopted.
        carries_spend: whether what earlier epochs spent counts.
    """

    number: int
    position: int
    carries_spend: bool


FIRST_EPOCH: Final = (Epoch(0, 0, False),)


class RecordKey(NamedTuple):
    """What makes a checkpoint record the only one.

    Attributes:
        run_id: the run.
        epoch: number of the epoch, or `PLAIN_EPOCH`. None in a key that is asked for means:
            the plain record if there is one, or else the newest epoch's.
        path: the node's place, such as "extract[17]".
        kind: "result" once per place; "attempt" for a failed call; "reserved" for a call that
            was about to be made; "resolved" for what somebody said became of a call; "once" for
            a side effect.
        attempt: number of the call over all starts of the run, from 1; 0 for results.
    """

    run_id: str
    epoch: int | None
    path: str
    kind: RecordKind = "result"
    attempt: int = 0


class RecordHeader(NamedTuple):
    """A checkpoint record without its payload.

    Attributes:
        run_id: the run.
        epoch: number of the epoch, or `PLAIN_EPOCH`.
        path: the node's place.
        kind: see `RecordKey`.
        attempt: see `RecordKey`.
        position: index in the pipeline for the result of a node that stands there itself; -1
            for attempts, children of `parallel` and items of `fan_out`.
        commit_id: random; the same one on the same key again is the same commit.
        contract_id: id of the node whose contract the payload fits.
        schema_ref: "module:qualname" of the payload's model.
        fingerprint: of the model's structure.
        digest: SHA-256 of the payload, in hex.
        usage: what the attempt used, recorded by the same write as its result.
        active_ms: milliseconds that the run was active since its last record.
        trace_parent: W3C traceparent of the attempt, or "".
        created_at: seconds since the epoch.
    """

    run_id: str
    epoch: int
    path: str
    kind: RecordKind
    attempt: int
    position: int
    commit_id: str
    contract_id: str
    schema_ref: str
    fingerprint: str
    digest: str
    usage: Usage
    active_ms: float
    trace_parent: str
    created_at: float

    @property
    def key(self) -> RecordKey:
        """What makes the record the only one."""
        return RecordKey(self.run_id, self.epoch, self.path, self.kind, self.attempt)


class CheckpointRecord(NamedTuple):
    """A header and its payload: one atomic, append-only write.

    Attributes:
        header: the typed columns.
        payload: JSON, as bytes.
    """

    header: RecordHeader
    payload: bytes


class RunRecord(NamedTuple):
    """One run.

    Attributes:
        run_id: the run.
        status: where it stands; RESUMED is never stored.
        stop_reason: why it stopped, or "".
        pipeline: the pipeline's name, or "".
        version: the pipeline's version, or "".
        tags: the caller's words for listing.
        owner: token of the worker that owns the run, or "".
        holder: that worker's description of itself, for people.
        lease_expires_at: seconds since the epoch on the store's clock, 0 when nobody owns it.
        epochs: deliberate beginnings, oldest first; the last one is current.
        input_payload: the initial state as JSON.
        input_fingerprint: of the initial state's structure.
        plan: `PlanDocument` as JSON: what was to run.
        spend: what was spent, as of the last change of status.
        active_ms: active time, as of the last change of status.
        trace_parent: W3C traceparent of the first start, or "".
        created_at: seconds since the epoch.
        updated_at: seconds since the epoch; changes with a claim, an update and a release, not
            with records and renewals.
    """

    run_id: str
    status: RunStatus
    stop_reason: str = ""
    pipeline: str = ""
    version: str = ""
    tags: tuple[str, ...] = ()
    owner: str = ""
    holder: str = ""
    lease_expires_at: float = 0.0
    epochs: tuple[Epoch, ...] = FIRST_EPOCH
    input_payload: bytes = b""
    input_fingerprint: str = ""
    plan: bytes = b"{}"
    spend: Usage = NO_USAGE
    active_ms: float = 0.0
    trace_parent: str = ""
    created_at: float = 0.0
    updated_at: float = 0.0

    @property
    def epoch(self) -> Epoch:
        """The current epoch."""
        return self.epochs[-1]


class RunUpdate(NamedTuple):
    """Changes of a run record that go with a commit. None leaves a column as it is.

    Attributes:
        status: the new status.
        stop_reason: why it stopped.
        epochs: all epochs, after one was opened.
        version: of the pipeline that went on with it.
        plan: of the pipeline that went on with it.
        spend: what the run has spent.
        active_ms: its active time.
        release: give up the ownership with this commit.
    """

    status: RunStatus | None = None
    stop_reason: str | None = None
    epochs: tuple[Epoch, ...] | None = None
    version: str | None = None
    plan: bytes | None = None
    spend: Usage | None = None
    active_ms: float | None = None
    release: bool = False

    def apply(self, run: RunRecord, now: float) -> RunRecord:
        """Return the run record with these changes."""
        return RunRecord(
            run.run_id,
            run.status if self.status is None else self.status,
            run.stop_reason if self.stop_reason is None else self.stop_reason,
            run.pipeline,
            run.version if self.version is None else self.version,
            run.tags,
            "" if self.release else run.owner,
            "" if self.release else run.holder,
            0.0 if self.release else run.lease_expires_at,
            run.epochs if self.epochs is None else self.epochs,
            run.input_payload,
            run.input_fingerprint,
            run.plan if self.plan is None else self.plan,
            run.spend if self.spend is None else self.spend,
            run.active_ms if self.active_ms is None else self.active_ms,
            run.trace_parent,
            run.created_at,
            now,
        )


class Commit(NamedTuple):
    """What one run writes at once: all of it or nothing.

    Attributes:
        run_id: the run.
        token: of the owner. "" is for `save` outside runs: the records replace earlier ones
            of their key, and no run need exist.
        records: results and attempts.
        update: changes of the run record.
    """

    run_id: str
    token: str
    records: tuple[CheckpointRecord, ...] = ()
    update: RunUpdate | None = None


class OpenRequest(NamedTuple):
    """Who wants which run.

    Attributes:
        run_id: the run.
        token: the claim's own; commits must carry it.
        holder: a description of the worker, for people.
        lease_ms: milliseconds until the claim lapses unless it is renewed.
        new: the record to create if there is none; None if it must exist.
        reopen: claim it even if it is COMPLETED.
    """

    run_id: str
    token: str
    holder: str
    lease_ms: int
    new: RunRecord | None = None
    reopen: bool = False


class OpenedRun(NamedTuple):
    """A run as it was found, or created.

    Attributes:
        run: the record, after the claim.
        headers: of every checkpoint record of the run, except plain ones, oldest first.
        last: the result with the highest position in the newest epoch that has any.
        is_new: the run was created by this call.
        is_claimed: the caller owns it. A COMPLETED run is not claimed unless asked for.
        status_before: the status that the claim found, for a caller who gives the run back
            untouched; None if the run was not claimed, or created.
    """

    run: RunRecord
    headers: Sequence[RecordHeader] = ()
    last: CheckpointRecord | None = None
    is_new: bool = False
    is_claimed: bool = True
    status_before: RunStatus | None = None


class RunQuery(NamedTuple):
    """Which runs to list, newest first.

    Attributes:
        statuses: any of these; empty is all.
        pipeline: of this pipeline; None is any.
        tag: with this tag; None is any.
        updated_before: last changed before this many seconds since the epoch; None is any.
        limit: how many at most; 0 or less is none.
        cursor: `RunPage.cursor` of the page before, or "".
    """

    statuses: tuple[RunStatus, ...] = ()
    pipeline: str | None = None
    tag: str | None = None
    updated_before: float | None = None
    limit: int = 100
    cursor: str = ""


class UnreadableRun(NamedTuple):
    """A run whose record cannot be read.

    Attributes:
        run_id: the run.
        error: why: `RecordCorrupt`, or `StoreUnusable` where a newer version wrote it.
    """

    run_id: str
    error: StoreError


class RunPage(NamedTuple):
    """Some of the runs that were asked for.

    Attributes:
        runs: the records.
        cursor: asks for the next page; "" when this is the last.
        unreadable: runs that the listing came upon and could not read.
    """

    runs: tuple[RunRecord, ...]
    cursor: str = ""
    unreadable: tuple[UnreadableRun, ...] = ()


class ClaimQuery(NamedTuple):
    """Which runs a worker would take up, oldest first.

    Attributes:
        pipelines: of any of these; empty is any.
        limit: how many at most; 0 or less is none.
        cursor: `RunPage.cursor` of the page before, or "".
    """

    pipelines: tuple[str, ...] = ()
    limit: int = 100
    cursor: str = ""


CLAIMABLE: Final = (RunStatus.PENDING, RunStatus.RUNNING)
"""Where a run stands that goes on without anybody asking for it again."""


class PlanDocument(NamedTuple):
    """What was to run, for people and for naming what changed.

    Attributes:
        node_ids: the ids of the pipeline's nodes, in order.
        forms: canonical form of each schema, as JSON text, by fingerprint.
        budget: the limits, as text by name.
        plugins: the installed plugins that were active, as "name version".
    """

    node_ids: tuple[str, ...] = ()
    forms: Mapping[str, str] = MappingProxyType({})
    budget: Mapping[str, str] = MappingProxyType({})
    plugins: tuple[str, ...] = ()

    def to_json(self) -> bytes:
        """Return the document as stores keep it."""
        document = {
            "node_ids": self.node_ids,
            "forms": dict(self.forms),
            "budget": dict(self.budget),
            "plugins": self.plugins,
        }
        return json.dumps(document, ensure_ascii=False, sort_keys=True).encode()

    @classmethod
    def from_json(cls, data: bytes) -> "PlanDocument":
        """Return the document that `to_json` wrote; unknown members are ignored.

        Raises:
            RecordCorrupt: it is no such document.
        """
        try:
            found = json.loads(data)
            return cls(
                tuple(map(str, found.get("node_ids", ()))),
                {str(k): str(v) for k, v in found.get("forms", {}).items()},
                {str(k): str(v) for k, v in found.get("budget", {}).items()},
                tuple(map(str, found.get("plugins", ()))),
            )
        except (ValueError, AttributeError, TypeError) as exc:
            raise RecordCorrupt(f"a run's plan cannot be read: {exc}") from exc


def epochs_to_text(epochs: Iterable[Epoch]) -> str:
    """Return epochs as stores keep them."""
    return json.dumps([list(epoch) for epoch in epochs], separators=(",", ":"))


def epochs_from_text(text: str) -> tuple[Epoch, ...]:
    """Return the epochs that `epochs_to_text` wrote.

    Raises:
        RecordCorrupt: the text is not one of those.
    """
    try:
        epochs = tuple(Epoch(int(n), int(p), bool(c)) for n, p, c in json.loads(text))
    except (ValueError, TypeError) as exc:
        raise RecordCorrupt(f"a run's epochs cannot be read: {exc}") from exc
    if not epochs:
        raise RecordCorrupt("a run has no epochs")
    return epochs


def digest_of(payload: bytes) -> str:
    """Return the SHA-256 of a payload, in hex."""
    return hashlib.sha256(payload, usedforsecurity=False).hexdigest()  # which is quicker, too


def check_digest(record: CheckpointRecord) -> bytes:
    """Return the payload of a record that is as it was written.

    Raises:
        RecordCorrupt: the payload does not have the digest that was stored with it.
    """
    header, payload = record
    if digest_of(payload) != header.digest:
        raise RecordCorrupt(
            f"run {header.run_id!r}, {header.path!r}: the stored payload ({len(payload)} bytes) "
            "does not have its digest; restore the store from a backup, or give consent to buy "
            f"the node again with resume_from={header.contract_id!r}"
        )
    return payload


class UniqueIds:
    """Makes ids that no other process makes: a random beginning and a number."""

    __slots__ = ("_next", "_prefix")

    def __init__(self) -> None:
        self.reseed()

    def reseed(self) -> None:
        """Take another beginning, as a forked process has to."""
        self._prefix = os.urandom(10).hex()
        self._next = count().__next__

    def __call__(self) -> str:
        """Return the next id."""
        return f"{self._prefix}{self._next():x}"


unique_id = UniqueIds()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=unique_id.reseed)


def last_result(headers: Iterable[RecordHeader]) -> RecordHeader | None:
    """Return the header that `OpenedRun.last` is of: the rule for every store."""
    results = (h for h in headers if h.kind == "result" and h.position >= 0)
    return max(results, key=lambda h: (h.epoch, h.position), default=None)
