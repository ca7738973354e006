"""Hooks with one defect each, and the clauses that catch it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest

from stroma import NodeHooks, RunStatus
from stroma.testing.hooks import HookConformance, Hooks


class Defective(HookConformance):
    caught_by: ClassVar[set[str]] = set()
    timeout_seconds: ClassVar[float] = 5.0

    @pytest.fixture
    def hooks(self) -> Hooks:
        return lambda: NodeHooks(**self.callbacks())

    def callbacks(self) -> dict[str, Any]:
        raise NotImplementedError


class TestRaises(Defective):
    caught_by: ClassVar = {
        "test_they_raise_nothing",
        "test_runs_side_by_side_are_as_they_are_alone",
        "test_they_serve_one_event_loop_after_another",
        "test_they_serve_several_event_loops_at_once",
    }

    def callbacks(self) -> dict[str, Any]:
        def on_node_failure(run_id: str, node_id: str, exc: Any, failure_class: Any) -> None:
            raise ValueError(exc.status_code)

        return {"on_node_failure": on_node_failure}


class TestExits(Defective):
    caught_by: ClassVar = {
        "test_a_run_is_the_same_with_them_and_without",
        "test_they_raise_nothing",
        "test_they_leave_what_they_are_given_as_it_was",
        "test_a_run_goes_on_when_they_raise",
        "test_they_leave_no_task_behind",
    }

    def callbacks(self) -> dict[str, Any]:
        def on_budget(details: Any) -> None:
            raise SystemExit("enough")

        return {"on_budget": on_budget}


class TestChangesTheState(Defective):
    caught_by: ClassVar = {"test_they_leave_what_they_are_given_as_it_was"}

    def callbacks(self) -> dict[str, Any]:
        def on_node_start(run_id: str, node_id: str, state: dict[str, Any]) -> None:
            state["seen"] = "me"

        return {"on_node_start": on_node_start}


class TestChangesDeepInTheState(Defective):
    caught_by: ClassVar = {"test_they_leave_what_they_are_given_as_it_was"}

    def callbacks(self) -> dict[str, Any]:
        async def on_node_success(
            run_id: str, node_id: str, state: dict[str, Any], tokens: int
        ) -> None:
            await asyncio.sleep(0)
            state.get("seen", []).append("me")

        return {"on_node_success": on_node_success}


class TestChangesTheResult(Defective):
    caught_by: ClassVar = {
        "test_a_run_is_the_same_with_them_and_without",
        "test_they_leave_what_they_are_given_as_it_was",
        "test_a_run_goes_on_when_they_raise",
        "test_runs_side_by_side_are_as_they_are_alone",
    }

    def callbacks(self) -> dict[str, Any]:
        def on_run_end(result: Any) -> None:
            if result.status is RunStatus.FAILED:
                result.status = RunStatus.PARTIAL

        return {"on_run_end": on_run_end}


class TestChangesTheException(Defective):
    caught_by: ClassVar = {
        "test_a_run_is_the_same_with_them_and_without",
        "test_they_leave_what_they_are_given_as_it_was",
        "test_a_run_goes_on_when_they_raise",
        "test_runs_side_by_side_are_as_they_are_alone",
    }

    def callbacks(self) -> dict[str, Any]:
        def on_node_failure(run_id: str, node_id: str, exc: Any, failure_class: Any) -> None:
            exc.args = ("[redacted]",)

        return {"on_node_failure": on_node_failure}


class TestCancelsTheRun(Defective):
    caught_by: ClassVar = {
        "test_a_run_is_the_same_with_them_and_without",
        "test_a_run_goes_on_when_they_raise",
        "test_runs_side_by_side_are_as_they_are_alone",
    }

    def callbacks(self) -> dict[str, Any]:
        def on_retry(details: Any) -> None:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()

        return {"on_retry": on_retry}


class TestHidesACancellation(Defective):
    caught_by: ClassVar = {"test_a_cancelled_run_ends"}

    def callbacks(self) -> dict[str, Any]:
        async def on_node_start(run_id: str, node_id: str, state: dict[str, Any]) -> None:
            with contextlib.suppress(BaseException):
                await asyncio.sleep(0.001)

        return {"on_node_start": on_node_start}


class TestHidesACancellationAtTheEnd(Defective):
    caught_by: ClassVar = {"test_a_cancelled_run_ends"}

    def callbacks(self) -> dict[str, Any]:
        async def on_run_end(result: Any) -> None:
            try:
                await asyncio.sleep(0.001)
            except asyncio.CancelledError:
                return

        return {"on_run_end": on_run_end}


class TestLeavesTasks(Defective):
    caught_by: ClassVar = {"test_they_leave_no_task_behind"}

    def callbacks(self) -> dict[str, Any]:
        def on_run_start(start: Any) -> None:
            self.beating = asyncio.ensure_future(asyncio.sleep(3600))

        return {"on_run_start": on_run_start}


class TestLeavesThreads(Defective):
    caught_by: ClassVar = {"test_they_leave_no_thread_behind"}

    @pytest.fixture(autouse=True)
    def release(self) -> Iterator[None]:
        self.released = threading.Event()
        yield
        self.released.set()

    def callbacks(self) -> dict[str, Any]:
        def on_run_start(start: Any) -> None:
            threading.Thread(target=self.released.wait, daemon=True).start()

        return {"on_run_start": on_run_start}


class TestMisspeltArgument(Defective):
    @pytest.fixture
    def hooks(self) -> Hooks:
        return lambda: NodeHooks(on_node_sucess=print)  # type: ignore[call-arg]

    caught_by: ClassVar = {name for name in vars(HookConformance) if name.startswith("test_")}


class TestMisspeltMethod(Defective):
    caught_by: ClassVar = {"test_its_callbacks_are_ones_that_runs_call"}

    @pytest.fixture
    def hooks(self) -> Hooks:
        class Mine(NodeHooks):
            def on_node_sucess(self, *args: object) -> None:
                pass

        return Mine(on_run_end=lambda result: None)


class TestWrongSignature(Defective):
    caught_by: ClassVar = {
        "test_its_callbacks_take_what_runs_hand_them",
        "test_they_raise_nothing",
        "test_runs_side_by_side_are_as_they_are_alone",
        "test_they_serve_one_event_loop_after_another",
        "test_they_serve_several_event_loops_at_once",
    }

    def callbacks(self) -> dict[str, Any]:
        return {"on_node_success": lambda run_id, node_id, output: None}


class TestYields(Defective):
    caught_by: ClassVar = {"test_its_callbacks_take_what_runs_hand_them"}

    def callbacks(self) -> dict[str, Any]:
        async def on_run_end(result: Any) -> Any:
            yield result

        return {"on_run_end": on_run_end}


class TestSharesStateAcrossRuns(Defective):
    """Keeps what is open by node, and not by run and node."""

    caught_by: ClassVar = {
        "test_runs_side_by_side_are_as_they_are_alone",
        "test_they_serve_one_event_loop_after_another",
        "test_they_serve_several_event_loops_at_once",
    }

    def callbacks(self) -> dict[str, Any]:
        started: dict[str, str] = {}

        def on_node_start(run_id: str, node_id: str, state: dict[str, Any]) -> None:
            started[node_id] = run_id

        def on_node_success(run_id: str, node_id: str, *args: Any) -> None:
            del started[node_id]

        return {"on_node_start": on_node_start, "on_node_success": on_node_success}


class TestSharesStateAcrossItems(Defective):
    """Keeps one thing open for each run: nodes side by side get another's."""

    caught_by: ClassVar = {
        "test_they_raise_nothing",
        "test_runs_side_by_side_are_as_they_are_alone",
        "test_they_serve_one_event_loop_after_another",
        "test_they_serve_several_event_loops_at_once",
    }

    def callbacks(self) -> dict[str, Any]:
        current: dict[str, str] = {}

        def on_node_start(run_id: str, node_id: str, state: dict[str, Any]) -> None:
            current[run_id] = node_id

        def on_node_success(run_id: str, node_id: str, *args: Any) -> None:
            assert current[run_id] == node_id

        return {"on_node_start": on_node_start, "on_node_success": on_node_success}


