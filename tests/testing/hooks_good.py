"""Hooks that keep every clause."""

from __future__ import annotations

import asyncio
import contextvars
from collections import Counter
from typing import Any, ClassVar

import pytest

from stroma import ExecutionResult, FailureClass, NodeHooks, RunStart
from stroma.hooks import EVENTS
from stroma.testing.hooks import HookConformance, Hooks

SPAN: contextvars.ContextVar[str] = contextvars.ContextVar("SPAN", default="")


class Counts:
    """Counts events, and keeps nothing of a run that has ended."""

    def __init__(self) -> None:
        self.events: Counter[str] = Counter()
        self.open: dict[tuple[str, str], str] = {}

    def run_start(self, start: RunStart) -> None:
        self.events["run"] += 1

    def node_start(self, run_id: str, node_id: str, state: dict[str, Any]) -> None:
        self.open[run_id, node_id] = "open"

    def node_success(self, run_id: str, node_id: str, state: dict[str, Any], tokens: int) -> None:
        del self.open[run_id, node_id]

    def node_failure(
        self, run_id: str, node_id: str, exc: Exception, failure_class: FailureClass
    ) -> None:
        del self.open[run_id, node_id]
        self.events[failure_class] += 1

    def run_end(self, result: ExecutionResult) -> None:
        self.events[result.status] += 1

    def hooks(self) -> NodeHooks:
        return NodeHooks(
            on_run_start=self.run_start,
            on_node_start=self.node_start,
            on_node_success=self.node_success,
            on_node_failure=self.node_failure,
            on_run_end=self.run_end,
        )


class TestCounts(HookConformance):
    @pytest.fixture
    def hooks(self) -> Hooks:
        return Counts().hooks()


class Methods(NodeHooks):
    """A subclass whose methods are the callbacks."""

    def on_run_end(self, result: ExecutionResult) -> None:  # type: ignore[override]
        self.name = str(result.status)


class TestMethodsOfASubclass(HookConformance):
    @pytest.fixture
    def hooks(self) -> Hooks:
        return Methods()


class TestCountsMadeAnew(HookConformance):
    @pytest.fixture
    def hooks(self) -> Hooks:
        return lambda: Counts().hooks()


async def slow(*args: object) -> None:
    await asyncio.sleep(0.001)


class TestSlowCoroutines(HookConformance):
    @pytest.fixture
    def hooks(self) -> Hooks:
        return NodeHooks(
            name="slow",
            **dict.fromkeys(EVENTS, slow),  # type: ignore[arg-type]
        )


async def enter(run_id: str, node_id: str, state: dict[str, Any]) -> None:
    SPAN.set(f"{run_id}/{node_id}")


async def leave(run_id: str, node_id: str, state: dict[str, Any], tokens: int) -> None:
    assert SPAN.get() == f"{run_id}/{node_id}"


class TestContextVariables(HookConformance):
    @pytest.fixture
    def hooks(self) -> Hooks:
        return NodeHooks(on_node_start=enter, on_node_success=leave)


class Exporter:
    """Sends in a task, and waits for it at the end of the run, also of a cancelled one."""

    sent: ClassVar[int] = 0

    async def send(self, result: ExecutionResult) -> None:
        sending = asyncio.ensure_future(self._send())
        try:
            await asyncio.shield(sending)
        except asyncio.CancelledError:
            await sending
            raise

    async def _send(self) -> None:
        await asyncio.sleep(0.001)
        Exporter.sent += 1


class TestExporter(HookConformance):
    @pytest.fixture
    def hooks(self) -> Hooks:
        return NodeHooks(on_run_end=Exporter().send)
