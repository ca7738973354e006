"""What can be set for a run, checked before anything runs."""

from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Self

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    InstanceOf,
    SkipValidation,
    field_validator,
    model_validator,
)

from stroma.clock import (
    SYSTEM_CLOCK,
    SYSTEM_RANDOM,
    Clock,
    Random,
    check_clock,
    check_random,
)
from stroma.cost import ExecutionBudget, ModelFallback, OnUnknownPrice, Pricer
from stroma.errors import ConfigError
from stroma.failures import Classifier, FailureClass, FailurePolicy, PolicyMap, default_policy_map
from stroma.hooks import EVENTS, NodeHooks
from stroma.ids import check_id
from stroma.node_settings import (
    Estimator,
    as_policies,
    check_terminal,
    check_timeout_ms,
    is_estimator,
)
from stroma.options import Options, list_of_names, no_bool
from stroma.plugins import did_you_mean
from stroma.trace import TraceOptions

DEFAULT_LEASE_SECONDS = 60.0
MAX_LEASE_SECONDS = 365 * 86400.0
"""A run whose worker is gone for a year is nobody's; and stores keep no time without end."""


def default_save_policy() -> FailurePolicy:
    """Return how a failed save is tried again where nothing else is said."""
    return FailurePolicy(max_retries=5, base_delay_seconds=0.1, max_delay_seconds=5.0)


def _checked_id(what: str) -> Callable[[object], object]:
    return lambda value: None if value is None else check_id(value, what)


def _names(what: str) -> Callable[[object], tuple[str, ...]]:
    return lambda value: list_of_names(value, what)


def _node_policies(value: object) -> object:
    if not isinstance(value, Mapping):
        return value
    return {node_id: as_policies(policy, str(node_id)) for node_id, policy in value.items()}


def _node_timeouts(value: object) -> object:
    if not isinstance(value, Mapping):
        return value
    return {node_id: check_timeout_ms(ms, str(node_id)) for node_id, ms in value.items()}


def _callables(value: object) -> object:
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise ValueError("must be a list of functions")
    found = tuple(value)
    wrong = [item for item in found if not callable(item)]
    if wrong:
        raise ValueError(f"{wrong[0]!r} cannot be called")
    return found


def _hooks(value: object) -> object:
    if value is None:
        return ()
    found = (value,) if isinstance(value, NodeHooks) else value
    if not isinstance(found, list | tuple) or not all(isinstance(h, NodeHooks) for h in found):
        raise ValueError("must be NodeHooks, or a list of them")
    for event in EVENTS:
        wrong = [hooks for hooks in found if not callable(getattr(hooks, event) or print)]
        if wrong:
            raise ValueError(f"{event} cannot be called")
    return tuple(found)


def _estimator(value: object) -> object:
    if value is not None and not is_estimator(value):
        raise ValueError("must be a function of the state and the attempt, and not async")
    return value


