from __future__ import annotations

import pytest

from tests.workspace.asked import asked_for


class Apple:
    """What the fixture below is about."""


class Stone:
    """What another test of the session calls by the same name."""


APPLES = [Apple(), Apple()]


@pytest.fixture(scope="module")
def apples(request: pytest.FixtureRequest) -> list[Apple]:
    return asked_for(request, "thing", Apple)


@pytest.mark.parametrize("thing", APPLES)
def test_a_fixture_learns_what_the_session_asked_for(thing: Apple, apples: list[Apple]) -> None:
    assert thing in apples


@pytest.mark.parametrize("thing", [*APPLES, Stone()])
def test_each_once_and_only_those_of_its_class(thing: object, apples: list[Apple]) -> None:
    assert {id(each) for each in apples} <= {id(each) for each in APPLES}
    assert len(apples) == len({id(each) for each in apples})
