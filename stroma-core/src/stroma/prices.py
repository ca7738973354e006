"""The built-in table of prices: common models only, asked after every other pricer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Final, NamedTuple

from stroma._price_data import ROWS, SOURCE
from stroma.cost import Price


class _Row(NamedTuple):
    from_day: str
    above_tokens: int
    price: Price


class DatedPrices:
    """A pricer whose prices depend on the day and on the size of the call.

    The price is that of the call's own number of input tokens, as providers bill it: above a
    threshold all tokens of the call cost more. Where a node reports several calls as one, this
    is never less than what they cost. The table knows neither cached tokens nor batches nor
    tiers of service: who uses those passes a pricer of their own, or installs one.

    Args:
        rows: for each model, oldest day first and then by tokens: the ISO date from which a
            price holds ("" for always), the number of input tokens above which it does, and
            USD for a million input and output tokens.
        source: where they are from.
        today: returns the day; None is the day in UTC.
    """

    def __init__(
        self,
        rows: Mapping[str, Sequence[tuple[str, int, str, str]]],
        source: str,
        today: Callable[[], date] | None = None,
    ) -> None:
        self._rows = rows
        self._source = source
        self._today = today or _utc_today
        self._made: dict[str, tuple[_Row, ...]] = {}

    @property
    def models(self) -> tuple[str, ...]:
        """The names that are known."""
        return tuple(self._rows)

    def __call__(self, model: str, input_tokens: int, output_tokens: int, /) -> Price | None:
        """Return the price that holds for a call, or None when the model is not in the table."""
        rows = self._made.get(model) or self._make(model)
        if len(rows) < 2:
            return rows[0].price if rows else None
        newest = self._newest_day(rows)
        fitting = (
            row
            for row in reversed(rows)
            if row.from_day == newest and (input_tokens > row.above_tokens or not row.above_tokens)
        )
        return next(fitting).price

    def _newest_day(self, rows: tuple[_Row, ...]) -> str:
        if not rows[-1].from_day:
            return ""
        day = self._today().isoformat()
        return max(row.from_day for row in rows if row.from_day <= day)

    def _make(self, model: str) -> tuple[_Row, ...]:
        rows = tuple(
            _Row(day, tokens, Price(Decimal(i), Decimal(o), self._source))
            for day, tokens, i, o in self._rows.get(model, ())
        )
        if rows:
            self._made[model] = rows
        return rows


def _utc_today() -> date:
    return datetime.now(UTC).date()


BUILT_IN_PRICES: Final = DatedPrices(ROWS, SOURCE)
"""What common models cost. Names are exact: what is not listed is unknown, never guessed."""
