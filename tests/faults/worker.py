"""A worker in a process of its own, that dies where it is told to, or when it is killed."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Coroutine, Generator, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from typing import Any, Literal, TypeAlias

from stroma import RunLocked, RunStatus, StaleOwner, StromaRunner
from stroma.config import open_store
from stroma.testing._processes import IoPoints, kill_this_process
from stroma.testing.faulty import Fault, FaultKind, FaultyStore
from tests.faults.sidelog import SideLog
from tests.faults.workload import (
    PIPELINE,
    RESERVING,
    Order,
    Provider,
    closing,
    paying,
    runner_of,
    say_how_it_ended,
    told,
)

_SECONDS_FOR_A_RUN = 50.0

Where: TypeAlias = Literal["await", "io"]


@dataclass(frozen=True)
class Job:
    """What a worker has to do.

    Attributes:
        store: name of the store.
        options: of the store.
        log: path of the side log.
        runs: ids of the runs to bring to their end, side by side.
        order: their input.
        lease_seconds: of its claims.
        latency_seconds: of a paid call.
        slow: places whose calls take `slow_seconds`.
        slow_seconds: see there.
        die_at: kind and number of the point where it kills itself; None for a number counts.
        faults: injected into the store.
        fault_rate: and at random.
        seed: of random faults and delays.
        budget_tokens: limit of each run.
        patience: how often a run is started that ends as PARTIAL.
        reserves: whether each call is reserved before it is made.
        save_retries: how often a save is tried again.
    """

    store: str
    options: dict[str, Any]
    log: str
    runs: tuple[str, ...]
    order: Order = field(default_factory=Order)
    lease_seconds: float = 60.0
    latency_seconds: float = 0.002
    slow: tuple[str, ...] = ()
    slow_seconds: float = 0.0
    die_at: tuple[Where, int | None] | None = None
    faults: tuple[Fault, ...] = ()
    fault_rate: float = 0.0
    seed: int = 0
    budget_tokens: int | None = 100_000
    patience: int = 300
    reserves: bool = False
    save_retries: int = 12

    def on(self, *runs: str, **changes: Any) -> Job:
        """Return the same job for other runs."""
        return replace(self, runs=runs, **changes)

    def open(self) -> object:
        """Return the store, without faults."""
        return open_store(self.store, self.options)


class AwaitPoints:
    """Counts each time that a task of a loop waits, and does something at one of them.

    Args:
        at: at which, from 0; None counts only.
        act: what is done, in the task that is about to wait.
    """

    def __init__(self, at: int | None, act: Callable[[], object]) -> None:
        self._at = at
        self._act = act
        self.count = 0
        self.is_armed = False

    def new_loop(self) -> asyncio.AbstractEventLoop:
        """Return a loop whose tasks are watched."""
        loop = asyncio.new_event_loop()
        loop.set_task_factory(self._task)
        return loop

    def _task(
        self, loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Any], **options: Any
    ) -> asyncio.Task[Any]:
        return asyncio.Task(_Watched(work, self), loop=loop, **options)

    def reached(self) -> None:
        """Count a point."""
        if not self.is_armed:
            return
        number, self.count = self.count, self.count + 1
        if number == self._at:
            self._act()


class _Watched(Coroutine[Any, Any, Any]):
    """A coroutine that tells each time that it waits."""

    def __init__(self, work: Coroutine[Any, Any, Any], points: AwaitPoints) -> None:
        self._work = work
        self._points = points

    def send(self, value: Any) -> Any:
        waited = self._work.send(value)
        self._points.reached()
        return waited

    def throw(self, *error: Any) -> Any:
        waited = self._work.throw(*error)
        self._points.reached()
        return waited

    def close(self) -> None:
        self._work.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._work.__await__()


def work(job: Job) -> int:
    """Do a job in this process; return how many points of its kind there were."""
    log = SideLog(job.log)
    where, number = job.die_at or (None, None)
    awaits = AwaitPoints(number if where == "await" else None, kill_this_process)
    io = IoPoints(number if where == "io" else None, kill_this_process)
    if where == "io":
        io.watch()

    async def main() -> None:
        provider = Provider(
            log,
            latency_seconds=job.latency_seconds,
            slow=job.slow,
            slow_seconds=job.slow_seconds,
        )
        async with closing(runner_for(job, log)) as runner:
            awaits.is_armed, io.is_armed = where == "await", where == "io"
            with paying(provider):
                try:
                    await asyncio.gather(*(bring_to_its_end(runner, job, r, log) for r in job.runs))
                finally:
                    awaits.is_armed = io.is_armed = False

    with asyncio.Runner(loop_factory=awaits.new_loop) as loop:
        loop.run(main())
    log.close()
    return awaits.count if where == "await" else io.count


def cancelled_at(job: Job, at: int | None, times: int) -> tuple[int, bool]:
    """Do a job in this process, and cancel it where one of its tasks waits.

    Args:
        job: of one run.
        at: at which wait, from 0; None counts only.
        times: how often it is cancelled: once, or twice in two turns of the loop.

    Returns:
        How many waits there were, and whether it ended as cancelled.
    """
    log = SideLog(job.log)
    to_cancel: list[asyncio.Task[Any]] = []

    def cancel() -> None:
        loop, task = asyncio.get_running_loop(), to_cancel[0]
        loop.call_soon(task.cancel)
        if times > 1:
            loop.call_soon(lambda: loop.call_soon(task.cancel))

    points = AwaitPoints(at, cancel)

    async def main() -> bool:
        async with closing(runner_for(job, log)) as runner:
            provider = Provider(log, latency_seconds=job.latency_seconds)
            with paying(provider):
                (run_id,) = job.runs
                to_cancel.append(asyncio.ensure_future(bring_to_its_end(runner, job, run_id, log)))
                points.is_armed = True
                await asyncio.wait(to_cancel, timeout=60)
                points.is_armed = False
        (task,) = to_cancel
        assert task.done(), "a cancelled run does not end"
        if not task.cancelled():
            task.result()
        return task.cancelled()

    with asyncio.Runner(loop_factory=points.new_loop) as loop:
        is_cancelled = loop.run(main())
    log.close()
    return points.count, is_cancelled


def runner_for(job: Job, log: SideLog) -> StromaRunner:
    """Return a runner with the job's store, and the faults that it asks for."""
    store: object = job.store
    options: dict[str, Any] | None = job.options
    if job.faults or job.fault_rate:
        store = FaultyStore(
            job.open(),
            job.faults,
            rate=job.fault_rate,
            kinds=(FaultKind.REFUSED, FaultKind.LOST),
            operations=("open_run", "commit_many", "renew", "fetch"),
            seed=job.seed,
        )
        options = None
    return runner_of(
        store,
        log,
        options=options,
        lease_seconds=job.lease_seconds,
        budget_tokens=job.budget_tokens,
        save_retries=job.save_retries,
        seed=job.seed,
    )


