"""`StromaRunner`: what users configure and call."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from decimal import Decimal
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Literal, ParamSpec, Self, TypeVar

from pydantic import BaseModel

from stroma import plugins
from stroma.checkpoint import CheckpointManager
from stroma.contracts import ContractRegistry
from stroma.cost import ExecutionBudget, Pricer
from stroma.errors import ConfigError
from stroma.failures import Classifier, FailurePolicy, PolicyMap
from stroma.hooks import NodeHooks
from stroma.ids import check_id
from stroma.node_settings import PLAIN_SETTINGS, Estimator
from stroma.nodes import NodeLike, make_contract, mark
from stroma.pipeline import Pipeline, set_runner_factory
from stroma.records import unique_id
from stroma.result import ExecutionResult, Submitted
from stroma.run_config import RunConfig, changed_config
from stroma.scope import usage_of
from stroma.stores.memory import AsyncInMemoryStore

if TYPE_CHECKING:
    from stroma.engine import Prepared

P = ParamSpec("P")
R = TypeVar("R")
_MAX_PLANS = 32


class StromaRunner:
    """Runs nodes with contracts, retries, budgets and checkpoints.

    Builders (`with_…`) change the runner and return it; a run under way keeps what it began
    with. As an async context manager it closes the store, if it opened it itself.

    Args:
        registry: contracts of `@stroma_node` functions.
        checkpoint_manager: where results are recorded.
        config: what holds for each run.
    """

    def __init__(
        self,
        registry: ContractRegistry | None = None,
        checkpoint_manager: CheckpointManager | None = None,
        config: RunConfig | None = None,
    ) -> None:
        self._registry = registry if registry is not None else ContractRegistry()
        self._manager = checkpoint_manager or CheckpointManager(AsyncInMemoryStore())
        self._config = config if config is not None else RunConfig()
        self._context: MutableMapping[str, object] = {}
        self._opened: list[CheckpointManager] = []
        self._prepared: dict[tuple[object, ...], Prepared] = {}

    @classmethod
    def quick(
        cls,
        *,
        store: object = None,
        store_options: Mapping[str, object] | None = None,
        budget: ExecutionBudget | None = None,
        policy_map: PolicyMap | None = None,
        classifiers: Sequence[Classifier] | None = None,
        hooks: NodeHooks | Sequence[NodeHooks] | None = None,
        **config_kwargs: object,
    ) -> Self:
        """Return a runner with sensible defaults.

        Args:
            store: a store, its name ("sqlite") or its URL ("sqlite:///runs.db"); if not
                given, the one that STROMA_STORE, stroma.toml or pyproject.toml names, or else
                one in memory.
            store_options: options of a store that is given by name or URL.
            budget: limits; none if not given.
            policy_map: retry policies by failure class.
            classifiers: asked before the built-in rules.
            hooks: callbacks.
            **config_kwargs: any other field of `RunConfig`.

        Raises:
            ConfigError: an option is unknown or wrong.
            PluginError: there is no such store.
        """
        given = {
            "budget": budget,
            "policy_map": policy_map,
            "classifiers": classifiers,
            "hooks": hooks,
        }
        from stroma.config import open_default_store, open_store

        changes = {name: value for name, value in given.items() if value is not None}
        config = changed_config(None, {**changes, **config_kwargs})
        runner = cls(ContractRegistry(), None, config)
        if store is not None or store_options:
            if store is None:
                raise ConfigError("store_options were given without a store")
            runner._use_store(open_store(store, store_options), owned=isinstance(store, str))
        else:
            configured = open_default_store()
            if configured is not None:
                runner._use_store(configured, owned=True)
        return runner

    # -- builders --------------------------------------------------------------------------

    @property
    def registry(self) -> ContractRegistry:
        """The contracts that the runner knows."""
        return self._registry

    @property
    def config(self) -> RunConfig:
        """What holds for the next run."""
        return self._config

    @property
    def checkpoint_manager(self) -> CheckpointManager:
        """Where results are recorded."""
        return self._manager

    def with_store(self, store: object, **options: object) -> Self:
        """Record results in another store: an object, a name or a URL, with its options.

        Raises:
            ConfigError: an option is wrong; the message names what is accepted.
            PluginError: there is no such store.
        """
        from stroma.config import open_store

        return self._use_store(open_store(store, options), owned=isinstance(store, str))

    def with_redis(self, redis_url: str, ttl_seconds: int = 3600) -> Self:
        """Record results in Redis, for ``ttl_seconds`` after the last one.

        Raises:
            MissingPlugin: stroma-redis is not installed; the message says how to install it.
        """
        return self.with_store("redis", url=redis_url, ttl_seconds=ttl_seconds)

    def _use_store(self, store: object, *, owned: bool) -> Self:
        self._manager = CheckpointManager(store)
        if owned:
            self._opened.append(self._manager)
        return self

    def with_budget(
        self,
        *,
        tokens: int | None = None,
        cost_usd: Decimal | float | None = None,
        latency_ms: float | None = None,
    ) -> Self:
        """Limit what a run may use, over all of its starts; None is no limit.

        Args:
            tokens: input and output tokens together.
            cost_usd: dollars.
            latency_ms: milliseconds of active time.
        """
        budget = {"tokens": tokens, "cost_usd": cost_usd, "latency_ms": latency_ms}
        return self._configure(budget=budget)

    def with_model_fallback(self, model: str, *, to: str, at_budget_pct: float = 0.8) -> Self:
        """Use a cheaper model once a share of the budget is spent.

        Nodes find the model to use in ``ctx["_stroma_model"]``.

        Args:
            model: the model that nodes would use.
            to: the one to use instead, which tokens of ``model`` are priced by then, too.
            at_budget_pct: share of the USD budget, or of the tokens where there is none in
                USD, from 0 to 1.
        """
        rule = {"model": model, "to": to, "at_budget_pct": at_budget_pct}
        return self._configure(model_fallbacks=(*self._config.model_fallbacks, rule))

    def with_classifiers(self, classifiers: Sequence[Classifier]) -> Self:
        """Set who tells what a failure means; the built-in rules come last."""
        return self._configure(classifiers=classifiers)

    def with_hooks(self, hooks: NodeHooks | Sequence[NodeHooks]) -> Self:
        """Set callbacks at the boundaries of runs, nodes and attempts."""
        return self._configure(hooks=hooks)

    def with_context(self, context: MutableMapping[str, object]) -> Self:
        """Set the dict that nodes with a second argument get; it is not copied."""
        if not isinstance(context, MutableMapping):
            raise ConfigError(f"the context must be a dict, not {type(context).__name__}")
        self._context = context
        self._prepared.clear()
        return self

    def with_policy_map(self, policy_map: PolicyMap) -> Self:
        """Set the retry policies by failure class."""
        return self._configure(policy_map=policy_map)

    def with_node_policies(self, node_policies: Mapping[str, FailurePolicy | PolicyMap]) -> Self:
        """Set retry policies of single nodes, which come before those of the run."""
        return self._configure(node_policies=node_policies)

    def with_node_timeouts(self, node_timeouts: Mapping[str, float]) -> Self:
        """Set milliseconds for one attempt of single nodes.

        A node that takes longer fails with a `NodeTimeout`, which is RECOVERABLE.
        """
        return self._configure(node_timeouts=node_timeouts)

    def with_pricers(self, pricers: Sequence[Pricer]) -> Self:
        """Set who prices tokens; the built-in table comes last."""
        return self._configure(pricers=pricers)

    def with_estimator(self, estimator: Estimator) -> Self:
        """Set who tells the most that an attempt may use; see `RunConfig.estimator`."""
        return self._configure(estimator=estimator)

    def with_options(self, **options: object) -> Self:
        """Set any fields of `RunConfig`.

        Raises:
            ConfigError: an option is unknown or wrong.
        """
        return self._configure(**options)

    def _configure(self, **changes: object) -> Self:
        self._config = changed_config(self._config, changes)
        self._prepared.clear()
        return self

    def node(
        self, node_id: str, *, input: type[BaseModel], output: type[BaseModel]
    ) -> Callable[[Callable[P, R]], Callable[P, R]]:
        """Return a decorator that makes a function a node and registers its contract.

        Args:
            node_id: the node's id.
            input: the model that it takes.
            output: the model that it gives.

        Raises:
            ConfigError: a type is no model, or the id is registered with other types.
        """
        contract = make_contract(node_id, input, output)
        self._registry.register(contract)
        return lambda function: mark(function, contract, PLAIN_SETTINGS)

    # -- running ---------------------------------------------------------------------------

    async def run(
        self,
        nodes: Sequence[NodeLike] | Pipeline,
        initial_state: BaseModel | Mapping[str, object] | None = None,
        *,
        run_id: str | None = None,
        resume: bool | None = None,
        resume_from: str | None = None,
        restart: bool | None = None,
    ) -> ExecutionResult:
        """Run nodes one after the other, from where the run was left.

        A run id that the caller gives is an idempotency key: the run is started, continued,
        or its recorded result returned, and what is recorded is not bought again.

        Args:
            nodes: functions, `parallel` and `fan_out`, or a `Pipeline`.
            initial_state: what the first node takes; not needed to continue a run.
            run_id: the id; a new one if neither this nor the configuration gives one.
            resume: the run must exist.
            resume_from: go on at this node, and buy again what is recorded from there on.
            restart: forget what is recorded under this id, and buy everything again.

        Returns:
            How it went; whatever a node raises is in there.

        Raises:
            ConfigError: wrong use, found before anything runs.
            ResumeError: the run cannot be continued as asked.
            RunLocked: another worker owns the run.
            StaleOwner: another worker took the run over meanwhile.
            StoreUnusable: the store cannot be used as it is, found when the run is opened.
            asyncio.CancelledError: the caller was cancelled; what was finished is recorded.
        """
        engine = _engine()
        config = self._config
        given = config.run_id if run_id is None else check_id(run_id, "run id")
        wanted = engine.Wanted(
            given or unique_id(),
            given is not None,
            config.resume if resume is None else resume,
            config.resume_from if resume_from is None else resume_from,
            config.restart if restart is None else restart,
        )
        prepared = self._prepare(nodes, initial_state)
        result: ExecutionResult = await engine.start(prepared, self._manager, wanted, initial_state)
        return result

    def run_sync(
        self,
        nodes: Sequence[NodeLike] | Pipeline,
        initial_state: BaseModel | Mapping[str, object] | None = None,
        *,
        run_id: str | None = None,
        resume: bool | None = None,
        resume_from: str | None = None,
        restart: bool | None = None,
    ) -> ExecutionResult:
        """Run nodes from code that is not async; see `run`.

        Raises:
            ConfigError: called from a running event loop, where `await runner.run(…)` is right.
        """
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            pass
        else:
            raise ConfigError("run_sync() was called inside an event loop: use await runner.run()")
        return asyncio.run(
            self.run(
                nodes,
                initial_state,
                run_id=run_id,
                resume=resume,
                resume_from=resume_from,
                restart=restart,
            )
        )

    async def submit(
        self,
        pipeline: Pipeline,
        input: BaseModel | Mapping[str, object] | None = None,
        *,
        run_id: str | None = None,
        tags: Sequence[str] | None = None,
    ) -> Submitted:
        """Write a run that nobody owns yet: a worker of the pipeline takes it up.

        A run id that the caller gives is an idempotency key. A run that has stopped, as PARTIAL,
        FAILED or CANCELLED, waits for a worker again; one that a worker has is left to it.

        Args:
            pipeline: what is to run, which a worker finds by its name.
            input: what the first node takes; not needed for a run that exists.
            run_id: the id; a new one if neither this nor the configuration gives one.
            tags: words for listing runs; those of the configuration if they are not given.

        Returns:
            The run's id, and how it stands.

        Raises:
            ConfigError: wrong use, or a store that keeps no records of runs.
            ContractViolation: the input does not fit the first node.
            RunInputMismatch: the id is in use for another input.
            PipelineChanged: the id is in use for another pipeline.
            StoreError: the store cannot be reached; ask again with the same id.
        """
        if not isinstance(pipeline, Pipeline):
            raise ConfigError(
                f"submit() takes a Pipeline, which a worker finds by its name, not "
                f"{type(pipeline).__name__}: write Pipeline(name, nodes)"
            )
        chosen = self._config.run_id if run_id is None else check_id(run_id, "run id")
        if tags is not None:
            tags = changed_config(None, {"tags": tags}).tags
        submitted: Submitted = await _engine().submit(
            self._prepare(pipeline, input), self._manager, chosen, input, tags
        )
        return submitted

    async def resolve(
        self,
        nodes: Sequence[NodeLike] | Pipeline,
        run_id: str,
        path: str,
        *,
        outcome: Literal["answered", "lost", "never_made"],
        output: BaseModel | Mapping[str, object] | None = None,
        input_tokens: int = 0,
        output_tokens: int = 0,
        model: str = "",
        cost_usd: Decimal | float | str | None = None,
        attempt: int | None = None,
    ) -> None:
        """Say what became of a call that is in doubt; a run that waits for this may go on.

        A WAITING run becomes PENDING: a worker takes it up, or `run` goes on with it.

        Args:
            nodes: what the run was started with.
            run_id: the run.
            path: the node's place, as `InDoubt.path` has it.
            outcome: "answered": the call gave ``output``, which is recorded as the node's
                result; "lost": it was billed, and its answer cannot be had, so that it is made
                again; "never_made": nothing was billed, and it is made.
            output: what the call gave; for "answered".
            input_tokens: tokens that were billed as sent.
            output_tokens: tokens that were billed as received.
            model: the model, for the price.
            cost_usd: what was billed, where the provider says so; None has it priced.
            attempt: the number of the call, where several of this place are in doubt.

        Raises:
            ConfigError: the arguments contradict each other.
            ContractViolation: the output does not fit the node's contract.
            ResumeError: the run does not exist, or this call of it is not in doubt.
            RunLocked: a worker owns the run.
            StoreError: the store cannot be reached.
        """
        usage = usage_of(input_tokens, output_tokens, model, cost_usd)
        run_id = check_id(run_id, "run id")
        engine = _engine()
        said = engine.Resolution(path, attempt, outcome, output, usage)
        await engine.resolve(self._prepare(nodes, None), self._manager, run_id, said)

    async def aclose(self) -> None:
        """Close the stores that the runner opened itself."""
        while self._opened:
            await self._opened.pop().aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    # -- preparing -------------------------------------------------------------------------

    def _prepare(self, nodes: Sequence[NodeLike] | Pipeline, initial_state: object) -> Prepared:
        """Return the plan and what goes with it, made once for equal calls."""
        initial = type(initial_state) if isinstance(initial_state, BaseModel) else None
        key: tuple[object, ...] = (
            nodes if isinstance(nodes, Pipeline) else _as_tuple(nodes),
            initial,
            self._registry.revision,
            plugins.active_names(self._config.disabled_plugins),
        )
        try:
            found = self._prepared.get(key)
        except TypeError:  # a node that cannot be hashed is none, which compiling says
            found = None
        if found is None:
            found = _engine().prepare(nodes, initial, self._registry, self._config, self._context)
            if len(self._prepared) >= _MAX_PLANS:
                self._prepared.clear()
            self._prepared[key] = found
        return found


@functools.cache
def _engine() -> ModuleType:
    """Return what runs need; it is loaded by the first one, and not by `import stroma`."""
    from stroma import engine

    return engine


def _as_tuple(nodes: object) -> object:
    if type(nodes) is list:
        return tuple(nodes)
    is_list = isinstance(nodes, Sequence) and not isinstance(nodes, str | bytes)
    return tuple(nodes) if is_list else nodes  # type: ignore[arg-type]


def configured_runner() -> StromaRunner:
    """Return the runner of pipelines that have none of their own, for one use.

    Raises:
        ConfigError: no store is configured, or one in memory, which nobody else would see.
    """
    from stroma.config import open_shared_store

    return StromaRunner()._use_store(open_shared_store(), owned=True)


set_runner_factory(configured_runner)
