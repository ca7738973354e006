"""Mistakes in ownership, commits and accounts that the suite has to catch.

Each is an edit of a copy of the core, and names the case that fails with it.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from tests.conformance.planted.copies import Edit


class Defect(NamedTuple):
    """A mistake, planted in a copy of the core.

    Attributes:
        name: for the id of its test.
        mistake: in words.
        edits: what is changed in the copy.
        caught_by: the case that must fail, as "module::test" below this folder.
    """

    name: str
    mistake: str
    edits: tuple[Edit, ...]
    caught_by: str


def _defect(name: str, mistake: str, caught_by: str, *edits: tuple[str, str, str]) -> Defect:
    return Defect(name, mistake, tuple(Edit(*edit) for edit in edits), f"test_{caught_by}")


_TOOK: Final = "                    took_ms = scope._took_ms = "
"""Where the attempt loop has an output that it did not save yet."""

_SAVE: Final = """\
                    if saving is not None:
                        await self._saved(saving, leaf, scope, usage)
"""
_TELL: Final = """\
                    if self._hooks.any_attempt_hook or scope._cancelled is not None:
                        await self._conclude(leaf, scope, output, usage)
"""

OWNERSHIP: Final = (
    _defect(
        "renewal-ignored",
        "leases are not renewed",
        "paused.py::test_a_slow_worker_keeps_its_run[sqlite]",
        (
            "renewal.py",
            'renewed = await call_operation(store, "renew", claims, lease_ms)',
            "renewed = [True] * len(claims)",
        ),
    ),
    _defect(
        "loss-not-told",
        "a worker that lost its run is not told, and waits for its nodes",
        "paused.py::test_a_stopped_worker_changes_nothing_when_it_goes_on[split-sqlite]",
        ("renewal.py", "                watch.tell()\n", "                pass\n"),
    ),
    _defect(
        "loss-is-a-cancellation",
        "a worker that lost its run ends as if its caller had cancelled it",
        "paused.py::test_a_stopped_worker_changes_nothing_when_it_goes_on[split-sqlite]",
        ("driver.py", "            if self._loss.is_why_cancelled():\n", "            if False:\n"),
    ),
    _defect(
        "stale-token-accepted",
        "a commit that is refused as another worker's counts as saved",
        "paused.py::test_a_worker_that_does_not_know_that_it_lost_its_run_saves_nothing",
        (
            "record_journal.py",
            "            if failed is not None:\n                await persist(",
            (
                "            if failed is not None and not isinstance(failed, StaleOwner):\n"
                "                await persist("
            ),
        ),
    ),
    _defect(
        "unfenced-commits",
        "commits do not carry the owner's token",
        "paused.py::test_a_worker_that_does_not_know_that_it_lost_its_run_saves_nothing",
        (
            "record_journal.py",
            "commit = _make(Commit, (self.run_id, self._claim.token, records, update))",
            'commit = _make(Commit, (self.run_id, "", records, update))',
        ),
    ),
    _defect(
        "one-token-for-all",
        "every claim has the same token",
        "money.py::test_a_job_that_is_delivered_twice_is_run_once",
        ("ownership.py", "Claim(run_id, unique_id(),", 'Claim(run_id, "token",'),
    ),
    _defect(
        "release-forgotten",
        "a run that ended is still owned",
        "money.py::test_a_run_that_stopped_is_free_at_once",
        ("record_journal.py", "            release=True,\n", "            release=False,\n"),
    ),
    _defect(
        "refusal-keeps-the-run",
        "a start that is refused keeps the claim that it made",
        "money.py::test_a_run_that_stopped_is_free_at_once",
        (
            "opening.py",
            "    if opened is None or not opened.is_claimed:\n        return\n    update",
            "    return\n    update",
        ),
    ),
    _defect(
        "cancelled-run-kept",
        "a cancelled run is not given up",
        "cancellation.py::test_a_cancelled_run_is_released_and_says_so",
        (
            "driver.py",
            "        if self._journal.is_complete or self._loss.has_happened:\n",
            "        if True:\n",
        ),
    ),
    _defect(
        "release-before-the-commit",
        "the run is given up before its last result is saved",
        "money.py::test_a_clean_run_costs_what_its_calls_cost",
        (
            "record_journal.py",
            "        return self._commit(records, None if stop is None else self._update(stop))\n",
            (
                "        if stop is None:\n"
                "            return self._commit(records, None)\n\n"
                "        async def apart() -> None:\n"
                "            await settled(self._commit((), self._update(stop)))\n"
                "            await settled(self._commit(records, None))\n\n"
                "        return apart()\n"
            ),
        ),
    ),
    _defect(
        "complete-run-claimed",
        "a complete run is claimed again by a job that is delivered twice",
        "money.py::test_a_job_that_is_delivered_twice_is_run_once",
        (
            "opening.py",
            "    reopen = request.restart or request.resume_from is not None\n",
            "    reopen = True\n",
        ),
    ),
)

COMMITS: Final = (
    _defect(
        "save-failure-calls-again",
        "a save that fails calls the node again",
        "saves.py::test_a_commit_that_fails_once[refused-plain-sqlite]",
        (
            "journal.py",
            "        if not may_pass or retry > settings.save_policy.max_retries:\n",
            "        if True:\n",
        ),
        (
            "attempts.py",
            (
                "                    if saving is not None:\n"
                "                        await self._saved(saving, leaf, scope, usage)\n"
            ),
            (
                "                    if saving is not None:\n"
                "                        try:\n"
                "                            await self._saved(saving, leaf, scope, usage)\n"
                "                        except StoreError:\n"
                "                            if attempt > 1:\n"
                "                                raise\n"
                "                            delay = 0.0\n"
                "                            continue\n"
            ),
        ),
    ),
    _defect(
        "saves-not-repeated",
        "a save that fails is not tried again",
        "saves.py::test_a_commit_that_fails_once[refused-plain-sqlite]",
        ("journal.py", "retry > settings.save_policy.max_retries", "retry > 0"),
    ),
    _defect(
        "unknown-outcome-given-up",
        "a save whose reply is lost ends the run",
        "saves.py::test_a_commit_that_fails_once[lost-plain-sqlite]",
        (
            "journal.py",
            "isinstance(error, StoreUnavailable | OutcomeUnknown)",
            "isinstance(error, StoreUnavailable)",
        ),
    ),
    _defect(
        "end-not-read-back",
        "a run whose last commit was not answered takes itself for another worker's",
        "saves.py::test_a_commit_that_fails_once[lost-plain-sqlite]",
        (
            "record_journal.py",
            "        if commit.update is None or not commit.update.release:\n",
            "        if True:\n",
        ),
    ),
    _defect(
        "told-before-it-is-saved",
        "hooks are told of a result before it is saved",
        "saves.py::test_what_a_hook_is_told_of_is_stored",
        (
            "attempts.py",
            _SAVE + _TELL,
            _TELL + _SAVE,
        ),
    ),
    _defect(
        "put-back-records-lost",
        "what could not be saved does not go with the commit that ends the run",
        "saves.py::test_what_a_store_did_not_take_goes_with_the_last_word",
        (
            "record_journal.py",
            "            self._pending[:0] = commit.records\n",
            "            self._pending[:0] = ()\n",
        ),
    ),
    _defect(
        "cancellation-cuts-the-save",
        "a cancellation cuts the save under way, and what it held is forgotten",
        "cancellation.py::test_a_save_under_way_is_finished[once]",
        (
            "batching.py",
            "        return [await finish(outcome, grace_seconds=SAVE_GRACE_SECONDS)]\n",
            "        return await outcomes_of(ask(self._commit_many, [commit]), 1)\n",
        ),
        (
            "batching.py",
            "        if self._flusher is None or self._flusher.done():",
            "        self._waiting.clear()\n        if False:",
        ),
        (
            "record_journal.py",
            "        except (StoreUnavailable, OutcomeUnknown, asyncio.CancelledError):\n",
            "        except (StoreUnavailable, OutcomeUnknown):\n",
        ),
    ),
    _defect(
        "finished-children-forgotten",
        "children that are recorded are called again",
        "money.py::test_finished_children_and_items_are_not_bought_again",
        (
            "execution.py",
            "        if self._journal.is_continued and position < 0:\n",
            "        if False:\n",
        ),
    ),
    _defect(
        "finished-items-forgotten",
        "items that are recorded are called again",
        "money.py::test_finished_children_and_items_are_not_bought_again",
        (
            "execution.py",
            "        if self._journal.is_continued and items:\n",
            "        if False:\n",
        ),
    ),
    _defect(
        "last-result-forgotten",
        "a run goes on one node too early",
        "money.py::test_failed_attempts_count_in_this_start_and_in_the_next",
        ("continuation.py", "    return recorded\n", "    return max(0, recorded - 1)\n"),
    ),
    _defect(
        "digest-unchecked",
        "a damaged payload is used",
        "records.py::test_a_damaged_result_is_told_and_not_bought_again[another value-sqlite]",
        ("records.py", "    if digest_of(payload) != header.digest:\n", "    if False:\n"),
    ),
    _defect(
        "missing-result-bought",
        "a result that is gone is bought again in silence",
        "records.py::test_a_result_that_is_gone_is_told_and_not_bought_again",
        (
            "continuation.py",
            "    if recorded < wanted and recorded < max(len(by_position), run.epoch.position):\n",
            "    if False:\n",
        ),
    ),
    _defect(
        "input-unchecked",
        "a run id that is in use for another input is taken",
        "money.py::test_a_run_that_stopped_is_free_at_once",
        ("continuation.py", "        check_input(run, plan, request.state)\n", "        pass\n"),
    ),
)

ACCOUNTS: Final = (
    _defect(
        "failed-usage-not-recorded",
        "what a failed attempt used is not recorded",
        "money.py::test_failed_attempts_count_in_this_start_and_in_the_next",
        (
            "record_journal.py",
            '"attempt", number, -1, step.id, ref, fingerprint, digest, usage)\n',
            '"attempt", number, -1, step.id, ref, fingerprint, digest, NO_USAGE)\n',
        ),
    ),
    _defect(
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
    _defect(
        "spend-carried-twice",
        "what earlier starts spent counts twice",
        "money.py::test_failed_attempts_count_in_this_start_and_in_the_next",
        ("driver.py", "self._ledger.carry(usages,", "self._ledger.carry(usages * 2,"),
    ),
    _defect(
        "spend-not-carried",
        "what earlier starts spent is forgotten",
        "money.py::test_failed_attempts_count_in_this_start_and_in_the_next",
        ("driver.py", "self._ledger.carry(usages,", "self._ledger.carry((),"),
    ),
    _defect(
        "record-says-nothing-was-spent",
        "the run's record does not say what it spent",
        "money.py::test_a_clean_run_costs_what_its_calls_cost",
        ("record_journal.py", "            spend=stop.spend,\n", ""),
    ),
    _defect(
        "cut-calls-not-listed",
        "calls that were cut are not listed as in doubt",
        "money.py::test_calls_that_were_cut_are_listed_by_every_later_start[plain]",
        ("attempts.py", "        if not is_known:  #", "        if False:  #"),
    ),
    _defect(
        "doubts-forgotten-by-the-next-start",
        "calls in doubt of earlier starts are not listed",
        "money.py::test_calls_that_were_cut_are_listed_by_every_later_start[plain]",
        (
            "doubt.py",
            "            if header.schema_ref.startswith(_DOUBT_REF):\n",
            "            if False:\n",
        ),
    ),
    _defect(
        "dead-workers-calls-not-listed",
        "a reservation that a dead worker left is neither charged nor listed",
        "money.py::test_a_call_whose_worker_died_is_charged_and_listed",
        (
            "doubt.py",
            "            in_doubt.append(Doubt(header, DIED))\n",
            "            counted.pop()\n",
        ),
    ),
    _defect(
        "reserved-and-settled",
        "a call is charged by its reservation and by its result",
        "money.py::test_a_call_whose_worker_died_is_charged_and_listed",
        (
            "doubt.py",
            "place not in attempts and (header.epoch, header.path, token_of(header)) not in",
            "place not in attempts and None not in",
        ),
    ),
    _defect(
        "estimates-not-held",
        "calls side by side do not count each other's estimates",
        "money.py::test_with_an_estimator_nothing_goes_over_the_budget",
        (
            "cost.py",
            "tokens = self.spent.tokens, self.held.tokens, usage.tokens\n",
            "tokens = self.spent.tokens, 0, usage.tokens\n",
        ),
    ),
    _defect(
        "one-retry-too-few",
        "max_retries counts the first attempt",
        "money.py::test_retries_are_those_of_the_policy",
        (
            "attempts.py",
            "scope.attempt > policy.max_retries",
            "scope.attempt >= policy.max_retries",
        ),
    ),
    _defect(
        "one-retry-too-many",
        "a node is retried once more than the policy says",
        "money.py::test_retries_are_those_of_the_policy",
        (
            "attempts.py",
            "scope.attempt > policy.max_retries",
            "scope.attempt > policy.max_retries + 1",
        ),
    ),
    _defect(
        "calls-numbered-anew",
        "the calls of each start are numbered from 1",
        "money.py::test_retries_are_those_of_the_policy",
        (
            "record_journal.py",
            "self._made = {} if found is None else dict(found.calls.made)",
            "self._made = {}",
        ),
    ),
    _defect(
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
    _defect(
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
    _defect(
        "epoch-adopts-too-much",
        "resume_from keeps the result of the node that it buys again",
        "money.py::test_only_consent_buys_again",
        (
            "continuation.py",
            "if plan.top[h.contract_id] < position}",
            "if plan.top[h.contract_id] <= position}",
        ),
    ),
    _defect(
        "epoch-forgets-spend",
        "resume_from forgets what was spent before",
        "money.py::test_only_consent_buys_again",
        (
            "continuation.py",
            "epoch = Epoch(run.epoch.number + 1, position, True)",
            "epoch = Epoch(run.epoch.number + 1, position, False)",
        ),
    ),
    _defect(
        "restart-keeps-spend",
        "a restart counts what was spent before it",
        "money.py::test_only_consent_buys_again",
        (
            "continuation.py",
            "epoch = Epoch(run.epoch.number + 1, 0, False)",
            "epoch = Epoch(run.epoch.number + 1, 0, True)",
        ),
    ),
    _defect(
        "refused-output-bought-again",
        "an output that does not fit is bought again by the next start",
        "money.py::test_a_refused_output_is_paid_for_and_not_bought_again",
        (
            "record_journal.py",
            "        if latest is None or latest.schema_ref != VIOLATION_REF:\n",
            "        if True:\n",
        ),
    ),
    _defect(
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

DEFECTS: Final = (*OWNERSHIP, *COMMITS, *ACCOUNTS)
