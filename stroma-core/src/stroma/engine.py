"""Starts runs: what is made once for a plan, and what is made for each start of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Mapping, MutableMapping, Sequence
from functools import partial
from typing import NamedTuple

from pydantic import BaseModel

from stroma import plugins
from stroma.account import Surroundings
from stroma.checkpoint import CheckpointManager
from stroma.continuation import RunRequest, check_request
from stroma.contracts import ContractRegistry, accept_state
from stroma.cost import Ledger, Pricer
from stroma.driver import RunDriver, refused_input
from stroma.errors import ConfigError, ContractViolation, OutcomeUnknown, StoreUnavailable
from stroma.events import RunInterrupted, RunOpening
from stroma.hooks import HookSet
from stroma.journal import Journal, JournalSettings
from stroma.nodes import NodeLike
from stroma.opening import open_record_journal
from stroma.pipeline import Pipeline
from stroma.plain_journal import open_plain_journal
from stroma.plan import Plan, compile_plan
from stroma.prices import BUILT_IN_PRICES
from stroma.records import RunStatus, unique_id
from stroma.resolving import Resolution, resolve_call
from stroma.result import ExecutionResult, Submitted
from stroma.run_config import RunConfig, check_runnable
from stroma.stop_request import StopRequest
from stroma.submission import submit as write_run
from stroma.trace import ExecutionTrace


class Wanted(NamedTuple):
    """Which run a caller wants; see `RunRequest`."""

    run_id: str
    is_given: bool
    resume: bool
    resume_from: str | None
    restart: bool


class Prepared(NamedTuple):
    """What is the same for every run of one plan under one configuration.

    Attributes:
        by_hooks: the same with some of the hooks only, as runs have asked for it.
    """

    config: RunConfig
    plan: Plan
    settings: JournalSettings
    around: Surroundings
    pricers: tuple[Pricer, ...]
    by_hooks: dict[HookSet, Prepared]


def prepare(
    nodes: Sequence[NodeLike] | Pipeline,
    initial: type[BaseModel] | None,
    registry: ContractRegistry,
    config: RunConfig,
    context: MutableMapping[str, object],
) -> Prepared:
    """Check nodes and configuration, and return what runs of them share.

    Args:
        nodes: what is to run.
        initial: class of the initial state, or None if it is not known.
        registry: the contracts that the runner knows.
        config: what holds for the runs.
        context: the caller's shared dict.

    Raises:
        ConfigError: something is wrong with them; the message says what.
    """
    check_runnable(config)
    plan = compile_plan(nodes, registry, initial)
    _apply_node_options(plan, config, registry)
    return _surround(plan, config, context)


def _surround(plan: Plan, config: RunConfig, context: MutableMapping[str, object]) -> Prepared:
    disabled = config.disabled_plugins
    classifiers = (*config.classifiers, *(c for _, c in plugins.active_classifiers(disabled)))
    budget = config.budget.model_dump(exclude_none=True)
    settings = JournalSettings(
        config.clock,
        config.random,
        config.save_policy,
        config.lease_seconds,
        config.tags,
        plan.document(
            {name: str(limit) for name, limit in budget.items()},
            plugins.active_names(disabled),
        ),
    )
    surroundings = Surroundings(
        config.clock,
        config.random,
        classifiers,
        HookSet((*config.hooks, *plugins.active_hooks(disabled))),
        context,
        config.model_fallbacks,
    )
    pricers = (*config.pricers, *plugins.active_pricers(disabled), BUILT_IN_PRICES)
    return Prepared(config, plan, settings, surroundings, pricers, {})


def _apply_node_options(plan: Plan, config: RunConfig, registry: ContractRegistry) -> None:
    """Give each function of a new plan its policies and its timeout.

    Raises:
        ConfigError: an option is for a node that neither the plan nor the registry knows.
    """
    known = {leaf.id for leaf in plan.leaves()}
    for option in ("node_policies", "node_timeouts"):
        for node_id in getattr(config, option):
            if node_id not in known and node_id not in registry:
                hint = plugins.did_you_mean(node_id, known)
                raise ConfigError(
                    f"{option} names {node_id!r}, which is no node that runs code{hint}; "
                    f"there are {', '.join(sorted(known))}"
                )
    for leaf in plan.leaves():
        own = (config.node_policies.get(leaf.id), leaf.settings.policies)
        leaf.policies = (*(p for p in own if p is not None), config.policy_map)
        timeout_ms = config.node_timeouts.get(leaf.id, leaf.settings.timeout_ms)
        leaf.timeout_seconds = None if timeout_ms is None else timeout_ms / 1000
        leaf.estimate = leaf.settings.estimate or config.estimator
        leaf.is_reserved = leaf.estimate is not None or leaf.settings.stops_in_doubt
        leaf.is_bare = leaf.is_async and not leaf.wants_context and timeout_ms is None


def start(
    prepared: Prepared,
    manager: CheckpointManager,
    wanted: Wanted,
    initial_state: BaseModel | Mapping[str, object] | None,
) -> Awaitable[ExecutionResult]:
    """Start, continue or return a run; see `StromaRunner.run`."""
    prepared = _listened_to(prepared, wanted.run_id)
    running = _start(prepared, manager, wanted, initial_state)
    return _told(prepared, wanted.run_id, not wanted.is_given, running)


def _told(
    prepared: Prepared,
    run_id: str,
    is_new: bool,
    running: Coroutine[object, object, ExecutionResult],
) -> Coroutine[object, object, ExecutionResult]:
    """Return what runs, and tells the hooks before it begins, and if an exception leaves it."""
    hooks, plan = prepared.around.hooks, prepared.plan
    if not (hooks.listens("on_run_open") or hooks.listens("on_run_interrupted")):
        return running

    async def run() -> ExecutionResult:
        try:
            opening = RunOpening(run_id, plan.name, plan.version, plan.ids, is_new)
            await hooks.fire("on_run_open", opening)
            return await running
        except BaseException as exc:
            await hooks.fire("on_run_interrupted", RunInterrupted(run_id, exc))
            raise
        finally:
            running.close()  # if a cancelled hook has kept it from beginning

    return run()


def _listened_to(prepared: Prepared, run_id: str) -> Prepared:
    """Return what a run shares with others, with the hooks that take part in this start."""
    hooks = prepared.around.hooks.active()
    if hooks is not prepared.around.hooks:
        chosen = prepared.by_hooks.get(hooks)
        if chosen is None:
            around = prepared.around._replace(hooks=hooks)
            chosen = prepared.by_hooks[hooks] = prepared._replace(around=around)
        prepared = chosen
    if hooks.has_trace_parents:
        settings = prepared.settings._replace(trace_parent=partial(hooks.trace_parent, run_id))
        prepared = prepared._replace(settings=settings)
    return prepared


async def _start(
    prepared: Prepared,
    manager: CheckpointManager,
    wanted: Wanted,
    initial_state: BaseModel | Mapping[str, object] | None,
) -> ExecutionResult:
    config, plan, settings, around, *_ = prepared
    run_id = wanted.run_id
    trace = ExecutionTrace(run_id, config.trace)
    try:
        state, payload = _first_state(plan, initial_state)
    except ContractViolation as exc:
        return await refused_input(run_id, exc, trace, around.hooks)
    request = RunRequest(
        run_id,
        wanted.is_given,
        state,
        wanted.resume,
        wanted.resume_from,
        wanted.restart,
        payload,
    )
    check_request(request, plan)
    _check_doubts_are_kept(plan, manager)
    try:
        journal = await _open_journal(manager, settings, plan, request)
    except (StoreUnavailable, OutcomeUnknown) as exc:
        reason = f"nothing was run: {exc}"
        result = ExecutionResult(run_id, RunStatus.PARTIAL, None, trace, reason, exc)
        await around.hooks.fire("on_run_end", result)
        return result
    return await _drive(prepared, manager, journal, around, state, trace)


async def submit(
    prepared: Prepared,
    manager: CheckpointManager,
    given: str | None,
    input: BaseModel | Mapping[str, object] | None,
    tags: tuple[str, ...] | None,
) -> Submitted:
    """Write a run that a worker takes up; see `StromaRunner.submit`."""
    run_id = given or unique_id()
    prepared = _listened_to(prepared, run_id)
    plan, settings = prepared.plan, prepared.settings
    if tags is not None:
        settings = settings._replace(tags=tags)
    state, payload = _first_state(plan, input)
    request = RunRequest(run_id, given is not None, state, payload=payload)
    return await write_run(manager, settings, plan, request)


async def resolve(
    prepared: Prepared, manager: CheckpointManager, run_id: str, said: Resolution
) -> None:
    """Record what became of a call in doubt; see `StromaRunner.resolve`."""
    ledger = _ledger(prepared)
    await resolve_call(manager, prepared.settings, prepared.plan, ledger, run_id, said)


async def take_up(
    prepared: Prepared,
    manager: CheckpointManager,
    run_id: str,
    accepts: Callable[[str], bool],
    stop_request: StopRequest,
    on_claimed: Callable[[], None],
) -> ExecutionResult:
    """Claim a run that waits for a worker, and go on with it.

    Hooks are not told of runs that another worker was faster to claim, or that do not fit.

    Args:
        prepared: the pipeline's plan and configuration.
        manager: a level 1 store.
        run_id: the run.
        accepts: says whether the pipeline takes up the runs of a version.
        stop_request: asks the run to go no further.
        on_claimed: called when the run is this worker's.

    Raises:
        NotWaiting: it has ended meanwhile.
        RunLocked: another worker was faster.
        ResumeError: it does not fit the pipeline; it stands as it stood before.
        StoreError: the store cannot be reached.
    """
    request = RunRequest(run_id, True, None, resume=True, accepts=accepts)
    prepared = _listened_to(prepared, run_id)
    journal = await open_record_journal(manager, prepared.settings, prepared.plan, request)
    on_claimed()
    around = prepared.around._replace(stop_request=stop_request)
    return await _told(prepared, run_id, False, _drive(prepared, manager, journal, around, None))


async def _drive(
    prepared: Prepared,
    manager: CheckpointManager,
    journal: Journal,
    around: Surroundings,
    state: BaseModel | None,
    trace: ExecutionTrace | None = None,
) -> ExecutionResult:
    config, plan, settings = prepared.config, prepared.plan, prepared.settings
    if trace is None:
        trace = ExecutionTrace(journal.run_id, config.trace)
    is_only_read = journal.is_complete
    result = await RunDriver(plan, journal, _ledger(prepared), trace, around).drive(state)
    if not is_only_read:
        result.expires_at = manager.expires_at(settings.clock.now())
    return result


def _ledger(prepared: Prepared) -> Ledger:
    config = prepared.config
    return Ledger(
        config.budget,
        prepared.pricers,
        fallbacks=config.model_fallbacks,
        on_unknown_price=config.on_unknown_price,
    )


def _check_doubts_are_kept(plan: Plan, manager: CheckpointManager) -> None:
    """Refuse nodes that must not be called twice where no call can be recorded before it is made.

    Raises:
        ConfigError: names them.
    """
    if manager.keeps_records:
        return
    stopping = [leaf.id for leaf in plan.leaves() if leaf.settings.stops_in_doubt]
    if stopping:
        raise ConfigError(
            f'{", ".join(stopping)}: on_in_doubt="stop" needs a store that keeps records, and '
            f"{type(manager.store).__name__} has only save, load and delete"
        )


async def _open_journal(
    manager: CheckpointManager, settings: JournalSettings, plan: Plan, request: RunRequest
) -> Journal:
    if manager.keeps_records:
        return await open_record_journal(manager, settings, plan, request)
    return await open_plain_journal(manager, settings, plan, request)


def _first_state(
    plan: Plan, given: BaseModel | Mapping[str, object] | None
) -> tuple[BaseModel | None, bytes]:
    """Return the initial state as the first node takes it, and its JSON.

    Raises:
        ConfigError: it is neither a model nor a dict, or it would not come back from a store.
        ContractViolation: it does not fit.
    """
    if given is None:
        return None, b""
    takes = plan.takes
    if type(given) is not takes.schema and not isinstance(given, BaseModel | Mapping):
        raise ConfigError(
            f"the initial state must be a pydantic model or a dict, not {type(given).__name__}"
        )
    state = accept_state(takes, given, plan.ids[0], "input")
    return state, takes.dump(state, is_validated=state is not given)
