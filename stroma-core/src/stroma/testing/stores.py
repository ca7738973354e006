"""The conformance kit: what a store is, as tests that its author subclasses."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import pytest

from stroma.testing._cancelling import CancellationClauses
from stroma.testing._cancelling_threads import ThreadCancellationClauses
from stroma.testing._claimable import ClaimableClauses, ClaimantClauses
from stroma.testing._clauses import capability_of, report_of
from stroma.testing._forks import ProcessClauses, SkewClauses
from stroma.testing._interleaved import RemovalBesideWorkClauses, StatesBesideWorkClauses
from stroma.testing._kills import KillClauses
from stroma.testing._kit import Kit
from stroma.testing._large import LargeValueClauses, LimitClauses
from stroma.testing._level0 import IdClauses, StateClauses
from stroma.testing._listing import ListingClauses
from stroma.testing._machine import RecordMachineClauses, StateMachineClauses
from stroma.testing._network import NetworkClauses
from stroma.testing._outage import OutageClauses
from stroma.testing._ownership import OwnershipClauses
from stroma.testing._records import RecordClauses
from stroma.testing._retention import RetentionClauses
from stroma.testing._runs import RunClauses
from stroma.testing.subject import StoreSubject


class StoreConformance(
    SkewClauses,
    NetworkClauses,
    OutageClauses,
    KillClauses,
    ProcessClauses,
    ThreadCancellationClauses,
    CancellationClauses,
    LimitClauses,
    LargeValueClauses,
    RemovalBesideWorkClauses,
    RetentionClauses,
    ClaimableClauses,
    ListingClauses,
    ClaimantClauses,
    RecordMachineClauses,
    OwnershipClauses,
    RecordClauses,
    RunClauses,
    IdClauses,
    StateMachineClauses,
    StatesBesideWorkClauses,
    StateClauses,  # pytest begins with the last base
):
    """The rules that every store keeps, one test each.

    Subclass it with one fixture, `subject`. What a store does not offer is skipped with the
    reason; the end of pytest's output says for each class what is kept. The clauses are plain
    functions with a loop of their own, whatever the project's asyncio mode; stores may be sync
    or async, of level 0 or 1.

    A clause that a store cannot keep is overridden in the subclass, so that it is seen.
    """

    @pytest.fixture
    def subject(self) -> StoreSubject:
        """Return what the conformance class is about; each subclass gives its own."""
        pytest.fail(
            f"{type(self).__name__} needs a fixture: def subject(self) -> StoreSubject, "
            "see stroma.testing.StoreSubject",
            pytrace=False,
        )

    @pytest.fixture
    def kit(self, subject: StoreSubject, request: pytest.FixtureRequest) -> Iterator[Kit]:
        """Yield what a clause works with; the store objects that it made are closed."""
        kit = Kit(subject)
        try:
            _note_what_is_not_offered(kit, request)
            yield kit
        finally:
            kit.close()


def _note_what_is_not_offered(kit: Kit, request: pytest.FixtureRequest) -> None:
    capability = capability_of(request.function)
    if capability is None:
        return
    report = report_of(request.config)
    subject = request.node.nodeid.rpartition("::")[0]
    report.expect(request.node.nodeid, subject, capability.name)
    reason = capability.reason_not(kit)
    if reason is not None:
        report.not_asked(request.node.nodeid, reason)


def clauses_of(cls: type[StoreConformance]) -> Iterator[tuple[str, str, str]]:
    """Yield the capability, name and guarantee of each clause, for documentation."""
    for name in dir(cls):
        function = getattr(cls, name)
        if name.startswith("test_") and (capability := capability_of(function)) is not None:
            yield capability.name, name, inspect.getdoc(function) or ""
