"""The kit for hooks lets good ones pass, and catches each defect."""

from __future__ import annotations

import typing
from typing import Any

import pytest

from stroma import NodeHooks
from stroma.hooks import EVENTS
from stroma.testing._hook_runs import SCENARIOS, observed
from stroma.testing.hooks import ARGUMENTS, HookConformance
from tests.testing.kits import classes_of, clauses_failed

DEFECTIVE = classes_of("hooks_defective")


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    report = tmp_path_factory.mktemp("kit") / "report.xml"
    return clauses_failed("hooks_defective", report, is_right=False)


@pytest.mark.timeout(300)
def test_good_hooks_pass(tmp_path_factory: pytest.TempPathFactory) -> None:
    report = tmp_path_factory.mktemp("kit") / "report.xml"
    passed = clauses_failed("hooks_good", report, is_right=True)
    assert set(passed) == {cls.__name__ for cls in classes_of("hooks_good")}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("defective", DEFECTIVE, ids=lambda cls: cls.__name__)
def test_a_defect_is_caught_by_the_clause_about_it(
    failed: dict[str, set[str]], defective: Any
) -> None:
    assert failed[defective.__name__] == defective.caught_by


def test_every_clause_catches_something() -> None:
    clauses = {name for name in vars(HookConformance) if name.startswith("test_")}
    alone = [cls.caught_by for cls in DEFECTIVE if cls.caught_by != clauses]
    assert clauses == set().union(*alone)


def test_the_runs_reach_every_event() -> None:
    told: set[str] = set()
    hooks = NodeHooks(**{event: lambda *a, event=event: told.add(event) for event in EVENTS})
    for scenario in SCENARIOS.values():
        observed(scenario, (hooks,), 30)
    assert told == set(EVENTS)


def test_the_kit_knows_what_each_callback_gets() -> None:
    assert set(ARGUMENTS) == set(EVENTS)
    hints = typing.get_type_hints(NodeHooks)
    for event, names in ARGUMENTS.items():
        (callback,) = (a for a in typing.get_args(hints[event]) if a is not type(None))
        assert len(typing.get_args(callback)[0]) == len(names), event
