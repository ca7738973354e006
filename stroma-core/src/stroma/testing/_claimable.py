"""Clauses about the runs that a worker may take up: which they are, in order, in pages."""

from __future__ import annotations

import pytest

from stroma.errors import RunLocked
from stroma.records import ClaimQuery, RunQuery, RunRecord, RunStatus, RunUpdate
from stroma.testing._checks import same_run, written
from stroma.testing._clauses import clauses, if_fencing, if_records
from stroma.testing._cursors import refuses_all
from stroma.testing._kit import Driven, Kit
from stroma.testing._listing import ids_of
from stroma.testing._values import DONE, LONG_SECONDS, commit, record, request

_SUBMITTED = RunUpdate(status=RunStatus.PENDING, release=True)
_NOT_CLAIMABLE = (
    RunStatus.WAITING,
    RunStatus.COMPLETED,
    RunStatus.PARTIAL,
    RunStatus.FAILED,
    RunStatus.CANCELLED,
)


def claimable_in_pages(store: Driven, query: ClaimQuery) -> list[RunRecord]:
    """Return all that a query of claimable runs finds, page by page."""
    found: list[RunRecord] = []
    for _ in range(1000):
        page = store.claimable(query)
        assert len(page.runs) <= query.limit, f"a page of {query.limit} has {len(page.runs)} runs"
        found += page.runs
        if not page.cursor:
            return found
        query = query._replace(cursor=page.cursor)
    pytest.fail("a list of few claimable runs has no end: its cursors go round")


def submitted(kit: Kit, run_id: str, created_at: float = 0.0, pipeline: str = "") -> RunRecord:
    """Create a run and leave it to whoever claims it."""
    kit.store.open_run(request(run_id, created_at=created_at, pipeline=pipeline))
    assert kit.store.commit(commit(run_id=run_id, update=_SUBMITTED)) is None
    return kit.store.inspect(run_id).run


def _released(kit: Kit, run_id: str, created_at: float = 0.0) -> None:
    kit.store.open_run(request(run_id, created_at=created_at))
    kit.store.release(run_id, "alice")


