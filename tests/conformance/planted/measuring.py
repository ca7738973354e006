"""Runs the kit on copies of a store, in a pytest of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from tests.conformance.planted import outcome
from tests.conformance.planted.copies import ROOT, Store
from tests.conformance.planted.defect import Defect

SOUND: Final = "sound"
"""The name of the copy without a defect."""

_HEAD = """
import hashlib
import os
import pytest
from stroma.testing import FakeClock, StoreConformance, StoreSubject
"""
_CLASS = """

class Test_{name}(StoreConformance):
    kill_points = 16

    @pytest.fixture
    def subject(self, tmp_path):
{subject}
"""


class Outcome(NamedTuple):
    """How a clause ended, once for each of its parameters.

    Attributes:
        copy: the name of the defect, or `SOUND`.
        clause: its name.
        outcome: "passed", "failed" or "skipped".
        by_kit: it failed by an assertion of the kit, not because something broke.
        said: the message.
    """

    copy: str
    clause: str
    outcome: str
    by_kit: bool
    said: str


def outcomes_of(
    store: Store,
    defects: Sequence[Defect],
    folder: Path,
    *,
    server: str = "",
    is_whole: bool = False,
) -> dict[str, list[Outcome]]:
    """Run the clauses that must catch them on copies with a defect each, and on one without.

    Args:
        store: what is copied.
        defects: of this store.
        folder: an empty one, for the copies.
        server: host and port, for a store that needs one.
        is_whole: run all clauses on each.

    Returns:
        How the clauses ended, by the name of the copy.

    Raises:
        DoesNotApply: the text of an edit does not occur exactly once.
        AssertionError: pytest could not run them.
    """
    copies = {SOUND: store.edited()} | {d.name: store.edited(d.edits, d.name) for d in defects}
    clauses = {d.name: d.caught_by for d in defects}
    clauses[SOUND] = tuple(dict.fromkeys(c for d in defects for c in d.caught_by))
    text, tests = _HEAD, []
    for name, files in copies.items():
        package = f"planted_{_identifier(name)}"
        store.write(files, folder / package)
        subject = store.subject.replace("PACKAGE", package)
        text += _CLASS.format(name=_identifier(name), subject=subject)
        whole = f"test_planted.py::Test_{_identifier(name)}"
        tests += [whole] if is_whole else [f"{whole}::{clause}" for clause in clauses[name]]
    (folder / "test_planted.py").write_text(text, encoding="utf-8")
    found: dict[str, list[Outcome]] = defaultdict(list)
    names = {_identifier(name): name for name in copies}
    for copy, *rest in _run(tests, folder, server):
        found[names[copy]].append(Outcome(names[copy], *rest))
    return found


def _identifier(name: str) -> str:
    return name.replace("-", "_")


def _run(tests: list[str], folder: Path, server: str) -> list[list[str]]:
    (folder / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    report = folder / "outcomes.json"
    path = os.pathsep.join([str(folder), str(ROOT), *filter(None, sys.path)])
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider"),
            *("-p", outcome.__name__, f"--basetemp={folder / 'tmp'}", *tests),
        ],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": path,
            "STROMA_PLANTED_SERVER": server,
            outcome.FILE: str(report),
        },
        capture_output=True,
        text=True,
    )
    printed = done.stdout + done.stderr
    assert done.returncode in (0, 1), printed
    assert report.exists(), printed
    return json.loads(report.read_text(encoding="utf-8"))  # type: ignore[no-any-return]
