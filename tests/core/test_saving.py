"""A save that fails is repeated by itself; the node that was paid for is not called again."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from pydantic import BaseModel

from stroma import (
    AlreadyCommitted,
    ContractViolation,
    Estimate,
    FailurePolicy,
    OutcomeUnknown,
    RecordTooLarge,
    RunLocked,
    RunStatus,
    SQLiteStore,
    StaleOwner,
    StoreUnavailable,
    StoreUnusable,
    fan_out,
    node,
    parallel,
    report_usage,
)
from stroma.checkpoint import Durability
from stroma.records import Commit, PlanDocument, RunUpdate
from tests.core.helpers import Calls, Done, FakeClock, FaultyStore, Number, make_runner, stored

DOWN = StoreUnavailable("the store is down")


class Items(BaseModel):
    items: list[Number] = []
    done: list[Number] = []


@pytest.fixture(params=[Durability.MEMORY, Durability.FSYNC])
def faulty(request: pytest.FixtureRequest) -> FaultyStore:
    return FaultyStore(request.param)


async def test_a_save_is_repeated_and_the_node_called_once(
    faulty: FaultyStore, calls: Calls, clock: FakeClock
) -> None:
    faulty.fail("commit_many", DOWN, DOWN, DOWN)
    runner = make_runner(faulty, clock=clock)
    result = await runner.run([calls.node("a"), calls.node("b")], Number())
    assert (result.status, calls["a"], calls["b"]) == (RunStatus.COMPLETED, 1, 1)
    assert clock.sleeps == [0.1, 0.2, 0.4]


async def test_an_unknown_outcome_is_settled_by_saving_the_same_again(
    faulty: FaultyStore, calls: Calls
) -> None:
    faulty.fail("commit_many", Done(OutcomeUnknown("no reply")), OutcomeUnknown("lost"))
    nodes = [calls.node("a", ({"value": 1}, 5)), calls.node("b")]
    result = await make_runner(faulty).run(nodes, Number(), run_id="r")
    assert (result.status, result.tokens, calls["a"]) == (RunStatus.COMPLETED, 5, 1)
    assert [h.path for h in (await stored(faulty, "r")).headers] == ["a", "b"]


@pytest.mark.parametrize("fails", [False, True])
async def test_an_end_that_was_recorded_without_an_answer_is_an_end(
    faulty: FaultyStore, calls: Calls, fails: bool
) -> None:
    lost = Done(OutcomeUnknown("no reply"))
    faulty.fail("commit_many", DOWN, lost)
    nodes = [calls.node("a", *[TypeError("bug")] if fails else [])]
    status = RunStatus.FAILED if fails else RunStatus.COMPLETED
    faulty.fail("inspect", DOWN)
    result = await make_runner(faulty).run(nodes, Number(), run_id="r")
    assert (result.status, calls["a"]) == (status, 1)
    assert (await stored(faulty.inner, "r")).run.status is status


async def test_an_end_that_another_worker_was_quicker_than_is_none(calls: Calls) -> None:
    faulty = FaultyStore()
    commit_many = faulty.inner.commit_many

    def lose(commits: Any) -> Any:
        faulty.inner.commit_many = commit_many  # type: ignore[method-assign]
        commit_many([Commit(c.run_id, c.token, (), RunUpdate(release=True)) for c in commits])
        raise OutcomeUnknown("no reply")

    faulty.inner.commit_many = lose  # type: ignore[method-assign]
    with pytest.raises(StaleOwner):
        await make_runner(faulty).run([calls.node("a")], Number(), run_id="r")


async def test_a_changed_pipeline_is_recorded_though_a_save_failed(calls: Calls) -> None:
    faulty = FaultyStore()
    runner, bad = make_runner(faulty), calls.node("b", TypeError(), {"value": 1})
    await runner.run([calls.node("a"), bad], Number(), run_id="r")
    faulty.fail("commit_many", *[DOWN] * 6)
    await runner.run([calls.node("a"), bad, calls.node("c")], Number(), run_id="r")
    plan = PlanDocument.from_json((await stored(faulty, "r")).run.plan)
    assert plan.node_ids == ("a", "b", "c")


async def test_a_drivers_own_exception_is_taken_for_an_outage(
    faulty: FaultyStore, calls: Calls
) -> None:
    faulty.fail("commit_many", OSError("connection reset"))
    assert (await make_runner(faulty).run([calls.node("a")], Number())).is_complete
    assert calls["a"] == 1


async def test_how_often_a_save_is_repeated_can_be_set(
    faulty: FaultyStore, calls: Calls, clock: FakeClock
) -> None:
    policy = FailurePolicy(max_retries=1, base_delay_seconds=3)
    faulty.fail("commit_many", DOWN, DOWN, DOWN, DOWN)
    runner = make_runner(faulty, clock=clock, save_policy=policy)
    result = await runner.run([calls.node("a")], Number())
    assert (result.status, clock.sleeps) == (RunStatus.PARTIAL, [3, 3])  # the save, and the end


async def test_an_output_that_cannot_be_saved_stands_in_the_result(
    faulty: FaultyStore, calls: Calls, caplog: pytest.LogCaptureFixture
) -> None:
    faulty.fail("commit_many", None, *[DOWN] * 100)
    nodes = [calls.node("a"), calls.node("b", ({"value": 7}, 5)), calls.node("c")]
    with caplog.at_level(logging.WARNING, "stroma"):
        result = await make_runner(faulty).run(nodes, Number(), run_id="r")
    assert (result.status, result.error) == (RunStatus.PARTIAL, DOWN)
    assert result.unsaved == {"b": Number(value=7)}
    assert (result.final_state, result.tokens, calls["c"]) == (Number(value=1), 5, 0)
    assert result.stop_reason == (
        "the store failed at 'b': the store is down. 1 output, held in `result.unsaved`, is not "
        "known to be saved: start the run again when the store answers, which buys again what "
        "was not saved"
    )
    assert "a save failed and is tried again" in caplog.text
    assert "its store could not be told" in caplog.text


@pytest.mark.parametrize(
    ("nested", "place", "unsaved"),
    [("parallel", "'a'", "2 outputs"), ("fan_out", "'w[1]'", "1 output")],
)
async def test_the_reason_names_the_place_inside_a_group_and_counts_what_is_unsaved(
    calls: Calls, nested: str, place: str, unsaved: str
) -> None:
    class DownForThem(FaultyStore):
        is_down = False

        async def commit_many(self, commits: Any) -> Any:
            self.is_down |= any(
                header.path in ("a", "b", "w[1]")
                for commit in commits
                for header, _ in commit.records
            )
            if self.is_down:
                raise DOWN
            return await super().commit_many(commits)

    a, b, w = calls.node("a"), calls.node("b"), calls.node("w")
    grouped = (
        parallel(a, b)
        if nested == "parallel"
        else fan_out(w, over="items", into="done", max_concurrency=1)
    )
    given = Number() if nested == "parallel" else Items(items=[Number(), Number(), Number()])

    result = await make_runner(DownForThem()).run([grouped], given, run_id="r")

    assert result.status is RunStatus.PARTIAL
    assert result.stop_reason.startswith(f"the store failed at {place}: the store is down. ")
    assert f". {unsaved}, held in `result.unsaved`, " in result.stop_reason
    assert len(result.unsaved) == int(unsaved[0])


async def test_a_store_that_says_nothing_is_named_by_its_exception(calls: Calls) -> None:
    faulty = FaultyStore()
    faulty.fail("commit_many", *[OutcomeUnknown("")] * 100)
    result = await make_runner(faulty).run([calls.node("a")], Number())
    assert result.stop_reason.startswith("the store failed at 'a': OutcomeUnknown. 1 output")


async def test_a_store_that_is_away_before_a_node_is_called_leaves_nothing_unsaved(
    calls: Calls,
) -> None:
    faulty = FaultyStore()
    faulty.fail("commit_many", None, None, *[DOWN] * 100)  # b: its reservation, and its output
    runner = make_runner(faulty).with_options(estimator=lambda state, scope: Estimate(1, 1))
    result = await runner.run([calls.node("b"), calls.node("a")], Number())
    assert (result.unsaved, calls["a"]) == ({}, 0)
    assert result.stop_reason == (
        "the store failed at 'a': the store is down. How it ended is not saved: start the run "
        "again when the store answers"
    )


async def test_a_run_that_fails_by_itself_says_what_is_unsaved(calls: Calls) -> None:
    saving = asyncio.Event()

    class Gone(FaultyStore):
        async def commit_many(self, commits: Any) -> Any:
            saving.set()
            await asyncio.sleep(0.05)
            raise DOWN

    @node(id="failing", input=Number, output=Number)
    async def failing(state: Number) -> Number:
        await saving.wait()
        raise TypeError("bug")

    result = await make_runner(Gone()).run([parallel(calls.node("a"), failing)], Number())
    assert (result.status, list(result.unsaved)) == (RunStatus.FAILED, ["a"])
    assert result.stop_reason == (
        "failing failed at the first attempt, as terminal: TypeError: bug. 1 output, held in "
        "`result.unsaved`, is not known to be saved"
    )


async def test_what_could_not_be_saved_goes_with_the_last_word(
    faulty: FaultyStore, calls: Calls
) -> None:
    faulty.fail("commit_many", None, *[DOWN] * 6)  # down during the save, up again at the end
    nodes = [calls.node("a"), calls.node("b", ({"value": 7}, 5)), calls.node("c")]
    runner = make_runner(faulty)
    first = await runner.run(nodes, Number(), run_id="r")
    assert first.status is RunStatus.PARTIAL
    result = await runner.run(nodes, Number(), run_id="r")
    assert (result.status, result.skipped) == (RunStatus.RESUMED, ("a", "b"))
    assert (result.tokens, calls["b"]) == (5, 1)


async def test_children_that_could_not_be_saved_go_with_the_last_word(
    calls: Calls, clock: FakeClock
) -> None:
    up_at = clock.now() + 6.5  # the waits of both, one after the other, and some more

    class DownForAWhile(FaultyStore):
        async def commit_many(self, commits: Any) -> Any:
            if clock.now() < up_at:
                raise DOWN
            return await super().commit_many(commits)

    faulty = DownForAWhile()
    policy = FailurePolicy(max_retries=2, base_delay_seconds=1)
    nodes = [parallel(calls.node("a", ({"value": 1}, 3)), calls.node("b", ({"value": 2}, 4)))]
    runner = make_runner(faulty, clock=clock, save_policy=policy)
    first = await runner.run(nodes, Number(), run_id="r")
    assert first.status is RunStatus.PARTIAL
    result = await runner.run(nodes, Number(), run_id="r")
    assert (result.status, result.tokens) == (RunStatus.RESUMED, 7)
    assert (calls["a"], calls["b"]) == (1, 1)


async def test_a_failed_attempt_with_usage_is_saved_before_the_wait() -> None:
    faulty = FaultyStore()
    committed: list[int] = []

    class Watching(FakeClock):
        async def sleep(self, seconds: float) -> None:
            committed.append(faulty.calls["commit_many"])
            await super().sleep(seconds)

    paid = iter([5, 0, 0])

    @node
    async def a(state: Number) -> Number:
        if tokens := next(paid):
            report_usage(input_tokens=tokens)
        raise TimeoutError("slow")

    runner = make_runner(
        faulty, clock=Watching(), policy_map={"recoverable": FailurePolicy(max_retries=2)}
    )
    await runner.run([a], Number(), run_id="r")
    assert committed == [1, 1]  # the second one rides on what comes next
    headers = (await stored(faulty, "r")).headers
    assert [(h.attempt, h.usage.tokens) for h in headers] == [(1, 5), (2, 0), (3, 0)]


async def test_usage_of_a_failed_attempt_survives_an_outage(calls: Calls) -> None:
    faulty = FaultyStore()

    @node
    async def a(state: Number) -> Number:
        report_usage(input_tokens=5)
        raise TypeError("bug")

    faulty.fail("commit_many", *[DOWN] * 6)
    runner = make_runner(faulty)
    first = await runner.run([a], Number(), run_id="r")
    assert (first.status, first.tokens) == (RunStatus.PARTIAL, 5)
    second = await runner.run([a], run_id="r")
    assert second.spent_before.tokens == 5


async def test_an_output_that_the_last_commit_of_the_run_saved_is_not_called_unsaved(
    calls: Calls,
) -> None:
    faulty = FaultyStore()
    faulty.fail("commit_many", *[DOWN] * 6)
    runner = make_runner(faulty)
    first = await runner.run([calls.node("a"), calls.node("b")], Number(), run_id="r")
    assert (first.status, first.unsaved) == (RunStatus.PARTIAL, {})
    happened = "the store failed at 'a': the store is down"
    assert first.stop_reason == (
        f"{happened}. Every output is saved: start the run again when the store answers"
    )
    assert (await stored(faulty, "r")).run.stop_reason == happened

    second = await runner.run([calls.node("a"), calls.node("b")], run_id="r")
    assert (second.status, second.skipped, calls["a"]) == (RunStatus.RESUMED, ("a",), 1)


async def test_an_output_whose_cut_save_a_siblings_record_took_along_is_not_called_unsaved(
    calls: Calls,
) -> None:
    saving = asyncio.Event()

    class Slow(FaultyStore):
        async def commit_many(self, commits: Any) -> Any:
            if any(header.path == "a" for header, _ in commits[0].records):
                saving.set()
            return await super().commit_many(commits)

    @node(id="paying", input=Number, output=Number)
    async def paying(state: Number) -> Number:
        report_usage(input_tokens=5)
        await asyncio.sleep(60)
        return state

    @node(id="failing", input=Number, output=Number)
    async def failing(state: Number) -> Number:
        await saving.wait()
        raise TypeError("bug")

    nodes = [parallel(calls.node("a"), paying, failing)]
    result = await make_runner(Slow()).run(nodes, Number(), run_id="r")
    assert (result.status, result.unsaved) == (RunStatus.FAILED, {})


async def test_an_output_that_is_too_large_fails_the_run_and_is_kept(
    tmp_path: Any, calls: Calls
) -> None:
    store = SQLiteStore(tmp_path / "runs.db", max_payload_bytes=20)
    result = await make_runner(store).run([calls.node("a", {"value": 10**30})], Number())
    assert (result.status, calls["a"]) == (RunStatus.FAILED, 1)
    assert isinstance(result.error, RecordTooLarge)
    assert result.unsaved == {"a": Number(value=10**30)}
    await store.aclose()


async def test_a_refused_output_that_is_too_large_is_charged_and_not_bought_again(
    tmp_path: Any, calls: Calls
) -> None:
    store = SQLiteStore(tmp_path / "runs.db", max_payload_bytes=500)
    runner, bad = make_runner(store), calls.node("a", ({"value": "x" * 1000}, 5))
    first = await runner.run([bad], Number(), run_id="r")
    assert (first.status, first.tokens) == (RunStatus.FAILED, 5)
    assert isinstance(first.error, ContractViolation)
    second = await runner.run([bad], run_id="r")
    assert (second.status, second.tokens, calls["a"]) == (RunStatus.FAILED, 5, 1)
    assert "more than the store takes" in second.stop_reason
    third = await runner.run([bad], run_id="r", resume_from="a")
    assert (third.tokens, calls["a"]) == (10, 2)
    await store.aclose()


async def test_what_rides_on_an_output_that_is_too_large_is_recorded(
    tmp_path: Any, calls: Calls
) -> None:
    store = SQLiteStore(tmp_path / "runs.db", max_payload_bytes=400)
    script = [TimeoutError("slow"), ({"value": 10**500}, 5)]
    await make_runner(store).run([calls.node("a", *script)], Number(), run_id="r")
    headers = (await stored(store, "r")).headers
    assert [(h.kind, h.attempt, h.usage.tokens) for h in headers] == [
        ("attempt", 1, 0),
        ("attempt", 2, 5),
    ]
    await store.aclose()


@pytest.mark.parametrize("error", [StaleOwner("lost"), AlreadyCommitted("taken")])
async def test_what_means_another_worker_leaves_the_run(
    faulty: FaultyStore, calls: Calls, error: Exception
) -> None:
    faulty.fail("commit_many", error)
    with pytest.raises(type(error)):
        await make_runner(faulty).run([calls.node("a")], Number())
    assert calls["a"] == 1


async def test_a_run_cut_while_a_save_is_repeated_tries_once_more(calls: Calls) -> None:
    waiting = asyncio.Event()

    class Waiting(FakeClock):
        async def sleep(self, seconds: float) -> None:
            waiting.set()
            await asyncio.sleep(60)

    faulty = FaultyStore()
    faulty.fail("commit_many", DOWN)
    runner = make_runner(faulty, clock=Waiting())
    run = asyncio.create_task(runner.run([calls.node("a")], Number(), run_id="r"))
    await waiting.wait()
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    result = await make_runner(faulty).run([calls.node("a")], Number(), run_id="r")
    assert (result.status, calls["a"]) == (RunStatus.RESUMED, 1)


async def test_a_worker_that_lost_the_run_learns_it_when_it_stops(
    faulty: FaultyStore, calls: Calls
) -> None:
    faulty.fail("commit_many", StaleOwner("lost"))
    with pytest.raises(StaleOwner):
        await make_runner(faulty).run([calls.node("a", TypeError("bug"))], Number())


async def test_a_complete_run_whose_end_cannot_be_told_is_complete(
    faulty: FaultyStore, calls: Calls, caplog: pytest.LogCaptureFixture
) -> None:
    runner = make_runner(faulty).with_budget(cost_usd=1)
    nodes = [calls.node("a", ({"value": 1}, 5, "new"))]
    assert (await runner.run(nodes, Number(), run_id="r")).status is RunStatus.FAILED
    faulty.fail("commit_many", *[DOWN] * 6)
    runner.with_options(on_unknown_price="tokens_only")
    with caplog.at_level(logging.WARNING, "stroma"):
        assert (await runner.run(nodes, Number(), run_id="r")).status is RunStatus.RESUMED
    assert "its store could not be told" in caplog.text


# -- opening ---------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", ["setup", "open_run"])
@pytest.mark.parametrize("error", [DOWN, OSError("refused")])
async def test_a_store_that_is_down_at_the_start_is_a_result(
    faulty: FaultyStore, calls: Calls, operation: str, error: Exception
) -> None:
    faulty.fail(operation, error)
    runner = make_runner(faulty)
    result = await runner.run([calls.node("a")], Number(), run_id="r")
    assert (result.status, result.run_id, calls["a"]) == (RunStatus.PARTIAL, "r", 0)
    assert result.stop_reason.startswith("nothing was run: ")
    assert isinstance(result.error, StoreUnavailable)
    assert result.error is error or result.error.__cause__ is error
    assert (await runner.run([calls.node("a")], Number(), run_id="r")).is_complete


async def test_a_claim_without_an_answer_does_not_lock_the_run(calls: Calls) -> None:
    faulty = FaultyStore()
    faulty.fail("open_run", Done(OutcomeUnknown("no reply")))
    runner = make_runner(faulty)
    first = await runner.run([calls.node("a")], Number(), run_id="r")
    assert first.status is RunStatus.PARTIAL
    try:
        second = await runner.run([calls.node("a")], Number(), run_id="r")
    except RunLocked:
        pytest.fail("the claim whose answer was lost still holds the run")
    assert second.is_complete


async def test_a_store_that_cannot_be_used_raises(faulty: FaultyStore, calls: Calls) -> None:
    faulty.fail("open_run", StoreUnusable("a newer format"))
    with pytest.raises(StoreUnusable):
        await make_runner(faulty).run([calls.node("a")], Number())


async def test_a_store_that_cannot_be_used_any_more_does_not_take_the_output_along(
    faulty: FaultyStore, calls: Calls
) -> None:
    faulty.fail("commit_many", *[StoreUnusable("removed")] * 9)
    result = await make_runner(faulty).run([calls.node("a", ({"value": 7}, 5))], Number())
    assert (result.status, result.tokens) == (RunStatus.FAILED, 5)
    assert result.unsaved == {"a": Number(value=7)}
    assert result.stop_reason == (
        "the store failed at 'a': removed. 1 output, held in `result.unsaved`, is not known to be "
        "saved"
    )


@pytest.mark.parametrize("error", [DOWN, OSError("reset")])
async def test_a_store_that_is_down_when_records_are_read_is_a_result(
    faulty: FaultyStore, calls: Calls, error: Exception
) -> None:
    both = parallel(calls.node("a"), calls.node("b", TypeError(), {"value": 2}))
    runner = make_runner(faulty)
    await runner.run([both], Number(), run_id="r")
    faulty.fail("fetch", error)
    result = await runner.run([both], Number(), run_id="r")
    assert (result.status, calls["a"]) == (RunStatus.PARTIAL, 1)
    assert result.stop_reason.startswith("the store failed at 'parallel(a, b)': ")
    assert result.stop_reason.endswith(
        ". Every output is saved: start the run again when the store answers"
    )
    assert (await runner.run([both], Number(), run_id="r")).is_complete


async def test_a_store_that_is_down_before_the_first_node_is_no_nodes_affair(calls: Calls) -> None:
    faulty, nodes = FaultyStore(), [calls.node("a"), calls.node("b"), calls.node("c")]
    runner = make_runner(faulty)
    await runner.run(nodes, Number(), run_id="r")
    faulty.fail("fetch", DOWN)
    result = await runner.run(nodes, run_id="r", resume_from="b")
    assert result.stop_reason == (
        "the store failed: the store is down. Every output is saved: start the run again when the "
        "store answers"
    )


# -- round trips -----------------------------------------------------------------------------


async def test_a_clean_run_of_n_nodes_takes_n_and_one_trips(calls: Calls) -> None:
    faulty = FaultyStore()
    nodes = [calls.node(f"n{i}") for i in range(5)]
    await make_runner(faulty).run(nodes, Number(), run_id="r")
    assert faulty.calls == {"setup": 1, "open_run": 1, "commit_many": 5}
    await make_runner(faulty).run(nodes, Number(), run_id="r")
    assert faulty.calls == {"setup": 2, "open_run": 2, "commit_many": 5}


async def test_continuing_needs_no_further_trip(calls: Calls) -> None:
    faulty = FaultyStore()
    nodes = [calls.node("a"), calls.node("b", TypeError(), {"value": 1}), calls.node("c")]
    runner = make_runner(faulty)
    await runner.run(nodes, Number(), run_id="r")
    faulty.calls.clear()
    await runner.run(nodes, Number(), run_id="r")
    assert faulty.calls == {"open_run": 1, "commit_many": 2}


async def test_concurrent_runs_share_trips(calls: Calls) -> None:
    faulty = FaultyStore()
    runner, nodes = make_runner(faulty), [calls.node("a"), calls.node("b")]
    await asyncio.gather(*(runner.run(nodes, Number()) for _ in range(50)))
    assert calls["a"] == calls["b"] == 50
    assert faulty.calls["commit_many"] < 30


async def test_what_a_too_large_output_used_is_recorded(tmp_path: Any, calls: Calls) -> None:
    store = SQLiteStore(tmp_path / "runs.db", max_payload_bytes=500)
    a = calls.node("a", ({"value": 10**600}, 5))
    runner = make_runner(store).with_budget(tokens=8)
    first = await runner.run([a, calls.node("b")], Number(), run_id="r")
    assert (first.status, first.tokens) == (RunStatus.FAILED, 5)
    second = await runner.run([a, calls.node("b")], run_id="r")
    assert (second.spent_before.tokens, second.tokens) == (5, 10)
    third = await runner.run([a, calls.node("b")], run_id="r")
    assert (third.status, third.tokens, calls["a"]) == (RunStatus.PARTIAL, 10, 2)
    await store.aclose()
