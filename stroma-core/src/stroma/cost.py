"""Usage, prices and budgets: what a run spent, and what it may spend."""

import logging
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

from pydantic import Field, field_validator

from stroma.errors import BudgetExceeded, ConfigError, UnknownPrice
from stroma.options import Options, no_bool

logger = logging.getLogger("stroma")

ZERO_USD = Decimal(0)


class Usage(NamedTuple):
    """What one attempt, one node or one run used.

    Attributes:
        input_tokens: tokens sent; all of them where the node did not tell them apart.
        output_tokens: tokens received.
        cost_usd: what they cost; None while nobody could price some of them.
        model: the model, or several joined by "+"; "" when the node named none.
        price_source: where the price is from; "" when nothing was priced.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: Decimal | None = ZERO_USD
    model: str = ""
    price_source: str = ""

    @property
    def tokens(self) -> int:
        """Input and output tokens together."""
        return self.input_tokens + self.output_tokens

    def plus(self, other: "Usage") -> "Usage":
        """Return the sum; its cost is unknown when one of the costs is."""
        if self is NO_USAGE:
            return other
        if other is NO_USAGE:
            return self
        unknown = self.cost_usd is None or other.cost_usd is None
        return Usage(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            None if unknown else (self.cost_usd or ZERO_USD) + (other.cost_usd or ZERO_USD),
            _joined(self.model, other.model),
            _joined(self.price_source, other.price_source),
        )


NO_USAGE = Usage()


def _joined(first: str, second: str) -> str:
    if not second or first == second:
        return first
    names = dict.fromkeys([*first.split("+"), *second.split("+")])
    return "+".join(name for name in names if name)


class Price(NamedTuple):
    """What tokens of one model cost.

    Attributes:
        input_usd: for a million input tokens.
        output_usd: for a million output tokens.
        source: where the figures are from, with their date.
    """

    input_usd: Decimal
    output_usd: Decimal
    source: str

    def cost_usd(self, input_tokens: int, output_tokens: int) -> Decimal:
        """Return the cost of these tokens."""
        return (self.input_usd * input_tokens + self.output_usd * output_tokens) / 1_000_000


class Pricer(Protocol):
    """Prices the tokens of a call. Asked in order, the built-in table last."""

    def __call__(self, model: str, input_tokens: int, output_tokens: int, /) -> Price | None:
        """Return the price per million tokens that holds for this call, or None."""
        ...


class PriceTable:
    """A pricer with fixed prices by model name.

    Args:
        prices: USD for a million (input, output) tokens, by model.
        source: where they are from.

    Raises:
        ConfigError: a price is negative or no number, or the source no text.
    """

    def __init__(
        self, prices: Mapping[str, tuple[Decimal | float | str, Decimal | float | str]], source: str
    ) -> None:
        _check_source(source)
        self._prices: dict[str, Price] = {}
        for model, pair in prices.items():
            if not isinstance(pair, tuple | list) or len(pair) != 2:
                raise ConfigError(
                    f"the prices of model {model!r} must be two: USD for a million input tokens, "
                    "and for a million output tokens"
                )
            self._prices[model] = Price(_usd(model, pair[0]), _usd(model, pair[1]), source)

    def __call__(self, model: str, input_tokens: int, output_tokens: int, /) -> Price | None:
        """Return the price of a model, or None."""
        return self._prices.get(model)


def _check_source(source: object) -> None:
    if not isinstance(source, str):
        raise ConfigError(f"the source of a price must be a str, not {type(source).__name__}")


def _usd(model: str, value: Decimal | float | str) -> Decimal:
    try:
        price = Decimal(str(value))
    except ArithmeticError:
        price = Decimal("NaN")
    if not price.is_finite() or price < 0:
        raise ConfigError(f"the price of model {model!r} must be 0 or more USD, not {value!r}")
    return price


class ExecutionBudget(Options):
    """Limits of a run, over all its starts. None is no limit.

    Attributes:
        tokens: input and output tokens together.
        cost_usd: dollars.
        latency_ms: milliseconds of active time: downtime between two starts does not count.

    Raises:
        ConfigError: a limit is negative or no number.
    """

    tokens: int | None = Field(default=None, ge=0)
    cost_usd: Decimal | None = Field(default=None, ge=0, allow_inf_nan=False)
    latency_ms: float | None = Field(default=None, ge=0, allow_inf_nan=False)

    _no_bools = field_validator("tokens", "cost_usd", "latency_ms", mode="before")(no_bool)

    @property
    def is_unlimited(self) -> bool:
        """Whether there is no limit at all."""
        return self.tokens is None and self.cost_usd is None and self.latency_ms is None


class ModelFallback(Options):
    """Use a cheaper model once a share of the budget is spent.

    Attributes:
        model: the model that nodes would use.
        to: the one that they are told to use instead.
        at_budget_pct: share of the USD budget, or of the token budget where there is none in
            USD, from 0 to 1.

    Raises:
        ConfigError: a model has no name, or the share is none.
    """

    model: str = Field(min_length=1)
    to: str = Field(min_length=1)
    at_budget_pct: float = Field(default=0.8, ge=0, le=1, allow_inf_nan=False)

    _no_bools = field_validator("at_budget_pct", mode="before")(no_bool)


OnUnknownPrice: TypeAlias = Literal["error", "tokens_only"] | Price
"""Under a USD budget, tokens that nobody can price are an error, not counted, or priced so."""


def _ask(pricer: Pricer, usage: Usage) -> Price | None:
    """Return a pricer's answer; one that raises must not lose what was paid for."""
    name = getattr(pricer, "__qualname__", type(pricer).__name__)
    try:
        price = pricer(usage.model, usage.input_tokens, usage.output_tokens)
    except Exception:
        logger.warning(
            "pricer %s raised on model %r; it was passed over", name, usage.model, exc_info=True
        )
        return None
    if price is None:
        return None
    try:
        _check_source(price.source)
        return Price(
            _usd(usage.model, price.input_usd), _usd(usage.model, price.output_usd), price.source
        )
    except (AttributeError, ConfigError) as exc:
        logger.warning(
            "pricer %s returned %r, which is no Price or None; it was passed over: %s",
            name,
            price,
            exc,
        )
        return None


