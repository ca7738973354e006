"""The operations of both stores: what is sent, and what the replies mean. No I/O happens here."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Final

from stroma.checkpoint import Capabilities, Durability, check_size
from stroma.errors import RecordCorrupt, RunLocked, StoreError, StoreUnusable
from stroma.records import (
    CheckpointRecord,
    ClaimQuery,
    Commit,
    OpenedRun,
    OpenRequest,
    RecordKey,
    RunPage,
    RunQuery,
    RunRecord,
    unique_id,
)
from stroma.stores.rules import (
    already_committed,
    claim_cursor_after,
    claimed,
    cursor_after,
    stale,
)
from stroma_redis import _scripts as scripts
from stroma_redis._claimed import ClaimedRun, ClaimedRuns
from stroma_redis._codec import (
    changed_columns,
    headers_from,
    new_columns,
    record_args,
    record_from,
    run_from,
    status_from,
    text,
)
from stroma_redis._errors import Failure, Reply, store_error
from stroma_redis._indexes import Indexes
from stroma_redis._keys import Keys, epoch_of, field_of, rest_of
from stroma_redis._listing import ClaimListing, Listing, RunListing
from stroma_redis._lua import Script
from stroma_redis._options import RedisOptions
from stroma_redis._server import durability_of, version_problem
from stroma_redis._steps import Args, Request, Steps, ask, call, is_unknown_script

MAX_PAYLOAD_BYTES: Final = 512 * 1024 * 1024 - 1
"""Redis refuses an argument that is longer than its default proto-max-bulk-len, 512 MB."""

_PURGE_PAGE: Final = 200
_HEALTH_MS: Final = b"10000"
_ONE: Final = b"1"
_NONE: Final = b"0"


class Operations:
    """Level 1 on one server.

    Args:
        options: of the store.
        address: of the server, for messages.
        groups_commits: see `Capabilities`.
        is_cluster: what lists runs is on other nodes than the runs.

    Attributes:
        capabilities: what the store promises; the durability is known after `setup`.
    """

    def __init__(
        self, options: RedisOptions, address: str, *, groups_commits: bool, is_cluster: bool
    ) -> None:
        self.keys = Keys(options.key_prefix)
        self.address = address
        self._ttl_seconds = options.ttl_seconds
        self._ttl_ms = b"%d" % round(options.ttl_seconds * 1000)
        self._indexes = Indexes(self.keys, options.ttl_seconds, is_cluster=is_cluster)
        self._claimed = ClaimedRuns()
        self._asked_durability = options.durability
        self.capabilities = Capabilities(
            options.durability or Durability.PROCESS,
            max_payload_bytes=MAX_PAYLOAD_BYTES,
            groups_commits=groups_commits,
            retention_seconds=options.ttl_seconds,
        )

    def setup(self, *, one_by_one: bool) -> Steps[None]:
        """Look at the server and teach it the scripts that runs need; nothing has to be created.

        Args:
            one_by_one: the commands have no keys, and a cluster's pipeline takes none of those.

        Raises:
            StoreUnusable: the server is older than Redis 6.2.
        """
        questions = [
            (b"INFO", b"server"),
            (b"INFO", b"persistence"),
            (b"CONFIG", b"GET", b"appendfsync"),
        ]
        if not self._indexes.is_cluster:
            questions += [(b"SCRIPT", b"LOAD", script.source) for script in scripts.OF_RUNS]
        answers: list[Reply] = []
        for commands in [[each] for each in questions] if one_by_one else [questions]:
            answers += yield from ask(commands, is_write=False)
        for answer in answers:
            if isinstance(answer, Failure) and not _is_forbidden(answer):
                raise self._error(answer, "", is_write=False)
        server, persistence, fsync, *_ = answers
        problem = version_problem(server)
        if problem:
            raise StoreUnusable(f"{self.address}: {problem}")
        if self._asked_durability is None:
            found = durability_of(persistence, fsync)
            self.capabilities = self.capabilities._replace(durability=found)

    def health(self) -> Steps[None]:
        """Write and read a key that lives for ten seconds."""
        nonce = unique_id()
        key, value = self.keys.health(nonce), nonce.encode()
        commands = [(b"SET", key, value, b"PX", _HEALTH_MS), (b"GET", key)]
        written, read = yield from ask(commands, is_write=True)
        self._value(written, "health check")
        if self._value(read, "health check", is_write=False) != value:
            raise StoreUnusable(f"{self.address}: what was written is not what is read")

    def open_run(self, request: OpenRequest) -> Steps[OpenedRun | None]:
        """See `RecordStore.open_run`."""
        run_id, new = request.run_id, request.new
        lease = b"%d" % request.lease_ms
        created_at = repr(new.created_at).encode() if new is not None and new.created_at else b""
        args = (
            request.token.encode(),
            text(request.holder),
            lease,
            self._ttl_ms,
            _ONE if request.reopen else _NONE,
            _NONE if new is None else _ONE,
            run_id.encode(),
            created_at,
            *(() if new is None else new_columns(new)),
        )
        commands = [
            self._indexes.call_listing(scripts.OPEN, run_id, *args),
            *self._indexes.beside_claim(run_id, lease),
        ]
        asked, sweeping = self._indexes.sweeping()
        began = time.monotonic()
        answer, *others = yield from ask((*commands, *sweeping), is_write=True)
        listed = others.pop(0) if len(commands) > 1 else None
        self._indexes.learn(listed, asked, others)
        reply = self._value(answer, f"run {run_id!r}")
        if isinstance(reply, bytes):
            assert new is not None
            self._take_in_claim(request, listed, began)
            return self._created(request, new, float(reply))
        kind = reply[0]
        if kind == b"locked":
            _, holder, lease, now = reply
            raise RunLocked(run_id, holder.decode(), float(lease) - float(now))
        if kind != b"claimed":
            self._indexes.learn_ended(run_id, listed)
            return None if kind == b"missing" else _opened(run_id, reply)
        opened = _opened(run_id, reply)
        self._take_in_claim(request, listed, began)
        return opened._replace(is_claimed=True, status_before=status_from(run_id, reply[1]))

    def _take_in_claim(self, request: OpenRequest, listed: Reply, at: float) -> None:
        """Note what a claim has prolonged.

        Raises:
            StoreError: it is not listed: if its worker died, nobody would find the run.
        """
        run_id = request.run_id
        if self._indexes.is_cluster:
            self._value(listed, f"run {run_id!r}: its entry in the index")
        else:
            self._indexes.are_prolonged(run_id)
        claimed = ClaimedRun(self.keys.run(run_id), request.token)
        claimed.lives_since(at, self._ttl_seconds)
        self._claimed.add(run_id, claimed)

    def _created(self, request: OpenRequest, new: RunRecord, now: float) -> OpenedRun:
        run = claimed(new, request, now, is_new=True)
        # As it will be read, to the last digit and letter.
        lease = float(f"{now + request.lease_ms / 1000:.6f}")
        holder = text(request.holder).decode()
        return OpenedRun(run._replace(lease_expires_at=lease, holder=holder), is_new=True)

    def inspect(self, run_id: str) -> Steps[OpenedRun | None]:
        """See `RecordStore.inspect`."""
        command = self._call(scripts.INSPECT, run_id)
        (answer,) = yield from ask((command,), is_write=False)
        reply = self._of_one_key(run_id, answer)
        if isinstance(reply, StoreError):
            raise reply
        return None if reply[0] == b"missing" else _opened(run_id, reply)

    def commit_many(self, commits: Sequence[Commit]) -> Steps[list[StoreError | None]]:
        """See `RecordStore.commit_many`."""
        outcomes = check_size(commits, self.capabilities)
        sent = [i for i, refused in enumerate(outcomes) if refused is None]
        wanted = [commits[i] for i in sent]
        commands = [self._commit(commit) for commit in wanted]
        listings = list(self._indexes.beside_commits(wanted))
        answers = yield from ask((*commands, *listings), is_write=True)
        for i, answer in zip(sent, answers, strict=False):
            if answer != 1:
                outcomes[i] = self._refusal(commits[i], answer)
        done = [commits[i] for i in sent if outcomes[i] is None]
        self._indexes.learn_commits(wanted, done, answers[len(sent) :])
        return outcomes

    def lone_record(self, commit: Commit) -> Request | None:
        """Return the request of a commit that only adds one record, as most do.

        It is answered by 1, or see `lone_refusal`.
        """
        run_id, token, records, update = commit
        if update is not None or len(records) != 1:
            return None
        run = self._claimed.of(run_id, token)
        if run is None or run.is_ageing:
            return None
        header, payload = records[0]
        if len(payload) > MAX_PAYLOAD_BYTES:
            return None
        return run.adding(record_args(header, payload))

    def lone_refusal(self, commit: Commit, answer: Reply) -> StoreError | None:
        """Return why a lone record was not added; None if the server has forgotten the script."""
        return None if is_unknown_script(answer) else self._refusal(commit, answer)

    def _add(self, run_id: str, token: str, record: CheckpointRecord) -> Args:
        run = self._claimed.of(run_id, token)
        args = record_args(*record)
        if run is not None and not run.is_ageing:
            return self._call(scripts.ADD, run_id, token.encode(), *args)
        if run is not None:
            run.lives_since(time.monotonic(), self._ttl_seconds)
        return self._call(scripts.ADD, run_id, token.encode(), *args, _ONE)

    def _commit(self, commit: Commit) -> Args:
        run_id, token, records, update = commit
        if update is None and token and len(records) == 1:
            return self._add(run_id, token, records[0])
        change, status, columns = _NONE, b"", list[bytes]()
        if update is not None and token:
            if update.release:
                self._claimed.forget(run_id)
            change = b"2" if update.release else _ONE
            status = b"" if update.status is None else update.status.value.encode()
            columns = changed_columns(update)
        args = [token.encode(), self._ttl_ms, change, status, run_id.encode()]
        args.append(b"%d" % len(records))
        for header, payload in records:
            args += record_args(header, payload)
        args += columns
        if change == _NONE:
            return self._call(scripts.COMMIT, run_id, *args)
        return self._indexes.call_listing(scripts.COMMIT, run_id, *args)

    def _refusal(self, commit: Commit, answer: Reply) -> StoreError:
        run = self._claimed.of(commit.run_id, commit.token)
        if run is not None:
            run.may_have_aged()
        if isinstance(answer, Failure):
            return self._error(answer, f"run {commit.run_id!r}")
        assert isinstance(answer, list)
        if answer[0] == b"stale":
            return stale(commit.run_id, None if answer[1] is None else answer[1].decode())
        key = next(h.key for h, _ in commit.records if field_of(h) == answer[1])
        return already_committed(key)

    def renew(self, claims: Sequence[tuple[str, str]], lease_ms: int) -> Steps[list[bool]]:
        """See `RecordStore.renew`; entries of the indexes that were lost come back."""
        lease = b"%d" % lease_ms
        commands = [
            self._call(scripts.RENEW, run_id, token.encode(), lease, self._ttl_ms)
            for run_id, token in claims
        ]
        owned = (run_id for run_id, token in claims if token)
        listings = self._indexes.beside_renewal(owned, lease)
        answers = yield from ask((*commands, *listings), is_write=True)
        return [
            bool(self._value(answer, f"run {run_id!r}"))
            for (run_id, _), answer in zip(claims, answers, strict=False)
        ]

    def release(self, run_id: str, token: str) -> Steps[None]:
        """See `RecordStore.release`."""
        if self._claimed.of(run_id, token) is not None:
            self._claimed.forget(run_id)
        args = (token.encode(), self._ttl_ms, run_id.encode())
        release = self._indexes.call_listing(scripts.RELEASE, run_id, *args)
        commands = (release, *self._indexes.beside_release(run_id))
        answer, *_ = yield from ask(commands, is_write=True)
        self._value(answer, f"run {run_id!r}")

    def fetch(self, run_id: str, keys: Sequence[RecordKey]) -> Steps[list[CheckpointRecord | None]]:
        """See `RecordStore.fetch`."""
        names = [part for key in keys for part in (epoch_of(key), rest_of(key))]
        command = self._call(scripts.FETCH, run_id, *names)
        (answer,) = yield from ask((command,), is_write=False)
        found = self._value(answer, f"run {run_id!r}", is_write=False)
        return [record_from(header, payload) for header, payload in found]

    def delete(self, run_id: str) -> Steps[None]:
        """See `RecordStore.delete`."""
        self._claimed.forget(run_id)
        unlink = (b"UNLINK", self.keys.run(run_id))
        answer, *_ = yield from ask((unlink, *self._indexes.unlist(run_id)), is_write=True)
        self._value(answer, f"run {run_id!r}")

    def runs(self, query: RunQuery) -> Steps[RunPage]:
        """See `RecordStore.runs`."""
        listing = RunListing(self.keys, self._indexes, query)
        found = yield from self._read(listing, query.limit)
        page = tuple(found[: max(0, query.limit)])
        cursor = cursor_after(page[-1]) if len(found) > len(page) else ""
        return RunPage(page, cursor, tuple(listing.unreadable))

    def claimable(self, query: ClaimQuery) -> Steps[RunPage]:
        """See `RecordStore.claimable`."""
        listing = ClaimListing(self.keys, self._indexes, query)
        found = yield from self._read(listing, query.limit)
        page = tuple(found[: max(0, query.limit)])
        cursor = claim_cursor_after(page[-1]) if len(found) > len(page) else ""
        return RunPage(page, cursor, tuple(listing.unreadable))

    def _read(self, listing: Listing, limit: int) -> Steps[list[RunRecord]]:
        """Return one run more than the limit, if there are so many; none if it is not positive."""
        if limit <= 0:
            return []
        while True:
            while ranges := listing.ranges():
                answers = yield from ask(ranges, is_write=False)
                listing.read_ranges([self._value(a, "listing", is_write=False) for a in answers])
            looks = listing.looks()
            if not looks:
                break
            answers = yield from ask([command for _, command in looks], is_write=False)
            listing.read_runs(
                [self._of_one_key(id_, a) for (id_, _), a in zip(looks, answers, strict=True)]
            )
        yield from ask(listing.healing, is_write=True)
        return listing.found()

    def purge(self, query: RunQuery) -> Steps[int]:
        """See `RecordStore.purge`."""
        removed, cursor = 0, query.cursor
        while removed < query.limit:
            size = min(_PURGE_PAGE, query.limit - removed)
            page = yield from self.runs(query._replace(limit=size, cursor=cursor))
            commands = [self._call(scripts.PURGE, run.run_id) for run in page.runs]
            answers = yield from ask(commands, is_write=True)
            gone = [run for run, a in zip(page.runs, answers, strict=True) if a == 1]
            healed = [self._indexes.forget(run) for run in gone]
            yield from ask(healed, is_write=True)
            for run, answer in zip(page.runs, answers, strict=True):
                self._value(answer, f"run {run.run_id!r}")
            removed += len(gone)
            cursor = page.cursor
            if not cursor:
                break
        return removed

    def _call(self, script: Script, run_id: str, *args: bytes) -> Args:
        return call(script, (self.keys.run(run_id),), *args)

    def _of_one_key(self, run_id: str, reply: Reply) -> Any:
        """Return what was read of a run alone: an error where something else is under its key."""
        if isinstance(reply, Failure) and reply.is_of_its_key:
            error = self._error(reply, f"run {run_id!r}", is_write=False)
            corrupt = RecordCorrupt(str(error))
            corrupt.__cause__ = reply.error
            return corrupt
        return self._value(reply, f"run {run_id!r}", is_write=False)

    def _value(self, reply: Reply, what: str, *, is_write: bool = True) -> Any:
        if isinstance(reply, Failure):
            raise self._error(reply, what, is_write=is_write)
        return reply

    def _error(self, failure: Failure, what: str, *, is_write: bool = True) -> StoreError:
        return store_error(failure, self.address, what, is_write=is_write)


def _is_forbidden(failure: Failure) -> bool:
    """Say whether a user may not ask this, or a service does not have the command."""
    said = str(failure.error).lower()
    is_told = failure.was_sent and failure.is_answer  # and not at the login
    return is_told and ("permission" in said or "unknown" in said or "noperm" in said)


def _opened(run_id: str, reply: Sequence[Any]) -> OpenedRun:
    """Return a run as a script gave it, not claimed."""
    _, _, columns, headers, last = reply
    try:
        record = record_from(*last) if last else None
    except RecordCorrupt as exc:
        raise RecordCorrupt(f"run {run_id!r}: {exc}") from exc
    return OpenedRun(run_from(run_id, columns), headers_from(headers), record, is_claimed=False)
