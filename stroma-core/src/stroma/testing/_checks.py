"""What several clauses check in the same way."""

from __future__ import annotations

from stroma.records import CheckpointRecord, RunRecord
from stroma.testing._kit import Driven, Kit
from stroma.testing._values import commit

ODD_TEXT = 'Gr\u00fc\u00dfe \N{EURO SIGN} \N{GRINNING FACE} "quoted" \\ \' ; \n %s {0} \x1f'


def outcome_is(outcome: object, kind: type, what: str) -> None:
    """Check how a commit was refused."""
    assert isinstance(outcome, kind), (
        f"{what} must be refused with {kind.__name__}, not {outcome!r}"
    )


def written(store: Driven, one: CheckpointRecord, *, token: str = "alice") -> None:
    """Commit a record that must be taken."""
    outcome = store.commit(commit(one, token=token))
    assert outcome is None, f"a commit by the run's owner was refused: {outcome!r}"


def same_run(kit: Kit, found: RunRecord, expected: RunRecord, problem: str) -> None:
    """Check that two run records are equal, name what differs."""
    wrong = [
        f"{name}: {b!r} became {a!r}"
        for name, a, b in zip(found._fields, found, expected, strict=True)
        if a != b and not _is_same_time(name, a, b)
    ]
    assert not wrong, f"{problem}: {'; '.join(wrong)}"


def _is_same_time(name: str, a: object, b: object) -> bool:
    # Columns of time may be kept in whole microseconds.
    return name.endswith("_at") and abs(float(str(a)) - float(str(b))) < 2e-6
