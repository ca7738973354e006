"""Takes up runs that nobody owns or whose owner died."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Final, NamedTuple

from stroma.backlog import Backlog, LeftAlone, Waiting, open_backlogs
from stroma.engine import take_up
from stroma.errors import (
    ConfigError,
    OutcomeUnknown,
    RunLocked,
    RunNotFound,
    StaleOwner,
    StopRequested,
    StoreUnavailable,
    StromaError,
)
from stroma.opening import NotWaiting
from stroma.pipeline import Pipeline
from stroma.result import ExecutionResult
from stroma.stop_request import StopRequest

logger = logging.getLogger("stroma.worker")

CONCURRENCY: Final = 10
"""How many runs one process has under way where nothing else is said."""


class Recovery(NamedTuple):
    """What `recover` did.

    Attributes:
        results: of the runs that it took up, in the order in which they ended.
        left_alone: the runs that it could not go on with, with the reasons.
    """

    results: tuple[ExecutionResult, ...]
    left_alone: tuple[LeftAlone, ...]


async def recover(
    *pipelines: Pipeline,
    store: object = None,
    limit: int | None = None,
    concurrency: int = CONCURRENCY,
) -> Recovery:
    """Take up the runs of some pipelines that wait, the oldest first, and return when none is left.

    A run waits when it was submitted, or when its owner died. One that does not fit the pipeline
    any more, or is of a version that it does not accept, is reported and left alone. Any number
    of processes may do this side by side: each run is taken up by one.

    Args:
        *pipelines: the pipelines.
        store: where the runs are: an object, a name or a URL; if not given, the store of each
            pipeline's runner, or else the configured one.
        limit: how many runs are taken up at most.
        concurrency: how many at a time.

    Raises:
        ConfigError: wrong use, or a store that cannot keep two workers from one run.
        StoreError: the store cannot be reached; what was under way has ended by then.
        asyncio.CancelledError: the runs under way wait for another worker.
    """
    check_count(concurrency, "concurrency")
    if limit is not None:
        check_count(limit, "limit")
    results: list[ExecutionResult] = []
    left: list[LeftAlone] = []

    def tell(outcome: Outcome) -> None:
        if isinstance(outcome, ExecutionResult):
            results.append(outcome)
        elif isinstance(outcome, LeftAlone):
            left.append(outcome)
        elif outcome is not None:
            logger.warning("a run was not taken up: %s", outcome)

    async with AsyncExitStack() as stack:
        backlogs = await open_backlogs(pipelines, store, stack)
        crew = Crew(StopRequest(), tell)
        try:
            for backlog in backlogs:
                while await _has_room(crew, concurrency, limit, results):
                    found = await backlog.next()
                    if found is None:
                        break
                    crew.deal_with(found, backlog)
            await crew.all_ended()
        except asyncio.CancelledError:
            crew.cancel()
            raise
        finally:
            await crew.all_ended()
    return Recovery(tuple(results), tuple(left))


async def _has_room(
    crew: Crew, concurrency: int, limit: int | None, results: list[ExecutionResult]
) -> bool:
    """Wait until another run may begin, and say whether one still may."""
    while True:
        is_last = limit is not None and len(results) + crew.size >= limit
        if crew.size < concurrency and not is_last:
            return True
        if not crew.size:
            return False
        await crew.one_ended()


def check_count(value: object, name: str) -> None:
    """Refuse what is no number of things, at least one.

    Raises:
        ConfigError: names the argument.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{name} must be a whole number from 1, not {value!r}")


Outcome = ExecutionResult | LeftAlone | StoreUnavailable | OutcomeUnknown | None
"""What came of a run: its result, why it is left alone, why the store did not say, or None when
another worker was faster."""


class Crew:
    """The runs that one process has under way.

    Args:
        stop_request: asks them to go no further.
        tell: called with what came of each run.
    """

    def __init__(self, stop_request: StopRequest, tell: Callable[[Outcome], None]) -> None:
        self._stop_request = stop_request
        self._tell = tell
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def size(self) -> int:
        """How many runs are under way."""
        return len(self._tasks)

    def deal_with(self, found: Waiting | LeftAlone, backlog: Backlog) -> None:
        """Take up a run, or report that it is left alone."""
        if isinstance(found, LeftAlone):
            self._report(found)
            return
        backlog.under_way.add(found.run.run_id)
        task = asyncio.create_task(self._take_up(found, backlog))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def one_ended(self) -> None:
        """Wait until one of the runs has ended."""
        await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)

    async def all_ended(self) -> None:
        """Wait until all of the runs have ended."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def cancel(self) -> None:
        """Cut the calls under way; the runs wait for another worker then."""
        for task in self._tasks:
            task.cancel()

    async def _take_up(self, waiting: Waiting, backlog: Backlog) -> None:
        try:
            self._report(await self._outcome(waiting, backlog))
        finally:
            backlog.under_way.discard(waiting.run.run_id)

    async def _outcome(self, waiting: Waiting, backlog: Backlog) -> Outcome:
        run, pipeline, prepared = waiting
        is_claimed = False

        def on_claimed() -> None:
            nonlocal is_claimed
            is_claimed = True
            logger.info("run %r of %s is taken up", run.run_id, _named(run.pipeline, run.version))

        try:
            return await take_up(
                prepared,
                backlog.manager,
                run.run_id,
                pipeline.accepts_version,
                self._stop_request,
                on_claimed,
            )
        except asyncio.CancelledError:
            if is_claimed:
                logger.info("run %r is cut, and given back for another worker", run.run_id)
            raise
        except (RunLocked, NotWaiting, RunNotFound):
            return None
        except StaleOwner:
            logger.info("run %r is another worker's now", run.run_id)
            return None
        except (StoreUnavailable, OutcomeUnknown) as exc:
            return exc
        except StromaError as exc:
            return backlog.leave(run, str(exc))
        except Exception as exc:
            logger.exception("run %r could not be taken up", run.run_id)
            return backlog.leave(run, f"{type(exc).__name__} was raised")

    def _report(self, outcome: Outcome) -> None:
        if isinstance(outcome, LeftAlone):
            logger.warning("run %r is left alone: %s", outcome.run_id, outcome.reason)
        elif isinstance(outcome, ExecutionResult):
            log_result(outcome)
        self._tell(outcome)


def log_result(result: ExecutionResult) -> None:
    """Say in one line how a run ended, without what a node said: that may be a secret."""
    if isinstance(result.error, StopRequested):
        logger.info("run %r is given back, for another worker", result.run_id)
        return
    why = "" if result.error is None else f", for {type(result.error).__name__}"
    logger.info(
        "run %r ended as %s%s; %d tokens, $%s",
        result.run_id,
        result.status,
        why,
        result.tokens,
        result.cost_usd,
    )


def _named(pipeline: str, version: str) -> str:
    return f"{pipeline!r}, version {version!r}" if version else repr(pipeline)
