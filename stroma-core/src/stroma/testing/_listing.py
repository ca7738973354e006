"""Clauses about listing runs: in order, in pages, by what is asked for."""

from __future__ import annotations

from typing import Any

import pytest

from stroma.records import RunPage, RunQuery, RunRecord, RunStatus, RunUpdate
from stroma.testing._clauses import clauses, if_records
from stroma.testing._cursors import refuses_all
from stroma.testing._kit import Driven, Kit
from stroma.testing._values import DONE, commit, record, request


def in_pages(store: Driven, query: RunQuery) -> list[RunRecord]:
    """Return all that a query finds, page by page."""
    found: list[RunRecord] = []
    for _ in range(1000):
        page = store.runs(query)
        assert len(page.runs) <= query.limit, f"a page of {query.limit} has {len(page.runs)} runs"
        found += page.runs
        if not page.cursor:
            return found
        query = query._replace(cursor=page.cursor)
    pytest.fail("a listing of few runs has no end: its cursors go round")


def in_order(runs: list[RunRecord]) -> list[RunRecord]:
    """Return runs as listings have them: the last updated first, equal times by run id."""
    return sorted(runs, key=lambda run: (-run.updated_at, run.run_id))


def finished(kit: Kit, run_id: str, update: RunUpdate = DONE, **columns: Any) -> RunRecord:
    """Run a run of no nodes to its end."""
    kit.store.open_run(request(run_id, **columns))
    assert kit.store.commit(commit(run_id=run_id, update=update)) is None
    return kit.store.inspect(run_id).run


def ids_of(runs: RunPage | list[RunRecord]) -> list[str]:
    """Return the run ids of a page or a list."""
    return [run.run_id for run in (runs.runs if isinstance(runs, RunPage) else runs)]