class TestIsBoundToOneLoop(Defective):
    caught_by: ClassVar = {
        "test_they_serve_one_event_loop_after_another",
        "test_they_serve_several_event_loops_at_once",
    }

    def callbacks(self) -> dict[str, Any]:
        loops: list[asyncio.AbstractEventLoop] = []

        async def on_run_end(result: Any) -> None:
            loops.append(asyncio.get_running_loop())
            future = loops[0].create_future()
            loops[0].call_later(0.001, future.set_result, None)
            await future

        return {"on_run_end": on_run_end}


class TestBlocksTheLoop(Defective):
    """Waits in the loop for what that same loop is to do."""

    caught_by: ClassVar = {
        "test_a_run_is_the_same_with_them_and_without",
        "test_they_raise_nothing",
        "test_they_leave_what_they_are_given_as_it_was",
        "test_a_run_goes_on_when_they_raise",
        "test_they_leave_no_task_behind",
    }
    timeout_seconds: ClassVar[float] = 0.5

    def callbacks(self) -> dict[str, Any]:
        def on_budget(details: Any) -> None:
            loop = asyncio.get_running_loop()
            sleeping = asyncio.sleep(0)
            with contextlib.suppress(TimeoutError):
                asyncio.run_coroutine_threadsafe(sleeping, loop).result(timeout=2)

        return {"on_budget": on_budget}


class TestBlocksOnAnotherLoop(Defective):
    """Hands its work to the loop that it served first, which is closed or waits itself."""

    caught_by: ClassVar = {
        "test_they_serve_one_event_loop_after_another",
        "test_they_serve_several_event_loops_at_once",
    }

    def callbacks(self) -> dict[str, Any]:
        loops: list[asyncio.AbstractEventLoop] = []

        def on_run_end(result: Any) -> None:
            loops.append(asyncio.get_running_loop())
            if loops[0] is not loops[-1]:
                loops[0].call_soon_threadsafe(print)
                threading.Event().wait(0.5)
                raise TimeoutError("the other loop did not answer")

        return {"on_run_end": on_run_end}


class TestHasNoCallback(Defective):
    caught_by: ClassVar = {"test_its_callbacks_are_ones_that_runs_call"}

    def callbacks(self) -> dict[str, Any]:
        return {}


class TestIsNoNodeHooks(Defective):
    caught_by: ClassVar = {name for name in vars(HookConformance) if name.startswith("test_")}

    @pytest.fixture
    def hooks(self) -> Any:
        return {"on_run_end": print}
