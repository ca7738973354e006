"""Metrics: their names, units, buckets and attributes, of which none is an id of a run."""

from __future__ import annotations

import pytest

from stroma import Pipeline, fan_out
from stroma_otel._metrics import ATTEMPT_SECONDS, DELAY_SECONDS, RUN_SECONDS
from tests.core.helpers import Calls, Number, make_runner
from tests.core.test_fan_out import Batch
from tests.otel.support import Seen

UNITS = {
    "gen_ai.invoke_workflow.duration": "s",
    "stroma.attempt.duration": "s",
    "stroma.retries": "{retry}",
    "stroma.retry.delay": "s",
    "stroma.usage.tokens": "{token}",
    "stroma.usage.cost": "USD",
    "stroma.budget.rejections": "{run}",
    "stroma.model.fallbacks": "{fallback}",
}


@pytest.fixture
async def eventful(seen: Seen, calls: Calls) -> Seen:
    """A run with a retry, a cheaper model, and a budget that stops it."""
    used = {"value": 1}, 60, 30, "gpt-4o"
    nodes = [calls.node("a", TimeoutError(), used), calls.node("b", used), calls.node("c")]
    runner = make_runner(hooks=seen.hooks()).with_budget(tokens=150)
    runner.with_model_fallback("gpt-4o", to="gpt-4o-mini", at_budget_pct=0.5)
    await runner.run(Pipeline("digest", nodes), Number(), run_id="the-run")
    return seen


def test_each_metric_has_its_unit(eventful: Seen) -> None:
    assert {name: metric.unit for name, metric in eventful.metrics().items()} == UNITS


def test_no_attribute_names_a_run_or_an_item(eventful: Seen) -> None:
    values = [
        str(value)
        for name in UNITS
        for attributes, _ in eventful.points(name)
        for value in attributes.values()
    ]
    assert values
    assert not [value for value in values if "the-run" in value]


def test_a_run_is_measured(eventful: Seen) -> None:
    ((attributes, point),) = eventful.points("gen_ai.invoke_workflow.duration")
    assert attributes == {
        "gen_ai.operation.name": "invoke_workflow",
        "gen_ai.workflow.name": "digest",
        "stroma.run.status": "PARTIAL",
        "error.type": "BudgetExceeded",
    }
    assert point.count == 1
    assert point.explicit_bounds == RUN_SECONDS


def test_attempts_are_measured_by_node_and_outcome(eventful: Seen) -> None:
    found = {
        (a["stroma.node.id"], a["stroma.attempt.outcome"], a.get("error.type")): point.count
        for a, point in eventful.points("stroma.attempt.duration")
    }
    assert found == {
        ("a", "failed", "TimeoutError"): 1,
        ("a", "succeeded", None): 1,
        ("b", "succeeded", None): 1,
    }
    assert eventful.points("stroma.attempt.duration")[0][1].explicit_bounds == ATTEMPT_SECONDS


def test_retries_are_counted_with_why_and_how_long(eventful: Seen) -> None:
    why = {
        "stroma.node.id": "a",
        "gen_ai.workflow.name": "digest",
        "error.type": "TimeoutError",
        "stroma.failure.class": "recoverable",
    }
    assert eventful.points("stroma.retries") == [(why, 1)]
    ((attributes, delay),) = eventful.points("stroma.retry.delay")
    assert (attributes, delay.count) == (why, 1)
    assert delay.sum > 0
    assert delay.explicit_bounds == DELAY_SECONDS


def test_tokens_and_dollars_are_counted_by_node_and_model(eventful: Seen) -> None:
    tokens = {
        (a["stroma.node.id"], a["gen_ai.request.model"], a["gen_ai.token.type"]): value
        for a, value in eventful.points("stroma.usage.tokens")
    }
    assert tokens == {
        ("a", "gpt-4o", "input"): 60,
        ("a", "gpt-4o", "output"): 30,
        ("b", "gpt-4o-mini", "input"): 60,
        ("b", "gpt-4o-mini", "output"): 30,
    }
    cost = {a["stroma.node.id"]: value for a, value in eventful.points("stroma.usage.cost")}
    assert cost["a"] == pytest.approx(0.00045)
    assert 0 < cost["b"] < cost["a"]


def test_budgets_are_counted(eventful: Seen) -> None:
    workflow = {"gen_ai.workflow.name": "digest"}
    assert eventful.points("stroma.budget.rejections") == [(workflow, 1)]
    assert eventful.points("stroma.model.fallbacks") == [
        ({**workflow, "gen_ai.request.model": "gpt-4o-mini"}, 1)
    ]


async def test_items_are_counted_under_their_node(seen: Seen, calls: Calls) -> None:
    each = fan_out(calls.node("w"), over="items", into="done")
    await make_runner(hooks=seen.hooks()).run([each], Batch(items=[Number()] * 5))
    ((attributes, point),) = seen.points("stroma.attempt.duration")
    assert (attributes["stroma.node.id"], point.count) == ("w", 5)


async def test_a_run_that_leaves_no_result_is_measured(seen: Seen, calls: Calls) -> None:
    runner = make_runner(hooks=seen.hooks())
    await runner.run([calls.node("a")], Number(value=1), run_id="r")
    with pytest.raises(Exception, match="another input"):
        await runner.run([calls.node("a")], Number(value=2), run_id="r")
    statuses = {
        (a["stroma.run.status"], a.get("error.type"))
        for a, _ in seen.points("gen_ai.invoke_workflow.duration")
    }
    assert statuses == {("COMPLETED", None), ("ERROR", "RunInputMismatch")}
