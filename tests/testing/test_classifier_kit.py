"""The kit for classifiers lets good ones pass, and catches each defect."""

from __future__ import annotations

from typing import Any

import pytest

from stroma.testing.classifiers import ClassifierConformance
from tests.testing.kits import classes_of, clauses_failed

BY_CHANCE = {"test_it_answers_whatever_attributes_an_exception_has"}
DEFECTIVE = classes_of("classifiers_defective")


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    report = tmp_path_factory.mktemp("kit") / "report.xml"
    return clauses_failed("classifiers_defective", report, is_right=False)


@pytest.mark.timeout(300)
def test_good_classifiers_pass(tmp_path_factory: pytest.TempPathFactory) -> None:
    report = tmp_path_factory.mktemp("kit") / "report.xml"
    passed = clauses_failed("classifiers_good", report, is_right=True)
    assert set(passed) == {cls.__name__ for cls in classes_of("classifiers_good")}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("defective", DEFECTIVE, ids=lambda cls: cls.__name__)
def test_a_defect_is_caught_by_the_clause_about_it(
    failed: dict[str, set[str]], defective: Any
) -> None:
    # What hypothesis comes upon besides differs from version to version.
    assert failed[defective.__name__] - BY_CHANCE == defective.caught_by - BY_CHANCE
    assert failed[defective.__name__] >= defective.caught_by


def test_every_clause_catches_something() -> None:
    clauses = {name for name in vars(ClassifierConformance) if name.startswith("test_")}
    assert clauses == set().union(*(cls.caught_by for cls in DEFECTIVE))
