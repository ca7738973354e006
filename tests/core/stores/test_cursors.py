"""Cursors: what they say of a run is read back, and everything else is refused alike."""

from __future__ import annotations

import math
import re
import sys

import pytest

from stroma.errors import ConfigError
from stroma.records import RunRecord, RunStatus
from stroma.stores.rules import claim_cursor_after, cursor_after, cursor_position


def run(*, created_at: float = 1.5, updated_at: float = 2.5) -> RunRecord:
    blank = RunRecord("r\N{GRINNING FACE}\n1", RunStatus.RUNNING)
    return blank._replace(created_at=created_at, updated_at=updated_at)


def test_a_cursor_is_read_back_exactly() -> None:
    for time in (0.0, 0, -1.5, 1_700_000_000.123456, sys.float_info.max):
        assert cursor_position(cursor_after(run(updated_at=time))) == (time, run().run_id)
        assert cursor_position(claim_cursor_after(run(created_at=time))) == (time, run().run_id)


@pytest.mark.parametrize(
    "cursor", ["[1,2]", '[1,"a\\u0000"]', '[NaN,"a"]', "\ud800", "[" * 100_000]
)
def test_what_is_none_is_refused_in_the_same_words(cursor: str) -> None:
    said = f"{cursor!r:.200} is no cursor: pass the one that the page before came with"
    with pytest.raises(ConfigError, match=f"^{re.escape(said)}$"):
        cursor_position(cursor)


@pytest.mark.parametrize("time", [math.inf, math.nan])
def test_after_a_damaged_time_that_comes_first_follow_all_that_are_none(time: float) -> None:
    assert cursor_position(cursor_after(run(updated_at=time)))[0] == sys.float_info.max


@pytest.mark.parametrize("time", [math.inf, math.nan])
def test_after_a_damaged_time_that_comes_last_follows_nothing(time: float) -> None:
    assert claim_cursor_after(run(created_at=time)) == ""
