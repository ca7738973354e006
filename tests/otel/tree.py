"""A tree of spans as text, for the documentation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import StatusCode

from tests.otel.support import attributes_of, id_of, in_order, parent_of

WIDTH = 36


def rendered(spans: Iterable[ReadableSpan]) -> str:
    """Return the spans below each other, with what says how they went."""
    ordered = in_order(spans)
    roots = [span for span in ordered if span.parent is None]
    return "\n".join(line for root in roots for line in _lines(root, ordered, "", ""))


def _lines(span: ReadableSpan, spans: list[ReadableSpan], first: str, others: str) -> Iterator[str]:
    yield f"{first + span.name:{WIDTH}}{', '.join(_told(span))}".rstrip()
    children = [each for each in spans if parent_of(each) == id_of(span)]
    for event in span.events:
        mark = "│ " if children else "  "
        model = dict(event.attributes or {}).get("stroma.model", "")
        yield f"{others + mark + '• ' + event.name:{WIDTH}}{model}".rstrip()
    for number, child in enumerate(children, 1):
        is_last = number == len(children)
        branch, below = ("└ ", "  ") if is_last else ("├ ", "│ ")
        yield from _lines(child, spans, others + branch, others + below)


def _told(span: ReadableSpan) -> Iterator[str]:
    told: dict[str, Any] = attributes_of(span)
    if span.status.status_code is not StatusCode.UNSET:
        yield span.status.status_code.name
    for name, shown in (
        ("stroma.run.status", "{}"),
        ("error.type", "{}"),
        ("stroma.failure.class", "{}"),
        ("stroma.retry.delay", "again in {} s"),
    ):
        if name in told:
            yield shown.format(told[name])
    if "stroma.run.recorded_nodes" in told:
        yield f"recorded: {' '.join(told['stroma.run.recorded_nodes'])}"
    if "stroma.usage.input_tokens" in told:
        tokens = told["stroma.usage.input_tokens"] + told["stroma.usage.output_tokens"]
        yield f"{tokens} tokens, ${told['stroma.cost.usd']:.4f}"
    if span.links:
        yield "linked to the first start"
