"""Decides where a recorded run goes on, or says loudly why it cannot."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from pydantic import BaseModel, ValidationError
from pydantic_core import to_json

from stroma.doubt import CallAccount, account_of
from stroma.errors import (
    CheckpointNotFound,
    ConfigError,
    PipelineChanged,
    RecordCorrupt,
    RunInputMismatch,
    RunNotFound,
    SchemaMismatch,
)
from stroma.forms import differences
from stroma.ids import path_of
from stroma.pipeline import INPUT
from stroma.plan import Codec, Each, Group, Plan, Step
from stroma.records import (
    PLAIN_EPOCH,
    CheckpointRecord,
    Epoch,
    OpenedRun,
    PlanDocument,
    RecordHeader,
    RunRecord,
    check_digest,
)
from stroma.schemas import describe, differ, values_of

VIOLATION_REF = "stroma:violation"
"""Schema reference of a failed attempt whose payload holds the output that was refused."""


class RunRequest(NamedTuple):
    """Which run a caller wants, and how.

    Attributes:
        run_id: given by the caller, or made for this start.
        is_given: the caller gave it.
        state: the initial state, or None.
        payload: its JSON.
        resume: the run must exist.
        resume_from: go on at this node, buying again what is recorded from there on.
        restart: forget what is recorded.
        accepts: of a worker that takes up runs by itself: says whether it takes up those of a
            version. None when a caller asks for this run.
    """

    run_id: str
    is_given: bool
    state: BaseModel | None
    resume: bool = False
    resume_from: str | None = None
    restart: bool = False
    payload: bytes = b""
    accepts: Callable[[str], bool] | None = None

    @property
    def is_taken_up(self) -> bool:
        """Whether a worker takes the run up by itself."""
        return self.accepts is not None

    @property
    def must_exist(self) -> bool:
        """Whether the run cannot be created by this request."""
        return self.resume or self.resume_from is not None or self.state is None


class Continuation(NamedTuple):
    """Where a run goes on.

    Attributes:
        position: index of the first node to run.
        results: header of each recorded result that counts, by path.
        attempts: header of each attempt, reservation and repair that counts, in order of time.
        calls: what became of the calls of all epochs whose spend counts.
        active_ms: active time of these epochs.
        new_epoch: the epoch to open first, or None.
    """

    position: int
    results: Mapping[str, RecordHeader]
    attempts: tuple[RecordHeader, ...]
    calls: CallAccount
    active_ms: float
    new_epoch: Epoch | None


def not_found(request: RunRequest) -> Exception:
    """Return the error for a run that does not exist."""
    if not request.is_given:
        return ConfigError(
            "an input is missing: a new run needs the initial state that its first node takes; "
            "give it (on the command line: --input), or the run_id of a run that exists"
        )
    if not (request.resume or request.resume_from):
        return ConfigError(
            f"run {request.run_id!r} does not exist, and there is no initial state to start it "
            "with: give its input, or the run_id of a run that exists"
        )
    return RunNotFound(
        f"run {request.run_id!r} does not exist in this store: it was never started, or it has "
        "expired or was deleted; start it without resume and resume_from"
    )


def check_request(request: RunRequest, plan: Plan) -> None:
    """Refuse wishes that contradict each other, or name a node that the pipeline does not have.

    Raises:
        ConfigError: names the options, or the nodes that there are.
    """
    if not (request.resume or request.restart or request.resume_from is not None):
        return
    if request.restart and (request.resume or request.resume_from is not None):
        raise ConfigError("restart forgets what resume and resume_from continue: give one of them")
    if not request.is_given:
        raise ConfigError(
            "resume, resume_from and restart need the run_id of the run that they are about"
        )
    node_id = request.resume_from
    if node_id is None or node_id in plan.ids:
        return
    inside = plan.top.get(node_id)
    raise ConfigError(
        f"resume_from={node_id!r} is no node of this pipeline: "
        + (
            f"its nodes are {', '.join(plan.ids)}"
            if inside is None
            else f"it is inside {plan.ids[inside]!r}; give that"
        )
    )


def continue_run(opened: OpenedRun, plan: Plan, request: RunRequest) -> Continuation:
    """Return where a recorded run goes on.

    Raises:
        RunInputMismatch: the run was started with another input.
        PipelineChanged: the recorded nodes are not the first ones of the plan.
        CheckpointNotFound: `resume_from` needs a result that is not there.
        SchemaMismatch: the recorded input does not fit the plan any more.
    """
    run = opened.run
    if request.state is not None:
        check_input(run, plan, request.state)
    if request.restart:
        epoch = Epoch(run.epoch.number + 1, 0, False)
        return Continuation(0, {}, (), account_of(()), 0.0, epoch)
    results, attempts = _visible(opened, plan)
    counted = [h for h in opened.headers if h.epoch >= _first_counted(run)]
    spent = account_of(counted), sum(header.active_ms for header in counted)
    wanted = len(plan.ids) if request.resume_from is None else plan.ids.index(request.resume_from)
    recorded = _recorded_prefix(run, plan, results, wanted)
    _check_children(run, plan, results)
    if request.resume_from is None:
        return Continuation(recorded, results, attempts, *spent, None)
    position = wanted
    if position > recorded:
        raise CheckpointNotFound(
            f"run {run.run_id!r} cannot go on at {request.resume_from!r}: the result of "
            f"{plan.ids[recorded]!r} before it is not recorded; go on at that, or use resume=True"
        )
    if not _is_bought(position, results, attempts, plan):
        return Continuation(position, results, attempts, *spent, None)
    adopted = {p: h for p, h in results.items() if plan.top[h.contract_id] < position}
    epoch = Epoch(run.epoch.number + 1, position, True)
    return Continuation(position, adopted, (), *spent, epoch)


def _is_bought(
    position: int,
    results: Mapping[str, RecordHeader],
    attempts: tuple[RecordHeader, ...],
    plan: Plan,
) -> bool:
    """Say whether going on at a position buys again: its result, or a refused output.

    Finished children of an unfinished `parallel` or `fan_out` are not bought again by going
    on at it: that is where the run stands anyway.
    """
    bought = [
        *(h for h in results.values() if h.position >= 0),
        *(h for h in attempts if h.schema_ref == VIOLATION_REF and h.path not in results),
    ]
    return any(plan.top[header.contract_id] >= position for header in bought)


def _first_counted(run: RunRecord) -> int:
    return max((epoch.number for epoch in run.epochs if not epoch.carries_spend), default=0)


def _visible(
    opened: OpenedRun, plan: Plan
) -> tuple[dict[str, RecordHeader], tuple[RecordHeader, ...]]:
    """Return the results, and the attempts and reservations, that no later epoch left behind."""
    run = opened.run
    results: dict[str, RecordHeader] = {}
    attempts: list[RecordHeader] = []
    for header in opened.headers:
        # children have no position of their own: they stand where the plan has them
        position = header.position
        if position < 0:
            position = plan.top.get(header.contract_id, -1)
        if header.epoch == PLAIN_EPOCH or any(
            epoch.number > header.epoch and (position >= epoch.position or not epoch.position)
            for epoch in run.epochs
        ):
            continue
        if header.contract_id in plan.top:
            if header.kind == "result":
                results[header.path] = header
            elif header.kind != "resolved":
                attempts.append(header)
        elif header.kind == "result" and (position >= 0 or header.epoch == run.epoch.number):
            raise _changed(opened, plan, header.contract_id)
    return results, tuple(attempts)


def _recorded_prefix(
    run: RunRecord, plan: Plan, results: Mapping[str, RecordHeader], wanted: int
) -> int:
    """Return how many of the plan's first nodes are recorded.

    A result that is gone does no harm when it is to be bought again, ``wanted`` or after it.
    """
    by_position = {h.position: h for h in results.values() if h.position >= 0}
    for position, header in by_position.items():
        if position >= len(plan.ids) or plan.ids[position] != header.contract_id:
            raise _moved(run, plan, by_position)
    recorded = 0
    while recorded in by_position:
        recorded += 1
    if recorded < wanted and recorded < max(len(by_position), run.epoch.position):
        raise CheckpointNotFound(
            f"run {run.run_id!r} has gone on after {plan.ids[recorded]!r}, and its own result is "
            "gone from the store; restore it, or give consent to buy again with "
            f"resume_from={plan.ids[recorded]!r} or restart=True"
        )
    return recorded


def _check_children(run: RunRecord, plan: Plan, results: Mapping[str, RecordHeader]) -> None:
    """Refuse recorded children and items that stand elsewhere now, or come later.

    They were bought for the state that the nodes before them gave then.
    """
    reached = 1 + max((header.position for header in results.values()), default=-1)
    children = [header for header in results.values() if header.position < 0]
    depths = dict(_depths(plan.steps, 0)) if children else {}
    for header in children:
        node_id, path = header.contract_id, header.path
        depth = path[len(path_of(node_id, ())) :].count("[")
        position = plan.top[node_id]
        if position > reached or node_id == plan.ids[position] or depth != depths[node_id]:
            raise PipelineChanged(
                f"run {run.run_id!r} has recorded {path!r}, and this pipeline has {node_id!r} in "
                f"another place, or other nodes before it: it is {', '.join(plan.ids)}. Run the "
                "pipeline that it was started with, use another run_id, or give consent to buy "
                "everything again with restart=True"
            )


def _depths(steps: Sequence[Step], depth: int) -> Iterator[tuple[str, int]]:
    """Yield the id of each step, and how many `fan_out` it stands in."""
    for step in steps:
        yield step.id, depth
        if isinstance(step, Group):
            yield from _depths(step.children, depth)
        elif isinstance(step, Each):
            yield from _depths([step.child], depth + 1)


def _moved(run: RunRecord, plan: Plan, found: Mapping[int, RecordHeader]) -> PipelineChanged:
    recorded = ", ".join(found[p].contract_id for p in sorted(found))
    return PipelineChanged(
        f"run {run.run_id!r} has recorded {recorded}, in this order; the first nodes of this "
        f"pipeline are {', '.join(plan.ids[: max(found) + 1])}. Run the pipeline that it was "
        "started with, use another run_id, or give consent to buy everything again with "
        "restart=True"
    )


def _changed(opened: OpenedRun, plan: Plan, node_id: str) -> PipelineChanged:
    was = ", ".join(PlanDocument.from_json(opened.run.plan).node_ids)
    return PipelineChanged(
        f"run {opened.run.run_id!r} has recorded {node_id!r}, which this pipeline does not have: "
        f"it was {was}, and is {', '.join(plan.ids)}. Run the pipeline that it was started with, "
        "use another run_id, or give consent to buy everything again with restart=True"
    )


def check_input(run: RunRecord, plan: Plan, state: BaseModel) -> None:
    """Refuse another input than the one that a run was started with.

    Raises:
        RunInputMismatch: names the fields that differ.
        SchemaMismatch: the recorded one does not fit the plan any more.
    """
    recorded = read_input(run, plan)
    # a NaN and a private attribute differ from themselves, and are written alike
    if differ(recorded, state) and plan.takes.dump(recorded) != plan.takes.dump(state):
        was, now = values_of(recorded), values_of(state)
        fields = [n for n in {**now, **was} if n not in was or differ(was[n], now.get(n))]
        raise RunInputMismatch(
            f"run {run.run_id!r} was started with another input: {', '.join(fields)} "
            f"{'differ' if len(fields) > 1 else 'differs'}. Use another run_id for another "
            "input, or continue this run without giving the input: run(nodes, run_id=…, "
            "resume=True), or `stroma submit` without --input"
        )


def read_input(run: RunRecord, plan: Plan) -> BaseModel:
    """Return the initial state that a run was started with.

    Raises:
        SchemaMismatch: it does not fit the first node any more.
    """
    return _decode(
        run, "the input", INPUT, run.input_payload, run.input_fingerprint, plan.takes, plan
    )


def read_result(record: CheckpointRecord, run: RunRecord, codec: Codec, plan: Plan) -> BaseModel:
    """Return the state in a record, as the plan's schema has it now.

    Raises:
        RecordCorrupt: it is not as it was written.
        SchemaMismatch: a field was removed, renamed or retyped, and no upcaster mends it.
    """
    header = record.header
    payload = check_digest(record)
    place = f"the result of {header.path!r}"
    return _decode(run, place, header.contract_id, payload, header.fingerprint, codec, plan)


def _decode(
    run: RunRecord,
    place: str,
    key: str,
    payload: bytes,
    fingerprint: str,
    codec: Codec,
    plan: Plan,
) -> BaseModel:
    changes: list[str] = []
    if fingerprint != codec.fingerprint:
        known = PlanDocument.from_json(run.plan).forms.get(fingerprint)
        changes = differences(json.loads(known), codec.form) if known else ["it is not known"]
    cause: Exception | None = None
    if not changes:
        try:
            return codec.load(payload)
        except ValidationError as exc:
            changes, cause = describe(exc), exc
            if fingerprint == codec.fingerprint and any("JSON" in change for change in changes):
                raise RecordCorrupt(
                    f"run {run.run_id!r}: {place} cannot be read: {changes}"
                ) from exc
    upcaster = plan.upcasters.get(key)
    if upcaster is not None:
        try:
            return codec.load(to_json(upcaster(json.loads(payload))))
        except ValidationError as exc:
            changes, cause = describe(exc), exc
        except Exception as exc:
            changes, cause = [f"its upcaster raised {type(exc).__name__}: {exc}"], exc
    elsewhere = (
        "use another run_id"
        if key == INPUT
        else ("give consent to buy again with resume_from or restart")
    )
    raise SchemaMismatch(
        f"run {run.run_id!r}: {place} was recorded under another schema than "
        f"{codec.schema.__name__} is now: {'; '.join(changes)}. Mend it with "
        f"Pipeline(…, upcasters={{{key!r}: function}}), or {elsewhere}",
        changes=changes,
    ) from cause
