"""What every clause works with: store objects behind plain methods, a loop, and time."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from functools import cached_property
from typing import Any, TypeVar

import pytest
from pydantic import BaseModel

from stroma._aio import settled
from stroma.checkpoint import Capabilities, Durability, close_store, is_record_store
from stroma.errors import (
    AlreadyCommitted,
    RecordTooLarge,
    RunLocked,
    StaleOwner,
    StoreError,
    StromaError,
)
from stroma.records import (
    CheckpointRecord,
    ClaimQuery,
    Commit,
    OpenedRun,
    OpenRequest,
    RecordKey,
    RunPage,
    RunQuery,
)
from stroma.testing.proxy import TcpProxy
from stroma.testing.subject import StoreSubject, problem_of

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)

_POLL_SECONDS = 0.02
_THREAD_SECONDS = 60.0


class Driven:
    """A store of either kind and level behind plain methods, driven by the kit's loop.

    What a level 1 store raises and is no error of Stroma's is reported as leaked.
    """

    def __init__(self, inner: Any, run: Callable[[Coroutine[Any, Any, Any]], Any]) -> None:
        self.inner = inner
        self._run = run

    async def call(self, operation: str, *args: object) -> Any:
        """Do an operation inside a loop."""
        try:
            return await settled(getattr(self.inner, operation)(*args))
        except Exception as exc:
            if is_record_store(self.inner) and not isinstance(exc, StromaError):
                raise AssertionError(leaked(operation, exc)) from exc
            raise

    def do(self, operation: str, *args: object) -> Any:
        """Do an operation and wait for its end."""
        return self._run(self.call(operation, *args))

    def save(self, run_id: str, node_id: str, state: BaseModel) -> None:
        self.do("save", run_id, node_id, state)

    def save_typed(
        self, run_id: str, node_id: str, state: BaseModel, schema: type[BaseModel]
    ) -> None:
        self.do("save_typed", run_id, node_id, state, schema)

    def load(self, run_id: str, node_id: str) -> BaseModel | None:
        return self.do("load", run_id, node_id)  # type: ignore[no-any-return]

    def load_typed(self, run_id: str, node_id: str, schema: type[M]) -> M | None:
        return self.do("load_typed", run_id, node_id, schema)  # type: ignore[no-any-return]

    def delete(self, run_id: str) -> None:
        self.do("delete", run_id)

    def setup(self) -> None:
        self.do("setup")

    def open_run(self, request: OpenRequest) -> OpenedRun:
        """Open a run that there is, or that the request says how to create."""
        opened = self.find_run(request)
        assert opened is not None, (
            f"open_run found no run {request.run_id!r}: it returns None only where the run does "
            "not exist and request.new is None"
        )
        return opened

    def find_run(self, request: OpenRequest) -> OpenedRun | None:
        return self.do("open_run", request)  # type: ignore[no-any-return]

    def inspect(self, run_id: str) -> OpenedRun:
        """Read a run that there is."""
        found: OpenedRun | None = self.do("inspect", run_id)
        assert found is not None, (
            f"inspect found no run {run_id!r}, which was created before: the run is lost"
        )
        return found

    def exists(self, run_id: str) -> bool:
        return self.do("inspect", run_id) is not None

    def commit(self, commit: Commit) -> StoreError | None:
        (outcome,) = self.commit_many([commit])
        return outcome

    def commit_many(self, commits: Sequence[Commit]) -> Sequence[StoreError | None]:
        try:
            outcomes: Sequence[StoreError | None] = self.do("commit_many", commits)
        except (AlreadyCommitted, StaleOwner, RecordTooLarge) as exc:
            raise AssertionError(
                f"commit_many raised {type(exc).__name__} ({exc}): a refusal is returned in its "
                "place, or nobody could tell what became of the other commits"
            ) from exc
        assert len(outcomes) == len(commits), (
            f"commit_many returned {len(outcomes)} outcomes for {len(commits)} commits: nobody "
            "could tell which commit was refused"
        )
        return outcomes

    def renew(self, claims: Sequence[tuple[str, str]], lease_seconds: float) -> list[bool]:
        return list(self.do("renew", claims, int(lease_seconds * 1000)))

    def release(self, run_id: str, token: str) -> None:
        self.do("release", run_id, token)

    def fetch(self, run_id: str, *keys: RecordKey) -> list[CheckpointRecord | None]:
        found = list(self.do("fetch", run_id, list(keys)))
        assert len(found) == len(keys), (
            f"fetch returned {len(found)} records for {len(keys)} keys: one or None for each"
        )
        return found

    def runs(self, query: RunQuery | None = None) -> RunPage:
        return self.do("runs", RunQuery() if query is None else query)  # type: ignore[no-any-return]

    def claimable(self, query: ClaimQuery | None = None) -> RunPage:
        return self.do("claimable", ClaimQuery() if query is None else query)  # type: ignore[no-any-return]

    def purge(self, query: RunQuery) -> int:
        return self.do("purge", query)  # type: ignore[no-any-return]

    def health(self) -> None:
        self.do("health")


def leaked(operation: str, exc: BaseException) -> str:
    """Return the message for a driver's exception that came out of a store."""
    return (
        f"{operation} let {type(exc).__module__}.{type(exc).__name__} through ({exc}): a store "
        "raises StoreError and chains the driver's exception as its cause, or callers cannot "
        "tell what may be tried again"
    )


