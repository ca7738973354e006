"""Mistakes in what a run has spent, and may spend."""

from __future__ import annotations

from typing import Final

from tests.faults.planted.defect import planted

_TOOK: Final = "                    took_ms = scope._took_ms = "
"""Where the attempt loop has an output that it did not save yet."""

ACCOUNTS: Final = (
    planted(
        "failed-usage-not-recorded",
        "what a failed attempt used is not recorded",
        "money.py::test_failed_attempts_count_in_this_start_and_in_the_next",
        (
            "record_journal.py",
            '"attempt", number, -1, step.id, ref, fingerprint, digest, usage)\n',
            '"attempt", number, -1, step.id, ref, fingerprint, digest, NO_USAGE)\n',
        ),
    ),
    planted(
        "failed-usage-not-counted",
        "what a failed attempt used does not count against the budget",
        "money.py::test_a_clean_run_costs_what_its_calls_cost",
        (
            "attempts.py",
            (
                "        usage = self._account.settle(leaf.id, scope)\n"
                "        failure_class = verdict.failure_class\n"
            ),
            "        usage = scope.usage\n        failure_class = verdict.failure_class\n",
        ),
    ),
    planted(
        "spend-carried-twice",
        "what earlier starts spent counts twice",
        "money.py::test_failed_attempts_count_in_this_start_and_in_the_next",
        ("driver.py", "self._ledger.carry(usages,", "self._ledger.carry(usages * 2,"),
    ),
    planted(
        "spend-not-carried",
        "what earlier starts spent is forgotten",
        "money.py::test_failed_attempts_count_in_this_start_and_in_the_next",
        ("driver.py", "self._ledger.carry(usages,", "self._ledger.carry((),"),
    ),
    planted(
        "record-says-nothing-was-spent",
        "the run's record does not say what it spent",
        "money.py::test_a_clean_run_costs_what_its_calls_cost",
        ("record_journal.py", "            spend=stop.spend,\n", ""),
    ),
    planted(
        "cut-calls-not-listed",
        "calls that were cut are not listed as in doubt",
        "money.py::test_calls_that_were_cut_are_listed_by_every_later_start[plain]",
        ("attempts.py", "        if not is_known:  #", "        if False:  #"),
    ),
    planted(
        "doubts-forgotten-by-the-next-start",
        "calls in doubt of earlier starts are not listed",
        "money.py::test_calls_that_were_cut_are_listed_by_every_later_start[plain]",
        (
            "doubt.py",
            "            if header.schema_ref.startswith(_DOUBT_REF):\n",
            "            if False:\n",
        ),
    ),
    planted(
        "dead-workers-calls-not-listed",
        "a reservation that a dead worker left is neither charged nor listed",
        "money.py::test_a_call_whose_worker_died_is_charged_and_listed",
        (
            "doubt.py",
            "            in_doubt.append(Doubt(header, DIED))\n",
            "            counted.pop()\n",
        ),
    ),
    planted(
        "reserved-and-settled",
        "a call is charged by its reservation and by its result",
        "money.py::test_a_call_whose_worker_died_is_charged_and_listed",
        (
            "doubt.py",
            "place not in attempts and (header.epoch, header.path, token_of(header)) not in",
            "place not in attempts and None not in",
        ),
    ),
    planted(
        "estimates-not-held",
        "calls side by side do not count each other's estimates",
        "money.py::test_with_an_estimator_nothing_goes_over_the_budget",
        (
            "cost.py",
            "tokens = self.spent.tokens, self.held.tokens, usage.tokens\n",
            "tokens = self.spent.tokens, 0, usage.tokens\n",
        ),
    ),
    planted(
        "one-retry-too-few",
        "max_retries counts the first attempt",
        "money.py::test_retries_are_those_of_the_policy",
        (
            "attempts.py",
            "scope.attempt > policy.max_retries",
            "scope.attempt >= policy.max_retries",
        ),
    ),
    planted(
        "one-retry-too-many",
        "a node is retried once more than the policy says",
        "money.py::test_retries_are_those_of_the_policy",
        (
            "attempts.py",
            "scope.attempt > policy.max_retries",
            "scope.attempt > policy.max_retries + 1",
        ),
    ),
    planted(
        "calls-numbered-anew",
        "the calls of each start are numbered from 1",
        "money.py::test_retries_are_those_of_the_policy",
        (
            "record_journal.py",
            "self._made = {} if found is None else dict(found.calls.made)",
            "self._made = {}",
        ),
    ),
    planted(
        "budget-begins-anew",
        "each start has the whole budget",
        "money.py::test_an_output_that_crosses_the_budget_is_kept",
        (
            "cost.py",
            "if budget.tokens is not None and compare(self.spent.tokens, budget.tokens):",
            (
                "if budget.tokens is not None and compare("
                "self.spent.tokens - self.before.tokens, budget.tokens):"
            ),
        ),
    ),
    planted(
        "budget-before-the-save",
        "an output that crosses the budget is thrown away",
        "money.py::test_an_output_that_crosses_the_budget_is_kept",
        (
            "attempts.py",
            _TOOK,
            (
                "                    if self._account.ledger.crossed(0.0):\n"
                '                        gone = BudgetExceeded("over budget", limit="tokens")\n'
                '                        raise Stopped(RunStatus.PARTIAL, "over budget", gone)\n'
                + _TOOK
            ),
        ),
    ),
    planted(
        "epoch-adopts-too-much",
        "resume_from keeps the result of the node that it buys again",
        "money.py::test_only_consent_buys_again",
        (
            "continuation.py",
            "if plan.top[h.contract_id] < position}",
            "if plan.top[h.contract_id] <= position}",
        ),
    ),
    planted(
        "epoch-forgets-spend",
        "resume_from forgets what was spent before",
        "money.py::test_only_consent_buys_again",
        (
            "continuation.py",
            "epoch = Epoch(run.epoch.number + 1, position, True)",
            "epoch = Epoch(run.epoch.number + 1, position, False)",
        ),
    ),
    planted(
        "restart-keeps-spend",
        "a restart counts what was spent before it",
        "money.py::test_only_consent_buys_again",
        (
            "continuation.py",
            "epoch = Epoch(run.epoch.number + 1, 0, False)",
            "epoch = Epoch(run.epoch.number + 1, 0, True)",
        ),
    ),
    planted(
        "refused-output-bought-again",
        "an output that does not fit is bought again by the next start",
        "money.py::test_a_refused_output_is_paid_for_and_not_bought_again",
        (
            "record_journal.py",
            "        if latest is None or latest.schema_ref != VIOLATION_REF:\n",
            "        if True:\n",
        ),
    ),
    planted(
        "active-time-forgotten",
        "the time of earlier starts does not count",
        "money.py::test_active_time_counts_over_all_starts",
        (
            "continuation.py",
            "sum(header.active_ms for header in counted)",
            "0.0",
        ),
    ),
)
