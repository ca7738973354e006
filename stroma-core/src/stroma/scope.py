"""What a node can ask about the attempt that it runs in."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextvars import ContextVar
from decimal import Decimal
from types import UnionType
from typing import (
    TYPE_CHECKING,
    Any,
    Final,
    NamedTuple,
    Self,
    TypeAlias,
    Union,
    get_args,
    get_origin,
)

from stroma.cost import NO_USAGE, ExecutionBudget, ModelFallback, Usage, model_under
from stroma.errors import ConfigError

if TYPE_CHECKING:
    from stroma.failures import FailureVerdict

    Failing: TypeAlias = tuple[BaseException, FailureVerdict | None, float | None]
    """Why an attempt has no result, the verdict on it, and the seconds until the next one."""

MODEL_KEY = "_stroma_model"
_MOST: Final = 10**15
"""More tokens or dollars are nobody's bill, and stores could not keep their sums."""


class RunScope:
    """What all attempts of one start of a run have in common.

    Args:
        run_id: the run.
        epoch: 0, or the number of times the run was deliberately started over.
        left: returns what is left of each limit.
        price: returns usage with its cost.
        model: returns the model to use, of a node's own and the rules that hold.
    """

    __slots__ = ("epoch", "left", "model", "price", "run_id")

    def __init__(
        self,
        run_id: str,
        epoch: int,
        left: Callable[[], ExecutionBudget],
        price: Callable[[Usage], Usage],
        model: Callable[[str, tuple[ModelFallback, ...]], str],
    ) -> None:
        self.run_id = run_id
        self.epoch = epoch
        self.left = left
        self.price = price
        self.model = model


class NodeScope:
    """One attempt of a node, as the node sees it.

    Attributes:
        node_id: the node.
        index: the items of `fan_out` that the node stands in, outermost first.
        path: the node's place, such as "extract[17]".
        attempt: 1 for the first call of this start.
        deadline: when the attempt is cut, on the run's monotonic clock, or None.
        usage: what was reported so far.
    """

    __slots__ = (
        "_cancelled",
        "_doubt",
        "_end",
        "_held",
        "_is_told",
        "_own_model",
        "_reserved",
        "_rules",
        "_run",
        "_took_ms",
        "_used",
        "attempt",
        "deadline",
        "index",
        "node_id",
        "path",
        "usage",
    )

    def __init__(
        self,
        run: RunScope,
        node_id: str,
        index: tuple[int, ...],
        path: str,
        attempt: int,
        rules: tuple[ModelFallback, ...],
        own_model: str,
    ) -> None:
        self._run = run
        self.node_id = node_id
        self.index = index
        self.path = path
        self.attempt = attempt
        self.deadline: float | None = None
        self.usage = NO_USAGE
        self._cancelled: BaseException | None = None
        self._doubt = ""  # why nobody knows what became of the call
        self._end: Failing | None = None  # what hooks are told of it then
        self._held: Usage | None = None  # what is set aside of the budget
        self._is_told = False  # hooks know that it began
        self._reserved = 0  # number of the call, if it is recorded already
        self._took_ms: float | None = None
        self._used = NO_USAGE  # what it is charged
        self._rules = rules
        self._own_model = own_model

    @property
    def run_id(self) -> str:
        """The run."""
        return self._run.run_id

    @property
    def epoch(self) -> int:
        """0, or the number of times the run was deliberately started over."""
        return self._run.epoch

    @property
    def model(self) -> str:
        """The model that the run suggests, or ""."""
        return self._run.model(self._own_model, self._rules)

    @property
    def item(self) -> int | None:
        """Position in the innermost `fan_out`, or None outside one."""
        return self.index[-1] if self.index else None

    @property
    def budget_left(self) -> ExecutionBudget:
        """What is left of each limit of the run, without what this attempt reported."""
        return self._run.left()

    @property
    def idempotency_key(self) -> str:
        """32 hex digits, equal across attempts and continuations of this place of the run.

        Hand it to services that accept one, so that a repeated side effect is done once.
        """
        place = f"{len(self.run_id)}:{self.run_id}:{self.epoch}:{self.path}"
        return hashlib.sha256(place.encode()).hexdigest()[:32]

    def _add(self, usage: Usage) -> None:
        """Count usage, each call at the price of the model that is in force."""
        if self._rules and usage.model:
            usage = usage._replace(model=model_under(self._rules, usage.model))
        if usage.cost_usd is None:
            usage = self._run.price(usage)
        self.usage = self.usage.plus(usage)


_scope: ContextVar[NodeScope | None] = ContextVar("stroma_scope", default=None)
enter_scope = _scope.set
leave_scope = _scope.reset


def current() -> NodeScope:
    """Return the attempt that the caller runs in.

    Raises:
        ConfigError: the caller does not run inside a node.
    """
    scope = _scope.get()
    if scope is None:
        raise ConfigError("stroma.current() was called outside a node: there is no run here")
    return scope


