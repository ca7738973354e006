"""Mistakes in what is saved, and when."""

from __future__ import annotations

from typing import Final

from tests.faults.planted.defect import planted

_SAVE: Final = """\
                    if saving is not None:
                        await self._saved(saving, leaf, scope, usage)
"""
_TELL: Final = """\
                    if self._hooks.any_attempt_hook or scope._cancelled is not None:
                        await self._conclude(leaf, scope, output, usage)
"""

COMMITS: Final = (
    planted(
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
    planted(
        "saves-not-repeated",
        "a save that fails is not tried again",
        "saves.py::test_a_commit_that_fails_once[refused-plain-sqlite]",
        ("journal.py", "retry > settings.save_policy.max_retries", "retry > 0"),
    ),
    planted(
        "unknown-outcome-given-up",
        "a save whose reply is lost ends the run",
        "saves.py::test_a_commit_that_fails_once[lost-plain-sqlite]",
        (
            "journal.py",
            "isinstance(error, StoreUnavailable | OutcomeUnknown)",
            "isinstance(error, StoreUnavailable)",
        ),
    ),
    planted(
        "end-not-read-back",
        "a run whose last commit was not answered takes itself for another worker's",
        "saves.py::test_a_commit_that_fails_once[lost-plain-sqlite]",
        (
            "record_journal.py",
            "        if commit.update is None or not commit.update.release:\n",
            "        if True:\n",
        ),
    ),
    planted(
        "told-before-it-is-saved",
        "hooks are told of a result before it is saved",
        "saves.py::test_what_a_hook_is_told_of_is_stored",
        (
            "attempts.py",
            _SAVE + _TELL,
            _TELL + _SAVE,
        ),
    ),
    planted(
        "put-back-records-lost",
        "what could not be saved does not go with the commit that ends the run",
        "saves.py::test_what_a_store_did_not_take_goes_with_the_last_word",
        (
            "record_journal.py",
            "            self._pending[:0] = commit.records\n",
            "            self._pending[:0] = ()\n",
        ),
    ),
    planted(
        "cancellation-cuts-the-save",
        "a cancellation cuts the save under way, and what it held is forgotten",
        "cancellation.py::test_a_save_under_way_is_finished[once]",
        (
            "batching.py",
            "        return [await outcome]\n",
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
    planted(
        "finished-children-forgotten",
        "children that are recorded are called again",
        "money.py::test_finished_children_and_items_are_not_bought_again",
        (
            "execution.py",
            "        if self._journal.is_continued and position < 0:\n",
            "        if False:\n",
        ),
    ),
    planted(
        "finished-items-forgotten",
        "items that are recorded are called again",
        "money.py::test_finished_children_and_items_are_not_bought_again",
        (
            "execution.py",
            "        if self._journal.is_continued and items:\n",
            "        if False:\n",
        ),
    ),
    planted(
        "last-result-forgotten",
        "a run goes on one node too early",
        "money.py::test_failed_attempts_count_in_this_start_and_in_the_next",
        ("continuation.py", "    return recorded\n", "    return max(0, recorded - 1)\n"),
    ),
    planted(
        "digest-unchecked",
        "a damaged payload is used",
        "records.py::test_a_damaged_result_is_told_and_not_bought_again[another value-sqlite]",
        ("records.py", "    if digest_of(payload) != header.digest:\n", "    if False:\n"),
    ),
    planted(
        "missing-result-bought",
        "a result that is gone is bought again in silence",
        "records.py::test_a_result_that_is_gone_is_told_and_not_bought_again",
        (
            "continuation.py",
            "    if recorded < wanted and recorded < max(len(by_position), run.epoch.position):\n",
            "    if False:\n",
        ),
    ),
    planted(
        "input-unchecked",
        "a run id that is in use for another input is taken",
        "money.py::test_a_run_that_stopped_is_free_at_once",
        ("continuation.py", "        check_input(run, plan, request.state)\n", "        pass\n"),
    ),
)
