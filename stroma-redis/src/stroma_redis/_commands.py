"""The operations of both stores: what is sent, and what the replies mean. No I/O happens here.

An operation is a generator. It yields a `Request`, is sent the replies, and returns its result:
the sync and the async store drive the same ones.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator, Sequence
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar

from redis.exceptions import NoScriptError

from stroma.checkpoint import Capabilities, Durability, check_size
from stroma.errors import RecordCorrupt, RunLocked, StoreError, StoreUnusable
from stroma.records import (
    CheckpointRecord,
    Commit,
    OpenedRun,
    OpenRequest,
    RecordKey,
    RunPage,
    RunQuery,
    RunRecord,
    RunStatus,
    unique_id,
)
from stroma.stores.rules import already_committed, claimed, cursor_after, stale
from stroma_redis import _scripts as scripts
from stroma_redis._codec import (
    changed_columns,
    headers_from,
    new_columns,
    record_args,
    record_from,
    run_from,
    text,
)
from stroma_redis._errors import Failure, Reply, store_error
from stroma_redis._keys import Keys, epoch_of, field_of, rest_of
from stroma_redis._listing import Listing
from stroma_redis._options import RedisOptions
from stroma_redis._server import durability_of, version_problem
from stroma_redis._sweep import Sweep

T = TypeVar("T")

Args: TypeAlias = tuple[bytes, ...]
"""A command: its name and arguments."""


class Request(NamedTuple):
    """Commands to send in one round trip.

    Attributes:
        commands: they are independent, and answered in this order.
        is_write: one of them changes something, so that a lost reply leaves it unknown.
    """

    commands: Sequence[Args]
    is_write: bool


Steps: TypeAlias = Generator[Request, Sequence[Reply], T]
"""An operation under way, which returns T."""

MAX_PAYLOAD_BYTES: Final = 512 * 1024 * 1024 - 1
"""Redis refuses an argument that is longer than its default proto-max-bulk-len, 512 MB."""

_MAX_PROLONGED: Final = 10_000
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
        self._is_cluster = is_cluster
        self._prolonged_at: dict[str, float] = {}
        self._asked_durability = options.durability
        self._sweep = Sweep(options.ttl_seconds)
        self._listed_at: dict[bytes, float] = {}
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
        if not self._is_cluster:
            questions += [(b"SCRIPT", b"LOAD", script.source) for script in scripts.OF_RUNS]
        answers: list[Reply] = []
        for commands in [[each] for each in questions] if one_by_one else [questions]:
            answers += yield from _ask(commands, is_write=False)
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
        written, read = yield from _ask(commands, is_write=True)
        self._value(written, "health check")
        if self._value(read, "health check", is_write=False) != value:
            raise StoreUnusable(f"{self.address}: what was written is not what is read")

    def open_run(self, request: OpenRequest) -> Steps[OpenedRun | None]:
        """See `RecordStore.open_run`."""
        run_id, new = request.run_id, request.new
        args = (
            request.token.encode(),
            text(request.holder),
            b"%d" % request.lease_ms,
            self._ttl_ms,
            _ONE if request.reopen else _NONE,
            _NONE if new is None else _ONE,
            run_id.encode(),
            *(() if new is None else new_columns(new)),
        )
        commands = [self._call_listing(scripts.OPEN, run_id, *args)]
        sample = self._sweep.sample()
        if sample or self._is_cluster:
            commands.append(self._list(run_id, sample=sample))
        asked, sweeping = self._sweep.plan(self.keys)
        answer, *others = yield from _ask((*commands, *sweeping), is_write=True)
        if others:
            sampled = others.pop(0) if len(commands) > 1 else 0
            self._sweep.learn(sampled, asked, others, time.time())
        reply = self._value(answer, f"run {run_id!r}")
        if isinstance(reply, bytes):
            assert new is not None
            return self._created(request, new, float(reply))
        kind = reply[0]
        if kind == b"missing":
            return None
        if kind == b"locked":
            _, holder, lease, now = reply
            raise RunLocked(run_id, holder.decode(), float(lease) - float(now))
        opened = _opened(run_id, reply)
        if kind == b"read":
            return opened
        return opened._replace(is_claimed=True, status_before=RunStatus(reply[1].decode()))

    def _created(self, request: OpenRequest, new: RunRecord, now: float) -> OpenedRun:
        run = claimed(new, request, now, is_new=True)
        # As it will be read, to the last digit and letter.
        lease = float(f"{now + request.lease_ms / 1000:.6f}")
        holder = text(request.holder).decode()
        return OpenedRun(run._replace(lease_expires_at=lease, holder=holder), is_new=True)

    def inspect(self, run_id: str) -> Steps[OpenedRun | None]:
        """See `RecordStore.inspect`."""
        command = self._call(scripts.INSPECT, self.keys.run(run_id))
        (answer,) = yield from _ask((command,), is_write=False)
        reply = self._value(answer, f"run {run_id!r}", is_write=False)
        return None if reply[0] == b"missing" else _opened(run_id, reply)

    def commit_many(self, commits: Sequence[Commit]) -> Steps[list[StoreError | None]]:
        """See `RecordStore.commit_many`."""
        outcomes = check_size(commits, self.capabilities)
        sent = [i for i, refused in enumerate(outcomes) if refused is None]
        commands = [self._commit(commits[i]) for i in sent]
        answers = yield from _ask((*commands, *self._listings(commits, sent)), is_write=True)
        for i, answer in zip(sent, answers, strict=False):
            if answer != 1:
                self._prolonged_at.pop(commits[i].run_id, None)
                outcomes[i] = self._refusal(commits[i], answer)
        return outcomes

    def lone_record(self, commits: Sequence[Commit]) -> Request | None:
        """Return the request of a commit that comes alone and only adds one record, as most do.

        It is answered by 1, or see `lone_refusal`.
        """
        if len(commits) != 1:
            return None
        run_id, token, records, update, lease_ms = commits[0]
        if update is not None or lease_ms or not token or len(records) != 1:
            return None
        if len(records[0][1]) > MAX_PAYLOAD_BYTES or self._is_due(run_id):
            return None
        return Request((self._add(run_id, token, records[0]),), True)

    def lone_refusal(self, commit: Commit, answer: Reply) -> StoreError | None:
        """Return why a lone record was not added; None if the server has forgotten the script."""
        self._prolonged_at.pop(commit.run_id, None)
        return None if _is_unknown_script(answer) else self._refusal(commit, answer)

    def _add(self, run_id: str, token: str, record: CheckpointRecord) -> Args:
        prolong = _ONE if self._is_ageing(run_id) else _NONE
        return self._call(
            scripts.ADD, self.keys.run(run_id), token.encode(), *record_args(*record), prolong
        )

    def _is_ageing(self, run_id: str) -> bool:
        """Say whether a commit has to prolong a run's life: not soon after it did so before."""
        now = time.monotonic()
        if now - self._prolonged_at.get(run_id, -math.inf) < self._ttl_seconds * scripts.SLACK:
            return False
        if len(self._prolonged_at) >= _MAX_PROLONGED:
            self._prolonged_at.clear()
        self._prolonged_at[run_id] = now
        return True

    def _commit(self, commit: Commit) -> Args:
        run_id, token, records, update, lease_ms = commit
        if update is None and lease_ms == 0 and token and len(records) == 1:
            return self._add(run_id, token, records[0])
        self._prolonged_at.pop(run_id, None)
        args = [
            token.encode(),
            b"%d" % lease_ms,
            self._ttl_ms,
            _NONE,
            run_id.encode(),
            b"%d" % len(records),
        ]
        for header, payload in records:
            args += record_args(header, payload)
        if update is not None and token:
            args[3] = b"2" if update.release else _ONE
            args += changed_columns(update)
            return self._call_listing(scripts.COMMIT, run_id, *args)
        return self._call(scripts.COMMIT, self.keys.run(run_id), *args)

    def _listings(self, commits: Sequence[Commit], sent: Sequence[int]) -> Iterator[Args]:
        """Yield what goes into the index beside the commits."""
        if self._is_cluster:
            updated = (commits[i].run_id for i in sent if commits[i].update is not None)
            for run_id in dict.fromkeys(updated):
                yield self._list(run_id)
        for i in sent:
            if commits[i].token and self._is_due(commits[i].run_id):
                yield self._list(commits[i].run_id, is_updated=False)

    def _refusal(self, commit: Commit, answer: Reply) -> StoreError:
        if isinstance(answer, Failure):
            return self._error(answer, f"run {commit.run_id!r}")
        assert isinstance(answer, list)
        if answer[0] == b"stale":
            return stale(commit.run_id, None if answer[1] is None else answer[1].decode())
        key = next(h.key for h, _ in commit.records if field_of(h) == answer[1])
        return already_committed(key)

    def renew(self, claims: Sequence[tuple[str, str]], lease_ms: int) -> Steps[list[bool]]:
        """See `RecordStore.renew`; an index entry that was lost comes back."""
        lease = b"%d" % lease_ms
        commands = [
            self._call(scripts.RENEW, self.keys.run(run_id), token.encode(), lease, self._ttl_ms)
            for run_id, token in claims
        ]
        listings = [self._list(run_id, is_updated=False) for run_id, token in claims if token]
        answers = yield from _ask((*commands, *listings), is_write=True)
        return [
            bool(self._value(answer, f"run {run_id!r}"))
            for (run_id, _), answer in zip(claims, answers, strict=False)
        ]

    def release(self, run_id: str, token: str) -> Steps[None]:
        """See `RecordStore.release`."""
        args = (token.encode(), self._ttl_ms, run_id.encode())
        commands = [self._call_listing(scripts.RELEASE, run_id, *args)]
        if self._is_cluster:
            commands.append(self._list(run_id))
        answer, *_ = yield from _ask(commands, is_write=True)
        self._value(answer, f"run {run_id!r}")

    def fetch(self, run_id: str, keys: Sequence[RecordKey]) -> Steps[list[CheckpointRecord | None]]:
        """See `RecordStore.fetch`."""
        names = [part for key in keys for part in (epoch_of(key), rest_of(key))]
        command = self._call(scripts.FETCH, self.keys.run(run_id), *names)
        (answer,) = yield from _ask((command,), is_write=False)
        found = self._value(answer, f"run {run_id!r}", is_write=False)
        return [record_from(header, payload) for header, payload in found]

    def delete(self, run_id: str) -> Steps[None]:
        """See `RecordStore.delete`."""
        unlink = (b"UNLINK", self.keys.run(run_id))
        unlist = (b"ZREM", self.keys.index_of(run_id), run_id.encode())
        answer, _ = yield from _ask((unlink, unlist), is_write=True)
        self._value(answer, f"run {run_id!r}")

    def runs(self, query: RunQuery) -> Steps[RunPage]:
        """See `RecordStore.runs`."""
        if query.limit <= 0:
            Listing(self.keys, query)  # a cursor that is none is refused all the same
            return RunPage(())
        found = yield from self._found(query)
        page = tuple(found[: query.limit])
        return RunPage(page, cursor_after(page[-1]) if len(found) > query.limit else "")

    def _found(self, query: RunQuery) -> Steps[list[RunRecord]]:
        """Return one run more than asked for, if there are so many."""
        listing = Listing(self.keys, query)
        while ranges := listing.ranges():
            answers = yield from _ask(ranges, is_write=False)
            listing.read_ranges([self._value(a, "listing", is_write=False) for a in answers])
            commands = [
                (b"HMGET", self.keys.run(run_id), *_COLUMN_NAMES) for run_id in listing.unread
            ]
            rows = yield from _ask(commands, is_write=False)
            listing.read_runs([self._value(row, "listing", is_write=False) for row in rows])
        # Whether it succeeds or not, nothing depends on it: an entry only says where to look.
        yield from _ask([self._heal(*entry) for entry in listing.wrong], is_write=True)
        return listing.found()

    def purge(self, query: RunQuery) -> Steps[int]:
        """See `RecordStore.purge`."""
        removed, cursor = 0, query.cursor
        while removed < query.limit:
            size = min(_PURGE_PAGE, query.limit - removed)
            page = yield from self.runs(query._replace(limit=size, cursor=cursor))
            commands = [self._call(scripts.PURGE, self.keys.run(run.run_id)) for run in page.runs]
            answers = yield from _ask(commands, is_write=True)
            gone = [run for run, a in zip(page.runs, answers, strict=True) if a == 1]
            healed = [self._heal(run.run_id, run.updated_at, None) for run in gone]
            yield from _ask(healed, is_write=True)
            for run, answer in zip(page.runs, answers, strict=True):
                self._value(answer, f"run {run.run_id!r}")
            removed += len(gone)
            cursor = page.cursor
            if not cursor:
                break
        return removed

    def _call(self, script: scripts.Script, key: bytes, *args: bytes) -> Args:
        return (b"EVALSHA", script.sha, _ONE, key, *args)

    def _call_listing(self, script: scripts.Script, run_id: str, *args: bytes) -> Args:
        """Return the call of a script that lists the run, too, unless that is on another node."""
        key = self.keys.run(run_id)
        if self._is_cluster:
            return self._call(script, key, *args)
        shard = self.keys.index_of(run_id)
        self._listed_at[shard] = time.monotonic()
        return (b"EVALSHA", script.sha, b"2", key, shard, *args)

    def _list(self, run_id: str, *, is_updated: bool = True, sample: int = 0) -> Args:
        """Return what lists a run, as updated now or as it is."""
        shard = self.keys.index_of(run_id)
        self._listed_at[shard] = time.monotonic()
        return self._call(
            scripts.LIST,
            shard,
            run_id.encode(),
            self._ttl_ms,
            _ONE if is_updated else _NONE,
            b"%d" % sample,
        )

    def _is_due(self, run_id: str) -> bool:
        """Say whether the index that lists a run has to be prolonged, lest it expire first."""
        listed_at = self._listed_at.get(self.keys.index_of(run_id))
        return listed_at is None or time.monotonic() - listed_at > self._ttl_seconds / 4

    def _heal(self, run_id: str, seen: float, right: float | None) -> Args:
        score = b"" if right is None else repr(right).encode()
        shard = self.keys.index_of(run_id)
        return self._call(scripts.HEAL, shard, run_id.encode(), repr(seen).encode(), score)

    def _value(self, reply: Reply, what: str, *, is_write: bool = True) -> Any:
        if isinstance(reply, Failure):
            raise self._error(reply, what, is_write=is_write)
        return reply

    def _error(self, failure: Failure, what: str, *, is_write: bool = True) -> StoreError:
        return store_error(failure, self.address, what, is_write=is_write)


