"""Runs the steps of a plan: the sequence, and what `parallel` and `fan_out` hold."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Final, TypeAlias

from pydantic import BaseModel

from stroma.account import RunAccount, Stopped
from stroma.attempts import AttemptLoop
from stroma.contracts import dump_state
from stroma.cost import NO_USAGE
from stroma.errors import BudgetExceeded, ContractViolation, StoreError, UnknownPrice
from stroma.events import Outcome, StepEnd, StepKind, StepStart
from stroma.ids import path_of
from stroma.plan import Each, Group, Leaf, Plan, Step
from stroma.records import RunStatus

LeafRunner: TypeAlias = Callable[[Leaf, BaseModel, tuple[int, ...], str, int], Awaitable[BaseModel]]

_KINDS: Final[Mapping[type[Step], StepKind]] = {Leaf: "node", Group: "parallel", Each: "fan_out"}


class Execution:
    """One start of a run."""

    def __init__(self, plan: Plan, account: RunAccount) -> None:
        self._plan = plan
        self._account = account
        self._journal = account.journal
        self._hooks = account.around.hooks
        loop = AttemptLoop(account)
        self._attempts = self._told_attempts(loop) if self._hooks.any_step_hook else loop.run

    async def run(self, state: BaseModel) -> BaseModel:
        """Run the steps that are left, and return the last one's output.

        Raises:
            Stopped: the run goes no further.
            StaleOwner: another worker owns the run.
            asyncio.CancelledError: the run is cancelled, and a node kept that to itself.
        """
        cancelling = _cancelling()
        before = cancelling()
        position = self._journal.position
        if position:
            self._account.state = state
        for step in self._plan.steps[:position]:
            self._account.skip(step.id, step.path)
        for step in self._plan.steps[position:]:
            if cancelling() > before:
                raise asyncio.CancelledError
            try:
                if type(step) is Leaf:
                    state = await self._attempts(step, state, (), step.path, position)
                else:
                    state = await self._step(step, state, (), position)
            except StoreError:
                self._account.store_failed_at = self._account.store_failed_at or step.path
                raise
            self._account.state = state
            position += 1
        return state

    async def _step(
        self, step: Step, state: BaseModel, index: tuple[int, ...], position: int
    ) -> BaseModel:
        """Run one step at one place; ``position`` is -1 inside `parallel` and `fan_out`."""
        path = step.path if not index else path_of(step.id, index)
        if self._journal.is_continued and position < 0:
            (recorded,) = await self._recall(step, [path])
            if recorded is not None:
                return recorded
        if isinstance(step, Leaf):
            return await self._attempts(step, state, index, path, position)
        container = partial(self._container, step, state, index, path, position)
        if not self._hooks.any_step_hook:
            return await container()
        return await self._told(step, path, container)

    async def _container(
        self,
        step: Group | Each,
        state: BaseModel,
        index: tuple[int, ...],
        path: str,
        position: int,
    ) -> BaseModel:
        if isinstance(step, Group):
            merged = await self._group(step, state, index, path)
        else:
            merged = await self._each(step, state, index, path)
        payload = dump_state(step.gives, merged, step.id)
        saving = self._account.save(step, path, position, merged, payload, NO_USAGE, 0, 0.0)
        if saving is not None:
            await saving
        return merged

    def _told_attempts(self, loop: AttemptLoop) -> LeafRunner:
        """Return what runs a node, and tells the hooks before its first attempt and at the end."""

        async def run(
            leaf: Leaf, state: BaseModel, index: tuple[int, ...], path: str, position: int
        ) -> BaseModel:
            attempts = partial(loop.run, leaf, state, index, path, position)
            return await self._told(leaf, path, attempts)

        return run

    async def _told(
        self, step: Step, path: str, work: Callable[[], Awaitable[BaseModel]]
    ) -> BaseModel:
        """Do a step's work, and tell the hooks before and after it."""
        place = (self._journal.run_id, step.id, path, _KINDS[type(step)])
        outcome: Outcome = "succeeded"
        error: BaseException | None = None
        await self._hooks.fire("on_step_start", StepStart(*place))
        try:
            return await work()
        except BaseException as exc:
            outcome = "failed" if isinstance(exc, Exception) else "cancelled"
            error = exc.error if isinstance(exc, Stopped) else exc
            raise
        finally:
            await self._hooks.fire("on_step_end", StepEnd(*place, outcome, error))

    async def _recall(self, step: Step, paths: Sequence[str]) -> list[BaseModel | None]:
        states = await self._journal.recall(step, paths)
        for path, state in zip(paths, states, strict=True):
            if state is not None:
                self._account.skip(step.id, path)
        return states

    # -- steps that run others -------------------------------------------------------------

    async def _group(
        self, step: Group, state: BaseModel, index: tuple[int, ...], path: str
    ) -> BaseModel:
        value = self._account.accept(step, state, path)
        held_back: list[Stopped] = []
        outputs: dict[str, BaseModel] = {}

        async def work(child: Step) -> None:
            try:
                outputs[child.id] = await self._step(child, value, index, -1)
            except Stopped as exc:
                _keep_siblings(exc, held_back)

        try:
            async with asyncio.TaskGroup() as tasks:
                for child in step.children:
                    tasks.create_task(work(child))
        except BaseExceptionGroup as group:
            raise _first(group) from None
        if held_back:
            raise self._restated(held_back)
        return step.merge([outputs[child.id] for child in step.children])

    async def _each(
        self, step: Each, state: BaseModel, index: tuple[int, ...], path: str
    ) -> BaseModel:
        value = self._account.accept(step, state, path)
        items = getattr(value, step.over, None)
        if not isinstance(items, Sequence) or isinstance(items, str | bytes):
            problem = f"{step.over}: fan_out needs a list, not {type(items).__name__}"
            raise self._account.violated(
                ContractViolation(step.id, "input", [problem], value), path
            )
        outputs: list[BaseModel | None] = [None] * len(items)
        if self._journal.is_continued and items:
            paths = [path_of(step.child.id, (*index, i)) for i in range(len(items))]
            outputs = await self._recall(step.child, paths)
        await self._items(step, items, outputs, index)
        return step.merge(value, [output for output in outputs if output is not None])

    async def _items(
        self,
        step: Each,
        items: Sequence[BaseModel],
        outputs: list[BaseModel | None],
        index: tuple[int, ...],
    ) -> None:
        """Fill in the outputs that are not recorded, a bounded number at a time."""
        missing = [i for i, output in enumerate(outputs) if output is None]
        left = iter(missing)
        held_back: list[Stopped] = []

        async def work(left: Iterator[int]) -> None:
            cancelling = _cancelling()
            try:
                for i in left:
                    outputs[i] = await self._item(step.child, items[i], (*index, i))
                    if cancelling():
                        raise asyncio.CancelledError
            except Stopped as exc:
                _keep_siblings(exc, held_back)
                for _ in left:  # nobody begins another one
                    pass

        try:
            async with asyncio.TaskGroup() as tasks:
                for _ in range(min(step.max_concurrency, len(missing))):
                    tasks.create_task(work(left))
        except BaseExceptionGroup as group:
            raise _first(group) from None
        if held_back:
            raise self._restated(held_back)

    def _restated(self, held_back: Sequence[Stopped]) -> Stopped:
        """Return why the run goes no further, now that what was under way is settled.

        A call in doubt comes first: it holds the run up whatever the budget is.
        """
        for stopped in held_back:
            if stopped.status is RunStatus.WAITING:
                return stopped
        stopped = held_back[0]
        try:
            self._account.ledger.check(self._account.this_start_ms)
        except (BudgetExceeded, UnknownPrice) as exc:
            return Stopped(stopped.status, str(exc), exc)
        return stopped

    async def _item(self, child: Step, item: BaseModel, index: tuple[int, ...]) -> BaseModel:
        if isinstance(child, Leaf):
            return await self._attempts(child, item, index, path_of(child.id, index), -1)
        return await self._step(child, item, index, -1)


def _cancelling() -> Callable[[], int]:
    """Return what counts the requests to cancel this task; one call of it is all the cost.

    A node may return though it was cancelled: its result counts, and nothing begins after it.
    """
    task = asyncio.current_task()
    assert task is not None, "a coroutine runs in a task"
    return task.cancelling


def _keep_siblings(stopped: Stopped, held_back: list[Stopped]) -> None:
    """Note that nothing may begin; what is under way is paid for, and goes on.

    Raises:
        Stopped: the run is stopped for another reason.
    """
    if not stopped.spares_siblings:
        raise stopped
    held_back.append(stopped)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the failure that a group of children stopped for: the first one."""
    for member in group.exceptions:
        exc = _first(member) if isinstance(member, BaseExceptionGroup) else member
        if not isinstance(exc, asyncio.CancelledError):
            return exc
    return group.exceptions[0]
