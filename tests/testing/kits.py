"""Runs a file of conformance classes in a pytest of its own, and says what failed."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def clauses_failed(name: str, report: Path, *, is_right: bool) -> dict[str, set[str]]:
    """Return the clauses that failed in each class of a file, by the class's name.

    Args:
        name: the file, without its ending.
        report: where to write what pytest says.
        is_right: everything is to pass.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", str(HERE / f"{name}.py"), "-q", "--tb=line"),
            *("-p", "no:cacheprovider", f"--junit-xml={report}"),
        ],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == (0 if is_right else 1), done.stdout + done.stderr
    failed: dict[str, set[str]] = defaultdict(set)
    for case in ET.parse(report).iter("testcase"):
        clauses = failed[case.attrib["classname"].rpartition(".")[2]]
        if case.find("failure") is not None or case.find("error") is not None:
            clauses.add(case.attrib["name"].partition("[")[0])
    return dict(failed)


def classes_of(name: str) -> list[Any]:
    """Return the test classes of a file."""
    module = importlib.import_module(f"tests.testing.{name}")
    return [value for key, value in vars(module).items() if key.startswith("Test")]
