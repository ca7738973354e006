"""What the commands do with pipelines: submit runs, and work on those that wait."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import sys
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, TypeVar

from stroma.checkpoint import CheckpointManager, close_store
from stroma.cli.plain import printable
from stroma.config import open_shared_store, unshared
from stroma.errors import ConfigError
from stroma.pipeline import Pipeline
from stroma.result import Submitted
from stroma.runner import StromaRunner, configured_runner
from stroma.stores.memory import AsyncInMemoryStore, InMemoryStore
from stroma.worker import Worker

T = TypeVar("T")
STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


def work(worker: Worker, pipelines: Sequence[Pipeline]) -> None:
    """Run a worker until a signal asks it to stop; the second one cuts what is under way.

    Args:
        worker: the worker.
        pipelines: what it takes up; their runners are closed at the end.
    """
    with _logged():
        asyncio.run(_work(worker, pipelines))


async def _work(worker: Worker, pipelines: Sequence[Pipeline]) -> None:
    was_asked = False

    def on_signal() -> None:
        nonlocal was_asked
        if was_asked:
            worker.cancel()
        else:
            worker.stop()
        was_asked = True

    try:
        with _signals_go_to(on_signal, asyncio.get_running_loop()):
            await worker.run()
    finally:
        for pipeline in pipelines:
            if isinstance(pipeline.runner, StromaRunner):
                await pipeline.runner.aclose()


@contextmanager
def _signals_go_to(
    on_signal: Callable[[], None], loop: asyncio.AbstractEventLoop
) -> Generator[None]:
    def handle(number: int, frame: object) -> None:
        loop.call_soon_threadsafe(on_signal)

    before = {number: signal.signal(number, handle) for number in STOP_SIGNALS}
    try:
        yield
    except BaseException:
        for number, handler in before.items():
            signal.signal(number, handler)
        raise
    for number in STOP_SIGNALS:  # the process is about to end, as a late signal asks for
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def _logged() -> Generator[None]:
    """Print what the worker says, a line each, on the standard error output."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("stroma")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


class _OneLine(logging.Formatter):
    """Keeps a record's text on one line, and what is chained to it below."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the base's name
        return printable(super().formatMessage(record))


def read_json(text: str | None, option: str) -> Mapping[str, object] | None:
    """Return an object that a command was given: JSON, "@file" or "-" for the standard input.

    Raises:
        ConfigError: it cannot be read, or is no JSON object. It does not show what it is.
    """
    if text is None:
        return None
    try:
        found: object = json.loads(_text_of(text))
    except OSError as exc:
        raise ConfigError(f"{option}: {exc.filename!r} cannot be read: {exc.strerror}") from exc
    except ValueError as exc:
        raise ConfigError(f"{option} is no JSON: {exc}") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{option} must be a JSON object, not {type(found).__name__}")
    return found


def _text_of(given: str) -> str:
    if given == "-":
        return sys.stdin.read()
    return Path(given[1:]).read_text(encoding="utf-8") if given.startswith("@") else given


def _number(text: str, option: str) -> Decimal:
    try:
        return Decimal(text)
    except ArithmeticError:
        raise ConfigError(f"{option} must be a number, not {text!r}") from None


def refuse_memory(pipelines: Sequence[Pipeline]) -> None:
    """Refuse pipelines whose own runner has a store in memory, which no other process sees.

    Raises:
        ConfigError: names the first one.
    """
    for pipeline in pipelines:
        own = pipeline.runner
        if isinstance(own, StromaRunner) and isinstance(
            own.checkpoint_manager.store, InMemoryStore | AsyncInMemoryStore
        ):
            raise unshared(f"pipeline {pipeline.name!r}")


def submit(
    pipeline: Pipeline,
    input: Mapping[str, object] | None,
    *,
    run_id: str | None,
    tags: Sequence[str] | None,
    store: str | None,
) -> Submitted:
    """Submit a run, to a store or to the pipeline's own; see `Pipeline.submit`."""
    return asyncio.run(
        _with_runner(
            pipeline, store, lambda runner: runner.submit(pipeline, input, run_id=run_id, tags=tags)
        )
    )


def resolve(
    pipeline: Pipeline, run_id: str, said: Mapping[str, object], *, store: str | None
) -> None:
    """Say what became of a call; see `StromaRunner.resolve`, whose arguments ``said`` has."""
    call: dict[str, Any] = dict(said)
    if call["cost_usd"] is not None:
        call["cost_usd"] = _number(call["cost_usd"], "--cost-usd")
    asyncio.run(
        _with_runner(pipeline, store, lambda runner: runner.resolve(pipeline, run_id, **call))
    )


async def _with_runner(
    pipeline: Pipeline, store: str | None, work: Callable[[StromaRunner], Awaitable[T]]
) -> T:
    """Do something with a pipeline's runner, or with one like it on another store."""
    own = pipeline.runner
    if store is None:
        refuse_memory([pipeline])
        if isinstance(own, StromaRunner):
            async with own:  # the process is about to end
                return await work(own)
        async with configured_runner() as runner:
            return await work(runner)
    opened = open_shared_store(store)
    try:
        return await work(_runner_on(opened, pipeline))
    finally:
        await close_store(opened)


def _runner_on(store: object, pipeline: Pipeline) -> StromaRunner:
    """Return a runner that does what the pipeline's does, in another store."""
    manager, own = CheckpointManager(store), pipeline.runner
    if isinstance(own, StromaRunner):
        return StromaRunner(own.registry, manager, own.config)
    return StromaRunner(checkpoint_manager=manager)
