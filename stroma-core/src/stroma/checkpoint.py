"""The store protocols, and the manager that puts a store behind a runner.

Level 0 is anyone's store: `save`, `load` and `delete` of pydantic models. Level 1 moves
records; a store class that implements its operations inherits level 0 from a mixin here.
Operations may be sync or async: callers await what is awaitable.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Awaitable, Sequence
from enum import StrEnum
from typing import NamedTuple, Protocol, TypeAlias, TypeVar, runtime_checkable

from pydantic import BaseModel

from stroma._aio import call_store, settled
from stroma.batching import CommitBatcher, CommitMany
from stroma.errors import (
    ConfigError,
    RecordTooLarge,
    StoreError,
    StoreUnavailable,
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
from stroma.schemas import codec_of, register_models, registered_model

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)
MaybeAwaitable: TypeAlias = T | Awaitable[T]


@runtime_checkable
class CheckpointStore(Protocol):
    """Level 0, sync: where states go. No base class is needed.

    `save_typed(run_id, node_id, state, schema)` and `load_typed(run_id, node_id, schema)` are
    used when the store has them.
    """

    def save(self, run_id: str, node_id: str, state: BaseModel) -> None:
        """Keep a state; a later one for the same run and node replaces it."""
        ...

    def load(self, run_id: str, node_id: str) -> BaseModel | None:
        """Return the state that was kept, or None."""
        ...

    def delete(self, run_id: str) -> None:
        """Remove what was kept of a run, and nothing else."""
        ...


@runtime_checkable
class AsyncCheckpointStore(Protocol):
    """Level 0, async: `CheckpointStore` with coroutine methods."""

    async def save(self, run_id: str, node_id: str, state: BaseModel) -> None:
        """Keep a state; a later one for the same run and node replaces it."""
        ...

    async def load(self, run_id: str, node_id: str) -> BaseModel | None:
        """Return the state that was kept, or None."""
        ...

    async def delete(self, run_id: str) -> None:
        """Remove what was kept of a run, and nothing else."""
        ...


class Durability(StrEnum):
    """What a returned commit survives."""

    MEMORY = "memory"
    """Nothing: it is gone with the process."""
    PROCESS = "process"
    """The death of the process."""
    INTERVAL_FSYNC = "interval-fsync"
    """The death of the machine, but for the last moments."""
    FSYNC = "fsync"
    """The death of the machine."""
    REPLICATED = "replicated"
    """The loss of the machine."""


class Capabilities(NamedTuple):
    """What a level 1 store promises.

    Attributes:
        durability: what a returned commit survives.
        fencing: a token that is no longer the owner's can make nothing visible. A store that
            has to find this out knows it after `setup`; without it, core warns once that two
            workers may meet.
        max_payload_bytes: the largest payload of one record, or None.
        groups_commits: the store itself groups commits that are waiting, and finishes those
            whose caller is cancelled; core then hands on each one as it comes.
        refuses_stale_commits: a commit of a worker that lost its run is refused at once. False
            where a store can only make it invisible: the worker learns of it when it renews,
            updates or releases the run.
        retention_seconds: how long a run is kept after the last write to it; None keeps it until
            it is removed.
    """

    durability: Durability
    fencing: bool = True
    max_payload_bytes: int | None = None
    groups_commits: bool = False
    refuses_stale_commits: bool = True
    retention_seconds: float | None = None


class RecordStore(Protocol):
    """Level 1: moves records, and guards who may write them.

    Every operation may be called from several event loops and threads of one process. Errors
    are `StoreError`s with the driver's exception as their cause.
    """

    @property
    def capabilities(self) -> Capabilities:
        """What this store promises."""
        ...

    def setup(self) -> MaybeAwaitable[None]:
        """Create what the store needs. Doing it again, or in two processes, does no harm."""
        ...

    def open_run(self, request: OpenRequest) -> MaybeAwaitable[OpenedRun | None]:
        """Claim a run, creating it if the request says how; one atomic operation.

        A run is claimed when nobody owns it, when its owner's lease has ended on the store's
        clock, or when its owner is proved dead. A COMPLETED run is returned unclaimed unless
        ``reopen``. Claiming sets the status to RUNNING, the token, the holder and the lease.

        Returns:
            The run with its headers and last result, or None if it does not exist and
            ``request.new`` is None.

        Raises:
            RunLocked: another token owns it.
        """
        ...

    def inspect(self, run_id: str) -> MaybeAwaitable[OpenedRun | None]:
        """Return what `open_run` returns, without claiming the run or changing anything.

        Returns:
            The run with its headers and last result, as not claimed and not new, whoever owns
            it; or None if it does not exist.
        """
        ...

    def commit_many(self, commits: Sequence[Commit]) -> MaybeAwaitable[Sequence[StoreError | None]]:
        """Write several commits; each is atomic, and one that is refused harms no other.

        A commit with a token is refused with `StaleOwner` when the run does not exist or
        another token owns it, whether or not the lease has ended; with `AlreadyCommitted`
        when another commit id holds the key of one of its records. A record whose commit id
        is stored under its key already counts as written. A commit without a token replaces.

        Returns:
            For each commit None, or the error that it was refused with. When it returns,
            every later load reads what was written.

        Raises:
            StoreUnavailable: nothing was written.
            OutcomeUnknown: nobody knows whether anything was written.
        """
        ...

    def renew(
        self, claims: Sequence[tuple[str, str]], lease_ms: int
    ) -> MaybeAwaitable[Sequence[bool]]:
        """Extend the leases of (run id, token) pairs; False where the token is not the owner."""
        ...

    def release(self, run_id: str, token: str) -> MaybeAwaitable[None]:
        """Give up a run. Nothing happens when the token is not the owner."""
        ...

    def fetch(
        self, run_id: str, keys: Sequence[RecordKey]
    ) -> MaybeAwaitable[Sequence[CheckpointRecord | None]]:
        """Return the record of each key, or None; see `RecordKey.epoch` for None."""
        ...

    def runs(self, query: RunQuery) -> MaybeAwaitable[RunPage]:
        """List runs, the last updated first; equal times by run id.

        A run whose record cannot be read is told in `RunPage.unreadable`, and hides no other one.
        """
        ...

    def claimable(self, query: ClaimQuery) -> MaybeAwaitable[RunPage]:
        """List runs that `open_run` would claim now and that nobody need ask for again.

        These are PENDING, or RUNNING, and nobody owns them on the store's clock: there is no
        owner, its lease has ended, or it is proved dead. The first created comes first; equal
        times by run id. It costs no more for runs that have ended long ago. A run whose record
        cannot be read is told in `RunPage.unreadable`, and hides no other one.
        """
        ...

    def delete(self, run_id: str) -> MaybeAwaitable[None]:
        """Remove the run and all its records, plain ones too, and nothing else."""
        ...

    def purge(self, query: RunQuery) -> MaybeAwaitable[int]:
        """Remove the runs that a query finds, up to its limit, except owned ones.

        A run whose record cannot be read stays: nobody can tell whether a worker owns it.

        Returns:
            How many were removed.
        """
        ...

    def health(self) -> MaybeAwaitable[None]:
        """Return if the store can read and write now.

        Raises:
            StoreError: it cannot; the message says why.
        """
        ...


def is_record_store(store: object) -> bool:
    """Say whether a store has the level 1 operations."""
    return all(hasattr(store, name) for name in ("open_run", "commit_many", "fetch"))


async def close_store(store: object) -> None:
    """Close a store that can be closed: by `aclose`, or else by `close`."""
    for name in ("aclose", "close"):
        close = getattr(store, name, None)
        if close is not None:
            await settled(close())
            return


def check_size(commits: Sequence[Commit], capabilities: Capabilities) -> list[StoreError | None]:
    """Return the refusal of each commit that is too large for a store, None for the others."""
    limit = capabilities.max_payload_bytes
    if limit is None:
        return [None] * len(commits)
    return [_too_large(commit, limit) for commit in commits]


def _too_large(commit: Commit, limit: int) -> StoreError | None:
    for header, payload in commit.records:
        if len(payload) > limit:
            return RecordTooLarge(
                f"run {header.run_id!r}, {header.path!r}: the payload has {len(payload)} bytes, "
                f"and this store takes {limit}: return less, or a reference to it"
            )
    return None


class CheckpointManager:
    """A store of either level, sync or async, behind one async interface.

    Args:
        store: anything with `save`, `load` and `delete`.

    Attributes:
        store: the store.
        keeps_records: it is a level 1 store.
        is_in_memory: nothing of a save can be lost that would outlive the process.
        is_set_up: the store has what it needs.

    Raises:
        ConfigError: it lacks one of them.
    """

    def __init__(self, store: object) -> None:
        missing = [n for n in ("save", "load", "delete") if not callable(getattr(store, n, None))]
        if missing:
            raise ConfigError(
                f"{type(store).__name__} is no checkpoint store: it has no {', '.join(missing)}"
            )
        self.store = store
        self.keeps_records = is_record_store(store)
        self.is_in_memory = self._promises.durability is Durability.MEMORY
        self._groups_commits = self._promises.groups_commits
        self.is_set_up = False
        self._batchers: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, CommitBatcher] = (
            weakref.WeakKeyDictionary()
        )

    @property
    def _promises(self) -> Capabilities:
        found = getattr(self.store, "capabilities", None)
        return found if isinstance(found, Capabilities) else Capabilities(Durability.PROCESS)

    @property
    def has_fencing(self) -> bool:
        """The store keeps workers that lost a run from changing it; known after `setup`."""
        return self._promises.fencing

    def expires_at(self, written_at: float) -> float | None:
        """Return when a run expires that was last written to at a time; None if it does not."""
        seconds = self._promises.retention_seconds
        return None if seconds is None else written_at + seconds

    @property
    def commit_many(self) -> CommitMany:
        """The store's operation of that name; in a thread if the store asks for one."""
        if getattr(self.store, "run_in_thread", False):
            return lambda commits: call_store(self.store, "commit_many", commits)  # type: ignore[return-value]
        return self.store.commit_many  # type: ignore[attr-defined, no-any-return]

    def batcher(self) -> CommitBatcher | None:
        """Return what groups commits in the running loop; None where grouping gains nothing."""
        if self._groups_commits:
            return None
        loop = asyncio.get_running_loop()
        found = self._batchers.get(loop)
        if found is None:
            found = self._batchers[loop] = CommitBatcher(self.commit_many)
        return found

    async def setup(self) -> None:
        """Have a level 1 store create what it needs, once."""
        if not self.is_set_up:
            try:
                await call_store(self.store, "setup")
            except StoreError:
                raise
            except Exception as exc:
                name = type(self.store).__name__
                raise StoreUnavailable(f"{name} failed in setup: {exc}") from exc
            self.is_set_up = True

    async def checkpoint(self, run_id: str, node_id: str, state: BaseModel) -> None:
        """Keep a state."""
        await call_store(self.store, "save", run_id, node_id, state)

    async def resume(self, run_id: str, node_id: str, schema: type[M]) -> M | None:
        """Return what was kept as an instance of ``schema``, or None.

        Raises:
            TypeError: the store cannot load by schema, and what it loaded is something else.
        """
        if hasattr(self.store, "load_typed"):
            found = await call_store(self.store, "load_typed", run_id, node_id, schema)
        else:
            found = await call_store(self.store, "load", run_id, node_id)
        if found is None or isinstance(found, schema):
            return found
        raise TypeError(
            f"run {run_id!r}, node {node_id!r}: {type(self.store).__name__} loaded "
            f"{type(found).__name__}, and {schema.__name__} was asked for"
        )

    async def clear(self, run_id: str) -> None:
        """Remove everything that was kept of a run."""
        await call_store(self.store, "delete", run_id)

    async def aclose(self) -> None:
        """Close the store, if it can be closed."""
        await close_store(self.store)


def _schema_ref(  # pyright: ignore[reportUnusedFunction]  (for authors of stores)
    state: BaseModel | type[BaseModel],
) -> str:
    """Return the "module:qualname" reference of a model, for authors of stores."""
    schema = state if isinstance(state, type) else type(state)
    register_models(schema)
    return codec_of(schema).ref


def _resolve_schema(  # pyright: ignore[reportUnusedFunction]
    ref: str,
) -> type[BaseModel]:
    """Return the model that this process registered under a reference, for authors of stores.

    Raises:
        UnknownSchema: no model, or more than one, is registered under it.
    """
    return registered_model(ref)
