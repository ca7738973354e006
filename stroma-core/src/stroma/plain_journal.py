"""A run in anyone's store, which can only save, load and delete states.

What it lacks is said once: nobody else is kept from the run, nothing is known of spend, of
the input, or of a changed pipeline, and what failed leaves no record.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence

from pydantic import BaseModel, ValidationError

from stroma._aio import finish, uncut
from stroma.checkpoint import CheckpointManager
from stroma.continuation import RunRequest, not_found
from stroma.cost import Usage
from stroma.errors import (
    CheckpointNotFound,
    ConfigError,
    SchemaMismatch,
    StoreError,
    StoreUnavailable,
    StoreUnusable,
)
from stroma.ids import path_of
from stroma.journal import JournalSettings, Standing, Stop, persist, warn_once
from stroma.plan import Group, Leaf, Plan, Step
from stroma.result import InDoubt

logger = logging.getLogger("stroma")


class PlainJournal:
    """See `Journal`."""

    epoch = 0
    is_complete = False
    trace_parent = ""

    def __init__(
        self, manager: CheckpointManager, settings: JournalSettings, run_id: str, is_given: bool
    ) -> None:
        self.run_id = run_id
        self.position = 0
        self.is_continued = is_given
        self._manager = manager
        self._settings = settings
        self._state: BaseModel | None = None
        self._has_any = False
        self._saved_late: list[str] = []
        self._failed: Counter[str] = Counter()

    async def clear(self) -> None:
        """Forget what is recorded."""
        try:
            await self._manager.clear(self.run_id)
        except StoreError:
            raise
        except Exception as exc:
            raise self._unavailable("delete", exc) from exc

    async def find(self, plan: Plan, request: RunRequest) -> None:
        """Find where the run goes on, by loading its results one after the other.

        Raises:
            ResumeError: nothing is recorded that is asked for.
            ConfigError: `resume_from` would leave later results behind, which this store
                could not tell from new ones.
        """
        state = request.state
        for step in plan.steps:
            found = await self._load_step(step, state, ())
            if found is None:
                break
            state = self._state = found
            self.position += 1
        if request.must_exist and not self._has_any:
            raise self._nothing(plan, request)
        if request.resume_from is None:
            return
        wanted = plan.ids.index(request.resume_from)
        if wanted > self.position:
            raise CheckpointNotFound(
                f"run {self.run_id!r} cannot go on at {request.resume_from!r}: the result of "
                f"{plan.ids[self.position]!r} before it is not recorded"
            )
        if wanted < self.position:
            raise ConfigError(
                f"resume_from={request.resume_from!r} would buy a recorded node again, and "
                f"{type(self._manager.store).__name__} cannot tell old results from new ones: "
                "use another run_id or restart=True, or a store that keeps records"
            )

    def _nothing(self, plan: Plan, request: RunRequest) -> Exception:
        if request.resume_from in plan.ids[1:]:
            return CheckpointNotFound(
                f"run {self.run_id!r} cannot go on at {request.resume_from!r}: the result of "
                f"{plan.ids[0]!r} is not recorded, or has expired"
            )
        return not_found(request)

    async def _load_step(
        self, step: Step, before: BaseModel | None, index: tuple[int, ...]
    ) -> BaseModel | None:
        if isinstance(step, Leaf):
            return await self._load(path_of(step.id, index), step)
        if isinstance(step, Group):
            outputs = [await self._load_step(child, before, index) for child in step.children]
            present = [output for output in outputs if output is not None]
            return step.merge(present) if len(present) == len(outputs) else None
        if before is None:
            return None
        try:
            before = step.takes.accept(before)
            items = list(getattr(before, step.over))
        except (ValidationError, TypeError) as exc:
            raise SchemaMismatch(
                f"run {self.run_id!r}: the state before {step.id!r} does not fit it: {exc}"
            ) from exc
        found: list[BaseModel] = []
        for i, item in enumerate(items):
            output = await self._load_step(step.child, item, (*index, i))
            if output is None:
                return None
            found.append(output)
        return step.merge(before, found)

    async def _load(self, path: str, step: Leaf) -> BaseModel | None:
        try:
            found = await self._manager.resume(self.run_id, path, step.gives.schema)
            self._has_any |= found is not None
            return found
        except StoreError:
            raise
        except (ValueError, TypeError) as exc:
            raise SchemaMismatch(
                f"run {self.run_id!r}: the result of {path!r} does not fit "
                f"{step.gives.schema.__name__}: {exc}"
            ) from exc
        except Exception as exc:
            raise self._unavailable("load", exc) from exc

    def _unavailable(self, operation: str, exc: Exception) -> StoreUnavailable:
        name = type(self._manager.store).__name__
        return StoreUnavailable(f"{name} failed in {operation}: {exc}")

    def keep(self, lost: Callable[[], None]) -> Callable[[], None]:
        """See `Journal.keep`: nobody owns a run in such a store."""
        return _nothing

    async def initial_state(self, given: BaseModel | None) -> BaseModel:
        """See `Journal.initial_state`."""
        state = given if self._state is None else self._state
        if state is None:
            raise CheckpointNotFound(f"run {self.run_id!r}: its input is not recorded: give it")
        return state

    async def recall(self, step: Step, paths: Sequence[str]) -> list[BaseModel | None]:
        """See `Journal.recall`: only results of functions are kept, not of what groups them."""
        if not isinstance(step, Leaf):
            return [None] * len(paths)
        return [await self._load(path, step) for path in paths]

    async def refused_output(self, step: Leaf, path: str) -> tuple[object] | None:
        """See `Journal.refused_output`: this store keeps none."""
        return None

    def carried(self) -> Mapping[str, Sequence[Usage]]:
        """See `Journal.carried`: this store knows of none."""
        return {}

    def carried_ms(self) -> float:
        """See `Journal.carried_ms`: this store knows of none."""
        return 0.0

    def digest(self, path: str) -> str:
        """See `Journal.digest`: this store has none."""
        return ""

    def result(
        self,
        step: Step,
        path: str,
        position: int,
        state: BaseModel,
        payload: bytes,
        digest: str,
        usage: Usage,
        stop: Stop | None,
    ) -> Awaitable[None] | None:
        """See `Journal.result`."""
        return self._keep(path, state) if isinstance(step, Leaf) else None

    async def _keep(self, path: str, state: BaseModel) -> None:
        saving = asyncio.ensure_future(self._save(path, state))
        try:
            failed = await finish(saving)
        except asyncio.CancelledError:
            if saving.cancelled() or (saving.done() and saving.result() is not None):
                # once more: it is paid for
                failed = await uncut(self._save(path, state))
                if failed is not None:
                    logger.warning("run %s: %r is not saved: %s", self.run_id, path, failed)
                    raise
            self._saved_late.append(path)
            raise
        if failed is not None:
            await persist(lambda: uncut(self._save(path, state)), failed, self._settings)

    async def _save(self, path: str, state: BaseModel) -> StoreError | None:
        try:
            await self._manager.checkpoint(self.run_id, path, state)
        except StoreError as exc:
            return exc
        except Exception as exc:
            error = self._unavailable("save", exc)
            error.__cause__ = exc
            return error
        return None

    async def reserve(self, step: Leaf, path: str, usage: Usage) -> int:
        """See `Journal.reserve`: this store keeps none; the budget holds within the start."""
        return 0

    async def spent_beside(self, step: Leaf, path: str, usage: Usage) -> None:
        """See `Journal.spent_beside`: this store keeps no usage."""

    def next_call(self, path: str) -> int:
        """See `Journal.next_call`: this store keeps none, and so those of this start count."""
        self._failed[path] += 1
        return self._failed[path]

    async def attempt(
        self,
        step: Leaf,
        path: str,
        number: int,
        usage: Usage,
        error: BaseException,
        failure_class: str,
        *,
        is_reserved: bool = False,
        doubt: str = "",
    ) -> None:
        """See `Journal.attempt`: this store keeps none."""

    def doubts(self, path: str | None = None) -> tuple[InDoubt, ...]:
        """See `Journal.doubts`: this store knows of none."""
        return ()

    def refusals(self, path: str) -> int:
        """See `Journal.refusals`: this store knows of none."""
        return 0

    async def stop(self, stop: Stop) -> Sequence[str]:
        """See `Journal.stop`: this store does not know how runs stand."""
        return self._saved_late

    async def look(self) -> Standing:
        """See `Journal.look`: this store cannot say.

        Raises:
            StoreUnusable: always.
        """
        name = type(self._manager.store).__name__
        raise StoreUnusable(f"run {self.run_id!r}: {name} does not know how runs stand")


def _nothing() -> None:
    """There is no claim to give up."""


async def open_plain_journal(
    manager: CheckpointManager, settings: JournalSettings, plan: Plan, request: RunRequest
) -> PlainJournal:
    """Return the journal of a run in a store that only has `save`, `load` and `delete`.

    Raises:
        ResumeError: it cannot be continued as asked.
        StoreError: the store cannot be reached.
    """
    warn_once(
        type(manager.store),
        "%s has only save, load and delete: a second worker is not kept from a run, and what "
        "earlier starts spent, failed attempts and a changed input are not known",
    )
    journal = PlainJournal(manager, settings, request.run_id, request.is_given)
    if request.restart:
        await journal.clear()
    elif request.is_given:
        await journal.find(plan, request)
    return journal