_COLUMN_NAMES: Final = tuple(name.encode() for name in scripts.COLUMNS)


def _ask(commands: Sequence[Args], *, is_write: bool) -> Steps[Sequence[Reply]]:
    """Send commands; what only reads once more if the connection broke.

    A script that the server has forgotten (a restart, SCRIPT FLUSH, another node) is sent whole.
    """
    if not commands:
        return []
    replies = yield Request(commands, is_write)
    for reply in replies:
        if type(reply) is Failure:
            break
    else:
        return replies
    if not is_write and any(_is_lost(reply) for reply in replies):
        replies = yield Request(commands, is_write)
    unknown = [i for i, reply in enumerate(replies) if _is_unknown_script(reply)]
    if not unknown:
        return replies
    again = yield Request([_in_full(commands[i]) for i in unknown], is_write)
    answered = dict(zip(unknown, again, strict=True))
    return [answered.get(i, reply) for i, reply in enumerate(replies)]


def _is_lost(reply: Reply) -> bool:
    return isinstance(reply, Failure) and not reply.is_answer and reply.was_sent


def _is_unknown_script(reply: Reply) -> bool:
    return isinstance(reply, Failure) and isinstance(reply.error, NoScriptError)


def _is_forbidden(failure: Failure) -> bool:
    """Say whether a user may not ask this, or a service does not have the command."""
    said = str(failure.error).lower()
    return failure.is_answer and ("permission" in said or "unknown" in said or "noperm" in said)


def _in_full(command: Args) -> Args:
    _, sha, *rest = command
    return (b"EVAL", scripts.BY_SHA[sha].source, *rest)


def _opened(run_id: str, reply: Sequence[Any]) -> OpenedRun:
    """Return a run as a script gave it, not claimed."""
    _, _, columns, headers, last = reply
    try:
        record = record_from(*last) if last else None
    except RecordCorrupt as exc:
        raise RecordCorrupt(f"run {run_id!r}: {exc}") from exc
    return OpenedRun(run_from(run_id, columns), headers_from(headers), record, is_claimed=False)
