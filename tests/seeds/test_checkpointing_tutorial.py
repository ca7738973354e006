"""The checkpointing tutorial: continuing a failed pipeline, and stores of one's own."""

import uuid

import pytest
from pydantic import BaseModel

import stroma
from stroma import (
    AsyncCheckpointStore,
    AsyncInMemoryStore,
    CheckpointManager,
    CheckpointStore,
    ContractRegistry,
    NodeContract,
    RunConfig,
    StromaRunner,
    stroma_node,
)
from tests.servers.redis import REDIS, shared_server


class State(BaseModel):
    value: int


class Processed(BaseModel):
    result: int


class Final(BaseModel):
    total: int


CONTRACTS = (
    NodeContract(node_id="step1", input_schema=State, output_schema=Processed),
    NodeContract(node_id="step2", input_schema=Processed, output_schema=Final),
)


class TwoSteps:
    """The tutorial's pipeline; its second step fails a number of times."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.calls: list[str] = []
        self.registry = ContractRegistry()
        for contract in CONTRACTS:
            self.registry.register(contract)

        @stroma_node("step1", CONTRACTS[0])
        async def step1(state: State) -> dict[str, int]:
            self.calls.append("step1")
            return {"result": state.value * 10}

        @stroma_node("step2", CONTRACTS[1])
        async def step2(state: Processed) -> dict[str, int]:
            self.calls.append("step2")
            if self.failures:
                self.failures -= 1
                raise TimeoutError("Simulated failure")
            return {"total": state.result + 1}

        self.nodes = [step1, step2]


async def test_a_timeout_that_comes_once_is_retried_and_the_run_completes() -> None:
    steps = TwoSteps(failures=1)
    manager = CheckpointManager(AsyncInMemoryStore())

    runner = StromaRunner(steps.registry, manager, RunConfig(run_id="my-run"))
    result = await runner.run(steps.nodes, State(value=5))

    assert str(result.status) == "COMPLETED"
    assert str(result.final_state) == "total=51"
    assert steps.calls == ["step1", "step2", "step2"]


async def test_one_that_keeps_coming_is_continued_at_the_step_that_failed() -> None:
    steps = TwoSteps(failures=4)
    manager = CheckpointManager(AsyncInMemoryStore())
    no_wait = {"run_id": "my-run", "random": lambda: 0.0}

    runner1 = StromaRunner(steps.registry, manager, RunConfig(**no_wait))
    result1 = await runner1.run(steps.nodes, State(value=5))
    assert str(result1.status) == "PARTIAL"
    assert steps.calls == ["step1"] + ["step2"] * 4, "three retries after the first attempt"

    runner2 = StromaRunner(steps.registry, manager, RunConfig(resume_from="step2", **no_wait))
    result2 = await runner2.run(steps.nodes, State(value=5))
    assert str(result2.status) == "RESUMED"
    assert str(result2.final_state) == "total=51"
    assert steps.calls.count("step1") == 1


async def test_going_on_at_a_recorded_step_buys_it_again_by_consent() -> None:
    steps = TwoSteps(failures=0)
    manager = CheckpointManager(AsyncInMemoryStore())

    await StromaRunner(steps.registry, manager, RunConfig(run_id="my-run")).run(
        steps.nodes, State(value=5)
    )
    again = StromaRunner(steps.registry, manager, RunConfig(run_id="my-run", resume_from="step2"))
    result = await again.run(steps.nodes, State(value=5))

    assert str(result.status) == "RESUMED"
    assert str(result.final_state) == "total=51"
    assert steps.calls == ["step1", "step2", "step2"]


@pytest.mark.server
@pytest.mark.parametrize("name", ["RedisStore", "SyncRedisStore"])
async def test_a_run_in_redis_is_continued_by_another_process(name: str) -> None:
    store = getattr(stroma, name)(redis_url=shared_server(REDIS).url, ttl_seconds=3600)
    run_id = f"tutorial-{uuid.uuid4()}"
    steps = TwoSteps(failures=9)

    config = RunConfig(run_id=run_id, random=lambda: 0.0)
    first = await StromaRunner(steps.registry, CheckpointManager(store), config).run(
        steps.nodes, State(value=5)
    )
    steps.failures = 0
    reopened = getattr(stroma, name)(redis_url=shared_server(REDIS).url)
    again = RunConfig(run_id=run_id, resume_from="step2")
    result = await StromaRunner(steps.registry, CheckpointManager(reopened), again).run(
        steps.nodes, State(value=5)
    )
    for each in (store, reopened):
        await CheckpointManager(each).aclose()

    assert str(first.status) == "PARTIAL"
    assert str(result.status) == "RESUMED"
    assert steps.calls.count("step1") == 1


class AsyncOwnStore:
    """Three coroutine methods, no base class."""

    def __init__(self) -> None:
        self.states: dict[tuple[str, str], BaseModel] = {}

    async def save(self, run_id: str, node_id: str, state: BaseModel) -> None:
        self.states[run_id, node_id] = state

    async def load(self, run_id: str, node_id: str) -> BaseModel | None:
        return self.states.get((run_id, node_id))

    async def delete(self, run_id: str) -> None:
        for key in [key for key in self.states if key[0] == run_id]:
            del self.states[key]


class SyncOwnStore:
    """Three plain methods, no base class."""

    def __init__(self) -> None:
        self.states: dict[tuple[str, str], BaseModel] = {}

    def save(self, run_id: str, node_id: str, state: BaseModel) -> None:
        self.states[run_id, node_id] = state

    def load(self, run_id: str, node_id: str) -> BaseModel | None:
        return self.states.get((run_id, node_id))

    def delete(self, run_id: str) -> None:
        for key in [key for key in self.states if key[0] == run_id]:
            del self.states[key]


def test_stores_are_told_by_their_methods() -> None:
    assert isinstance(AsyncOwnStore(), AsyncCheckpointStore)
    assert isinstance(SyncOwnStore(), CheckpointStore)


@pytest.mark.parametrize("make_store", [AsyncOwnStore, SyncOwnStore])
async def test_the_manager_takes_sync_and_async_stores(
    make_store: type[AsyncOwnStore] | type[SyncOwnStore],
) -> None:
    steps = TwoSteps(failures=4)
    store = make_store()
    manager = CheckpointManager(store)
    config = RunConfig(run_id="own", random=lambda: 0.0)

    result1 = await StromaRunner(steps.registry, manager, config).run(steps.nodes, State(value=5))
    assert str(result1.status) == "PARTIAL"
    assert store.states == {("own", "step1"): Processed(result=50)}

    config2 = RunConfig(run_id="own", resume_from="step2")
    result2 = await StromaRunner(steps.registry, manager, config2).run(steps.nodes, State(value=5))
    assert str(result2.status) == "RESUMED"
    assert str(result2.final_state) == "total=51"

    await manager.clear("own")
    assert store.states == {}
