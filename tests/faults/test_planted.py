"""The suite is measured by mistakes planted in a copy of the core: a case fails for each of them.

That the same cases pass without a mistake is what they are tested for themselves.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

import stroma
from tests.conformance.planted.copies import ROOT, DoesNotApply
from tests.faults.planted.defect import Defect, planted
from tests.faults.planted.table import DEFECTS
from tests.workspace.asked import asked_for

FOLDER = Path(__file__).parent
CORE = ROOT / "stroma-core/src/stroma"


def copy_with(defect: Defect | None, folder: Path) -> Path:
    """Copy the core, with a mistake in it.

    Raises:
        DoesNotApply: the text of an edit does not occur exactly once.
    """
    package = folder / "stroma"
    shutil.copytree(CORE, package)
    for file, old, new in () if defect is None else defect.edits:
        path = package / file
        text = path.read_text(encoding="utf-8")
        if text.count(old) != 1:
            raise DoesNotApply(
                f"{defect.name if defect else ''}, {file}: this occurs {text.count(old)} times, "
                f"and not once: adapt the defect to the core as it is now:\n{old}"
            )
        path.write_text(text.replace(old, new), encoding="utf-8")
    return folder


GIVEN = "test_planted.py::test_cases_run_on_the_core_that_they_are_given"


def outcome_of(case: str, copy: Path) -> tuple[int, str]:
    """Run a case on a copy; return pytest's exit code and what it printed."""
    kept = {name: value for name, value in os.environ.items() if "COVERAGE" not in name}
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-x", "--tb=short", "--show-capture=no"),
            *("-p", "pytest_asyncio.plugin", "-p", "pytest_timeout", "-p", "no:cacheprovider"),
            f"--basetemp={copy / 'tmp'}",
            f"{FOLDER / case}",
        ],
        cwd=ROOT,
        env={
            **kept,
            "PYTHONPATH": str(copy),
            "STROMA_EXPECTED_CORE": str(copy),
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # those that are not needed take a while
        },
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout + done.stderr


def test_cases_run_on_the_core_that_they_are_given() -> None:
    expected = os.environ.get("STROMA_EXPECTED_CORE", str(CORE.parent))
    assert Path(stroma.__file__).is_relative_to(expected)


@pytest.fixture(scope="module")
def outcomes(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[tuple[int, str]]]]:
    """Begin to run the cases of all defects that were asked for, two at a time."""
    wanted = asked_for(request, "defect", Defect)
    pool = ThreadPoolExecutor(2)
    try:

        def begin(defect: Defect | None, case: str) -> Future[tuple[int, str]]:
            copy = tmp_path_factory.mktemp("planted")

            def body() -> tuple[int, str]:
                return outcome_of(case, copy_with(defect, copy))

            return pool.submit(body)

        yield {"": begin(None, GIVEN)} | {d.name: begin(d, d.caught_by) for d in wanted}
    finally:
        pool.shutdown(cancel_futures=True)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("defect", DEFECTS, ids=[defect.name for defect in DEFECTS])
def test_a_planted_defect_is_caught(
    defect: Defect, outcomes: dict[str, Future[tuple[int, str]]]
) -> None:
    code, printed = outcomes[""].result()
    assert code == 0, f"the copy is not what is tested:\n{printed}"
    code, printed = outcomes[defect.name].result()
    assert code == 1, f"nothing notices that {defect.mistake}:\n{printed}"
    assert " failed" in printed, printed


def test_there_are_enough_of_them_with_names_of_their_own() -> None:
    assert len({defect.name for defect in DEFECTS}) == len(DEFECTS) >= 20


def test_a_defect_that_does_not_apply_is_told(tmp_path: Path) -> None:
    gone = planted("gone", "nothing", "money.py::test", ("driver.py", "no such text", ""))
    with pytest.raises(DoesNotApply, match="occurs 0 times, and not once: adapt the defect"):
        copy_with(gone, tmp_path)


@pytest.mark.parametrize("defect", DEFECTS, ids=[defect.name for defect in DEFECTS])
def test_each_defect_applies_and_its_case_exists(defect: Defect) -> None:
    for file, old, _ in defect.edits:
        assert (CORE / file).read_text(encoding="utf-8").count(old) == 1, old
    module, _, case = defect.caught_by.partition("::")
    assert f"def {case.partition('[')[0]}(" in (FOLDER / module).read_text(encoding="utf-8")