class Ledger:
    """The account of one run: what was spent, in this process and earlier ones.

    Totals are running sums: a check costs the same after a thousand nodes as after one.
    """

    __slots__ = (
        "_active_before_ms",
        "_fallbacks",
        "_holds",
        "_on_unknown_price",
        "_pricers",
        "before",
        "budget",
        "held",
        "spent",
        "unpriced",
    )

    def __init__(
        self,
        budget: ExecutionBudget,
        pricers: Sequence[Pricer] = (),
        *,
        fallbacks: Sequence[ModelFallback] = (),
        on_unknown_price: OnUnknownPrice = "error",
    ) -> None:
        self.budget = budget
        self.spent = NO_USAGE
        self.held = NO_USAGE
        self._holds = 0
        self.before = NO_USAGE
        self.unpriced: str | None = None
        self._pricers = pricers
        self._fallbacks = fallbacks
        self._on_unknown_price = on_unknown_price
        self._active_before_ms = 0.0

    def carry(self, usages: Iterable[Usage], active_ms: float) -> None:
        """Start from what earlier starts of the run recorded, pricing what was unpriced.

        Args:
            usages: one for each record.
            active_ms: active time of the earlier starts.
        """
        for usage in usages:
            self.settle(self.priced(usage) if usage.cost_usd is None else usage)
        self.before = self.spent
        self._active_before_ms = active_ms

    def active_ms(self, this_start_ms: float) -> float:
        """Return the active time of all starts."""
        return self._active_before_ms + this_start_ms

    def left_ms(self, this_start_ms: float) -> float | None:
        """Return what is left of the latency budget, or None without one."""
        if self.budget.latency_ms is None:
            return None
        return self.budget.latency_ms - self.active_ms(this_start_ms)

    def priced(self, usage: Usage) -> Usage:
        """Return the usage with its cost, which is None when nobody knows the price."""
        if not usage.tokens:
            return usage._replace(cost_usd=ZERO_USD) if usage.cost_usd is None else usage
        price = self._price(usage)
        if price is None:
            return usage._replace(cost_usd=None)
        cost = price.cost_usd(usage.input_tokens, usage.output_tokens)
        return usage._replace(cost_usd=cost, price_source=price.source)

    def _price(self, usage: Usage) -> Price | None:
        for pricer in self._pricers if usage.model else ():
            price = _ask(pricer, usage)
            if price is not None:
                return price
        return self._on_unknown_price if isinstance(self._on_unknown_price, Price) else None

    def settle(self, usage: Usage) -> None:
        """Add what an attempt used."""
        if usage.cost_usd is None:
            self.unpriced = usage.model
            usage = usage._replace(cost_usd=ZERO_USD)
        self.spent = self.spent.plus(usage)

    def hold(self, usage: Usage, path: str) -> None:
        """Set aside the most that an attempt may use, until `let_go`.

        Args:
            usage: the estimate, priced.
            path: the place that is about to run.

        Raises:
            BudgetExceeded: what was spent, is set aside and is asked for does not fit the budget.
            UnknownPrice: nobody can price the estimate, and there is a USD budget.
        """
        budget = self.budget
        if usage.cost_usd is None:
            self.check_prices(usage.model)
            usage = usage._replace(cost_usd=ZERO_USD)
        spent_usd, held_usd = self.spent.cost_usd or ZERO_USD, self.held.cost_usd or ZERO_USD
        wanted_usd = usage.cost_usd or ZERO_USD
        tokens = self.spent.tokens, self.held.tokens, usage.tokens
        if budget.tokens is not None and sum(tokens) > budget.tokens:
            raise _does_not_fit("tokens", path, f"{budget.tokens} tokens", *map(str, tokens))
        if budget.cost_usd is not None and spent_usd + held_usd + wanted_usd > budget.cost_usd:
            dollars = (f"${usd}" for usd in (spent_usd, held_usd, wanted_usd))
            raise _does_not_fit("cost_usd", path, f"${budget.cost_usd}", *dollars)
        self.held = self.held.plus(usage)
        self._holds += 1

    @property
    def has_held(self) -> bool:
        """Whether anything is set aside."""
        return self._holds > 0

    def let_go(self, usage: Usage) -> None:
        """Give back what `hold` set aside."""
        self._holds -= 1
        if not self._holds:  # dollars are rounded: their differences may leave a rest
            self.held = NO_USAGE
            return
        held_usd, given_back = self.held.cost_usd or ZERO_USD, usage.cost_usd or ZERO_USD
        self.held = Usage(
            self.held.input_tokens - usage.input_tokens,
            self.held.output_tokens - usage.output_tokens,
            held_usd - given_back,
        )

    def check(self, this_start_ms: float) -> None:
        """Refuse the next attempt when a limit is reached.

        Raises:
            BudgetExceeded: a limit is reached; it needs to be higher.
            UnknownPrice: tokens were used that nobody can price, and there is a USD budget.
        """
        budget = self.budget
        if budget.is_unlimited:
            return
        self.check_prices()
        found = self._first_limit(this_start_ms, operator.ge)
        if found is not None:
            raise self._reached(*found)

    def _first_limit(
        self, this_start_ms: float, compare: Callable[[Any, Any], bool]
    ) -> tuple[str, str, str] | None:
        """Return name, budget and spending of the first limit that compares so, or None."""
        budget, spent_usd = self.budget, self.spent.cost_usd or ZERO_USD
        if budget.tokens is not None and compare(self.spent.tokens, budget.tokens):
            return "tokens", f"{budget.tokens} tokens", f"{self.spent.tokens} tokens"
        if budget.cost_usd is not None and compare(spent_usd, budget.cost_usd):
            return "cost_usd", f"${budget.cost_usd}", f"${spent_usd}"
        if budget.latency_ms is not None:
            active_ms = self.active_ms(this_start_ms)
            if compare(active_ms, budget.latency_ms):
                return "latency_ms", f"{budget.latency_ms:g} ms", f"{active_ms:.0f} ms"
        return None

    def check_prices(self, unpriced: str | None = None) -> None:
        """Refuse to go on when a USD budget cannot be kept.

        Args:
            unpriced: the model that nobody could price; if not given, of what was used.

        Raises:
            UnknownPrice: there is one.
        """
        if unpriced is None:
            unpriced = self.unpriced
        if (
            unpriced is None
            or self.budget.cost_usd is None
            or self._on_unknown_price == "tokens_only"
        ):
            return
        model = f"model {unpriced!r}" if unpriced else "tokens without a model name"
        how = "Add a pricer (with_pricers)" if unpriced else "Give the model beside the tokens"
        raise UnknownPrice(
            f"a budget of ${self.budget.cost_usd} cannot be kept: nobody can price {model}. "
            f"{how}, or set on_unknown_price to a Price or 'tokens_only'; "
            "then start the run again: what is recorded is not bought again"
        )

    def latency_reached(self, active_ms: float) -> BudgetExceeded:
        """Return the error for a reached latency limit."""
        return self._reached("latency_ms", f"{self.budget.latency_ms:g} ms", f"{active_ms:.0f} ms")

    def _reached(self, limit: str, allowed: str, spent: str) -> BudgetExceeded:
        return BudgetExceeded(
            f"the budget of {allowed} is reached: {spent} spent; "
            "start the run again with a higher budget to go on",
            limit=limit,
        )

    def crossed(self, this_start_ms: float) -> str:
        """Return which limit a complete run is over, as a phrase, or ""."""
        if self.budget.is_unlimited:
            return ""
        found = self._first_limit(this_start_ms, operator.gt)
        return "" if found is None else f"{found[2]} spent of {found[1]}"

    def active_fallbacks(self) -> tuple[ModelFallback, ...]:
        """Return the rules whose share of the budget is spent now.

        An attempt keeps the rules that held when it began: a sibling that spends meanwhile
        does not change the model that this one has called.
        """
        if not self._fallbacks:
            return ()
        share = self._share()
        return tuple(rule for rule in self._fallbacks if share >= rule.at_budget_pct)

    def _share(self) -> float:
        spent, budget = self.spent, self.budget
        if budget.cost_usd is not None:
            used, limit = float(spent.cost_usd or 0), float(budget.cost_usd)
        else:
            used, limit = float(spent.tokens), float(budget.tokens or 0)
        return used / limit if limit else 1.0

    def left(self, this_start_ms: float) -> ExecutionBudget:
        """Return what is left of each limit."""
        tokens, usd, left_ms = self.budget.tokens, self.budget.cost_usd, self.left_ms(this_start_ms)
        spent_usd = self.spent.cost_usd or ZERO_USD
        return ExecutionBudget(
            tokens=None if tokens is None else max(0, tokens - self.spent.tokens),
            cost_usd=None if usd is None else max(ZERO_USD, usd - spent_usd),
            latency_ms=None if left_ms is None else max(0.0, left_ms),
        )


def _does_not_fit(
    limit: str, path: str, allowed: str, spent: str, held: str, wanted: str
) -> BudgetExceeded:
    return BudgetExceeded(
        f"the budget of {allowed} does not hold {path!r}: {spent} spent, {held} set aside for "
        f"calls under way, {wanted} estimated for this one; start the run again with a higher "
        "budget to go on",
        limit=limit,
    )


def larger_usage(first: Usage, second: Usage) -> Usage:
    """Return the one that costs more, or has more tokens where a cost is unknown or equal."""
    if first.cost_usd is None or second.cost_usd is None or first.cost_usd == second.cost_usd:
        return first if first.tokens >= second.tokens else second
    return first if first.cost_usd > second.cost_usd else second


def model_under(rules: Iterable[ModelFallback], model: str) -> str:
    """Return the model to use, and to price by, where these rules hold, in their order."""
    for rule in rules:
        if rule.model == model:
            model = rule.to
    return model
