"""Records as JSON come back as they were, also across versions."""

from __future__ import annotations

import json
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stroma.cost import Usage
from stroma.errors import RecordCorrupt
from stroma.record_codec import (
    header_from_json,
    header_to_json,
    run_from_json,
    run_to_json,
    storable,
    usage_from_row,
    usage_to_row,
)
from stroma.records import Epoch, RecordHeader, RunRecord, RunStatus

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
NAMES = TEXT.filter(lambda text: "\0" not in text)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
USAGES = st.builds(
    Usage,
    st.integers(0, 10**12),
    st.integers(0, 10**12),
    st.none() | st.decimals(0, 10**6, places=9),
    NAMES,
    NAMES,
)
EPOCHS = st.lists(st.builds(Epoch, st.integers(0), st.integers(0), st.booleans()), min_size=1)
RUNS = st.builds(
    RunRecord,
    TEXT,
    st.sampled_from(RunStatus),
    tags=st.lists(TEXT, max_size=3).map(tuple),
    owner=TEXT,
    holder=TEXT,
    lease_expires_at=NUMBERS,
    epochs=EPOCHS.map(tuple),
    input_payload=st.binary(max_size=20),
    plan=st.binary(max_size=20),
    spend=USAGES,
    active_ms=NUMBERS,
    created_at=NUMBERS,
    updated_at=NUMBERS,
)
HEADERS = st.builds(
    RecordHeader,
    TEXT,
    st.integers(-1, 9),
    TEXT,
    st.sampled_from(["result", "attempt", "once"]),
    st.integers(0, 99),
    st.integers(-1, 99),
    TEXT,
    TEXT,
    TEXT,
    TEXT,
    TEXT,
    USAGES,
    NUMBERS,
    TEXT,
    NUMBERS,
)
RUN = RunRecord("r", RunStatus.PARTIAL, tags=("a",), input_payload=b"{}")


@given(RUNS)
def test_a_run_comes_back(run: RunRecord) -> None:
    assert run_from_json(run_to_json(run)) == run


@given(HEADERS)
def test_a_header_comes_back(header: RecordHeader) -> None:
    assert header_from_json(header_to_json(header)) == header


def test_a_cost_keeps_its_digits() -> None:
    run = RUN._replace(spend=Usage(1, 2, Decimal("0.000123400"), "m"))
    assert str(run_from_json(run_to_json(run)).spend.cost_usd) == "0.000123400"


def test_a_newer_version_may_add_and_an_older_one_may_lack() -> None:
    members = json.loads(run_to_json(RUN))
    members["from_a_later_version"] = 1
    del members["trace_parent"]
    assert run_from_json(json.dumps(members)) == RUN


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b"{}", b"\xff", b'{"run_id":"r","status":"ODD"}', run_to_json(RUN)[:-5]],
)
def test_what_was_never_written_is_corrupt(data: bytes) -> None:
    with pytest.raises(RecordCorrupt):
        run_from_json(data)
    with pytest.raises(RecordCorrupt):
        header_from_json(data)


def test_free_text_becomes_what_every_store_takes() -> None:
    assert storable("a\ud800b\0c") == "a\\ud800b\\x00c"
    assert storable("a\x1f\n\N{EURO SIGN}") == "a\x1f\n\N{EURO SIGN}"


def test_names_in_a_usage_become_what_every_store_takes() -> None:
    row = usage_to_row(Usage(1, 2, None, "a\ud800", "b\0"))
    assert row == (1, 2, "", "a\\ud800", "b\\x00")
    assert usage_from_row(row) == Usage(1, 2, None, "a\\ud800", "b\\x00")
