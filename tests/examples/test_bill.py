"""examples/bill.py: the table, and what has to hold in it."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.examples.processes import run

pytestmark = [pytest.mark.crash, pytest.mark.slow]


class Row(NamedTuple):
    billed: int
    twice: int
    in_doubt: int
    usd: Decimal


def table(out: str) -> list[Row]:
    """Return the rows of the Markdown table, after its head."""
    lines = [line for line in out.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    return [
        Row(int(billed), int(twice), int(in_doubt), Decimal(usd.removeprefix("$")))
        for _, billed, twice, in_doubt, usd in rows
    ]


def test_the_table(tmp_path: Path) -> None:
    done = run("bill.py", "--markdown", cwd=tmp_path)
    assert (done.code, done.err) == (0, ""), done.err
    assert all(line.startswith("|") for line in done.out.splitlines())
    plain, kept = table(done.out)
    assert plain == Row(800, 300, 300, plain.usd)
    assert kept == Row(520, 20, 20, kept.usd)
    assert plain.usd / kept.usd > Decimal("1.5")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("calls", "concurrency", "share"), [(1, 20, 0.6), (40, 3, 0.01)])
def test_other_sizes(tmp_path: Path, calls: int, concurrency: int, share: float) -> None:
    sizes = ("--calls", calls, "--concurrency", concurrency, "--kill-at", share)
    done = run("bill.py", *sizes, "--latency-ms", 5, cwd=tmp_path)
    assert (done.code, done.err) == (0, ""), done.err
    plain, kept = table(done.out)
    assert kept.twice == kept.in_doubt == min(concurrency, calls)
    assert kept.billed == calls + kept.twice
    assert plain.billed == calls + plain.twice
    assert kept.usd <= plain.usd


@pytest.mark.parametrize("option", [["--calls", "0"], ["--kill-at", "2"], ["--latency-ms", "x"]])
def test_wrong_options(tmp_path: Path, option: list[str]) -> None:
    done = run("bill.py", *option, cwd=tmp_path)
    assert done.code == 2
    assert option[0] in done.err
