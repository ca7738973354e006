"""What the conformance kit catches: each planted defect fails the clause that is about it.

The copy of a store without a defect keeps the same clauses, so that it is the defect that fails.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest

from stroma.testing import StoreConformance
from tests.conformance.planted.copies import STORES, DoesNotApply, Edit, Store
from tests.conformance.planted.defect import Defect
from tests.conformance.planted.measuring import SOUND, Outcome, outcomes_of
from tests.conformance.planted.table import DEFECTS, documented
from tests.docs.pages import ROOT
from tests.servers.redis import REDIS, shared_server
from tests.workspace.asked import asked_for

Measured = Callable[[Store], dict[str, list[Outcome]]]


def marked(defect: Defect) -> object:
    marks = [pytest.mark.server] if defect.store.server else []
    return pytest.param(defect, id=defect.name, marks=marks)


@pytest.fixture(scope="session")
def measured(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Measured:
    """Return a function that measures the defects of a store that were asked for, once."""
    wanted = asked_for(request, "defect", Defect)

    @cache
    def measure(name: str) -> dict[str, list[Outcome]]:
        (store,) = (each for each in STORES if each.name == name)
        defects = [each for each in wanted if each.store.name == name]
        folder = tmp_path_factory.mktemp("planted")
        address = shared_server(REDIS) if store.server else None
        server = f"{address.host}:{address.port}" if address else ""
        return outcomes_of(store, defects, folder, server=server)

    return lambda store: measure(store.name)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("defect", [marked(defect) for defect in DEFECTS])
def test_a_planted_defect_is_caught(defect: Defect, measured: Measured) -> None:
    outcomes = measured(defect.store)
    for clause in defect.caught_by:
        sound = [o for o in outcomes[SOUND] if o.clause == clause]
        assert {o.outcome for o in sound} == {"passed"}, f"without the defect: {sound}"
        failed = [o for o in outcomes[defect.name] if o.clause == clause and o.outcome == "failed"]
        assert failed, f"{clause} does not catch that {defect.mistake}"
        broken = [o.said for o in failed if not o.by_kit]
        assert broken != [o.said for o in failed], f"{clause} broke, and did not say: {broken}"


@pytest.mark.parametrize("defect", DEFECTS, ids=[defect.name for defect in DEFECTS])
def test_each_defect_applies(defect: Defect) -> None:
    """One that does not would keep all of its store from being measured."""
    assert defect.store.edited(defect.edits, defect.name) != defect.store.edited()


def test_names_are_unique_and_clauses_exist() -> None:
    names = [defect.name for defect in DEFECTS]
    assert len({*names}) == len(names)
    clauses = {clause for defect in DEFECTS for clause in defect.caught_by}
    assert [clause for clause in sorted(clauses) if not hasattr(StoreConformance, clause)] == []


def test_a_defect_that_does_not_apply_is_told() -> None:
    with pytest.raises(DoesNotApply, match="occurs 0 times, and not once: adapt the defect"):
        STORES[0].edited((Edit("memory.py", "no such text", ""),), "gone")


def test_the_reference_has_every_mistake() -> None:
    page = (ROOT / "docs/reference/testing.md").read_text(encoding="utf-8")
    section = page.partition("### What it catches\n")[2].partition("\n## ")[0]
    assert section.endswith(f"\n\n{documented()}\n"), f"the table is now:\n{documented()}"