class RunConfig(Options):
    """What holds for a run. It cannot be changed: a run under way keeps what it began with.

    Attributes:
        run_id: the run's id and idempotency key; a new one for every `run()` if not given.
        resume: the run must exist; no input is needed.
        resume_from: go on at this node; where its result is recorded, that is consent to buy
            it again.
        restart: forget what is recorded under this id, and buy everything again.
        budget: limits over all starts of the run.
        policy_map: retry policies by failure class.
        node_policies: by node id, before ``policy_map``: a policy, or policies by class.
        node_timeouts: milliseconds for one attempt, by node id.
        classifiers: asked in this order, before those of plugins and the built-in rules.
        hooks: called in this order, before those of plugins.
        model_fallbacks: rules for cheaper models, in the order in which they apply.
        pricers: asked in this order, before those of plugins and the built-in table.
        on_unknown_price: under a USD budget, tokens that nobody can price are an "error",
            counted as "tokens_only", or priced by this `Price`.
        estimator: tells the most that an attempt of a node may use, from its input and place:
            an `Estimate`, or None where it costs nothing. It is reserved before the call.
        save_policy: how often and after what delay a failed save is tried again.
        trace: bounds and contents of the trace.
        tags: words for listing runs, of 1 to 512 bytes of UTF-8 without NUL.
        lease_seconds: how long the run stays this worker's without a sign of life; a year,
            31,536,000, at the most.
        disabled_plugins: names of plugins whose hooks, classifiers and pricers are not used.
        clock: where times are from.
        random: numbers from 0 up to 1, for the jitter of delays.

    Raises:
        ConfigError: names each option that is unknown or wrong.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    run_id: Annotated[str | None, BeforeValidator(_checked_id("run id"))] = None
    resume: bool = False
    resume_from: Annotated[str | None, BeforeValidator(_checked_id("node id"))] = None
    restart: bool = False
    budget: ExecutionBudget = Field(default_factory=ExecutionBudget)
    policy_map: dict[FailureClass, FailurePolicy] = Field(default_factory=default_policy_map)
    node_policies: Annotated[dict[str, PolicyMap], BeforeValidator(_node_policies)] = Field(
        default_factory=dict[str, PolicyMap]
    )
    node_timeouts: Annotated[dict[str, float], BeforeValidator(_node_timeouts)] = Field(
        default_factory=dict[str, float]
    )
    classifiers: Annotated[tuple[Classifier, ...], BeforeValidator(_callables)] = ()
    hooks: Annotated[tuple[InstanceOf[NodeHooks], ...], BeforeValidator(_hooks)] = ()
    model_fallbacks: tuple[ModelFallback, ...] = ()
    pricers: Annotated[tuple[SkipValidation[Pricer], ...], BeforeValidator(_callables)] = ()
    on_unknown_price: OnUnknownPrice = "error"
    estimator: Annotated[SkipValidation[Estimator | None], BeforeValidator(_estimator)] = None
    save_policy: FailurePolicy = Field(default_factory=default_save_policy)
    trace: TraceOptions = Field(default_factory=TraceOptions)
    tags: Annotated[tuple[str, ...], BeforeValidator(_names("tag"))] = ()
    lease_seconds: float = Field(
        default=DEFAULT_LEASE_SECONDS, gt=0, le=MAX_LEASE_SECONDS, allow_inf_nan=False
    )
    disabled_plugins: Annotated[frozenset[str], BeforeValidator(_names("name of a plugin"))] = (
        frozenset()
    )
    clock: Annotated[SkipValidation[Clock], BeforeValidator(check_clock)] = SYSTEM_CLOCK
    random: Annotated[SkipValidation[Random], BeforeValidator(check_random)] = SYSTEM_RANDOM

    _no_bools = field_validator("lease_seconds", mode="before")(no_bool)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        check_terminal(self.policy_map, "policy_map")
        return self


def check_runnable(config: RunConfig) -> None:
    """Refuse options that contradict each other, now that all of them are known.

    Raises:
        ConfigError: names the options.
    """
    if config.model_fallbacks and config.budget.cost_usd is None and config.budget.tokens is None:
        raise ConfigError(
            "a model fallback comes at a share of the budget, and there is none: "
            "add with_budget(cost_usd=…) or with_budget(tokens=…)"
        )


def changed_config(config: RunConfig | None, changes: Mapping[str, object]) -> RunConfig:
    """Return a configuration with other values, checked as a whole.

    Raises:
        ConfigError: names each option that is unknown or wrong.
    """
    unknown = [name for name in changes if name not in RunConfig.model_fields]
    if unknown:
        names = sorted(RunConfig.model_fields)
        hint = did_you_mean(unknown[0], names)
        raise ConfigError(
            f"there is no option {unknown[0]!r}{hint}; options are {', '.join(names)}"
        )
    kept = (
        {} if config is None else {name: getattr(config, name) for name in config.model_fields_set}
    )
    values: dict[str, Any] = {**kept, **changes}
    return RunConfig(**values)