@clauses("listing", if_records)
class ClaimableClauses:
    """`claimable`, and its queries."""

    def test_claimable_runs_come_in_the_order_of_their_creation(self, kit: Kit) -> None:
        """The first created comes first, as `inspect` shows it, whatever was done to it since."""
        for run_id, created_at in (("c", 100.0), ("a", 300.0), ("b", 200.0)):
            submitted(kit, run_id, created_at, "digest")
            kit.tick()
        _released(kit, "c")
        page = kit.another().claimable()
        assert ids_of(page) == ["c", "b", "a"], (
            f"claimable runs created in the order c, b, a are listed as {ids_of(page)}"
        )
        assert page.cursor == ""
        for run in page.runs:
            same_run(kit, run, kit.store.inspect(run.run_id).run, "as it is listed, a run differs")
        now = submitted(kit, "now")
        assert ids_of(kit.store.claimable()) == ["c", "b", "a", "now"]
        same_run(kit, kit.store.inspect("now").run, now, "a look at the list changed a run")

    def test_claimable_pages_have_each_run_once(self, kit: Kit) -> None:
        """Page by page, each run comes once, in order; those of one moment by their id."""
        ids = ["b", "B", "\N{GRINNING FACE}", "\uffff", "\u00e9", "e\u0301", "a:b", "~", "%", "aa"]
        for i, run_id in enumerate(ids):
            submitted(kit, run_id, created_at=100.0)
            submitted(kit, f"r{i}", created_at=99.0 if i < 3 else 101.0 + i)
        expected = [f"r{i}" for i in range(3)] + sorted(ids) + [f"r{i}" for i in range(3, 10)]
        for limit in (1, 3, 7, 19, 20, 21):
            found = ids_of(claimable_in_pages(kit.store, ClaimQuery(limit=limit)))
            skipped, twice = sorted({*expected} - {*found}), len(found) - len({*found})
            assert not skipped, f"pages of {limit} skip {skipped[:5]}: nobody would take them up"
            assert not twice, f"pages of {limit} show {twice} runs twice"
            assert found == expected, f"pages of {limit} are not in order: {found}"

    def test_a_claimable_page_that_is_just_full_is_the_last(self, kit: Kit) -> None:
        """A cursor is given where more runs can be claimed, and only there."""
        submitted(kit, "a", 100.0)
        submitted(kit, "b", 200.0)
        kit.store.open_run(request("owned", created_at=300.0))
        last = kit.store.claimable(ClaimQuery(limit=2))
        assert last.cursor == "", "a cursor leads to an empty page"
        assert kit.store.claimable(ClaimQuery(limit=1)).cursor != "", "no cursor, and there is more"
        for limit in (0, -1, -5):
            nothing = kit.store.claimable(ClaimQuery(limit=limit))
            assert (nothing.runs, nothing.cursor) == ((), ""), f"a limit of {limit}"

    def test_claimable_pages_go_on_after_what_is_gone(self, kit: Kit) -> None:
        """A page goes on where the one before ended, if that run was claimed or deleted since."""
        for i in range(6):
            submitted(kit, f"r{i}", 100.0 + i)
        page = kit.store.claimable(ClaimQuery(limit=3))
        kit.store.open_run(request("r2"))
        kit.store.delete("r1")
        rest = kit.store.claimable(ClaimQuery(limit=10, cursor=page.cursor))
        assert ids_of(rest) == ["r3", "r4", "r5"], f"after r2 follow {ids_of(rest)}"

    def test_a_cursor_that_is_none_of_claimable_runs_is_refused(self, kit: Kit) -> None:
        """A cursor that no page came with is ConfigError, not the first page again."""
        submitted(kit, "run")
        refuses_all(lambda cursor: kit.store.claimable(ClaimQuery(cursor=cursor)))
        refuses_all(lambda cursor: kit.store.claimable(ClaimQuery(cursor=cursor, limit=0)))

    def test_a_cursor_of_claimable_runs_of_any_finite_time_is_taken(self, kit: Kit) -> None:
        """A page begins after a time however far from today it is."""
        submitted(kit, "run")
        assert ids_of(kit.store.claimable(ClaimQuery(cursor='[-1e308,"a"]'))) == ["run"]
        assert ids_of(kit.store.claimable(ClaimQuery(cursor='[1e308,"a"]'))) == []

    def test_claimable_runs_are_asked_for_by_pipeline(self, kit: Kit) -> None:
        """A query finds the runs of any of its pipelines, compared as a whole, on every page."""
        names = ("p", "q", "p%", "P", "", "pp", "Gr\u00fc\u00dfe")
        for i in range(3 * len(names)):
            submitted(kit, f"r{i:02}", 100.0 + i, names[i % len(names)])
        for asked in (("p",), ("q", "p%"), ("%",), ("",), ("none", "Gr\u00fc\u00dfe"), ()):
            every = range(3 * len(names))
            expected = [f"r{i:02}" for i in every if names[i % len(names)] in asked or asked == ()]
            found = ids_of(claimable_in_pages(kit.store, ClaimQuery(asked, limit=2)))
            assert found == expected, f"claimable runs of the pipelines {asked} are {found}"

    def test_submitted_and_released_runs_are_claimable(self, kit: Kit) -> None:
        """A PENDING run that nobody owns is listed, and a RUNNING one that its owner gave up."""
        submitted(kit, "submitted", 100.0)
        _released(kit, "released", 200.0)
        kit.store.open_run(request("handed over", created_at=300.0))
        handed_over = commit(run_id="handed over", update=RunUpdate(release=True))
        assert kit.store.commit(handed_over) is None
        found = {run.run_id: run.status for run in kit.another().claimable().runs}
        assert found == {
            "submitted": RunStatus.PENDING,
            "released": RunStatus.RUNNING,
            "handed over": RunStatus.RUNNING,
        }, f"of a submitted run and two that their owners gave up, claimable are {found}"

    def test_owned_runs_are_not_claimable(self, kit: Kit) -> None:
        """A run is not listed while its owner's lease runs, whether PENDING or RUNNING."""
        kit.store.open_run(request("running"))
        kit.store.open_run(request("pending"))
        pending = RunUpdate(status=RunStatus.PENDING)
        assert kit.store.commit(commit(run_id="pending", update=pending)) is None
        kit.store.open_run(request("renewed", lease_seconds=kit.lease_seconds))
        assert kit.store.renew([("renewed", "alice")], LONG_SECONDS) == [True]
        kit.outlast(kit.lease_seconds)
        found = ids_of(kit.another().claimable())
        assert found == [], f"{found} are listed as claimable, and workers own them"
        for run_id in ("running", "pending", "renewed"):
            written(kit.store, record(run_id))

    def test_a_run_whose_lease_ended_is_claimable(self, kit: Kit) -> None:
        """What a dead worker had is listed when its lease ends, at its place among the others."""
        submitted(kit, "first", 100.0)
        dead = request("dead", "dead", lease_seconds=kit.lease_seconds, created_at=200.0)
        kit.store.open_run(dead)
        submitted(kit, "last", 300.0)
        kit.outlast(kit.lease_seconds)
        found = ids_of(claimable_in_pages(kit.another(), ClaimQuery(limit=1)))
        assert found == ["first", "dead", "last"], (
            f"after the end of a dead worker's lease, claimable are {found}"
        )
        assert kit.store.renew([("dead", "dead")], LONG_SECONDS) == [True]
        assert ids_of(kit.store.claimable()) == ["first", "last"], "and it was not dead"

    @pytest.mark.parametrize("status", _NOT_CLAIMABLE)
    def test_runs_that_ended_or_wait_are_not_claimable(self, kit: Kit, status: RunStatus) -> None:
        """What ended, stopped or waits is not listed: somebody has to ask for it again."""
        for run_id in ("a", "b"):
            kit.store.open_run(request(run_id, lease_seconds=kit.lease_seconds))
        stop = RunUpdate(status=status, stop_reason="why", release=True)
        assert kit.store.commit(commit(run_id="a", update=stop)) is None
        assert kit.store.commit(commit(run_id="b", update=stop._replace(release=False))) is None
        kit.outlast(kit.lease_seconds)
        found = ids_of(kit.store.claimable())
        assert found == [], f"runs that are {status} are listed as claimable: {found}"
        kit.store.open_run(request("a", "bob", reopen=True))
        kit.store.release("a", "bob")
        found = ids_of(kit.store.claimable())
        assert found == ["a"], f"{status}, then claimed and given up, a run is not claimable"

    def test_a_claimed_run_is_not_claimable_any_more(self, kit: Kit) -> None:
        """A claim takes the run out of the list, an end or a removal for good."""
        for i, run_id in enumerate(("a", "b", "c", "d")):
            submitted(kit, run_id, 100.0 + i, pipeline=f"of {run_id}")
        reader = kit.another()
        kit.store.open_run(request("b"))
        assert ids_of(reader.claimable()) == ["a", "c", "d"], "a claimed run is still listed"
        assert kit.store.commit(commit(record("b"), update=DONE)) is None
        kit.store.delete("c")
        assert kit.store.purge(RunQuery(pipeline="of a")) == 1
        found = ids_of(reader.claimable())
        assert found == ["d"], (
            f"of a claimed, a deleted, a purged and another run, {found} are left"
        )

    def test_many_runs_that_ended_do_not_hide_others(self, kit: Kit) -> None:
        """Few runs that can be claimed are found among many that cannot, each page full."""
        for i in range(120):
            run_id = f"r{i:03}"
            if i % 50 == 17:
                submitted(kit, run_id, 100.0 + i)
            else:
                kit.store.open_run(request(run_id, created_at=100.0 + i))
                update = DONE if i % 2 else None
                if update is not None:
                    assert kit.store.commit(commit(run_id=run_id, update=update)) is None
        page = kit.store.claimable(ClaimQuery(limit=2))
        assert ids_of(page) == ["r017", "r067"], f"the first page of two has {ids_of(page)}"
        rest = kit.store.claimable(ClaimQuery(limit=2, cursor=page.cursor))
        assert (ids_of(rest), rest.cursor) == (["r117"], "")


@clauses("ownership", if_fencing)
class ClaimantClauses:
    """Workers that take up what is listed."""

    def test_workers_that_take_up_the_same_list_share_it(self, kit: Kit) -> None:
        """Of workers that claim whatever is listed, each run has one, and then none is listed."""
        ids = [f"r{i}" for i in range(6)]
        for i, run_id in enumerate(ids):
            submitted(kit, run_id, 100.0 + i)
        stores = [kit.store, kit.another(), kit.another()]
        listed = [ids_of(store.claimable()) for store in stores]
        assert listed == [ids] * 3, f"three workers see {listed}"
        calls = [
            (store, "open_run", (request(run_id, f"w{w}", must_exist=True),))
            for run_id in ids
            for w, store in enumerate(stores)
        ]
        answers = kit.together(*calls)
        odd = [a for a in answers if isinstance(a, BaseException) and type(a) is not RunLocked]
        assert not odd, f"a claim at the same time as others failed: {odd[0]!r}"
        won = sorted(a.run.run_id for a in answers if not isinstance(a, BaseException))
        assert won == ids, f"three workers that claimed {ids} got {won}"
        left = ids_of(kit.store.claimable())
        assert left == [], f"{left} are listed as claimable, and were just claimed"