@clauses("listing", if_records)
class ListingClauses:
    """`runs`, and its queries."""

    def test_the_last_updated_run_comes_first(self, kit: Kit) -> None:
        """Runs are listed as `inspect` shows them, the last updated first."""
        for run_id in ("b", "c", "a"):
            kit.store.open_run(request(run_id))
            kit.tick()
        assert ids_of(kit.store.runs()) == ["a", "c", "b"]
        assert kit.store.commit(commit(run_id="c", update=RunUpdate(stop_reason="x"))) is None
        page = kit.another().runs()
        assert ids_of(page) == ["c", "a", "b"], "an updated run does not come first"
        assert page.cursor == ""
        assert list(page.runs) == [kit.store.inspect(run_id).run for run_id in ("c", "a", "b")]

    def test_pages_have_each_run_once(self, kit: Kit) -> None:
        """Page by page, each run comes once, in order, also where times are equal."""
        ids = [f"r{i:02}" for i in range(23)] + ["\N{GRINNING FACE}", "\uffff", "A", "a:b", "%"]
        for run_id in ids:
            kit.store.open_run(request(run_id))
        expected = ids_of(in_order([kit.store.inspect(run_id).run for run_id in ids]))
        for limit in (1, 3, 7, 27, 28, 29):
            found = ids_of(in_pages(kit.store, RunQuery(limit=limit)))
            skipped, twice = sorted({*ids} - {*found}), len(found) - len({*found})
            assert not skipped, f"pages of {limit} skip {skipped[:5]}"
            assert not twice, f"pages of {limit} show {twice} runs twice"
            assert found == expected, f"pages of {limit} are not in order"

    def test_equal_times_are_listed_by_run_id(self, kit: Kit) -> None:
        """Runs of one moment are ordered by the code points of their ids."""
        if kit.subject.clock is None:
            pytest.skip("listing: equal times can be made with a StoreSubject.clock only")
        ids = ["b", "c", "a", "B", "\N{GRINNING FACE}", "\uffff", "\u00e9", "e\u0301", "a:b", "~"]
        for run_id in ids:
            kit.store.open_run(request(run_id))
        for limit in (2, 100):
            found = ids_of(in_pages(kit.store, RunQuery(limit=limit)))
            assert found == sorted(ids), f"runs of one moment are listed as {found}"

    def test_a_page_that_is_just_full_is_the_last(self, kit: Kit) -> None:
        """A cursor is given where there is more, and only there."""
        for run_id in ("a", "b"):
            kit.store.open_run(request(run_id))
        assert kit.store.runs(RunQuery(limit=2)).cursor == "", "a cursor leads to an empty page"
        assert kit.store.runs(RunQuery(limit=1)).cursor != "", "no cursor, and there is more"
        for limit in (0, -1, -5):
            nothing = kit.store.runs(RunQuery(limit=limit))
            assert (nothing.runs, nothing.cursor) == ((), ""), f"a limit of {limit}"

    def test_a_listing_does_not_show_what_was_deleted(self, kit: Kit) -> None:
        """Deleted runs are not listed, and a page after one that was deleted goes on."""
        for i in range(6):
            kit.store.open_run(request(f"r{i}"))
        order = ids_of(kit.store.runs())
        page = kit.store.runs(RunQuery(limit=3))
        kit.store.delete(order[2])
        rest = kit.store.runs(RunQuery(limit=10, cursor=page.cursor))
        assert ids_of(rest) == order[3:], "a page after a run that was deleted is not the rest"
        assert order[2] not in ids_of(kit.store.runs())

    def test_statuses_are_asked_for(self, kit: Kit) -> None:
        """A query finds the runs with any of its statuses; none means all."""
        finished(kit, "done")
        finished(kit, "part", RunUpdate(status=RunStatus.PARTIAL, release=True))
        kit.store.open_run(request("running"))
        asked = {
            (RunStatus.COMPLETED,): {"done"},
            (RunStatus.RUNNING, RunStatus.PARTIAL): {"running", "part"},
            (RunStatus.FAILED,): set(),
            (): {"done", "part", "running"},
        }
        for statuses, expected in asked.items():
            found = ids_of(in_pages(kit.store, RunQuery(statuses=statuses, limit=1)))
            assert set(found) == expected, f"runs of {statuses} are {found}"

    def test_pipelines_and_tags_are_asked_for(self, kit: Kit) -> None:
        """A query finds runs of a pipeline, and with a tag, compared as a whole."""
        odd = 'y"x, [z] % *'
        finished(kit, "a", pipeline="p", tags=("x", "other"))
        finished(kit, "b", pipeline="q", tags=(odd, "z"))
        finished(kit, "c", pipeline="p%", tags=("xx",))
        finished(kit, "d")
        for query, expected in (
            (RunQuery(pipeline="p"), {"a"}),
            (RunQuery(pipeline="p%"), {"c"}),
            (RunQuery(pipeline="%"), set[str]()),
            (RunQuery(pipeline="P"), set[str]()),
            (RunQuery(tag="X"), set[str]()),
            (RunQuery(pipeline=""), {"d"}),
            (RunQuery(tag="x"), {"a"}),
            (RunQuery(tag=odd), {"b"}),
            (RunQuery(tag="*"), set[str]()),
            (RunQuery(pipeline="p", tag="other"), {"a"}),
            (RunQuery(pipeline="q", tag="x"), set[str]()),
        ):
            found = ids_of(kit.store.runs(query))
            assert set(found) == expected, f"{query.pipeline=}, {query.tag=} finds {found}"

    def test_age_is_asked_for(self, kit: Kit) -> None:
        """`updated_before` finds runs whose last change is older than that time."""
        old = finished(kit, "old")
        kit.tick()
        young = finished(kit, "young")
        assert ids_of(kit.store.runs(RunQuery(updated_before=young.updated_at))) == ["old"]
        assert ids_of(kit.store.runs(RunQuery(updated_before=old.updated_at))) == []
        later = RunQuery(updated_before=young.updated_at + 1000, statuses=(RunStatus.COMPLETED,))
        assert ids_of(in_pages(kit.store, later._replace(limit=1))) == ["young", "old"]

    def test_filters_hold_on_every_page(self, kit: Kit) -> None:
        """Filtered listings are paged without gaps, where most runs do not match."""
        for i in range(30):
            tags = ("odd",) if i % 7 == 3 else ()
            kit.store.open_run(request(f"r{i}", tags=tags))
        found = ids_of(in_pages(kit.store, RunQuery(tag="odd", limit=2)))
        assert sorted(found) == ["r10", "r17", "r24", "r3"], f"runs with the tag are {found}"
        assert len(found) == 4

    def test_a_cursor_that_is_none_is_refused(self, kit: Kit) -> None:
        """A cursor that no page came with is ConfigError, not the first page again.

        However little is asked for; and nothing is purged by one.
        """
        kit.store.open_run(request())
        kit.store.release("run", "alice")
        refuses_all(lambda cursor: kit.store.runs(RunQuery(cursor=cursor)))
        refuses_all(lambda cursor: kit.store.runs(RunQuery(cursor=cursor, limit=0)))
        refuses_all(lambda cursor: kit.store.purge(RunQuery(cursor=cursor)))
        assert ids_of(kit.store.runs(RunQuery())) == ["run"], "what was refused removed a run"

    def test_a_cursor_of_any_finite_time_is_taken(self, kit: Kit) -> None:
        """A page begins after a time however far from today it is."""
        kit.store.open_run(request())
        assert ids_of(kit.store.runs(RunQuery(cursor='[1e308,"a"]'))) == ["run"]
        assert ids_of(kit.store.runs(RunQuery(cursor='[-1e308,"a"]'))) == []

    def test_records_do_not_move_a_run_in_the_list(self, kit: Kit) -> None:
        """Commits of records leave the order of the list as it is."""
        kit.store.open_run(request("a"))
        kit.tick()
        kit.store.open_run(request("b"))
        kit.tick()
        assert kit.store.commit(commit(record("a"))) is None
        assert ids_of(kit.store.runs()) == ["b", "a"], "a record moved its run to the front"
