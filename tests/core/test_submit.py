"""A submitted run is in the store, nobody owns it, and its id is an idempotency key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stroma import (
    ConfigError,
    ContractViolation,
    InMemoryStore,
    OutcomeUnknown,
    Pipeline,
    PipelineChanged,
    RunInputMismatch,
    RunStatus,
    SQLiteStore,
    StoreUnavailable,
    StromaRunner,
    Submitted,
    fan_out,
    node,
)
from stroma.records import Commit, OpenRequest, RunUpdate
from tests.core.helpers import Calls, Done, FaultyStore, Number, make_runner, stored, stored_run


def adding(calls: Calls, *script: object, **options: Any) -> Pipeline:
    return Pipeline("adding", [calls.node("a"), calls.node("b", *script)], **options)


async def test_a_submitted_run_waits_and_nobody_owns_it(store: Any, calls: Calls) -> None:
    runner = make_runner(store, tags=("nightly",))
    submitted = await adding(calls, version="3").submit(Number(value=1), runner=runner)

    run = await stored_run(store, submitted.run_id)
    assert submitted == Submitted(run.run_id, RunStatus.PENDING, True)
    assert (run.status, run.owner, run.holder) == (RunStatus.PENDING, "", "")
    assert (run.pipeline, run.version, run.tags) == ("adding", "3", ("nightly",))
    assert run.input_payload == b'{"value":1}'
    assert calls.order == []


async def test_who_knows_its_id_can_run_it_without_the_input(store: Any, calls: Calls) -> None:
    runner, pipeline = make_runner(store), adding(calls)
    await runner.submit(pipeline, {"value": 1}, run_id="job")
    result = await runner.run(pipeline, run_id="job", resume=True)
    assert (result.status, result.final_state) == (RunStatus.COMPLETED, Number(value=3))


async def test_the_same_input_again_is_the_same_run(store: Any, calls: Calls) -> None:
    runner, pipeline = make_runner(store), adding(calls)
    first = await runner.submit(pipeline, Number(value=1), run_id="job")
    second = await runner.submit(pipeline, {"value": 1}, run_id="job")
    assert (first.is_new, second.is_new) == (True, False)
    assert second.status is RunStatus.PENDING


async def test_another_input_is_refused_and_the_run_waits_as_before(
    store: Any, calls: Calls
) -> None:
    runner, pipeline = make_runner(store), adding(calls)
    await runner.submit(pipeline, Number(value=1), run_id="job")
    with pytest.raises(RunInputMismatch, match="value differs"):
        await runner.submit(pipeline, Number(value=2), run_id="job")
    run = await stored_run(store, "job")
    assert (run.status, run.owner) == (RunStatus.PENDING, "")


async def test_a_run_of_another_pipeline_is_refused_as_no_worker_would_find_it(
    store: Any, calls: Calls
) -> None:
    runner, other = make_runner(store), Pipeline("other", [calls.node("a")])
    await runner.run(other, Number(value=1), run_id="named")
    await runner.run(other.nodes, Number(value=1), run_id="unnamed")
    for run_id, was in (("named", "of pipeline 'other'"), ("unnamed", "of a list of nodes")):
        with pytest.raises(PipelineChanged, match=f"run '{run_id}' is {was}.*not of .*'adding'"):
            await runner.submit(adding(calls), Number(value=1), run_id=run_id)
        assert (await stored_run(store, run_id)).status is RunStatus.COMPLETED


async def test_a_run_that_has_stopped_waits_again(store: Any, calls: Calls) -> None:
    runner, pipeline = make_runner(store), adding(calls, TypeError("bug"), {"value": 9})
    assert (await runner.run(pipeline, Number(), run_id="job")).status is RunStatus.FAILED

    submitted = await runner.submit(pipeline, run_id="job")

    run = await stored_run(store, "job")
    assert submitted == Submitted("job", RunStatus.PENDING, False)
    assert (run.status, run.stop_reason) == (RunStatus.PENDING, "")
    result = await runner.run(pipeline, run_id="job", resume=True)
    assert (result.status, calls["a"]) == (RunStatus.RESUMED, 1)


async def test_a_run_that_is_complete_is_left_so(store: Any, calls: Calls) -> None:
    runner, pipeline = make_runner(store), adding(calls)
    await runner.run(pipeline, Number(), run_id="job")
    before = await stored_run(store, "job")
    submitted = await runner.submit(pipeline, Number(), run_id="job")
    assert submitted == Submitted("job", RunStatus.COMPLETED, False)
    assert await stored_run(store, "job") == before


async def test_a_run_that_a_worker_has_is_left_to_it(store: Any, calls: Calls) -> None:
    runner = make_runner(store)
    seen: list[object] = []

    async def submit_again(state: Number) -> Number:
        seen.append(await runner.submit(pipeline, Number(), run_id="job"))
        with pytest.raises(RunInputMismatch):
            await runner.submit(pipeline, Number(value=7), run_id="job")
        return state

    pipeline = Pipeline("adding", [node(id="a")(submit_again), calls.node("b")])
    result = await runner.run(pipeline, Number(), run_id="job")

    assert seen == [Submitted("job", RunStatus.RUNNING, False)]
    assert result.status is RunStatus.COMPLETED


async def test_a_run_that_waits_for_somebody_is_left_to_them(calls: Calls) -> None:
    store = InMemoryStore()
    runner, pipeline = make_runner(store), adding(calls)
    await runner.submit(pipeline, Number(), run_id="job")
    store.open_run(OpenRequest("job", "token", "somebody", 60_000))
    store.commit_many([Commit("job", "token", (), RunUpdate(RunStatus.WAITING, release=True))])
    assert (await runner.submit(pipeline, run_id="job")).status is RunStatus.WAITING
    assert (await stored_run(store, "job")).status is RunStatus.WAITING


async def test_an_input_that_does_not_fit_is_an_error_and_no_run(store: Any, calls: Calls) -> None:
    with pytest.raises(ContractViolation, match="value"):
        await adding(calls).submit({"value": "x"}, run_id="job", runner=make_runner(store))
    assert await stored(store, "job") is None


async def test_a_new_run_needs_an_input(store: Any, calls: Calls) -> None:
    with pytest.raises(ConfigError, match="'job' does not exist, and there is no initial state"):
        await adding(calls).submit(run_id="job", runner=make_runner(store))
    with pytest.raises(ConfigError, match="an input is missing: a new run needs"):
        await adding(calls).submit(runner=make_runner(store))


async def test_tags_of_the_call_win(store: Any, calls: Calls) -> None:
    runner = make_runner(store, tags=("nightly",))
    await adding(calls).submit(Number(), run_id="job", tags=["a", "b"], runner=runner)
    assert (await stored_run(store, "job")).tags == ("a", "b")
    with pytest.raises(ConfigError, match="tags"):
        await adding(calls).submit(Number(), tags="a", runner=runner)


async def test_a_fan_out_can_stand_first(store: Any, calls: Calls) -> None:
    class Batch(Number):
        items: list[Number]

    fan = fan_out(calls.node("one"), over="items", into="done", input=Batch)
    runner = make_runner(store)
    batch = Batch(items=[Number(), Number()])
    await Pipeline("batch", [fan]).submit(batch, run_id="job", runner=runner)
    assert (await stored_run(store, "job")).status is RunStatus.PENDING


async def test_a_list_of_nodes_cannot_be_found_again(calls: Calls) -> None:
    nodes: Any = [calls.node("a")]
    with pytest.raises(ConfigError, match="takes a Pipeline"):
        await make_runner().submit(nodes, Number())


class PlainStore:
    def save(self, *args: object) -> None: ...
    def load(self, *args: object) -> None: ...
    def delete(self, *args: object) -> None: ...


async def test_a_store_that_keeps_no_records_is_refused(calls: Calls) -> None:
    with pytest.raises(ConfigError, match="PlainStore has only save, load and delete"):
        await make_runner(PlainStore()).submit(adding(calls), Number())


# -- the runner ------------------------------------------------------------------------------


async def test_a_pipeline_has_a_runner_of_its_own(store: Any, calls: Calls) -> None:
    pipeline = adding(calls, runner=make_runner(store))
    await pipeline.submit(Number(), run_id="job")
    assert (await stored_run(store, "job")).status is RunStatus.PENDING


async def test_without_a_runner_it_is_the_configured_store(
    calls: Calls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STROMA_STORE", f"sqlite:///{tmp_path}/runs.db")
    await adding(calls).submit(Number(), run_id="job")
    store = SQLiteStore(tmp_path / "runs.db")
    assert (await stored_run(store, "job")).status is RunStatus.PENDING
    await store.aclose()


async def test_without_any_store_a_run_would_be_lost(
    calls: Calls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("STROMA_STORE", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="no store that workers share: set STROMA_STORE"):
        await adding(calls).submit(Number())


@pytest.mark.parametrize("spec", ["memory", "memory:", "memory://", "MEMORY:"])
async def test_a_store_that_nobody_else_sees_would_lose_the_run(
    spec: str, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STROMA_STORE", spec)
    with pytest.raises(ConfigError) as caught:
        await adding(calls).submit(Number())
    assert str(caught.value) == (
        "STROMA_STORE: a store in memory is seen by one process only, and ends with it: name one "
        "that processes share, such as sqlite:///runs.db"
    )


def test_a_runner_is_checked(calls: Calls) -> None:
    runner: Any = "redis://localhost"
    with pytest.raises(ConfigError, match="runner must be a StromaRunner, not str"):
        adding(calls, runner=runner)


@pytest.mark.parametrize("accepts", ["1", 1, [1]], ids=repr)
def test_accepted_versions_are_a_list_of_words(calls: Calls, accepts: Any) -> None:
    with pytest.raises(ConfigError, match="accepts must be a list of versions"):
        adding(calls, accepts=accepts)


def test_a_pipeline_accepts_its_own_version_and_those_it_names(calls: Calls) -> None:
    assert adding(calls, version="2").accepts_version("2")
    assert not adding(calls, version="2").accepts_version("1")
    assert adding(calls, version="2", accepts=["1"]).accepts_version("1")
    assert adding(calls, version="2", accepts=["*"]).accepts_version("")
    assert isinstance(adding(calls, runner=StromaRunner()).runner, StromaRunner)


# -- a store that fails ----------------------------------------------------------------------


async def test_a_store_that_is_away_is_asked_again(calls: Calls) -> None:
    store = FaultyStore()
    store.fail("commit_many", StoreUnavailable("away"), StoreUnavailable("away"))
    submitted = await make_runner(store).submit(adding(calls), Number(), run_id="job")
    assert submitted.status is RunStatus.PENDING
    assert (await stored_run(store, "job")).status is RunStatus.PENDING


async def test_an_answer_that_is_lost_does_not_matter(calls: Calls) -> None:
    store = FaultyStore()
    store.fail("commit_many", Done(OutcomeUnknown("no answer")))
    submitted = await make_runner(store).submit(adding(calls), Number(), run_id="job")
    assert submitted.status is RunStatus.PENDING
    assert (await stored_run(store, "job")).status is RunStatus.PENDING


async def test_a_store_that_stays_away_is_an_error(calls: Calls) -> None:
    store = FaultyStore()
    store.fail("open_run", StoreUnavailable("away"))
    with pytest.raises(StoreUnavailable, match="away"):
        await make_runner(store).submit(adding(calls), Number(), run_id="job")
    store.fail("commit_many", *[StoreUnavailable("away")] * 7)
    with pytest.raises(StoreUnavailable, match="away"):
        await make_runner(store).submit(adding(calls), Number(), run_id="job")
    assert (await stored_run(store, "job")).status is RunStatus.RUNNING  # until its lease ends
