"""What a planted defect is: an edit of a copy of the core, and the case that fails with it."""

from __future__ import annotations

from typing import NamedTuple

from tests.conformance.planted.copies import Edit


class Defect(NamedTuple):
    """A mistake, planted in a copy of the core.

    Attributes:
        name: for the id of its test.
        mistake: in words.
        edits: what is changed in the copy.
        caught_by: the case that must fail, as "module::test" below this folder.
    """

    name: str
    mistake: str
    edits: tuple[Edit, ...]
    caught_by: str


def planted(name: str, mistake: str, caught_by: str, *edits: tuple[str, str, str]) -> Defect:
    """Return a defect.

    Args:
        name: see `Defect`.
        mistake: see `Defect`.
        caught_by: the same, without the "test_" that modules begin with.
        *edits: file, what stands there exactly once, and what it becomes.
    """
    return Defect(name, mistake, tuple(Edit(*edit) for edit in edits), f"test_{caught_by}")
