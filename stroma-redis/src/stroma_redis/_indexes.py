"""The two indexes of runs: what is sent to keep them right."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import Enum
from typing import Final

from stroma.records import CLAIMABLE, Commit, RunRecord, RunStatus
from stroma_redis import _index_scripts as scripts
from stroma_redis._errors import Reply
from stroma_redis._keys import Keys, index_score
from stroma_redis._lua import Script
from stroma_redis._steps import Args, call
from stroma_redis._sweep import Entry, Sweep

_ONE: Final = b"1"
_NONE: Final = b"0"


class Stands(Enum):
    """What is known of a run that `LIST` is told of."""

    CLAIMED = b"1"
    """It is being claimed."""
    OWNED = b"2"
    """It is owned, if the commit or renewal beside is not refused."""
    UNKNOWN = b"0"
    """Somebody else lists it, or it ends."""


class Indexes:
    """Where a store looks for runs.

    The scripts that change a run list it in the same step. Not so in a cluster, where the indexes
    are on other nodes: there a run is listed beside its claim, which counts only if that worked,
    and an entry is removed after its run has ended. In between, an entry only says where to look.

    Args:
        keys: of the store.
        ttl_seconds: how long runs are kept.
        is_cluster: the indexes are on other nodes than the runs.
    """

    def __init__(self, keys: Keys, ttl_seconds: float, *, is_cluster: bool) -> None:
        self.is_cluster = is_cluster
        self._keys = keys
        self._ttl_seconds = ttl_seconds
        self._ttl_ms = b"%d" % round(ttl_seconds * 1000)
        self._listed_at: dict[bytes, float] = {}
        self._sweep = Sweep(ttl_seconds)

    def call_listing(self, script: Script, run_id: str, *args: bytes) -> Args:
        """Return the call of a script that lists the run, too, unless that is on another node."""
        key = self._keys.run(run_id)
        if self.is_cluster:
            return call(script, (key,), *args)
        return call(script, (key, *self._keys.indexes_of(run_id)), *args)

    def are_prolonged(self, run_id: str) -> None:
        """Note that the indexes that list a run outlive it, as a claim or `LIST` sees to."""
        self._listed_at[self._keys.index_of(run_id)] = time.monotonic()

    def beside_claim(self, run_id: str, lease: bytes) -> list[Args]:
        """Return what lists a run that is being claimed, if need be, and samples the index."""
        sample = self._sweep.sample()
        if not sample and not self.is_cluster:
            return []
        stands = Stands.CLAIMED if self.is_cluster else Stands.UNKNOWN
        return [self._list(run_id, stands, lease, is_updated=True, sample=sample)]

    def beside_commits(self, commits: Sequence[Commit]) -> Iterator[Args]:
        """Yield what goes into the indexes beside commits: in a cluster, first of `updated`."""
        if self.is_cluster:
            for run_id, status in updated(commits).items():
                yield self._list(run_id, _stands(status), is_updated=True)
        for commit in commits:
            if commit.token and self.is_due(commit.run_id):
                status = commit.update.status if commit.update is not None else None
                yield self._list(commit.run_id, _stands(status))

    def beside_release(self, run_id: str) -> list[Args]:
        """Return what lists a run that is given up, where its script cannot."""
        return [self._list(run_id, Stands.OWNED, is_updated=True)] if self.is_cluster else []

    def beside_renewal(self, run_ids: Iterable[str], lease: bytes) -> list[Args]:
        """Return what lists runs again whose entries were lost."""
        return [self._list(run_id, Stands.OWNED, lease) for run_id in run_ids]

    def is_due(self, run_id: str) -> bool:
        """Say whether the indexes that list a run have to be prolonged, lest they expire first."""
        listed_at = self._listed_at.get(self._keys.index_of(run_id))
        return listed_at is None or time.monotonic() - listed_at > self._ttl_seconds / 4

    def sweeping(self) -> tuple[list[Entry], list[Args]]:
        """Return entries to ask about, and commands: first the questions, then removals."""
        if not self._sweep.has_plan():
            return [], []
        asked, dead, ended = self._sweep.plan()
        return asked, [
            *((b"EXISTS", self._keys.run(entry.run_id.decode())) for entry in asked),
            *(self._heal(entry.run_id.decode(), entry.score, b"") for entry in dead),
            *(self._settle(entry.run_id.decode(), entry.score, b"") for entry in ended),
        ]

    def learn(self, listed: Reply, asked: Sequence[Entry], answers: Sequence[Reply]) -> None:
        """Take in what `beside_claim` sampled, and the answers to what was asked."""
        self._sweep.answered(asked, answers)
        if isinstance(listed, list):
            self._sweep.sampled(listed[0], time.time())

    def learn_ended(self, run_id: str, listed: Reply) -> None:
        """Take in how a run is listed that has ended, or never was: its entry can go."""
        if isinstance(listed, list) and listed[1] is not None:
            self._sweep.ended(run_id, listed[1])

    def learn_commits(
        self, sent: Sequence[Commit], done: Sequence[Commit], listed: Sequence[Reply]
    ) -> None:
        """Take in how runs are listed that ended with commits.

        Args:
            sent: all commits.
            done: those that were not refused.
            listed: the answers to `beside_commits`.
        """
        if self.is_cluster:
            last = updated(done)
            for run_id, answer in zip(updated(sent), listed, strict=False):
                if is_ended(last.get(run_id)):
                    self.learn_ended(run_id, answer)

    def unlist(self, run_id: str) -> list[Args]:
        """Return what removes a run that is being deleted."""
        return [(b"ZREM", key, run_id.encode()) for key in self._keys.indexes_of(run_id)]

    def heal(self, run_id: str, seen: float, right: float | None) -> Args:
        """Return what puts an entry right in the index of all runs; None if the run has gone."""
        return self._heal(run_id, _score(seen), _score(right))

    def forget(self, run: RunRecord) -> Args:
        """Return what removes the entry of a run that has gone, as it stood."""
        return self.heal(run.run_id, index_score(run.updated_at), None)

    def settle(self, run_id: str, seen: float, right: float | None) -> Args:
        """Return the same for the index of unfinished runs; None if the run has gone or ended."""
        return self._settle(run_id, _score(seen), _score(right))

    def _list(
        self,
        run_id: str,
        stands: Stands,
        lease: bytes = _NONE,
        *,
        is_updated: bool = False,
        sample: int = 0,
    ) -> Args:
        self.are_prolonged(run_id)
        return call(
            scripts.LIST,
            self._keys.indexes_of(run_id),
            run_id.encode(),
            self._ttl_ms,
            lease,
            _ONE if is_updated else _NONE,
            stands.value,
            b"%d" % sample,
        )

    def _heal(self, run_id: str, seen: bytes, right: bytes) -> Args:
        keys = self._keys.indexes_of(run_id)
        return call(scripts.HEAL, keys, run_id.encode(), seen, right)

    def _settle(self, run_id: str, seen: bytes, right: bytes) -> Args:
        unfinished, run = self._keys.unfinished_of(run_id), self._keys.run(run_id)
        keys = (unfinished,) if self.is_cluster else (unfinished, run)
        return call(scripts.SETTLE, keys, run_id.encode(), seen, right)


def updated(commits: Sequence[Commit]) -> Mapping[str, RunStatus | None]:
    """Return the runs that commits update, and their last status if they say one."""
    found: dict[str, RunStatus | None] = {}
    for commit in commits:
        if commit.token and commit.update is not None:
            found[commit.run_id] = commit.update.status or found.get(commit.run_id)
    return found


def is_ended(status: RunStatus | None) -> bool:
    """Say whether a commit with this status ends its run; None leaves it running."""
    return status is not None and status not in CLAIMABLE


def _stands(status: RunStatus | None) -> Stands:
    return Stands.UNKNOWN if is_ended(status) else Stands.OWNED


def _score(value: float | None) -> bytes:
    return b"" if value is None else repr(value).encode()
