"""The thread that a SQLite store's connection lives in, and how requests reach it."""

from __future__ import annotations

import asyncio
import os
import queue
import sqlite3
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from enum import Enum, auto
from pathlib import Path
from typing import Final, TypeVar, cast

from stroma._aio import UncutFuture
from stroma.clock import Clock
from stroma.errors import StoreUnusable, StromaError
from stroma.stores._owner_lock import OwnerLock
from stroma.stores._sqlite_errors import is_lasting, store_error
from stroma.stores._sqlite_session import Session
from stroma.stores._sqlite_tables import Tables

T = TypeVar("T")

_SYNC_AFTER_SECONDS: Final = 0.002
"""How long a claim waits for a commit that syncs it anyway, before it is synced by itself."""
_JOIN_GRACE_SECONDS: Final = 5.0


class Mode(Enum):
    """What a request does."""

    READ = auto()
    """It reads, outside of transactions."""
    CLAIM = auto()
    """It writes what need not outlive the machine's failure at once."""
    WRITE = auto()
    """It writes, and is answered when the disk has it."""


class _State(Enum):
    OPEN = auto()
    PAUSING = auto()
    CLOSED = auto()
    CUT_OFF = auto()
    """In a child that was forked while the connection was in use."""


class _Request:
    __slots__ = ("alone", "call", "end", "error", "loop", "mode", "result")

    def __init__(
        self,
        call: Callable[[Tables], object],
        mode: Mode,
        loop: asyncio.AbstractEventLoop,
        alone: Callable[[Tables], bool] | None,
    ) -> None:
        self.call = call
        self.alone = alone
        self.mode = mode
        self.loop = loop
        self.end: UncutFuture[None] = UncutFuture(loop=loop)
        self.result: object = None
        self.error: StromaError | None = None


