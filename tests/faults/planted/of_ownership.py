"""Mistakes in who owns a run."""

from __future__ import annotations

from typing import Final

from tests.faults.planted.defect import planted

OWNERSHIP: Final = (
    planted(
        "renewal-ignored",
        "leases are not renewed",
        "paused.py::test_a_slow_worker_keeps_its_run[sqlite]",
        (
            "renewal.py",
            'renewed = await call_operation(store, "renew", claims, lease_ms)',
            "renewed = [True] * len(claims)",
        ),
    ),
    planted(
        "loss-not-told",
        "a worker that lost its run is not told, and waits for its nodes",
        "paused.py::test_a_stopped_worker_changes_nothing_when_it_goes_on[split-sqlite]",
        ("renewal.py", "                watch.tell()\n", "                pass\n"),
    ),
    planted(
        "loss-is-a-cancellation",
        "a worker that lost its run ends as if its caller had cancelled it",
        "paused.py::test_a_stopped_worker_changes_nothing_when_it_goes_on[split-sqlite]",
        ("driver.py", "            if self._loss.is_why_cancelled():\n", "            if False:\n"),
    ),
    planted(
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
    planted(
        "unfenced-commits",
        "commits do not carry the owner's token",
        "paused.py::test_a_worker_that_does_not_know_that_it_lost_its_run_saves_nothing",
        (
            "record_journal.py",
            "commit = _make(Commit, (self.run_id, self._claim.token, records, update))",
            'commit = _make(Commit, (self.run_id, "", records, update))',
        ),
    ),
    planted(
        "one-token-for-all",
        "every claim has the same token",
        "money.py::test_a_job_that_is_delivered_twice_is_run_once",
        ("ownership.py", "Claim(run_id, unique_id(),", 'Claim(run_id, "token",'),
    ),
    planted(
        "release-forgotten",
        "a run that ended is still owned",
        "money.py::test_a_run_that_stopped_is_free_at_once",
        ("record_journal.py", "            release=True,\n", "            release=False,\n"),
    ),
    planted(
        "refusal-keeps-the-run",
        "a start that is refused keeps the claim that it made",
        "money.py::test_a_run_that_stopped_is_free_at_once",
        (
            "opening.py",
            "    if opened is None or not opened.is_claimed:\n        return\n    update",
            "    return\n    update",
        ),
    ),
    planted(
        "cancelled-run-kept",
        "a cancelled run is not given up",
        "cancellation.py::test_a_cancelled_run_is_released_and_says_so",
        (
            "driver.py",
            "        if self._journal.is_complete or self._loss.has_happened:\n",
            "        if True:\n",
        ),
    ),
    planted(
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
    planted(
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
