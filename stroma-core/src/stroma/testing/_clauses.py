"""How clauses are grouped by what they ask of a store, and what is said of it in the end."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, TypeVar

import pytest

from stroma.testing._kit import Kit

C = TypeVar("C", bound=type)

ReasonNot = Callable[[Kit], str | None]
"""Says why a store is not asked for something, or None if it is."""

_PLUGIN: Final = "stroma-conformance"


def always(kit: Kit) -> str | None:
    """Ask every store."""
    return None


def if_records(kit: Kit) -> str | None:
    """Ask stores of level 1."""
    if kit.keeps_records:
        return None
    return "it is a level 0 store: it has no open_run, commit_many and fetch"


def if_fencing(kit: Kit) -> str | None:
    """Ask stores that say that they fence."""
    return if_records(kit) or (
        None if kit.capabilities.fencing else "capabilities.fencing is False: workers may meet"
    )


def if_outlives(kit: Kit) -> str | None:
    """Ask stores whose data outlive the process, where processes can be forked."""
    if not hasattr(os, "fork"):
        return "this system cannot fork"
    if kit.outlives_process:
        return None
    return "its data are gone with the process"


def if_async(kit: Kit) -> str | None:
    """Ask stores whose operations are awaited."""
    return None if kit.is_async else "it is sync: its operations have no points to cancel at"


def if_server(kit: Kit) -> str | None:
    """Ask stores whose server can be put behind a proxy."""
    if kit.subject.address is not None:
        return None
    return "no StoreSubject.address and make_at: there is no server, or it was not said where"


@dataclass(frozen=True)
class Capability:
    """What a group of clauses is about.

    Attributes:
        name: for the report.
        reason_not: says why a store is not asked.
    """

    name: str
    reason_not: ReasonNot


_of_class: Final[dict[str, Capability]] = {}


def clauses(name: str, reason_not: ReasonNot) -> Callable[[C], C]:
    """Say of a mixin which capability its clauses are about."""

    def mark(cls: C) -> C:
        _of_class[cls.__qualname__] = Capability(name, reason_not)
        return cls

    return mark


def capability_of(function: Callable[..., object]) -> Capability | None:
    """Return the capability of a clause, or None for a test that the author added."""
    return _of_class.get(function.__qualname__.partition(".")[0])


@dataclass
class _Findings:
    """What was found of one store class."""

    outcomes: dict[str, dict[str, int]] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)


class ConformanceReport:
    """Counts how the clauses of each class ended, and says so at the end of the session."""

    def __init__(self) -> None:
        self._capability: dict[str, tuple[str, str]] = {}
        self._found: dict[str, _Findings] = {}
        self._skips: dict[str, str] = {}

    def expect(self, nodeid: str, subject: str, capability: str) -> None:
        """Note which capability a test is about."""
        self._capability[nodeid] = (subject, capability)
        self._found.setdefault(subject, _Findings()).outcomes.setdefault(capability, {})

    def not_asked(self, nodeid: str, reason: str) -> None:
        """Note why a clause is skipped."""
        subject, capability = self._capability[nodeid]
        self._found[subject].reasons[capability] = reason
        self._skips[nodeid] = f"{capability}: {reason}"

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> None:
        """Skip a clause; here and not in a fixture, so that pytest shows one line for them all."""
        reason = self._skips.pop(item.nodeid, None)
        if reason is not None:
            pytest.skip(reason)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count a clause; pytest calls this."""
        place = self._capability.get(report.nodeid)
        if place is None or (report.when != "call" and not report.failed and not report.skipped):
            return
        counts = self._found[place[0]].outcomes[place[1]]
        counts[report.outcome] = counts.get(report.outcome, 0) + 1

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Write the table; pytest calls this."""
        terminalreporter.section("stroma conformance")
        for line in self.lines():
            terminalreporter.write_line(line)

    def lines(self) -> list[str]:
        """Return the table of each class: capability, whether it is kept, and why not."""
        lines: list[str] = []
        for subject, found in self._found.items():
            lines.append(subject)
            lines += [
                f"  {capability:<28} {_verdict(counts, found.reasons.get(capability))}"
                for capability, counts in found.outcomes.items()
            ]
        return lines


def _verdict(counts: dict[str, int], reason: str | None) -> str:
    failed, passed = counts.get("failed", 0), counts.get("passed", 0)
    if failed:
        return f"NO: {failed} of {failed + passed} clauses are broken"
    if passed:
        return f"yes: {passed} clause{'s' if passed > 1 else ''} kept"
    return f"no: {reason or 'its clauses were skipped'}"


def report_of(config: pytest.Config) -> ConformanceReport:
    """Return the session's report, made now if this is its first conformance class."""
    found = config.pluginmanager.get_plugin(_PLUGIN)
    if found is None:
        found = ConformanceReport()
        config.pluginmanager.register(found, _PLUGIN)
    assert isinstance(found, ConformanceReport)
    return found
