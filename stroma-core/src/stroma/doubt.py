"""What became of each call of a run, as its records tell: settled, or in doubt."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from stroma.records import PLAIN_EPOCH, RecordHeader
from stroma.result import InDoubt

RESERVATION_REF: Final = "stroma:reservation"
"""Schema reference of a record that was written before a call was made."""
RESOLUTION_REF: Final = "stroma:resolution"
"""Schema reference of a record of what somebody said became of a call."""
_DOUBT_REF: Final = "stroma:in-doubt/"
DIED: Final = "died"
"""Why a call is in doubt of which only the reservation is there: its process ended meanwhile."""

_Place = tuple[int, str, int]


def doubt_ref(reason: str) -> str:
    """Return the schema reference of an attempt that was cut for a reason."""
    return _DOUBT_REF + reason


def token_of(header: RecordHeader) -> str:
    """Return the token of the worker that wrote a record."""
    return header.commit_id.rpartition(".")[0]


class Doubt(NamedTuple):
    """A call of which nobody knows what became of it.

    Attributes:
        header: the record that it is charged by.
        reason: why; see `InDoubt`.
    """

    header: RecordHeader
    reason: str

    def told(self) -> InDoubt:
        """Return it as results list it."""
        header = self.header
        return InDoubt(header.path, header.attempt, self.reason, header.usage)


class CallAccount(NamedTuple):
    """The calls of some epochs.

    Attributes:
        counted: headers whose usage counts, each call once.
        in_doubt: the calls that nobody has settled or resolved.
        made: number of the last call of each place, recorded or reserved. Epochs go on counting,
            so that the number tells calls of one place apart.
    """

    counted: tuple[RecordHeader, ...]
    in_doubt: tuple[Doubt, ...]
    made: Mapping[str, int]


def account_of(headers: Iterable[RecordHeader]) -> CallAccount:
    """Return what is known of the calls that these records are of.

    Of one call there may be several records. What somebody said of it counts before what its
    worker recorded, and that before the reservation. A result settles the reservation of the
    worker that wrote it: a worker reserves a place again only after it recorded what became of
    its call before.
    """
    known = [header for header in headers if header.epoch != PLAIN_EPOCH]
    resolved = _places(known, "resolved")
    attempts = _places(known, "attempt")
    answered = {(h.epoch, h.path, token_of(h)) for h in known if h.kind == "result"}
    counted: list[RecordHeader] = []
    in_doubt: list[Doubt] = []
    made: dict[str, int] = {}
    for header in known:
        made[header.path] = max(header.attempt, made.get(header.path, 0))
        place = (header.epoch, header.path, header.attempt)
        if header.kind in ("result", "resolved", "once"):
            counted.append(header)
        elif place in resolved:
            continue
        elif header.kind == "attempt":
            counted.append(header)
            if header.schema_ref.startswith(_DOUBT_REF):
                in_doubt.append(Doubt(header, header.schema_ref.removeprefix(_DOUBT_REF)))
        elif (
            place not in attempts and (header.epoch, header.path, token_of(header)) not in answered
        ):
            counted.append(header)
            in_doubt.append(Doubt(header, DIED))
    return CallAccount(tuple(counted), tuple(in_doubt), made)


def _places(headers: Sequence[RecordHeader], kind: str) -> Mapping[_Place, RecordHeader]:
    return {(h.epoch, h.path, h.attempt): h for h in headers if h.kind == kind}
