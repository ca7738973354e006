"""A plugin of pytest that writes how each clause ended, and whose word that was."""

from __future__ import annotations

import json
import os
from collections.abc import Generator
from pathlib import Path

import pytest

import stroma

KIT = Path(stroma.__file__).parent / "testing"
FILE = "STROMA_PLANTED_OUTCOMES"

_outcomes: list[tuple[str, str, str, bool, str]] = []


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note the outcome of a clause; pytest calls this."""
    report = yield
    if report.when == "call" or report.outcome != "passed":
        _outcomes.append(
            (
                item.nodeid.split("::")[1].removeprefix("Test_"),
                item.name.partition("[")[0],
                report.outcome,
                report.when == "call" and _is_of_the_kit(call.excinfo),
                str(call.excinfo.value)[:2000] if call.excinfo else "",
            )
        )
    return report


def _is_of_the_kit(error: pytest.ExceptionInfo[BaseException] | None) -> bool:
    """Say whether the kit itself asserted, and nothing else just broke."""
    if error is None or not error.errisinstance((AssertionError, pytest.fail.Exception)):
        return False
    pytests = Path(pytest.__file__).parents[1] / "_pytest"
    paths = [Path(entry.path) for entry in error.traceback]
    own = [path for path in paths if not path.is_relative_to(pytests)]
    return bool(own) and own[-1].is_relative_to(KIT)


def pytest_sessionfinish() -> None:
    """Write what was found; pytest calls this."""
    Path(os.environ[FILE]).write_text(json.dumps(_outcomes), encoding="utf-8")
