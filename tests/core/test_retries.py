"""How often and after what delay a node that failed is called again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stroma import (
    ConfigError,
    FailureClass,
    FailurePolicy,
    FailureVerdict,
    RetryDetails,
    RunStatus,
    default_policy_map,
)
from stroma.runner import NodeHooks
from tests.core.helpers import Calls, FakeClock, Number, make_runner

RECOVERABLE = FailureClass.RECOVERABLE
AMBIGUOUS = FailureClass.AMBIGUOUS


async def test_three_retries_are_four_calls(calls: Calls) -> None:
    runner = make_runner(policy_map={RECOVERABLE: FailurePolicy(max_retries=3)})
    result = await runner.run([calls.node("a", TimeoutError("slow"))], Number())
    assert calls["a"] == 4
    assert result.status is RunStatus.PARTIAL


async def test_no_retries_are_one_call(calls: Calls) -> None:
    runner = make_runner(policy_map={RECOVERABLE: FailurePolicy(max_retries=0)})
    await runner.run([calls.node("a", TimeoutError("slow"))], Number())
    assert calls["a"] == 1


async def test_what_may_pass_is_retried_three_times_by_default(calls: Calls) -> None:
    await make_runner().run([calls.node("a", ConnectionError("gone"))], Number())
    assert calls["a"] == 4


async def test_what_nobody_can_tell_is_retried_once_by_default(calls: Calls) -> None:
    await make_runner().run([calls.node("a", RuntimeError("odd"))], Number())
    assert calls["a"] == 2


async def test_what_cannot_pass_is_never_retried(calls: Calls) -> None:
    result = await make_runner().run([calls.node("a", TypeError("bug"))], Number())
    assert calls["a"] == 1
    assert result.status is RunStatus.FAILED


async def test_a_retry_that_succeeds_completes_the_run(calls: Calls) -> None:
    flaky = calls.node("a", TimeoutError("1"), TimeoutError("2"), {"value": 7})
    result = await make_runner().run([flaky], Number())
    assert result.status is RunStatus.COMPLETED
    assert result.final_state == Number(value=7)
    assert [event.attempt for event in result.trace.failures()] == [1, 2]


async def test_delays_grow_from_the_base_and_stop_at_the_cap(
    calls: Calls, clock: FakeClock
) -> None:
    policy = FailurePolicy(max_retries=5, base_delay_seconds=1, multiplier=3, max_delay_seconds=10)
    runner = make_runner(clock=clock, policy_map={RECOVERABLE: policy})
    await runner.run([calls.node("a", TimeoutError("slow"))], Number())
    assert clock.sleeps == [1, 3, 9, 10, 10]


async def test_jitter_is_full_so_that_a_delay_may_be_nothing(
    calls: Calls, clock: FakeClock
) -> None:
    runner = make_runner(clock=clock, random=lambda: 0.0)
    await runner.run([calls.node("a", TimeoutError("slow"))], Number())
    assert clock.sleeps == [0, 0, 0]


@given(
    retry=st.integers(1, 10_000),
    base=st.floats(0, 100),
    multiplier=st.floats(1, 10),
    cap=st.floats(0, 1000),
    drawn=st.floats(0, 1, exclude_max=True),
)
def test_a_delay_lies_between_nothing_and_the_cap(
    retry: int, base: float, multiplier: float, cap: float, drawn: float
) -> None:
    policy = FailurePolicy(base_delay_seconds=base, multiplier=multiplier, max_delay_seconds=cap)
    assert 0 <= policy.delay_seconds(retry, lambda: drawn) <= cap


@given(retry=st.integers(1, 5), wish=st.floats(0, 1000), drawn=st.floats(0, 1, exclude_max=True))
def test_a_delay_is_never_shorter_than_the_servers_wish(
    retry: int, wish: float, drawn: float
) -> None:
    delay = FailurePolicy().delay_seconds(retry, lambda: drawn, wish)
    assert delay >= wish


def _wait(seconds: float) -> object:
    return lambda exc, ctx: FailureVerdict(RECOVERABLE, "rate_limit", seconds)


async def test_retry_after_is_waited_for_even_beyond_the_cap(
    calls: Calls, clock: FakeClock
) -> None:
    runner = make_runner(clock=clock, classifiers=[_wait(77)])
    result = await runner.run([calls.node("a", OSError("429"), {"value": 1})], Number())
    assert clock.sleeps == [77]
    assert result.status is RunStatus.COMPLETED


async def test_retry_after_longer_than_the_policy_waits_is_not_retried_early(
    calls: Calls, clock: FakeClock
) -> None:
    runner = make_runner(clock=clock, classifiers=[_wait(301)])
    result = await runner.run([calls.node("a", OSError("429"), {"value": 1})], Number())
    assert clock.sleeps == []
    assert calls["a"] == 1
    assert result.status is RunStatus.PARTIAL


async def test_no_retry_is_waited_for_past_the_deadline(calls: Calls, clock: FakeClock) -> None:
    runner = make_runner(clock=clock, classifiers=[_wait(20)]).with_budget(latency_ms=50_000)
    result = await runner.run([calls.node("a", OSError("429"))], Number())
    assert clock.sleeps == [20, 20]  # a third would end after 60 of 50 seconds
    assert result.status is RunStatus.PARTIAL


async def test_the_policy_of_a_node_comes_before_that_of_the_run(calls: Calls) -> None:
    runner = make_runner(policy_map={RECOVERABLE: FailurePolicy(max_retries=5)})
    own = calls.node("own", TimeoutError("slow"), policy=FailurePolicy(max_retries=1))
    await runner.run([own], Number())
    assert calls["own"] == 2


async def test_policies_by_node_id_come_before_those_of_the_decorator(calls: Calls) -> None:
    runner = make_runner().with_node_policies({"a": FailurePolicy(max_retries=2)})
    a = calls.node("a", TimeoutError("slow"), policy=FailurePolicy(max_retries=0))
    await runner.run([a], Number())
    assert calls["a"] == 3


async def test_a_class_that_a_node_policy_does_not_name_falls_to_the_run(calls: Calls) -> None:
    runner = make_runner(policy_map={AMBIGUOUS: FailurePolicy(max_retries=4)})
    runner.with_node_policies({"a": {RECOVERABLE: FailurePolicy(max_retries=0)}})
    await runner.run([calls.node("a", RuntimeError("odd"))], Number())
    assert calls["a"] == 5


async def test_a_class_that_no_policy_names_falls_to_the_defaults(calls: Calls) -> None:
    runner = make_runner(policy_map={AMBIGUOUS: FailurePolicy(max_retries=4)})
    await runner.run([calls.node("a", TimeoutError("slow"))], Number())
    assert calls["a"] == 4


async def test_attempts_are_counted_for_each_node(calls: Calls) -> None:
    runner = make_runner()
    flaky = [calls.node(name, TimeoutError("1"), {"value": 1}) for name in ("a", "b")]
    await runner.run(flaky, Number())
    assert (calls["a"], calls["b"]) == (2, 2)


async def test_hooks_are_told_of_each_retry(calls: Calls) -> None:
    told: list[RetryDetails] = []
    runner = make_runner(hooks=NodeHooks(on_retry=told.append), classifiers=[_wait(3)])
    error = OSError("429")
    await runner.run([calls.node("a", error, {"value": 1})], Number(), run_id="r")
    assert told == [RetryDetails("r", "a", "a", 1, 3, RECOVERABLE, "rate_limit", error)]


async def test_the_trace_says_which_failures_were_retried(calls: Calls) -> None:
    result = await make_runner().run([calls.node("a", RuntimeError("odd"))], Number())
    first, last = result.trace.failures()
    assert first.retry_delay_seconds == 0.5
    assert last.retry_delay_seconds is None
    assert result.trace.retries() == [first]


@pytest.mark.parametrize(
    "options",
    [
        {"max_retries": -1},
        {"max_retries": True},
        {"base_delay_seconds": float("nan")},
        {"multiplier": 0.5},
        {"max_delay_seconds": float("inf")},
        {"retries": 3},
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        FailurePolicy(**options)


def test_retries_of_terminal_failures_are_refused() -> None:
    always = {FailureClass.TERMINAL: FailurePolicy(max_retries=1)}
    with pytest.raises(ConfigError, match="TERMINAL failures are never retried"):
        make_runner(policy_map=always)
    with pytest.raises(ConfigError, match="TERMINAL failures are never retried"):
        make_runner().with_node_policies({"a": always})


def test_the_default_policies_are_a_fresh_dict() -> None:
    default_policy_map().clear()
    assert default_policy_map()[RECOVERABLE].max_retries == 3