class Kit:
    """One clause's place of work.

    Attributes:
        subject: what the author said.
        store: the first store object, set up.
    """

    def __init__(self, subject: StoreSubject) -> None:
        problem = problem_of(subject)
        if problem is not None:
            pytest.fail(problem, pytrace=False)
        self.subject = subject
        self._runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        self._opened: list[object] = []
        self._proxies: list[TcpProxy] = []
        self.store = self._new(subject.make)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the kit's loop."""
        return self._runner.run(work)

    def _made(self, make: Callable[[], object]) -> object:
        try:
            made = self.run(settled(make()))
        except Exception as exc:
            raise AssertionError(f"StoreSubject.make failed: {exc!r}") from exc
        missing = [n for n in ("save", "load", "delete") if not callable(getattr(made, n, None))]
        if missing:
            pytest.fail(
                f"StoreSubject.make returned {type(made).__name__}, which has no "
                f"{', '.join(missing)}: it must return a store",
                pytrace=False,
            )
        return made

    def _new(self, make: Callable[[], object]) -> Driven:
        store = self.untouched(make)
        if is_record_store(store.inner):
            store.setup()
        return store

    def another(self) -> Driven:
        """Return another store object over the same data; the same one where they live in it."""
        if not self.is_shared:
            return self.store
        return self._new(self.subject.make)

    def untouched(self, make: Callable[[], object]) -> Driven:
        """Return a new store object that was not set up and has done nothing."""
        made = self._made(make)
        if not any(made is other for other in self._opened):
            self._opened.append(made)
        return Driven(made, self.run)

    def behind_proxy(self) -> tuple[TcpProxy, Driven]:
        """Return a proxy to the store's server, and a store object that goes through it."""
        address, make_at = self.subject.address, self.subject.make_at
        assert address is not None
        assert make_at is not None
        proxy = TcpProxy(*address).start()
        self._proxies.append(proxy)
        store = self._new(lambda: make_at(proxy.host, proxy.port))
        store.load("stroma-kit", "connects")
        assert proxy.accepted, (
            "a store object of StoreSubject.make_at does not connect to the host and port that "
            "it is given"
        )
        return proxy, store

    def bounded(self, store: Driven, operation: str, *args: object) -> Any:
        """Do an operation that has to end by itself; return its result or its error."""
        seconds = self.subject.longest_wait_seconds
        problem = (
            f"{operation} did not end within {seconds:g} s (StoreSubject.longest_wait_seconds): "
            "a run would hang. Give the driver a timeout"
        )
        if not self.is_async:
            return in_threads([_plain_call(store, operation, args)], seconds, problem)[0]

        async def body() -> Any:
            task = asyncio.ensure_future(store.call(operation, *args))
            await asyncio.wait({task}, timeout=seconds)
            if not task.done():
                task.cancel()
                raise AssertionError(problem)
            error = task.exception()
            if isinstance(error, AssertionError):
                raise error
            return task.result() if error is None else error

        return self.run(body())

    @property
    def keeps_records(self) -> bool:
        """The store is of level 1."""
        return is_record_store(self.store.inner)

    @property
    def capabilities(self) -> Capabilities:
        """What a level 1 store promises."""
        found = self.store.inner.capabilities
        assert isinstance(found, Capabilities), (
            f"capabilities is {type(found).__name__}, and must be stroma.checkpoint.Capabilities"
        )
        return found

    @property
    def is_shared(self) -> bool:
        """Several objects have the same data."""
        return not (self.keeps_records and self.capabilities.durability is Durability.MEMORY)

    @property
    def outlives_process(self) -> bool:
        """What is stored is there when the process is not."""
        if not self.is_shared:
            return False
        if self.keeps_records:
            return True
        made = self._made(self.subject.make)
        if made is self.store.inner:
            return False
        self._opened.append(made)
        return True

    @cached_property
    def is_async(self) -> bool:
        """The operations are awaited."""
        answer = self.store.inner.load("stroma-kit", "is it async")
        is_async = hasattr(answer, "__await__")
        self.run(settled(answer))
        return is_async

    @property
    def lease_seconds(self) -> float:
        """A lease that `outlast` outlasts."""
        return 60.0 if self.subject.clock else self.subject.shortest_lease_seconds

    @property
    def grain_seconds(self) -> float:
        """By how much a time may be off."""
        return 0.001 if self.subject.clock else max(0.05, self.subject.shortest_lease_seconds)

    def tick(self) -> None:
        """Let a moment pass, after which the store's clock shows another time."""
        if self.subject.clock:
            self.subject.clock.advance(1.0)
        else:
            time.sleep(self.subject.shortest_lease_seconds)

    def outlast(self, seconds: float) -> None:
        """Let a lease of this many seconds end."""
        if self.subject.clock:
            self.subject.clock.advance(seconds + 1.0)
        else:
            time.sleep(2 * seconds)

    def take_over(self, request: OpenRequest, store: Driven | None = None) -> OpenedRun:
        """Claim a run whose owner has a lease of `lease_seconds` and does not renew it."""
        store = store or self.store
        if self.subject.clock:
            self.subject.clock.advance(self.lease_seconds + 1.0)
            deadline = 0.0
        else:
            deadline = time.monotonic() + 3 * self.lease_seconds + 2.0
        while True:
            try:
                return store.open_run(request)
            except RunLocked as exc:
                assert time.monotonic() < deadline, (
                    f"run {request.run_id!r} is still locked long after its owner's lease of "
                    f"{self.lease_seconds:g} s ended ({exc}): a run whose worker died would "
                    "never be continued"
                )
            time.sleep(_POLL_SECONDS)

    def together(self, *calls: tuple[Driven, str, tuple[object, ...]]) -> list[Any]:
        """Do operations at the same time: in one loop, or in a thread each; errors are returned."""
        if not self.is_async:
            return in_threads([_plain_call(*call) for call in calls])

        async def gather() -> list[Any]:
            started = [store.call(operation, *args) for store, operation, args in calls]
            return await asyncio.gather(*started, return_exceptions=True)

        return self.run(gather())

    def close(self) -> None:
        """Close every store object that was made, and the loop."""
        try:
            for store in self._opened:
                try:
                    self.run(close_store(store))
                except Exception as exc:
                    raise AssertionError(f"closing the store failed: {exc!r}") from exc
        finally:
            self._opened.clear()
            self._runner.close()
            for proxy in self._proxies:
                proxy.close()

    def forget(self) -> None:
        """Begin anew in a forked child: the objects and the loop are the parent's."""
        self._abandoned = (self._runner, list(self._opened), self.store)
        self._runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        self._opened = []
        self._proxies = []


def _plain_call(store: Driven, operation: str, args: tuple[object, ...]) -> Callable[[], Any]:
    return lambda: getattr(store.inner, operation)(*args)


def in_threads(
    bodies: Sequence[Callable[[], Any]],
    seconds: float = _THREAD_SECONDS,
    problem: str = "an operation in a thread did not end within a minute",
) -> list[Any]:
    """Run each body in a thread, begun together; errors are returned."""
    results: list[Any] = [None] * len(bodies)
    start = threading.Barrier(len(bodies))

    def run(i: int) -> None:
        try:
            start.wait(_THREAD_SECONDS)
            results[i] = bodies[i]()
        except BaseException as exc:
            results[i] = exc

    threads = [threading.Thread(target=run, args=(i,), daemon=True) for i in range(len(bodies))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds)
        assert not thread.is_alive(), problem
    return results
