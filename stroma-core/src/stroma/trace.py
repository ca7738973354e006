"""What happened in a run, attempt by attempt: bounded, and without payloads unless asked."""

import json
from collections import deque
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Annotated, Any, Final, Literal, NamedTuple, TypeAlias

from pydantic import BeforeValidator, Field, field_validator

from stroma.options import Options, list_of_names, no_bool

EventKind: TypeAlias = Literal["succeeded", "failed", "skipped", "budget", "fallback", "cancelled"]

_FIXED_BYTES = 400
"""What an event takes, ids included, without its texts, roughly; for the bound in bytes."""


class TraceEvent(NamedTuple):
    """One thing that happened.

    Attributes:
        kind: "succeeded" and "failed" are attempts; "skipped" is a recorded result that was
            used; "cancelled" an attempt that was cut; "budget" a reached limit; "fallback"
            a change of model.
        node_id: the node.
        path: its place, such as "extract[17]".
        attempt: 1 for the first call of this start; 0 where there was no call.
        at: seconds since the epoch at the end of it.
        duration_ms: milliseconds that the call took.
        digest: first 16 hex digits of the SHA-256 of the output's JSON, or "".
        model: the model that the usage names, or "".
        tokens: input and output tokens together.
        cost_usd: what they cost, or None where nobody knows.
        failure_class: the class of a failure, or "".
        failure_message: what failed, or "".
        retry_delay_seconds: the wait before the next attempt, or None if there was none.
        preview: the beginning of the output's JSON, when previews are on.
    """

    kind: EventKind
    node_id: str
    path: str
    attempt: int
    at: float
    duration_ms: float = 0.0
    digest: str = ""
    model: str = ""
    tokens: int = 0
    cost_usd: Decimal | None = None
    failure_class: str = ""
    failure_message: str = ""
    retry_delay_seconds: float | None = None
    preview: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the event as JSON-compatible data; money as text."""
        data = self._asdict()
        data["cost_usd"] = None if self.cost_usd is None else str(self.cost_usd)
        return data


EventRow: TypeAlias = tuple[
    EventKind,
    str,
    str,
    int,
    float,
    float,
    str,
    str,
    int,
    Decimal | None,
    str,
    str,
    float | None,
    str,
]
"""The members of a `TraceEvent`."""

_MESSAGE: Final = 11
_PREVIEW: Final = 13


def _field_names(value: object) -> tuple[str, ...]:
    return list_of_names(value, "name of a field")


class TraceOptions(Options):
    """Bounds and contents of a trace.

    Attributes:
        max_events: the oldest events are dropped beyond this many.
        max_bytes: and beyond roughly this size.
        preview_bytes: how much of each output to keep; 0 keeps none.
        redact: names of fields, at any depth, whose values previews leave out.

    Raises:
        ConfigError: a bound is negative or no number, or the names are no list.
    """

    max_events: int = Field(default=10_000, ge=0)
    max_bytes: int = Field(default=8_000_000, ge=0)
    preview_bytes: int = Field(default=0, ge=0)
    redact: Annotated[frozenset[str], BeforeValidator(_field_names)] = frozenset()

    _no_bools = field_validator("max_events", "max_bytes", "preview_bytes", mode="before")(no_bool)

    def preview(self, payload: bytes) -> str:
        """Return the beginning of a payload with redacted fields replaced, or ""."""
        if not self.preview_bytes:
            return ""
        if self.redact:
            payload = json.dumps(
                _redacted(json.loads(payload), self.redact), ensure_ascii=False
            ).encode()
        return payload[: self.preview_bytes].decode(errors="replace")


def _redacted(value: Any, names: frozenset[str]) -> Any:
    if isinstance(value, dict):
        return {k: "[redacted]" if k in names else _redacted(v, names) for k, v in value.items()}
    if isinstance(value, list):
        return [_redacted(item, names) for item in value]
    return value


class TraceDifference(NamedTuple):
    """How one place went in two runs.

    Attributes:
        path: the place.
        before: what happened there in the first run, as a phrase.
        after: and in the second.
    """

    path: str
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.path}: {self.before} -> {self.after}"


class ExecutionTrace:
    """The events of one start of a run, oldest first.

    Attributes:
        run_id: the run.
        dropped: how many events the bounds dropped.
    """

    def __init__(self, run_id: str = "", options: TraceOptions | None = None) -> None:
        self.run_id = run_id
        self.options = options or TraceOptions()
        self.dropped = 0
        self._max_events = min(self.options.max_events, self.options.max_bytes // _FIXED_BYTES)
        self._max_text_bytes = self.options.max_bytes - self._max_events * _FIXED_BYTES
        self._text_bytes = 0
        self._events: deque[EventRow] = deque()

    def add(self, event: EventRow) -> None:
        """Append an event, dropping the oldest ones when the trace is full.

        Args:
            event: a `TraceEvent`, or its members as a bare tuple, which is made faster, and
                which the garbage collector does not look at again.
        """
        self._events.append(event)
        if event[_MESSAGE] or event[_PREVIEW]:
            self._text_bytes += _text_bytes(event)
        if len(self._events) > self._max_events or self._text_bytes > self._max_text_bytes:
            self._shrink()

    def _shrink(self) -> None:
        events = self._events
        while events and (
            len(events) > self._max_events
            or self._text_bytes + len(events) * _FIXED_BYTES > self.options.max_bytes
        ):
            self._text_bytes -= _text_bytes(events.popleft())
            self.dropped += 1

    @property
    def events(self) -> tuple[TraceEvent, ...]:
        """All events that were kept."""
        return tuple(map(TraceEvent._make, self._events))

    def __iter__(self) -> Iterator[TraceEvent]:
        return iter(self.events)

    def __len__(self) -> int:
        return len(self._events)

    def where(self, keep: Callable[[TraceEvent], bool]) -> list[TraceEvent]:
        """Return the events that ``keep`` accepts."""
        return [event for event in self.events if keep(event)]

    def failures(self) -> list[TraceEvent]:
        """Return the failed attempts."""
        return self.where(lambda event: event.kind == "failed")

    def successes(self) -> list[TraceEvent]:
        """Return the attempts that gave a result."""
        return self.where(lambda event: event.kind == "succeeded")

    def skipped(self) -> list[TraceEvent]:
        """Return the recorded results that were used."""
        return self.where(lambda event: event.kind == "skipped")

    def retries(self) -> list[TraceEvent]:
        """Return the failed attempts that were followed by another one."""
        return self.where(lambda event: event.retry_delay_seconds is not None)

    def for_node(self, node_id: str) -> list[TraceEvent]:
        """Return what happened at a node, in all of its items."""
        return self.where(lambda event: event.node_id == node_id)

    def to_json(self, *, indent: int | None = None) -> str:
        """Return the trace as JSON."""
        document = {
            "run_id": self.run_id,
            "dropped": self.dropped,
            "events": [event.to_dict() for event in self.events],
        }
        return json.dumps(document, indent=indent, ensure_ascii=False)

    def diff(self, other: "ExecutionTrace") -> list[TraceDifference]:
        """Return where another run went differently: path, attempts, outputs, models, cost.

        Ids and times are not compared.
        """
        mine, theirs = _summary(self), _summary(other)
        return [
            TraceDifference(path, mine.get(path, "absent"), theirs.get(path, "absent"))
            for path in dict.fromkeys([*mine, *theirs])
            if mine.get(path) != theirs.get(path)
        ]


def _text_bytes(event: EventRow) -> int:
    return len(event[_MESSAGE]) + len(event[_PREVIEW])


def _summary(trace: ExecutionTrace) -> dict[str, str]:
    """Return what happened at each place, as one phrase."""
    events: dict[str, list[TraceEvent]] = {}
    for event in trace:
        events.setdefault(event.path, []).append(event)
    return {path: _phrase(found) for path, found in events.items()}


def _phrase(events: list[TraceEvent]) -> str:
    calls = sum(event.attempt > 0 for event in events)
    last = events[-1]
    parts = [last.kind if calls < 2 else f"{last.kind} after {calls} attempts"]
    if last.failure_message and last.kind != "budget":  # which says when, and so always differs
        parts.append(last.failure_message)
    if last.digest:
        parts.append(f"output {last.digest}")
    models = dict.fromkeys(event.model for event in events if event.model)
    if models:
        parts.append(f"model {'+'.join(models)}")
    tokens = sum(event.tokens for event in events)
    cost = sum((event.cost_usd for event in events if event.cost_usd), Decimal(0))
    if tokens or cost:
        parts.append(f"{tokens} tokens, ${cost}")
    return ", ".join(parts)