class Writer:
    """Runs requests of any number of event loops on one connection, in one thread.

    The thread starts with the first request and ends with `close`. Requests that are waiting
    when it comes back to its queue share a transaction.

    Args:
        path: of the store's file.
        busy_timeout_seconds: how long to wait for other processes that write.
        clock: for leases and times.
    """

    def __init__(self, path: Path, busy_timeout_seconds: float, clock: Clock) -> None:
        self._path = path
        self._busy_timeout_seconds = busy_timeout_seconds
        self._clock = clock
        self._owner_lock = OwnerLock(path)
        self._guard = threading.RLock()  # a store may be collected while its thread forks
        self._queue: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._session: Session | None = None
        self._state = _State.OPEN
        self._leaving = threading.Lock()
        self._has_left = False
        self._pid = os.getpid()
        _writers.add(self)

    async def run(
        self,
        call: Callable[[Tables], T],
        mode: Mode,
        alone: Callable[[Tables], bool] | None = None,
    ) -> T:
        """Run ``call`` in the thread and return what it returns.

        A caller that is cancelled meanwhile waits for the end all the same.

        Args:
            call: reads or writes.
            mode: which of it.
            alone: tried first when nothing else is waiting: one statement that writes what
                ``call`` would. It returns whether it did; then None is returned.

        Raises:
            StoreError: what it raised, or what SQLite's error means.
        """
        request = _Request(call, mode, asyncio.get_running_loop(), alone)
        self._put(request)
        await request.end
        if request.error is not None:
            raise request.error
        return cast(T, request.result)

    def _put(self, request: _Request) -> None:
        with self._guard:
            if self._state is _State.CLOSED:
                raise StoreUnusable(f"the store of {self._path} is closed: make another one")
            if self._state is _State.CUT_OFF or self._pid != os.getpid():
                raise StoreUnusable(
                    f"the store of {self._path} was in use while this process was forked, and "
                    "SQLite cannot be used here any more: make the store after the fork"
                )
            self._queue.put(request)
            if self._thread is None:
                self._start()

    def _start(self) -> None:
        self._has_left = False
        # A daemon, so that a store that nobody closed does not keep the process from ending.
        self._thread = threading.Thread(target=self._serve, name="stroma-sqlite", daemon=True)
        self._thread.start()

    def close(self) -> threading.Thread | None:
        """Refuse new requests; the thread ends when those that are waiting are done.

        Returns:
            The thread, to be joined, if there is one.
        """
        with self._guard:
            thread, self._thread = self._thread, None
            if self._state is _State.OPEN and self._pid == os.getpid():
                self._state = _State.CLOSED
                if thread is None:
                    self._owner_lock.drop()
                else:
                    self._queue.put(None)
            return thread

    # What follows runs in the thread.

    def _serve(self) -> None:
        try:
            while self._serve_once():
                pass
        finally:
            self._end_session()
            if self._state is _State.CLOSED:
                self._owner_lock.drop()

    def _serve_once(self) -> bool:
        """Handle what is waiting; nothing of it is kept while waiting for more."""
        batch = self._next_batch()
        if batch:
            self._handle(batch)
        return batch is not None

    def _next_batch(self) -> list[_Request] | None:
        """Wait for requests and return all that there are, or None when it is time to end."""
        if self._leaves(_State.PAUSING):
            return None
        batch = [self._first()]
        while not self._queue.empty():
            batch.append(self._queue.get())
        requests = [request for request in batch if request is not None]
        if not requests and self._leaves(_State.PAUSING, _State.CLOSED):
            return None
        if self._state is _State.CLOSED:
            self._queue.put(None)  # once more around, for what came before the end
        return requests

    def _leaves(self, *states: _State) -> bool:
        """Decide to end the thread in one of these states, in one step with who sets them."""
        with self._leaving:
            self._has_left = self._state in states
            return self._has_left

    def _first(self) -> _Request | None:
        if self._session is None or not self._session.has_unsynced:
            return self._queue.get()
        try:
            return self._queue.get(timeout=_SYNC_AFTER_SECONDS)
        except queue.Empty:
            try:
                self._session.sync()
            except OSError:
                self._session.has_unsynced = False  # the next durable commit reports it
            return self._queue.get()

    def _handle(self, batch: list[_Request]) -> None:
        writes = [request for request in batch if request.mode is not Mode.READ]
        if writes:
            self._write(writes)
            _answer(writes)
        reads = [request for request in batch if request.mode is Mode.READ]
        for request in reads:
            self._attempt(request)
        if reads:
            _answer(reads)

    def _write(self, requests: list[_Request]) -> None:
        """Do all in one transaction; if one of them breaks it, each in its own."""
        for request in requests:
            request.error = None
        try:
            session = self._opened()
            if len(requests) == 1 and self._is_stated_alone(requests[0], session):
                return
            session.transact(
                lambda: _apply(requests, session.tables),
                durable=any(request.mode is Mode.WRITE for request in requests),
            )
        except _BrokenRequest as broken:
            if len(requests) > 1:
                for request in requests:
                    self._write([request])
            else:
                self._fail(requests, broken.error)
        except Exception as exc:
            self._fail(requests, exc)

    def _is_stated_alone(self, request: _Request, session: Session) -> bool:
        if request.alone is None or not session.state_alone(request.alone):
            return False
        request.result = None
        return True

    def _attempt(self, request: _Request) -> None:
        try:
            request.result = request.call(self._opened().tables)
        except Exception as exc:
            self._fail([request], exc)

    def _fail(self, requests: list[_Request], exc: Exception) -> None:
        for request in requests:
            request.error = store_error(exc, self._path)
        if is_lasting(exc) or is_lasting(exc.__cause__ or exc) or isinstance(exc, StoreUnusable):
            self._end_session()

    def _opened(self) -> Session:
        if self._session is None:
            self._session = Session(
                self._path, self._busy_timeout_seconds, self._clock, self._owner_lock
            )
        return self._session

    def _end_session(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            with suppress(sqlite3.Error):  # what was committed is in the log, for the next one
                session.close()

    # What follows runs around a fork, in the thread that forks.

    def before_fork(self) -> None:
        """Close the connection, since neither parent nor child could use it safely after.

        SQLite keeps its locks in the process's memory, where the child would believe to hold
        what only the parent holds.
        """
        self._guard.acquire()
        thread = self._thread
        if thread is None or self._state is not _State.OPEN:
            return
        with self._leaving:
            self._state = _State.PAUSING
        self._queue.put(None)
        thread.join(self._busy_timeout_seconds + _JOIN_GRACE_SECONDS)
        if not thread.is_alive():
            self._thread = None

    def after_fork_in_parent(self) -> None:
        """Go on with what was waiting."""
        if self._state is _State.PAUSING:
            with self._leaving:
                self._state = _State.OPEN
                is_late = self._has_left and self._thread is not None
            if is_late and self._thread is not None:
                self._thread.join()
                self._thread = None
            if self._thread is None and not self._queue.empty():
                self._start()
        self._guard.release()

    def after_fork_in_child(self) -> None:
        """Begin anew: what waited, the lock and a connection still in use are the parent's."""
        if self._session is not None:
            _inherited.append(self._session)  # never collected, since that would close it
            self._session = None
        if self._state is not _State.CLOSED:
            self._state = _State.OPEN if self._thread is None else _State.CUT_OFF
        self._queue = queue.SimpleQueue()
        self._thread = None
        self._owner_lock.forget()
        self._pid = os.getpid()
        self._guard.release()


class _BrokenRequest(Exception):
    """One request failed in a way that its transaction must not outlive."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


def _apply(requests: list[_Request], tables: Tables) -> None:
    for request in requests:
        try:
            request.result = request.call(tables)
        except StromaError as exc:  # a refusal, before anything was changed
            request.error = exc
        except Exception as exc:
            raise _BrokenRequest(exc) from exc


def _answer(requests: list[_Request]) -> None:
    """Tell each event loop that its requests are done."""
    if len(requests) == 1:
        _tell(requests[0].loop, requests)
        return
    by_loop: dict[asyncio.AbstractEventLoop, list[_Request]] = {}
    for request in requests:
        by_loop.setdefault(request.loop, []).append(request)
    for loop, done in by_loop.items():
        _tell(loop, done)


def _tell(loop: asyncio.AbstractEventLoop, done: list[_Request]) -> None:
    with suppress(RuntimeError):  # the loop is closed: nobody waits any more
        loop.call_soon_threadsafe(_wake, done)


def _wake(requests: list[_Request]) -> None:
    for request in requests:
        request.end.tell()


_writers: weakref.WeakSet[Writer] = weakref.WeakSet()
_inherited: list[Session] = []
_forking = threading.Lock()
_paused: list[Writer] = []


def _before_fork() -> None:
    _forking.acquire()  # one fork at a time, since each takes the guards of all writers
    _paused.extend(_writers)
    for writer in _paused:
        writer.before_fork()


def _after_fork_in_parent() -> None:
    for writer in _paused:
        writer.after_fork_in_parent()
    _paused.clear()
    _forking.release()


def _after_fork_in_child() -> None:
    for writer in _paused:
        writer.after_fork_in_child()
    _paused.clear()
    _forking.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
