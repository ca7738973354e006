"""Worker processes on one store, killed and replaced, and a log of every call that they make."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from stroma.cli.loading import load_pipeline
from stroma.config import open_store
from stroma.records import RunStatus
from tests.core.helpers import stored_run

APP = '''
import asyncio
import json
import os
from pathlib import Path

import stroma
from pydantic import BaseModel


class Job(BaseModel):
    seconds: float = 0.0
    value: int = 0


def note(event, run_id, node_id):
    """Append a line at once, and for good."""
    log = os.open(Path(__file__).with_name("calls"), os.O_APPEND | os.O_CREAT | os.O_WRONLY)
    os.write(log, f"{event} {run_id} {node_id}\\n".encode())
    os.fsync(log)
    os.close(log)


async def called(state):
    scope = stroma.current()
    note("begin", scope.run_id, scope.node_id)
    await asyncio.sleep(state.seconds)
    note("end", scope.run_id, scope.node_id)
    return Job(seconds=state.seconds, value=state.value + 1)


def step(name):
    @stroma.node(id=name)
    async def run(state: Job) -> tuple[Job, int]:
        return await called(state), 1

    return run


def saved(run_id, path, state, tokens):
    note("saved", run_id, path)


version = os.environ["FLEET_VERSION"]
steps = {"1": "abc", "2": "abcd", "3": "xyz"}[version]
runner = stroma.StromaRunner.quick(
    store=os.environ["FLEET_STORE"],
    store_options=json.loads(os.environ["FLEET_OPTIONS"]),
    lease_seconds=float(os.environ["FLEET_LEASE"]),
    hooks=stroma.NodeHooks(on_node_success=saved),
)
job = stroma.Pipeline(
    "job",
    [step(name) for name in steps],
    version=version,
    accepts=["1"] if version == "2" else [],
    runner=runner,
)
'''


class Fleet:
    """Workers in processes of their own.

    Args:
        folder: where the application, its log of calls and the workers' logs are.
        store: URL of the store.
        lease_seconds: of the runs.
        **options: of the store.
    """

    def __init__(
        self, folder: Path, store: str, *, lease_seconds: float = 1.0, **options: object
    ) -> None:
        self.folder = folder
        self.url = store
        self.options = options
        self.workers: list[subprocess.Popen[bytes]] = []
        self._started = 0
        self._logs: dict[int, Path] = {}
        self.environment = {
            **os.environ,
            "FLEET_STORE": store,
            "FLEET_OPTIONS": json.dumps(options),
            "FLEET_LEASE": str(lease_seconds),
            "FLEET_VERSION": "1",
        }
        (folder / "fleet_app.py").write_text(APP)

    def start(self, *arguments: str, version: str = "1") -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "stroma", "worker", "fleet_app:job", "--poll", "0.05"]
        self._started += 1
        own = self.folder / f"log-{self._started:03}"
        with own.open("wb") as log:
            worker = subprocess.Popen(
                [*command, *arguments],
                cwd=self.folder,
                env={**self.environment, "FLEET_VERSION": version},
                stdout=subprocess.DEVNULL,
                stderr=log,
            )
        self.workers.append(worker)
        self._logs[worker.pid] = own
        return worker

    def until_ready(self, *workers: subprocess.Popen[bytes]) -> None:
        """Wait until these workers look for runs: from then on they know what a signal means."""
        deadline = time.monotonic() + 60
        for worker in workers:
            while "the worker takes up runs of" not in self._logs[worker.pid].read_text():
                assert worker.poll() is None, self.log()
                assert time.monotonic() < deadline, self.log()
                time.sleep(0.02)

    def replace_killed(self, random: random.Random, *arguments: str) -> None:
        """Kill a worker, and start another one."""
        victim = random.choice(self.workers)
        victim.kill()
        victim.wait()
        self.workers.remove(victim)
        self.start(*arguments)

    def stop(self, worker: subprocess.Popen[bytes]) -> int:
        """Ask a worker to stop, and return its exit code."""
        self.until_ready(worker)
        worker.send_signal(signal.SIGTERM)
        code = worker.wait(60)
        self.workers.remove(worker)
        return code

    def close(self) -> None:
        for worker in self.workers:
            worker.kill()
            worker.wait()

    async def submit(self, *run_ids: str, seconds: float = 0.0, version: str = "1") -> None:
        """Submit runs one after the other, from this process."""
        pipeline = self._pipeline(version)
        for run_id in run_ids:
            await pipeline.submit({"seconds": seconds}, run_id=run_id)
        await pipeline.runner.aclose()

    def _pipeline(self, version: str) -> Any:
        before = {name: os.environ.get(name) for name in self.environment if "FLEET" in name}
        os.environ.update(self.environment, FLEET_VERSION=version)
        sys.path.insert(0, str(self.folder))
        try:
            return load_pipeline("fleet_app:job")
        finally:
            sys.path.remove(str(self.folder))
            sys.modules.pop("fleet_app", None)
            for name, value in before.items():
                os.environ.pop(name)
                if value is not None:
                    os.environ[name] = value

    async def all_complete(self, run_ids: list[str], *, within_seconds: float) -> None:
        """Wait until every run is complete."""
        store: Any = open_store(self.url, self.options)
        deadline = time.monotonic() + within_seconds
        try:
            left = list(run_ids)
            while left:
                runs = [await stored_run(store, run_id) for run_id in left]
                left = [r.run_id for r in runs if r.status is not RunStatus.COMPLETED]
                assert time.monotonic() < deadline, f"{left} wait still:\n{self.log()}"
                await asyncio.sleep(0.05)
        finally:
            await store.aclose()

    async def record(self, run_id: str) -> Any:
        """Return the record of a run."""
        store: Any = open_store(self.url, self.options)
        try:
            return await stored_run(store, run_id)
        finally:
            await store.aclose()

    def log(self) -> str:
        return "".join(path.read_text() for path in sorted(self.folder.glob("log-*")))

    def events(self) -> list[tuple[str, str, str]]:
        """Return what the calls have noted: "begin", "end" or "saved", the run, the node."""
        lines = (self.folder / "calls").read_text().splitlines()
        return [(event, run_id, node) for event, run_id, node in map(str.split, lines)]

    def check_nothing_saved_was_called_again(self) -> None:
        saved: set[tuple[str, str]] = set()
        for event, run_id, node_id in self.events():
            if event == "begin":
                assert (run_id, node_id) not in saved, f"{node_id} of {run_id} was bought twice"
            elif event == "saved":
                saved.add((run_id, node_id))

    def calls(self) -> Counter[tuple[str, str]]:
        """Return how often each node of each run was called."""
        return Counter((run, node) for event, run, node in self.events() if event == "begin")


async def works_off_oldest_first(fleet: Fleet) -> None:
    """One worker runs the runs in the order in which they were submitted, each once."""
    ids = [f"r{i}" for i in (5, 1, 4, 2, 3)]
    await fleet.submit(*ids)
    fleet.start("--concurrency", "1")
    await fleet.all_complete(ids, within_seconds=60)
    assert fleet.stop(fleet.workers[0]) == 0
    assert [
        run_id for event, run_id, node in fleet.events() if (event, node) == ("end", "a")
    ] == ids
    assert set(fleet.calls().values()) == {1}


async def survives_kills(fleet: Fleet, seed: int, *, runs: int = 40, kills: int = 6) -> None:
    """Whatever worker is killed, the runs are completed, and nothing that is saved runs again."""
    print(f"seed {seed}")
    chance = random.Random(seed)
    ids = [f"r{i}" for i in range(runs)]
    for _ in range(3):
        fleet.start("--concurrency", "4")
    await fleet.submit(*ids, seconds=0.05)
    for _ in range(kills):
        await asyncio.sleep(chance.uniform(0.2, 1.0))
        fleet.replace_killed(chance, "--concurrency", "4")
    await fleet.all_complete(ids, within_seconds=60)
    assert [fleet.stop(worker) for worker in list(fleet.workers)] == [0, 0, 0]
    fleet.check_nothing_saved_was_called_again()
    called = fleet.calls()
    assert {run_id for run_id, _ in called} == set(ids)
    assert sum(called.values()) <= 3 * runs + kills * 4  # what was in flight at a kill


async def rolls_out(fleet: Fleet) -> None:
    """Workers are replaced by those of the next version under load, and no run is stranded."""
    ids: list[str] = []

    async def load(version: str, count: int) -> None:
        more = [f"v{version}-{len(ids) + i}" for i in range(count)]
        ids.extend(more)
        await fleet.submit(*more, seconds=0.1, version=version)

    old = [fleet.start("--concurrency", "3", version="1") for _ in range(2)]
    await load("1", 15)
    for worker in old:
        fleet.start("--concurrency", "3", version="2")
        await load("1", 5)
        await load("2", 5)
        await asyncio.to_thread(fleet.until_ready, *fleet.workers)
        await asyncio.sleep(0.3)
        assert await asyncio.to_thread(fleet.stop, worker) == 0
    await load("1", 5)
    await fleet.all_complete(ids, within_seconds=60)
    for worker in list(fleet.workers):
        assert fleet.stop(worker) == 0

    called = fleet.calls()
    assert set(called.values()) == {1}, "a drain buys nothing twice"
    assert {(run_id, node) for run_id in ids for node in "abc"} <= set(called)
    assert {(run_id, "d") for run_id in ids if run_id.startswith("v2")} <= set(called)


async def leaves_alone_what_does_not_fit(fleet: Fleet) -> None:
    """A version that accepts no other one says so once, and works on its own runs."""
    await fleet.submit("old")
    await fleet.submit("new", version="3")
    worker = fleet.start(version="3")
    await fleet.all_complete(["new"], within_seconds=60)
    await asyncio.sleep(0.5)
    assert fleet.stop(worker) == 0
    assert fleet.log().count("run 'old' is left alone") == 1
    assert "version '3' does not accept" in fleet.log()
    assert (await fleet.record("old")).status is RunStatus.PENDING
