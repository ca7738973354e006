"""What waits for a worker in one store: oldest first, and what does not fit is left alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Final, NamedTuple

from stroma.batching import call_operation
from stroma.checkpoint import CheckpointManager, close_store
from stroma.config import open_shared_store
from stroma.engine import Prepared
from stroma.errors import ConfigError, RecordCorrupt, StoreError
from stroma.opening import not_accepted
from stroma.pipeline import Pipeline
from stroma.records import ClaimQuery, RunPage, RunRecord, UnreadableRun
from stroma.runner import StromaRunner, configured_runner

PAGE: Final = 50
"""How many runs are listed in one trip."""


class Waiting(NamedTuple):
    """A run that waits for a worker.

    Attributes:
        run: its record, as it was listed.
        pipeline: the one that takes it up.
        prepared: its plan, and what its runner says.
    """

    run: RunRecord
    pipeline: Pipeline
    prepared: Prepared


class LeftAlone(NamedTuple):
    """A run that waits, and that this process cannot go on with.

    Attributes:
        run_id: the run.
        pipeline: the name of its pipeline; "" where its record cannot be read.
        version: of the pipeline that it is of.
        reason: why, and what to do.
    """

    run_id: str
    pipeline: str
    version: str
    reason: str


class Backlog:
    """The runs of some pipelines that wait in one store.

    A run that was left alone is not listed again until something changes in its record.

    Args:
        manager: the store.
        prepared: each pipeline, with its plan and what its runner says.

    Attributes:
        manager: the store.
        under_way: ids of the runs that this process has.
    """

    def __init__(self, manager: CheckpointManager, prepared: Mapping[Pipeline, Prepared]) -> None:
        self.manager = manager
        self._prepared = dict(prepared)
        self._names = tuple(dict.fromkeys(pipeline.name for pipeline in prepared))
        self.under_way: set[str] = set()
        self._left: dict[str, int] = {}
        self._seen: set[str] = set()
        self.begin_again()

    def begin_again(self) -> None:
        """Have `next` begin with the oldest run."""
        self._page: deque[RunRecord | UnreadableRun] = deque()
        self._cursor: str | None = ""

    async def next(self) -> Waiting | LeftAlone | None:
        """Return the next run that waits, or None after the last one; then it begins again.

        Raises:
            ConfigError: the store cannot keep two workers from one run.
            StoreError: the store cannot be reached.
        """
        while True:
            while self._page:
                run = self._page.popleft()
                self._seen.add(run.run_id)
                if run.run_id not in self.under_way and not self._is_left(run):
                    return self._found(run)
            if self._cursor is None:
                self._end_scan()
                return None
            await self._read(self._cursor)

    def leave(self, run: RunRecord | UnreadableRun, reason: str) -> LeftAlone:
        """Leave a run alone until something changes in its record."""
        self._left[run.run_id] = _signature(run)
        if isinstance(run, UnreadableRun):
            return LeftAlone(run.run_id, "", "", reason)
        return LeftAlone(run.run_id, run.pipeline, run.version, reason)

    def _is_left(self, run: RunRecord | UnreadableRun) -> bool:
        return run.run_id in self._left and self._left[run.run_id] == _signature(run)

    def _found(self, run: RunRecord | UnreadableRun) -> Waiting | LeftAlone:
        if isinstance(run, UnreadableRun):
            return self.leave(run, _unreadable(run.error))
        known = [pipeline for pipeline in self._prepared if pipeline.name == run.pipeline]
        own = [pipeline for pipeline in known if pipeline.version == run.version]
        for pipeline in (*own, *known):
            if pipeline.accepts_version(run.version):
                return Waiting(run, pipeline, self._prepared[pipeline])
        return self.leave(run, str(not_accepted(run, *(p.version for p in known))))

    def _end_scan(self) -> None:
        """Forget runs that are left alone and wait no more."""
        self._left = {run_id: seen for run_id, seen in self._left.items() if run_id in self._seen}
        self._seen.clear()
        self.begin_again()

    async def _read(self, cursor: str) -> None:
        if not cursor:
            self._seen.clear()
            await self._check_store()
        query = ClaimQuery(self._names, PAGE, cursor)
        page = await call_operation(self.manager.store, "claimable", query)
        assert isinstance(page, RunPage)
        self._page.extend((*page.unreadable, *page.runs))
        self._cursor = page.cursor or None

    async def _check_store(self) -> None:
        name = type(self.manager.store).__name__
        if not self.manager.keeps_records:
            raise ConfigError(
                f"{name} has only save, load and delete, and keeps no records of runs that a "
                "worker could find: use a store that does, such as sqlite:///runs.db"
            )
        await self.manager.setup()
        if not self.manager.has_fencing:
            raise ConfigError(
                f"{name} cannot keep a worker that lost its run from writing, since its server "
                "does not refuse conditional writes: workers need a store that can"
            )


def _unreadable(error: StoreError) -> str:
    if not isinstance(error, RecordCorrupt):  # it is this program that cannot read it
        return str(error)
    return f"{error}; restore it from a backup, or remove the run with `stroma delete --force`"


def _signature(run: RunRecord | UnreadableRun) -> int:
    """Return what changes with a run, except by being claimed and given back."""
    if isinstance(run, UnreadableRun):
        return hash(str(run.error))
    return hash(
        (run.status, run.version, run.epochs, run.plan, run.input_fingerprint, run.created_at)
    )


async def open_backlogs(
    pipelines: Sequence[Pipeline], store: object, stack: AsyncExitStack
) -> list[Backlog]:
    """Return what waits for some pipelines, by store.

    Args:
        pipelines: the pipelines.
        store: where their runs are: an object, a name or a URL; None takes the store of each
            one's runner, or else the configured one.
        stack: closes what is opened here.

    Raises:
        ConfigError: there is no pipeline, or something is wrong with one of them.
        PluginError: there is no such store.
    """
    _check_pipelines(pipelines)
    given = await _manager_of(store, stack) if store is not None else None
    configured: StromaRunner | None = None
    by_store: dict[int, tuple[CheckpointManager, dict[Pipeline, Prepared]]] = {}
    for pipeline in pipelines:
        runner = pipeline.runner
        if runner is not None and not isinstance(runner, StromaRunner):
            raise ConfigError(f"pipeline {pipeline.name!r}: its runner is no StromaRunner")
        if runner is None and given is None:
            if configured is None:
                configured = await stack.enter_async_context(configured_runner())
            runner = configured
        runner = runner or StromaRunner()
        manager = given or runner.checkpoint_manager
        _, prepared = by_store.setdefault(id(manager.store), (manager, {}))
        prepared[pipeline] = runner._prepare(pipeline, None)  # what is wrong with it is found now
    return [Backlog(manager, prepared) for manager, prepared in by_store.values()]


async def _manager_of(store: object, stack: AsyncExitStack) -> CheckpointManager:
    opened = open_shared_store(store)
    if opened is not store:
        stack.push_async_callback(close_store, opened)
    return CheckpointManager(opened)


def _check_pipelines(pipelines: Sequence[object]) -> None:
    if not pipelines:
        raise ConfigError("there is nothing to take up: give at least one pipeline")
    seen: set[tuple[str, str]] = set()
    for pipeline in pipelines:
        if not isinstance(pipeline, Pipeline):
            raise ConfigError(f"{pipeline!r} is no Pipeline: write Pipeline(name, nodes)")
        if (pipeline.name, pipeline.version) in seen:
            raise ConfigError(
                f"pipeline {pipeline.name!r} is given twice as version {pipeline.version!r}: "
                "its runs are found by name and version, so give one of them another"
            )
        seen.add((pipeline.name, pipeline.version))
