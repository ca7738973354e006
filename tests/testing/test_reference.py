"""The reference names the kits for authors, with the signatures and clauses that they have."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest

from stroma import testing
from stroma.testing import ClassifierConformance, HookConformance
from tests.docs.pages import ROOT

REFERENCE = (ROOT / "docs/reference/testing.md").read_text(encoding="utf-8")
NAMES = [
    "ClassifierConformance",
    "FailingNodes",
    "FailingPipeline",
    "FiredFailure",
    "HookConformance",
    "InjectedFailure",
    "RecordedCalls",
    "RecordedError",
    "UnknownCall",
    "failing",
    "recorded_calls",
    "run_node",
    "run_node_sync",
]


def signature_of(function: Any) -> str:
    """Return the parameters and defaults of a callable, without types."""
    parameters = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for name, parameter in inspect.signature(function).parameters.items()
        if name != "self"
    ]
    return str(inspect.Signature(parameters))


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_public_and_in_the_reference(name: str) -> None:
    assert name in testing.__all__
    value = getattr(testing, name)
    shown = f"`{name}{signature_of(value)}`" if inspect.isfunction(value) else f"`{name}`"
    assert shown in REFERENCE


@pytest.mark.parametrize("name", ["FailingNodes", "RecordedCalls"])
def test_methods_are_in_the_reference(name: str) -> None:
    methods = inspect.getmembers(getattr(testing, name), inspect.isfunction)
    own = [(key, each) for key, each in methods if each.__module__.startswith("stroma")]
    shown = [f"`{key}{signature_of(each)}`" for key, each in own if not key.startswith("_")]
    assert shown
    assert [each for each in shown if each not in REFERENCE] == []


@pytest.mark.parametrize("kit", [ClassifierConformance, HookConformance])
def test_every_clause_is_in_the_reference(kit: type) -> None:
    section = REFERENCE.partition(f"### `{kit.__name__}`")[2].partition("\n### ")[0]
    listed = re.findall(r"`(test_\w+)`", section)
    assert listed == [name for name in vars(kit) if name.startswith("test_")]
