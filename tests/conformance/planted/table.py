"""All planted defects."""

from __future__ import annotations

from typing import Final

from tests.conformance.planted.of_claimables import CLAIMABLES
from tests.conformance.planted.of_ids import IDS
from tests.conformance.planted.of_lists import LISTS
from tests.conformance.planted.of_owners import OWNERS
from tests.conformance.planted.of_processes import PROCESSES
from tests.conformance.planted.of_records import COMMITS
from tests.conformance.planted.of_redis import SERVERS

DEFECTS: Final = (*IDS, *COMMITS, *OWNERS, *LISTS, *CLAIMABLES, *PROCESSES, *SERVERS)


def documented() -> str:
    """Return the table of mistakes for the reference."""
    topics = dict.fromkeys(defect.topic for defect in DEFECTS)
    rows = [
        f"| {topic} | {'; '.join(d.mistake for d in DEFECTS if d.topic == topic)} |"
        for topic in topics
    ]
    return "\n".join(["| About | Mistakes |", "| --- | --- |", *rows])
