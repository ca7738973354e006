"""The built-in table of prices, and the tool that writes it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from decimal import Decimal
from importlib.metadata import version
from pathlib import Path

import pytest
from genai_prices.data_snapshot import get_snapshot
from genai_prices.types import ConditionalPrice, ModelInfo, ModelPrice, TimeOfDateConstraint

from stroma import _price_data
from stroma.prices import BUILT_IN_PRICES, DatedPrices
from tools import update_prices


@contextmanager
def untraced() -> Iterator[None]:
    """Run something without the tracer of a measurement, if there is one."""
    tracer = sys.gettrace()
    sys.settrace(None)
    try:
        yield
    finally:
        sys.settrace(tracer)


with untraced():  # a literal of thousands of lines, for each of which a tracer would be called
    get_snapshot()

ROWS = {
    "flat": [("", 0, "1", "2")],
    "tiered": [("", 0, "1", "2"), ("", 1000, "3", "4"), ("", 5000, "5", "6")],
    "dearer": [("", 0, "1", "2"), ("2027-01-01", 0, "3", "4"), ("2027-01-01", 1000, "5", "6")],
}


def priced(model: str, input_tokens: int, day: str = "2026-11-21") -> tuple[int, int]:
    price = DatedPrices(ROWS, "test", lambda: date.fromisoformat(day))(model, input_tokens, 1)
    assert price is not None
    return int(price.input_usd), int(price.output_usd)


def test_what_is_written_is_what_the_tool_writes_from_the_pinned_version() -> None:
    text = Path(_price_data.__file__).read_text(encoding="utf-8")

    assert version("genai-prices") == _price_data.PACKAGE_VERSION
    assert update_prices.generate(date.fromisoformat(_price_data.DATA_DATE)) == text


def test_every_listed_model_has_a_price_above_zero() -> None:
    assert len(BUILT_IN_PRICES.models) >= 25
    for model in BUILT_IN_PRICES.models:
        for tokens in (1, 10_000_000):
            price = BUILT_IN_PRICES(model, tokens, 1)
            assert price is not None
            assert price.input_usd > 0
            assert price.output_usd > 0
            assert (
                price.source
                == f"genai-prices {_price_data.PACKAGE_VERSION}, {_price_data.DATA_DATE}"
            )


def test_the_table_agrees_with_the_package_that_it_is_from() -> None:
    from genai_prices import Usage, calc_price

    for provider, models in update_prices.MODELS.items():
        for model in models:
            for tokens in (1000, 100_000, 250_000, 300_000):
                ours = BUILT_IN_PRICES(model, tokens, 500)
                assert ours is not None
                theirs = calc_price(
                    Usage(input_tokens=tokens, output_tokens=500), model, provider_id=provider
                )
                assert ours.cost_usd(tokens, 500) == theirs.total_price, model


def test_a_model_that_is_not_listed_is_unknown_and_not_guessed() -> None:
    assert BUILT_IN_PRICES("gpt-4o-2099-01-01", 1, 1) is None
    assert BUILT_IN_PRICES("", 1, 1) is None


@pytest.mark.parametrize(
    ("model", "tokens", "expected"),
    [
        ("flat", 10**9, (1, 2)),
        ("tiered", 0, (1, 2)),
        ("tiered", 1000, (1, 2)),
        ("tiered", 1001, (3, 4)),
        ("tiered", 5001, (5, 6)),
    ],
)
def test_a_large_call_costs_more_for_all_its_tokens(
    model: str, tokens: int, expected: tuple[int, int]
) -> None:
    assert priced(model, tokens) == expected


def test_an_announced_price_holds_from_its_day() -> None:
    assert priced("dearer", 2000, "2026-12-31") == (1, 2)
    assert priced("dearer", 1000, "2027-01-01") == (3, 4)
    assert priced("dearer", 2000, "2027-06-01") == (5, 6)


def test_the_tool_refuses_prices_by_time_of_day() -> None:
    from datetime import time

    night = TimeOfDateConstraint(start_time=time(0), end_time=time(8))
    prices = [ConditionalPrice(constraint=night, prices=ModelPrice(input_mtok=Decimal(1)))]
    model = ModelInfo(id="owl", match=None, prices=prices)  # type: ignore[arg-type]

    with pytest.raises(SystemExit, match="owl has prices by time of day"):
        update_prices.prices_by_day(model, date(2026, 11, 21))


def test_the_tool_writes_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(update_prices, "TARGET", tmp_path / "data.py")
    monkeypatch.setattr("sys.argv", ["update_prices", "2026-11-21"])

    update_prices.main()

    assert "prices of 2026-11-21" in capsys.readouterr().out
    assert 'DATA_DATE: Final = "2026-11-21"' in (tmp_path / "data.py").read_text()
