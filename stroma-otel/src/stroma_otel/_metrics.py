"""The metrics: what runs and attempts took, used and ran into. Ids of runs are never attributes."""

from __future__ import annotations

from typing import Any, Final

from opentelemetry import metrics
from opentelemetry.metrics import Meter, MeterProvider

from stroma.cost import Usage
from stroma.events import AttemptEnd, BudgetDetails
from stroma_otel._version import __version__

RUN_SECONDS: Final = (1, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200)
"""Buckets of the duration of runs, as the GenAI conventions advise them."""
ATTEMPT_SECONDS: Final = tuple(0.01 * 2**power for power in range(14))
"""Buckets of the duration of attempts: those of calls of models in the GenAI conventions."""
DELAY_SECONDS: Final = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
"""Buckets of the delay before a retry."""


class Metrics:
    """Counts what happens in runs.

    Args:
        provider: makes the meter; the global one if it is None.
    """

    def __init__(self, provider: MeterProvider | None) -> None:
        self._provider = provider
        self._used: MeterProvider | None = None

    def _prepare(self) -> None:
        """Make the instruments, anew if the global provider has changed."""
        provider = metrics.get_meter_provider() if self._provider is None else self._provider
        if provider is not self._used:
            self._make(provider.get_meter("stroma", __version__))
            self._used = provider

    def _make(self, meter: Meter) -> None:
        self._run_duration = meter.create_histogram(
            "gen_ai.invoke_workflow.duration",
            "s",
            "Duration of a start of a run",
            explicit_bucket_boundaries_advisory=RUN_SECONDS,
        )
        self._attempt_duration = meter.create_histogram(
            "stroma.attempt.duration",
            "s",
            "Duration of a call of a node",
            explicit_bucket_boundaries_advisory=ATTEMPT_SECONDS,
        )
        self._retries = meter.create_counter("stroma.retries", "{retry}", "Attempts repeated")
        self._retry_delay = meter.create_histogram(
            "stroma.retry.delay",
            "s",
            "Time between a failed attempt and the next one",
            explicit_bucket_boundaries_advisory=DELAY_SECONDS,
        )
        self._tokens = meter.create_counter("stroma.usage.tokens", "{token}", "Tokens used")
        self._cost = meter.create_counter("stroma.usage.cost", "USD", "What priced usage costs")
        self._rejections = meter.create_counter(
            "stroma.budget.rejections", "{run}", "Starts of runs that a budget has stopped"
        )
        self._fallbacks = meter.create_counter(
            "stroma.model.fallbacks", "{fallback}", "Changes to a cheaper model"
        )

    def run_ended(self, workflow: str, status: str, error: str, seconds: float) -> None:
        """Record a start of a run.

        Args:
            workflow: name of the pipeline, or "".
            status: how the run stands then.
            error: type of the error that stopped it, or "".
            seconds: how long it took.
        """
        self._prepare()
        attributes = {"gen_ai.operation.name": "invoke_workflow", "stroma.run.status": status}
        _put(attributes, "gen_ai.workflow.name", workflow)
        _put(attributes, "error.type", error)
        self._run_duration.record(seconds, attributes)

    def attempt_ended(self, workflow: str, end: AttemptEnd, error: str) -> None:
        """Record an attempt, what it used, and its retry."""
        self._prepare()
        node = {"stroma.node.id": end.node_id}
        _put(node, "gen_ai.workflow.name", workflow)
        failure = dict(node)
        _put(failure, "error.type", error)
        _put(failure, "stroma.failure.class", end.failure_class and end.failure_class.value)
        self._attempt_duration.record(
            end.duration_ms / 1000, {**failure, "stroma.attempt.outcome": end.outcome}
        )
        if end.retry_delay_seconds is not None:
            self._retries.add(1, failure)
            self._retry_delay.record(end.retry_delay_seconds, failure)
        self._usage(node, end.usage)

    def _usage(self, node: dict[str, Any], usage: Usage) -> None:
        _put(node, "gen_ai.request.model", usage.model)
        for kind, tokens in (("input", usage.input_tokens), ("output", usage.output_tokens)):
            if tokens:
                self._tokens.add(tokens, {**node, "gen_ai.token.type": kind})
        if usage.cost_usd:
            self._cost.add(float(usage.cost_usd), node)

    def budget(self, workflow: str, details: BudgetDetails) -> None:
        """Record that a budget stops a run, or has it use a cheaper model."""
        self._prepare()
        attributes: dict[str, Any] = {}
        _put(attributes, "gen_ai.workflow.name", workflow)
        if details.event == "fallback":
            _put(attributes, "gen_ai.request.model", details.model)
            self._fallbacks.add(1, attributes)
        else:
            self._rejections.add(1, attributes)


def _put(attributes: dict[str, Any], name: str, value: str | None) -> None:
    if value:
        attributes[name] = value
