"""What stroma-otel costs where nobody has configured a provider of OpenTelemetry."""

from __future__ import annotations

import importlib

import stroma
from benchmarks.measuring import NODES, START, Row, compared, numbered, quickest


async def unobserved(rounds: int) -> Row:
    """Measure runs with its hooks against runs without; its API is loaded, as others may do."""
    runs = 50
    nodes = numbered(NODES)
    for name in ("opentelemetry.trace", "opentelemetry.metrics"):
        importlib.import_module(name)
    store = stroma.InMemoryStore()
    without = stroma.StromaRunner.quick(store=store, disabled_plugins={"otel"})
    installed = stroma.StromaRunner.quick(store=store)

    async def floor() -> None:
        await _run(without)

    async def ours() -> None:
        await _run(installed)

    async def _run(runner: stroma.StromaRunner) -> None:
        for number in range(runs):
            result = await runner.run(nodes, START, run_id=f"run-{number}")
            assert result.is_complete
        for number in range(runs):
            store.delete(f"run-{number}")

    await floor()
    await ours()
    taken = await quickest(rounds * 8, floor, ours)
    return compared("stroma-otel, and no provider, per node", taken, runs * NODES, 1.05)
