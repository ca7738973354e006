"""Defects about the runs that a worker may take up."""

from __future__ import annotations

from tests.conformance.planted.copies import MEMORY, SQLITE, Edit
from tests.conformance.planted.defect import Defect

_TOPIC = "claimable runs"
_OF_PIPELINES = "(not query.pipelines or run.pipeline in query.pipelines)"
_IS_FREE = "        and not is_held(run.owner, run.lease_expires_at, now)\n    )"


def _rules(old: str, new: str) -> tuple[Edit, ...]:
    return (Edit("rules.py", old, new),)


def _memory(old: str, new: str) -> tuple[Edit, ...]:
    return (Edit("memory.py", old, new),)


CLAIMABLES = (
    Defect(
        "claimable-last-first",
        _TOPIC,
        "the last created comes first, and the first one waits for ever",
        MEMORY,
        _rules(
            "found.sort(key=lambda run: (run.created_at, run.run_id))",
            "found.sort(key=lambda run: (-run.created_at, run.run_id))",
        ),
        ("test_claimable_runs_come_in_the_order_of_their_creation",),
    ),
    Defect(
        "claimable-by-change",
        _TOPIC,
        "they come in the order of their last change",
        SQLITE,
        (
            Edit(
                "_sqlite_tables.py",
                '" ORDER BY created_at, run_id"',
                '" ORDER BY updated_at, run_id"',
            ),
        ),
        ("test_claimable_runs_come_in_the_order_of_their_creation",),
    ),
    Defect(
        "claimable-pages-skip-equal-times",
        _TOPIC,
        "pages skip those that were created in one moment",
        SQLITE,
        (
            Edit(
                "_sqlite_queries.py",
                '("(created_at, run_id) > (?, ?)", cursor_position(query.cursor))',
                '("created_at > ?", cursor_position(query.cursor)[:1])',
            ),
        ),
        ("test_claimable_pages_have_each_run_once",),
    ),
    Defect(
        "claimable-pages-begin-with-the-last",
        _TOPIC,
        "a page begins with the one that the page before ended with",
        MEMORY,
        _rules("(run.created_at, run.run_id) > after]", "(run.created_at, run.run_id) >= after]"),
        ("test_claimable_pages_have_each_run_once",),
    ),
    Defect(
        "claimable-cursor-to-an-empty-page",
        _TOPIC,
        "a page of them that is just full leads to an empty one",
        MEMORY,
        _rules("0 < len(page) < len(found)", "0 < len(page) == query.limit"),
        ("test_a_claimable_page_that_is_just_full_is_the_last",),
    ),
    Defect(
        "any-claimable-cursor-will-do",
        _TOPIC,
        "a cursor that is none starts them again",
        MEMORY,
        _rules(
            "    after = cursor_position(query.cursor) if query.cursor else None\n",
            "    try:\n"
            "        after = cursor_position(query.cursor) if query.cursor else None\n"
            "    except ConfigError:\n"
            "        after = None\n",
        ),
        ("test_a_cursor_that_is_none_of_claimable_runs_is_refused",),
    ),
    Defect(
        "claimable-of-the-first-pipeline",
        _TOPIC,
        "of several pipelines, only those of the first are found",
        MEMORY,
        _rules(_OF_PIPELINES, "(not query.pipelines or run.pipeline == query.pipelines[0])"),
        ("test_claimable_runs_are_asked_for_by_pipeline",),
    ),
    Defect(
        "claimable-pipelines-by-pattern",
        _TOPIC,
        "they are found by a part of their pipeline's name",
        MEMORY,
        _rules(
            _OF_PIPELINES,
            "(not query.pipelines or any(p in run.pipeline for p in query.pipelines))",
        ),
        ("test_claimable_runs_are_asked_for_by_pipeline",),
    ),
    Defect(
        "submitted-is-not-claimable",
        _TOPIC,
        "submitted runs are not among them",
        MEMORY,
        _rules("run.status in CLAIMABLE\n", "run.status is RunStatus.RUNNING\n"),
        ("test_submitted_and_released_runs_are_claimable",),
    ),
    Defect(
        "left-is-not-claimable",
        _TOPIC,
        "what a worker left is not among them",
        MEMORY,
        _rules("run.status in CLAIMABLE\n", "run.status is RunStatus.PENDING\n"),
        (
            "test_submitted_and_released_runs_are_claimable",
            "test_a_run_whose_lease_ended_is_claimable",
        ),
    ),
    Defect(
        "dead-is-not-claimable",
        _TOPIC,
        "a run is not among them until its dead owner releases it",
        MEMORY,
        _rules(_IS_FREE, '        and run.owner == ""\n    )'),
        ("test_a_run_whose_lease_ended_is_claimable",),
    ),
    Defect(
        "owned-is-claimable",
        _TOPIC,
        "runs that workers own are among them",
        MEMORY,
        _rules(_IS_FREE, "    )"),
        (
            "test_owned_runs_are_not_claimable",
            "test_a_claimed_run_is_not_claimable_any_more",
        ),
    ),
    Defect(
        "stopped-is-claimable",
        _TOPIC,
        "runs that failed, wait or were cancelled are among them, and bought on and on",
        SQLITE,
        (
            Edit(
                "_sqlite_schema.py",
                '"status IN (" + ", ".join(f"\'{status.value}\'" for status in CLAIMABLE) + ")"',
                "\"status <> 'COMPLETED'\"",
            ),
        ),
        ("test_runs_that_ended_or_wait_are_not_claimable",),
    ),
    Defect(
        "claimable-among-the-first",
        _TOPIC,
        "only the first hundred runs are looked at, and others hide behind those that ended",
        MEMORY,
        _memory(
            "entry.run for entry in self._unfinished.values() if entry.run is not None]",
            "e.run for e in list(self._entries.values())[:100] if e.run is not None]",
        ),
        ("test_many_runs_that_ended_do_not_hide_others",),
    ),
    Defect(
        "index-forgets-what-goes-on",
        _TOPIC,
        "a run that had ended and goes on does not come back into the index",
        MEMORY,
        _memory(
            "            self._unfinished[request.run_id] = entry\n            return",
            "            return",
        ),
        ("test_runs_that_ended_or_wait_are_not_claimable",),
    ),
    Defect(
        "index-keeps-what-is-gone",
        _TOPIC,
        "a run that was deleted stays in the index",
        MEMORY,
        _memory(
            "_entries.pop(run_id, None)\n        self._unfinished.pop(run_id, None)",
            "_entries.pop(run_id, None)",
        ),
        ("test_a_claimed_run_is_not_claimable_any_more",),
    ),
    Defect(
        "look-then-take",
        _TOPIC,
        "a claim looks at the owner first and writes then: two workers take up one run",
        MEMORY,
        (
            Edit(
                "memory.py",
                "        with self._lock:\n"
                "            entry = self._entries.get(request.run_id)\n"
                "            if entry is None or (run := entry.run) is None:\n",
                "        entry = self._entries.get(request.run_id)\n"
                "        run = entry.run if entry is not None else None\n"
                "        import time\n"
                "        time.sleep(0.01)\n"
                "        with self._lock:\n"
                "            if run is None:\n",
            ),
        ),
        ("test_workers_that_take_up_the_same_list_share_it",),
    ),
)
