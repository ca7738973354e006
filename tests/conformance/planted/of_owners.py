"""Defects about owners: claims, leases, and what a worker writes that lost its run."""

from __future__ import annotations

from tests.conformance.planted.copies import MEMORY, Edit
from tests.conformance.planted.defect import Defect

_STALE = "        if run.owner != token:\n            return stale(run_id, run.holder)\n"
_CLAIM = """        with self._lock:
            entry = self._entries.get(request.run_id)
            if entry is None or (run := entry.run) is None:
                return self._create(request)
"""
_UPDATE = "            entry.run = update.apply(run, self._now())\n"
_MINE = "            entry.run = mine = claimed(run, request, now)\n"
_REPLACED = "_opened(entry, mine, is_claimed=True)"


def _memory(*edits: tuple[str, str]) -> tuple[Edit, ...]:
    return tuple(Edit("memory.py", old, new) for old, new in edits)


OWNERS = (
    Defect(
        "fencing-at-the-claim-only",
        "ownership",
        "the owner is checked by claims, and not by commits",
        MEMORY,
        _memory((_STALE, "")),
        (
            "test_an_owner_that_comes_back_writes_nothing",
            "test_an_owner_that_comes_back_changes_nothing",
        ),
    ),
    Defect(
        "commit-revives-a-run",
        "ownership",
        "a commit to a run that expired or was deleted creates it anew",
        MEMORY,
        _memory(
            (
                (
                    "        if entry is None or (run := entry.run) is None:\n"
                    "            return stale(run_id, None)\n"
                ),
                (
                    "        if entry is None or entry.run is None:\n"
                    "            from stroma.records import RunStatus\n"
                    "            entry = self._entries.setdefault(run_id, _Entry())\n"
                    "            entry.run = RunRecord(run_id, RunStatus.RUNNING, owner=token)\n"
                    "        run = entry.run\n"
                ),
            )
        ),
        (
            "test_a_commit_to_a_run_that_does_not_exist_is_refused",
            "test_a_deleted_run_takes_no_commits",
        ),
    ),
    Defect(
        "token-by-prefix",
        "ownership",
        "tokens are compared as far as the shorter one goes",
        MEMORY,
        _memory((_STALE, _STALE.replace("run.owner != token", "not run.owner.startswith(token)"))),
        ("test_a_token_is_compared_as_a_whole",),
    ),
    Defect(
        "nobodys-run-is-anybodys",
        "ownership",
        "a run that nobody owns takes commits of whoever owned it once",
        MEMORY,
        _memory((_STALE, _STALE.replace("run.owner != token", 'run.owner not in ("", token)'))),
        (
            "test_a_token_does_not_come_back_when_its_successor_leaves",
            "test_a_released_run_takes_no_commits",
        ),
    ),
    Defect(
        "token-is-a-counter",
        "ownership",
        "claims are counted, and the count begins anew with a deleted run",
        MEMORY,
        _memory(
            (
                "        self._entries: dict[str, _Entry] = {}",
                "        self._entries = {}\n        self._numbers = {}",
            ),
            (
                "        entry.run = run\n        return",
                "        entry.run = run\n        self._count(request)\n        return",
            ),
            (
                _MINE,
                f"{_MINE}            self._count(request)\n",
            ),
            (
                "    def _create(self,",
                (
                    "    def _count(self, request):\n"
                    "        entry = self._entries[request.run_id]\n"
                    "        count = entry.records.setdefault('count', [0])\n"
                    "        count[0] += 1\n"
                    "        self._numbers[request.run_id, request.token] = count[0]\n\n"
                    "    def _create(self,"
                ),
            ),
            (
                "if r.header.epoch != PLAIN_EPOCH]",
                "if type(r) is not list and r.header.epoch != PLAIN_EPOCH]",
            ),
            (
                _STALE,
                (
                    "        if entry.records['count'][0] != self._numbers.get((run_id, token)):\n"
                    "            return stale(run_id, run.holder)\n"
                ),
            ),
        ),
        ("test_the_owner_of_a_new_run_under_an_old_id_is_the_only_one",),
    ),
    Defect(
        "lease-end-is-loss",
        "ownership",
        "the end of a lease that nobody took is the loss of the run",
        MEMORY,
        _memory(
            (
                _STALE,
                _STALE.replace(
                    "run.owner != token",
                    "not is_held(run.owner, run.lease_expires_at, self._now())"
                    " or run.owner != token",
                ),
            )
        ),
        ("test_an_ended_lease_that_nobody_took_does_not_stop_its_owner",),
    ),
    Defect(
        "lease-without-end",
        "ownership",
        "a dead worker's run is never free",
        MEMORY,
        (
            Edit(
                "rules.py",
                'return owner != "" and lease_expires_at > now',
                'return owner != ""',
            ),
        ),
        ("test_an_ended_lease_is_taken_over",),
    ),
    Defect(
        "lease-ignored",
        "ownership",
        "a run can be claimed while its owner's lease runs",
        MEMORY,
        _memory(
            (
                "if run.owner != request.token and is_held(run.owner, run.lease_expires_at, now):",
                "if False:",
            )
        ),
        ("test_a_run_that_somebody_owns_is_refused",),
    ),
    Defect(
        "check-then-claim",
        "ownership",
        "a claim looks first and writes then: of many at once, several succeed",
        MEMORY,
        _memory(
            (
                _CLAIM,
                """        entry = self._entries.get(request.run_id)
        import time
        time.sleep(0.01)
        with self._lock:
            if entry is None or (run := entry.run) is None:
                return self._create(request)
""",
            )
        ),
        ("test_of_many_claimants_one_wins",),
    ),
    Defect(
        "closed-run-claimed",
        "ownership",
        "a COMPLETED run is claimed, and would be paid for again",
        MEMORY,
        _memory(("if is_closed_book(run, request):", "if False:")),
        ("test_a_completed_run_is_shown_and_not_claimed",),
    ),
    Defect(
        "reopen-ignored",
        "ownership",
        "a COMPLETED run is not claimed although that was asked for",
        MEMORY,
        (
            Edit(
                "rules.py",
                "return run.status is RunStatus.COMPLETED and not request.reopen",
                "return run.status is RunStatus.COMPLETED",
            ),
        ),
        ("test_a_completed_run_is_shown_and_not_claimed",),
    ),
    Defect(
        "anybody-renews",
        "ownership",
        "a lease is renewed by somebody else than its owner",
        MEMORY,
        _memory(
            (
                "        entry = self._owned(run_id, token)\n        if entry is None or",
                "        entry = self._entries.get(run_id)\n        if entry is None or",
            )
        ),
        ("test_renewal_is_the_owners",),
    ),
    Defect(
        "anybody-releases",
        "ownership",
        "a run is released by somebody else than its owner",
        MEMORY,
        _memory(
            (
                "            entry = self._owned(run_id, token)\n",
                "            entry = self._entries.get(run_id)\n",
            )
        ),
        ("test_a_released_run_is_free",),
    ),
    Defect(
        "commit-extends-a-lease",
        "ownership",
        "a commit extends its owner's lease, as if it were a sign of life",
        MEMORY,
        _memory(
            (
                "        if update is not None:\n",
                (
                    "        until = self._now() + 60_000\n"
                    "        entry.run = run = run._replace(lease_expires_at=until)\n"
                    "        if update is not None:\n"
                ),
            )
        ),
        ("test_a_commit_leaves_the_lease",),
    ),
    Defect(
        "update-brings-back-a-lease",
        "ownership",
        "an update writes the lease that the claim had, and what was renewed since is lost",
        MEMORY,
        _memory(
            (
                "        entry.run = run\n        return",
                "        entry.run = self.first = run\n        return",
            ),
            (
                _UPDATE,
                (
                    "            run = run._replace(lease_expires_at=self.first.lease_expires_at)\n"
                    f"{_UPDATE}"
                ),
            ),
        ),
        ("test_a_commit_leaves_the_lease",),
    ),
    Defect(
        "taken-before-stale",
        "ownership",
        "a worker that lost its run is told of the taken record, and not of its loss",
        MEMORY,
        _memory(
            (
                _STALE,
                (
                    "        if (taken := entry._conflict(records)) is not None:\n"
                    f"            return taken\n{_STALE}"
                ),
            )
        ),
        ("test_a_stale_commit_says_so_even_when_the_key_is_taken",),
    ),
    Defect(
        "inspect-claims",
        "ownership",
        "`inspect` takes the run from its owner",
        MEMORY,
        _memory(
            (
                "            return _opened(entry, entry.run, is_claimed=False)",
                (
                    '            entry.run = entry.run._replace(owner="inspect")\n'
                    "            return _opened(entry, entry.run, is_claimed=False)"
                ),
            )
        ),
        ("test_inspect_changes_nothing",),
    ),
    Defect(
        "owned-while-running-only",
        "ownership",
        "a run whose status is not RUNNING can be claimed while its owner's lease runs",
        MEMORY,
        _memory(
            (
                "if run.owner != request.token and is_held(",
                'if run.status == "RUNNING" and run.owner != request.token and is_held(',
            )
        ),
        ("test_a_run_is_owned_whatever_its_status_is",),
    ),
    Defect(
        "completed-run-without-records",
        "run records",
        "a COMPLETED run is shown without its records",
        MEMORY,
        _memory(
            (
                "                return _opened(entry, run, is_claimed=False)\n            now",
                (
                    "                shown = _opened(entry, run, is_claimed=False)\n"
                    "                return shown._replace(headers=())\n            now"
                ),
            )
        ),
        ("test_a_completed_run_is_shown_and_not_claimed",),
    ),
    Defect(
        "empty-is-no-change",
        "run records",
        "an update to nothing leaves what was there",
        MEMORY,
        _memory(
            (
                _UPDATE,
                (
                    "            reason = update.stop_reason or None\n"
                    f"            update = update._replace(stop_reason=reason)\n{_UPDATE}"
                ),
            )
        ),
        ("test_an_update_may_empty_a_column",),
    ),
    Defect(
        "claim-begins-anew",
        "run records",
        "a claim takes epochs and spend back to those of a new run",
        MEMORY,
        _memory(
            (
                _MINE,
                (
                    f"{_MINE}            new = RunRecord(run.run_id, run.status)\n"
                    "            mine = mine._replace(epochs=new.epochs, spend=new.spend)\n"
                    "            entry.run = mine\n"
                ),
            )
        ),
        ("test_a_claim_keeps_what_a_run_has",),
    ),
    Defect(
        "claim-overwrites",
        "run records",
        "a claim overwrites a run's input and plan with those of the request",
        MEMORY,
        _memory(
            (
                _MINE,
                (
                    f"{_MINE}            new = request.new or mine\n"
                    "            mine = mine._replace("
                    "plan=new.plan, input_payload=new.input_payload)\n"
                    "            entry.run = mine\n"
                ),
            )
        ),
        ("test_a_claim_keeps_what_a_run_has",),
    ),
    Defect(
        "no-status-before",
        "run records",
        "a claim does not tell the status that it found",
        MEMORY,
        _memory((f"return {_REPLACED}._replace(status_before=run.status)", f"return {_REPLACED}")),
        ("test_a_stopped_run_is_claimed",),
    ),
    Defect(
        "records-make-young",
        "run records",
        "`updated_at` changes with records",
        MEMORY,
        _memory(
            (
                f"        if update is not None:\n{_UPDATE}",
                (
                    "        entry.run = run._replace(updated_at=self._now())\n"
                    f"        if update is not None:\n{_UPDATE}"
                ),
            )
        ),
        (
            "test_updated_at_is_of_the_last_change_of_the_run",
            "test_records_do_not_move_a_run_in_the_list",
        ),
    ),
    Defect(
        "renewals-make-young",
        "run records",
        "`updated_at` changes with renewals",
        MEMORY,
        _memory(
            (
                "        entry.run = entry.run._replace(lease_expires_at=expires_at)\n",
                (
                    "        entry.run = entry.run._replace(\n"
                    "            lease_expires_at=expires_at, updated_at=self._now()\n"
                    "        )\n"
                ),
            )
        ),
        ("test_updated_at_is_of_the_last_change_of_the_run",),
    ),
)