async def bring_to_its_end(runner: StromaRunner, job: Job, run_id: str, log: SideLog) -> None:
    """Start a run again until it is complete, whoever else works on it."""
    pipeline = RESERVING if job.reserves else PIPELINE
    starts, gives_up_at = 0, time.monotonic() + _SECONDS_FOR_A_RUN
    while time.monotonic() < gives_up_at:
        try:
            result = await runner.run(pipeline, job.order, run_id=run_id)
        except RunLocked as exc:
            await asyncio.sleep(min(max(exc.until_seconds, 0.005), 0.1))
            continue
        except StaleOwner as exc:
            more = {"in_doubt": told(exc.in_doubt), "unsaved": list(exc.unsaved)}
            log.write("lost", run_id, more=more)
            continue
        say_how_it_ended(log, result)
        if result.is_complete:
            return
        starts += 1
        how = f"{result.status}: {result.stop_reason}"
        assert starts < job.patience, f"run {run_id!r} does not come to its end: {how}"
        assert result.status is RunStatus.PARTIAL, f"run {run_id!r} is {how}"
        await asyncio.sleep(0.02)
    raise AssertionError(f"run {run_id!r} is not complete after {_SECONDS_FOR_A_RUN:g} s")


# -- processes ---------------------------------------------------------------------------------


@functools.cache
def _processes() -> ForkServerContext:
    """Return what starts processes that have imported everything already."""
    context = multiprocessing.get_context("forkserver")
    drivers = ["asyncpg", "boto3", "redis.asyncio"]
    stores = ["stroma.stores.sqlite", "stroma_postgres", "stroma_redis", "stroma_s3"]
    context.set_forkserver_preload([*drivers, *stores, "stroma.engine", "tests.faults.worker"])
    return context


class Worker:
    """A process that does a job.

    Args:
        job: what it has to do.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        context = _processes()
        self._answer, answers = context.Pipe(duplex=False)
        self._process: BaseProcess = context.Process(target=_body, args=(job, answers))
        self._process.start()
        answers.close()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether it is there."""
        return self._process.is_alive()

    def wait(self, seconds: float = 60.0) -> int | None:
        """Wait for its end; return how many points there were, or None if it was killed.

        Raises:
            AssertionError: it failed, or it does not end.
        """
        said: Any = None
        with contextlib.suppress(EOFError):
            if self._answer.poll(seconds):
                said = self._answer.recv()
        self._process.join(5)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
            raise AssertionError(f"worker {self.pid} does not end within {seconds:g} s")
        self._answer.close()
        assert not isinstance(said, str), f"worker {self.pid} failed: {said}"
        return said  # type: ignore[no-any-return]

    def is_over_within(self, seconds: float) -> bool:
        """Wait for its end for some time; say whether it has come."""
        return self._answer.poll(seconds)

    def signal(self, how: signal.Signals) -> None:
        """Send it a signal."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, how)

    def kill(self) -> bool:
        """End it as a power cut would; say whether it was still there."""
        was_alive = self.is_alive
        self._process.kill()
        self._process.join()
        was_killed = was_alive and self._process.exitcode == -signal.SIGKILL
        if not was_killed:
            self.wait()
        return was_killed


def _body(job: Job, answers: Any) -> None:
    try:
        answers.send(work(job))
    except BaseException:
        answers.send(traceback.format_exc())


def all_of(jobs: Sequence[Job], seconds: float = 60.0) -> list[Worker]:
    """Do jobs side by side, each in a process; return them when they have ended."""
    workers = [Worker(job) for job in jobs]
    for worker in workers:
        worker.wait(seconds)
    return workers