def report_usage(
    *,
    input_tokens: int = 0,
    output_tokens: int = 0,
    model: str = "",
    cost_usd: Decimal | float | str | None = None,
) -> None:
    """Count tokens or dollars for the attempt that the caller runs in.

    They count even when the node fails afterwards, and are added to what the node returns.

    Args:
        input_tokens: tokens sent, cached ones included.
        output_tokens: tokens received.
        model: the model, for the price.
        cost_usd: what it cost, when the provider says so; None has it priced by the model.

    Raises:
        ConfigError: called outside a node, or a number is negative or none.
    """
    current()._add(usage_of(input_tokens, output_tokens, model, cost_usd))


def usage_of(
    input_tokens: object, output_tokens: object, model: object, cost_usd: object = None
) -> Usage:
    """Return checked usage; its cost is None where tokens still need a price.

    Raises:
        ConfigError: a number is negative, far too large or none, or the model is no text.
    """
    for name, value in (("input_tokens", input_tokens), ("output_tokens", output_tokens)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ConfigError(f"{name} must be an int of 0 or more, not {_shown(value)}")
        if value > _MOST:
            raise ConfigError(f"{name} must be {_MOST} or less, not {_shown(value)}")
    if not isinstance(model, str):
        raise ConfigError(f"model must be a str, not {_shown(model)}")
    assert isinstance(input_tokens, int)
    assert isinstance(output_tokens, int)
    if cost_usd is None:
        return Usage(input_tokens, output_tokens, None, model)
    try:
        cost = Decimal(str(cost_usd))
    except ArithmeticError:
        cost = Decimal("NaN")
    if not cost.is_finite() or cost < 0:
        raise ConfigError(f"cost_usd must be a number of 0 or more, not {_shown(cost_usd)}")
    if cost > _MOST:
        raise ConfigError(f"cost_usd must be {_MOST} or less, not {_shown(cost_usd)}")
    return Usage(input_tokens, output_tokens, cost, model, "reported")


def _shown(value: object) -> str:
    """Return a number as it is, and of all else the type: it may be what a model answered."""
    if value is None or isinstance(value, int | float | Decimal):
        return str(value)[:40]
    return type(value).__name__


class _EstimateFields(NamedTuple):
    input_tokens: int = 0
    output_tokens: int = 0
    model: str = ""
    cost_usd: Decimal | float | str | None = None


class Estimate(_EstimateFields):
    """The most that one attempt may use, as an `Estimator` expects it.

    Attributes:
        input_tokens: tokens sent.
        output_tokens: tokens received at the most, such as ``max_tokens`` of the request.
        model: the model, for the price; "" takes the one that the run suggests.
        cost_usd: what it costs at the most, where that is known; None has it priced by the model.

    Raises:
        ConfigError: a number is negative, far too large or none, or the model is no text.
    """

    __slots__ = ()

    def __new__(
        cls,
        input_tokens: int = 0,
        output_tokens: int = 0,
        model: str = "",
        cost_usd: Decimal | float | str | None = None,
    ) -> Self:
        try:
            usage_of(input_tokens, output_tokens, model, cost_usd)
        except ConfigError as exc:
            raise ConfigError(f"Estimate: {exc}") from None
        return super().__new__(cls, input_tokens, output_tokens, model, cost_usd)


class SharedContext(MutableMapping[str, object]):
    """The run's context as a node gets it: the caller's own dict, but for the model in force.

    Writes go through. Only ``_stroma_model`` is laid over it, so that children side by side
    can have different ones.
    """

    __slots__ = ("_model", "_shared")

    def __init__(self, shared: MutableMapping[str, object], model: str) -> None:
        self._shared = shared
        self._model = model

    def __getitem__(self, key: str) -> object:
        if key == MODEL_KEY and self._model:
            return self._model
        return self._shared[key]

    def __setitem__(self, key: str, value: object) -> None:
        self._shared[key] = value

    def __delitem__(self, key: str) -> None:
        del self._shared[key]

    def __iter__(self) -> Iterator[str]:
        yield from self._shared
        if self._model and MODEL_KEY not in self._shared:
            yield MODEL_KEY

    def __len__(self) -> int:
        return len(self._shared) + (bool(self._model) and MODEL_KEY not in self._shared)

    def __repr__(self) -> str:
        return f"SharedContext({sorted(map(str, self))})"  # values may be secrets


def may_be_context(annotation: object) -> bool:
    """Say whether a parameter that is annotated so may be given the context.

    It may if that is a mapping, something that a mapping is, or nothing that can be judged.
    """
    origin = get_origin(annotation) or annotation
    if origin in (Union, UnionType):
        return any(map(may_be_context, get_args(annotation)))
    if origin is Any or not isinstance(origin, type) or getattr(origin, "_is_protocol", False):
        return True
    return issubclass(origin, Mapping) or issubclass(SharedContext, origin)
