"""What a planted defect is."""

from __future__ import annotations

from dataclasses import dataclass

from tests.conformance.planted.copies import Edit, Store


@dataclass(frozen=True)
class Defect:
    """A mistake, planted in a copy of a store.

    Attributes:
        name: for the id of its test.
        topic: what the mistake is about, for the documentation.
        mistake: in words, for the documentation.
        store: what is copied.
        edits: what is changed in the copy.
        caught_by: the clauses that must fail.
    """

    name: str
    topic: str
    mistake: str
    store: Store
    edits: tuple[Edit, ...]
    caught_by: tuple[str, ...]
