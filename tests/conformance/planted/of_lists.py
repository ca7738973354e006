"""Defects about listing runs, and about removing old ones."""

from __future__ import annotations

from tests.conformance.planted.copies import MEMORY, SQLITE, Edit
from tests.conformance.planted.defect import Defect

_AFTER = "(-r.updated_at, r.run_id) > (-updated_at, run_id)"
_CURSOR = """            updated_at, run_id = cursor_position(query.cursor)
            found ="""


def _memory(old: str, new: str) -> tuple[Edit, ...]:
    return (Edit("memory.py", old, new),)


LISTS = (
    Defect(
        "pages-skip-equal-times",
        "listing",
        "pages skip runs of one moment",
        MEMORY,
        _memory(_AFTER, "r.updated_at < updated_at"),
        ("test_pages_have_each_run_once", "test_equal_times_are_listed_by_run_id"),
    ),
    Defect(
        "pages-repeat-equal-times",
        "listing",
        "pages show runs of one moment again",
        MEMORY,
        _memory(_AFTER, "r.updated_at <= updated_at"),
        ("test_pages_have_each_run_once",),
    ),
    Defect(
        "any-cursor-will-do",
        "listing",
        "a cursor that is none starts the list again",
        MEMORY,
        _memory(
            _CURSOR,
            """            try:
                updated_at, run_id = cursor_position(query.cursor)
            except Exception:
                updated_at, run_id = float("inf"), ""
            found =""",
        ),
        ("test_a_cursor_that_is_none_is_refused",),
    ),
    Defect(
        "listed-by-creation",
        "listing",
        "runs are listed by their creation",
        MEMORY,
        _memory(
            "found.sort(key=lambda run: (-run.updated_at, run.run_id))",
            "found.sort(key=lambda run: (-run.created_at, run.run_id))",
        ),
        ("test_the_last_updated_run_comes_first",),
    ),
    Defect(
        "cursor-to-an-empty-page",
        "listing",
        "a page that is just full leads to an empty one",
        MEMORY,
        _memory("0 < len(page) < len(found)", "0 < len(page) == query.limit"),
        ("test_a_page_that_is_just_full_is_the_last",),
    ),
    Defect(
        "tags-by-pattern",
        "listing",
        "a tag is found by a part of it, or by a pattern",
        SQLITE,
        (
            Edit(
                "_sqlite_queries.py",
                'found.append(("has_tag(tags, ?)", (query.tag,)))',
                'found.append(("tags LIKE ?", (f"%{query.tag}%",)))',
            ),
        ),
        ("test_pipelines_and_tags_are_asked_for",),
    ),
    Defect(
        "pipelines-without-case",
        "listing",
        "a pipeline is found by its name in another case",
        SQLITE,
        (
            Edit(
                "_sqlite_schema.py",
                "        pipeline TEXT NOT NULL,",
                "        pipeline TEXT NOT NULL COLLATE NOCASE,",
            ),
        ),
        ("test_pipelines_and_tags_are_asked_for",),
    ),
    Defect(
        "purge-removes-owned-runs",
        "retention",
        "`purge` removes runs that workers own",
        MEMORY,
        _memory("if not is_held(run.owner, run.lease_expires_at, now)\n            ]", "]"),
        ("test_owned_runs_stay_until_their_lease_ends",),
    ),
    Defect(
        "purge-counts-what-it-sees",
        "retention",
        "the limit of `purge` counts the runs that it looked at",
        MEMORY,
        _memory(
            "                for run in self._found(query)\n                if not is_held",
            "                for run in self._found(query)[: query.limit]\n"
            "                if not is_held",
        ),
        ("test_the_limit_counts_what_is_removed",),
    ),
    Defect(
        "purge-leaves-records",
        "retention",
        "`purge` removes runs and leaves their records",
        MEMORY,
        _memory(
            "                self._remove(run_id)",
            "                self._entries[run_id].run = None",
        ),
        ("test_old_runs_go_with_all_they_have",),
    ),
)
