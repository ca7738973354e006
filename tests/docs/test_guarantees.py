"""The page of guarantees names tests that there are, and every module of the fault suite."""

import re
from pathlib import Path

import pytest

from tests.docs.pages import ROOT

PAGE = (ROOT / "docs/explanation/guarantees.md").read_text(encoding="utf-8")
NAMED = sorted({*re.findall(r"`([\w/]+\.py::test_\w+)`", PAGE)})


@pytest.mark.parametrize("name", NAMED)
def test_a_named_test_exists(name: str) -> None:
    module, _, test = name.partition("::")
    text = Path(ROOT, "tests", module).read_text(encoding="utf-8")
    assert re.search(rf"^(async )?def {test}\(", text, re.MULTILINE), f"{module} has no {test}"


def test_every_promise_names_a_test() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| ") and "---" not in line]
    promises = [row for row in rows if not row.startswith("| Promise")]
    assert len(promises) > 20
    assert [row for row in promises if "::test_" not in row] == []


def test_every_module_of_the_fault_suite_shows_something() -> None:
    modules = {f"faults/{path.name}" for path in Path(ROOT, "tests/faults").glob("test_*.py")}
    assert modules - {name.partition("::")[0] for name in NAMED} == set()
