"""The store."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

from stroma.checkpoint import Capabilities, Durability
from stroma.errors import RecordCorrupt, StoreError, StoreUnusable
from stroma.level0 import SyncPlainMethods
from stroma.records import (
    CLAIMABLE,
    PLAIN_EPOCH,
    CheckpointRecord,
    ClaimQuery,
    Commit,
    OpenedRun,
    OpenRequest,
    RecordKey,
    RunPage,
    RunQuery,
    RunRecord,
    UnreadableRun,
    last_result,
)
from stroma.stores import rules
from stroma_sample_dir.files import locked, make_folder, reported, sync_after_change
from stroma_sample_dir.frames import Index
from stroma_sample_dir.plain_files import PlainFiles
from stroma_sample_dir.run_files import RunFiles, read_head
from stroma_sample_dir.unfinished import Unfinished

_REMOVED = "removed-"
_NAME_LENGTH = 64
_MAX_INDEXES = 64

T = TypeVar("T")


class DirStore(SyncPlainMethods):
    """Keeps each run in ``<folder>/<SHA-256 of its id>``, under a lock of its own.

    Threads and processes of one machine can share the folder, which must be on a local disk: on
    network file systems neither the locks nor the order of writes can be relied on, and each
    machine has a clock of its own.

    Args:
        folder: where; it is created when it does not exist.
    """

    capabilities = Capabilities(Durability.FSYNC)
    run_in_thread = True

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder).absolute()
        self._unfinished = Unfinished(self.folder)
        self._indexes: dict[Path, tuple[str, Index]] = {}  # used under the lock of its run

    def setup(self) -> None:
        """Create the folder, and remove what is left of deletions that were cut short."""
        with reported(self.folder):
            make_folder(self.folder)
            for path in self.folder.glob(f"{_REMOVED}*"):
                shutil.rmtree(path, ignore_errors=True)

    def health(self) -> None:
        """Return if files can be written now."""
        with reported(self.folder):
            make_folder(self.folder)
            probe = self.folder / f"probe-{uuid.uuid4().hex}"
            probe.write_bytes(b"1")
            probe.unlink()

    def open_run(self, request: OpenRequest) -> OpenedRun | None:
        """Claim a run, creating it if the request says how."""
        with self._locked(request.run_id, create=request.new is not None) as folder:
            if folder is None:
                return None
            files = self._files(folder)
            now = time.time()
            before = files.run
            if before is None:
                if request.new is None:
                    return None
                run = rules.claimed(request.new, request, now, is_new=True)
                self._unfinished.add(folder.name)
                files.create(run)
                return OpenedRun(run, is_new=True)
            if rules.is_closed_book(before, request):
                return _opened(files, is_claimed=False)
            if before.owner != request.token and rules.is_held(
                before.owner, before.lease_expires_at, now
            ):
                raise rules.locked(before, now)
            self._unfinished.add(folder.name)
            files.change(rules.claimed(before, request, now))
            return _opened(files, is_claimed=True)._replace(status_before=before.status)

    def inspect(self, run_id: str) -> OpenedRun | None:
        """Return a run without claiming it."""
        with self._locked(run_id) as folder:
            if folder is None:
                return None
            files = self._files(folder)
            return None if files.run is None else _opened(files, is_claimed=False)

    def commit_many(self, commits: Sequence[Commit]) -> list[StoreError | None]:
        """Write several commits; what becomes of one does not touch the others."""
        return [self._answer(commit) for commit in commits]

    def renew(self, claims: Sequence[tuple[str, str]], lease_ms: int) -> list[bool]:
        """Extend leases; False where the token is not the owner."""
        return [self._renew(run_id, token, lease_ms) for run_id, token in claims]

    def release(self, run_id: str, token: str) -> None:
        """Give up a run, if the token owns it."""
        with self._owned(run_id, token) as files:
            if files is not None and files.run is not None:
                free = files.run._replace(owner="", holder="", lease_expires_at=0.0)
                files.change(free._replace(updated_at=time.time()))
                files.forget()

    def fetch(self, run_id: str, keys: Sequence[RecordKey]) -> list[CheckpointRecord | None]:
        """Return the record of each key, or None."""
        with self._locked(run_id) as folder:
            if folder is None:
                return [None] * len(keys)
            files, plain = self._files(folder), PlainFiles(folder)
            return [_find(files, plain, key) for key in keys]

    def runs(self, query: RunQuery) -> RunPage:
        """List runs, the last updated first; equal times by run id. Nothing is locked meanwhile.

        Of a run that cannot be read, the id is not known: it is told by the name of its folder.
        """
        reading = _Reading()
        found = self._found(query, reading)
        page = found[: max(0, query.limit)]
        more = 0 < len(page) < len(found)
        with_input = [reading.of(run.run_id, partial(self._with_input, run)) for run in page]
        return RunPage(
            tuple(run for run in with_input if run is not None),
            rules.cursor_after(page[-1]) if more else "",
            tuple(reading.failed.values()),
        )

    def claimable(self, query: ClaimQuery) -> RunPage:
        """List unfinished runs that nobody owns, the first created first.

        Of a run that cannot be read, the id is not known: it is told by the name of its folder.
        """
        reading = _Reading()
        with reported(self.folder):
            names = self._unfinished.names()
            heads = [reading.of(name, partial(read_head, self.folder / name)) for name in names]
        runs = [head.run for head in heads if head is not None]
        page = rules.claimable_page(runs, query, time.time())
        found = [reading.of(run.run_id, partial(self._with_input, run)) for run in page.runs]
        return page._replace(
            runs=tuple(run for run in found if run is not None),
            unreadable=tuple(reading.failed.values()),
        )

    def delete(self, run_id: str) -> None:
        """Remove the run and all its records, plain ones too, and nothing else."""
        with self._locked(run_id) as folder:
            if folder is not None:
                self._remove(folder)

    def purge(self, query: RunQuery) -> int:
        """Remove runs that a query finds and nobody owns; the limit counts the removed.

        Runs that cannot be read stay: nobody can tell whether a worker owns them.
        """
        removed = 0
        for run in self._found(query, _Reading()):
            if removed >= query.limit:
                break
            removed += self._purge(run.run_id, query)
        return removed

    def _answer(self, commit: Commit) -> StoreError | None:
        try:
            return self._commit(commit)
        except StoreError as error:  # others of the batch may be written already
            return error

    def _commit(self, commit: Commit) -> StoreError | None:
        if not commit.token:
            self._save(commit)
            return None
        with self._locked(commit.run_id) as folder:
            files = None if folder is None else self._files(folder)
            run = None if files is None else files.run
            if folder is None or files is None or run is None or run.owner != commit.token:
                return rules.stale(commit.run_id, None if run is None else run.holder)
            added: dict[RecordKey, CheckpointRecord] = {}
            for record in commit.records:
                key, commit_id = record.header.key, record.header.commit_id
                kept = added[key].header if key in added else files.find(key)
                if kept is None:
                    added[key] = record
                elif kept.commit_id != commit_id:
                    return rules.already_committed(key)
            if commit.update is not None:
                run = commit.update.apply(run, time.time())
                if run.status in CLAIMABLE:
                    self._unfinished.add(folder.name)
            files.change(run, list(added.values()))
            if run.status not in CLAIMABLE:
                self._unfinished.remove(folder.name)
            if not run.owner:
                files.forget()
            return None

    def _save(self, commit: Commit) -> None:
        if commit.records:
            with self._locked(commit.run_id, create=True) as folder:
                assert folder is not None
                PlainFiles(folder).replace(commit.records)

    def _renew(self, run_id: str, token: str, lease_ms: int) -> bool:
        with self._owned(run_id, token) as files:
            if files is None or files.run is None:
                return False
            expires_at = time.time() + lease_ms / 1000
            files.change(files.run._replace(lease_expires_at=expires_at))
            return True

    def _with_input(self, run: RunRecord) -> RunRecord | None:
        with self._locked(run.run_id) as folder:
            files = None if folder is None else self._files(folder)
            if files is None or files.run is None:
                return None  # deleted since it was found
            return run._replace(input_payload=files.with_input().input_payload)

    def _found(self, query: RunQuery, reading: _Reading) -> list[RunRecord]:
        with reported(self.folder):
            heads = [reading.of(path.name, partial(read_head, path)) for path in self._folders()]
        runs = [head.run for head in heads if head is not None and rules.matches(query, head.run)]
        runs.sort(key=lambda run: (-run.updated_at, run.run_id))
        if query.cursor:
            updated_at, run_id = rules.cursor_position(query.cursor)
            runs = [r for r in runs if (-r.updated_at, r.run_id) > (-updated_at, run_id)]
        return runs

    def _folders(self) -> list[Path]:
        try:
            return [path for path in self.folder.iterdir() if len(path.name) == _NAME_LENGTH]
        except FileNotFoundError:
            return []

    def _purge(self, run_id: str, query: RunQuery) -> bool:
        with self._locked(run_id) as folder:
            run = None if folder is None else self._files(folder).run
            if folder is None or run is None or not rules.matches(query, run):
                return False  # somebody was faster
            if rules.is_held(run.owner, run.lease_expires_at, time.time()):
                return False
            self._remove(folder)
            return True

    def _remove(self, folder: Path) -> None:
        """Make all of a run's files invisible at once, and then remove them."""
        self._indexes.pop(folder, None)
        removed = folder.rename(self.folder / f"{_REMOVED}{uuid.uuid4().hex}")
        sync_after_change(self.folder)
        self._unfinished.remove(folder.name)
        shutil.rmtree(removed, ignore_errors=True)

    @contextmanager
    def _owned(self, run_id: str, token: str) -> Iterator[RunFiles | None]:
        with self._locked(run_id) as folder:
            files = None if folder is None else self._files(folder)
            run = None if files is None else files.run
            is_owner = run is not None and bool(token) and run.owner == token
            yield files if is_owner else None

    @contextmanager
    def _locked(self, run_id: str, *, create: bool = False) -> Iterator[Path | None]:
        """Hold a run's lock. There is none, and None is yielded, where nothing is kept."""
        # Ids may be anything, and file names may not.
        name = hashlib.sha256(run_id.encode("utf-8", "surrogatepass")).hexdigest()
        folder = self.folder / name
        with reported(self.folder):
            if create:
                make_folder(self.folder)
            with locked(folder, create=create) as exists:
                yield folder if exists else None

    def _files(self, folder: Path) -> RunFiles:
        if len(self._indexes) >= _MAX_INDEXES:
            self._indexes.clear()  # they are read again where they are needed
        return RunFiles(folder, self._indexes)


class _Reading:
    """Reads runs of which one that is damaged hides no other.

    Attributes:
        failed: those that cannot be read, by the id that they were asked for with.
    """

    def __init__(self) -> None:
        self.failed: dict[str, UnreadableRun] = {}

    def of(self, id_: str, read: Callable[[], T]) -> T | None:
        """Return what was read, or None where that failed."""
        try:
            return read()
        except (RecordCorrupt, StoreUnusable) as exc:
            self.failed[id_] = UnreadableRun(id_, exc)
            return None


def _opened(files: RunFiles, *, is_claimed: bool) -> OpenedRun:
    headers = [header for header in files.headers() if header.epoch != PLAIN_EPOCH]
    last = last_result(headers)
    record = None if last is None else files.read(last.key)
    return OpenedRun(files.with_input(), headers, record, is_claimed=is_claimed)


def _find(files: RunFiles, plain: PlainFiles, key: RecordKey) -> CheckpointRecord | None:
    if key.epoch == PLAIN_EPOCH:
        return plain.read(key)
    if key.epoch is None:
        return plain.read(key) or files.read(key)
    return files.read(key)
