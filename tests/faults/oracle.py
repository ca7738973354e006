"""What has to hold after any faults: acknowledged ⊆ stored ⊆ attempted, and the money is right.

Every paid call has an id, which stands in the side log and in the record of what it used, so that
each is accounted for by itself: it is recorded once, or it is in doubt for a reason that is known.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from stroma._aio import settled
from stroma.checkpoint import close_store
from stroma.records import OpenedRun, RecordHeader, RecordKey, RunStatus
from tests.faults.sidelog import Line
from tests.faults.workload import CONCURRENCY, PAID, RESERVED, Answer, Order, answer_of


@dataclass(frozen=True)
class Excuses:
    """What a case allows; a case without faults of its kind allows none.

    Attributes:
        killed: pids of workers that were killed: what they had in flight is in doubt.
        stale: pids of workers that lost a run: what they did for it after that is in doubt.
        lost_after: server failures that may forget what was acknowledged so shortly before, as
            (seconds since the epoch from, and to).
        all_listed: every call in doubt has to be listed in the result: its worker reserved it, or
            was there to say that it was cut.
        is_unsaved_known: a worker may end with outputs that the store did not take.
        incomplete: runs that need not have come to their end.
    """

    killed: Collection[int] = ()
    stale: Collection[int] = ()
    lost_after: Sequence[tuple[float, float]] = ()
    incomplete: Collection[str] = ()
    is_unsaved_known: bool = False
    all_listed: bool = False


@dataclass
class Bill:
    """What became of the paid calls of some runs.

    Attributes:
        runs: how many runs came to their end.
        acknowledged: how many results the workers were told of.
        recorded: calls that are recorded.
        in_doubt: calls that are not, and may have been billed.
    """

    runs: int = 0
    acknowledged: int = 0
    recorded: list[Line] = field(default_factory=list)
    in_doubt: list[Line] = field(default_factory=list)

    def add(self, other: Bill) -> None:
        """Add the bill of another run."""
        self.runs += other.runs
        self.acknowledged += other.acknowledged
        self.recorded += other.recorded
        self.in_doubt += other.in_doubt


def check(
    open_store: Callable[[], object],
    lines: Sequence[Line],
    *,
    order: Order | None = None,
    excuses: Excuses | None = None,
    at_least: int = 0,
) -> Bill:
    """Check every run of a side log against what its store has now.

    Args:
        open_store: makes a store object.
        lines: of the side log.
        order: what the runs were started with.
        excuses: what is allowed.
        at_least: how many results have to be acknowledged, so that nothing is shown by nothing.

    Raises:
        AssertionError: says what does not hold, of which run.
    """
    by_run: dict[str, list[Line]] = defaultdict(list)
    for line in lines:
        if line.event != "said":
            by_run[line.run].append(line)
    stored = asyncio.run(_stored(open_store, by_run))
    bill = Bill()
    for run_id, its_lines in by_run.items():
        one = _OneRun(run_id, its_lines, *stored[run_id], excuses or Excuses())
        bill.add(one.check(answer_of(order or Order())))
    assert bill.acknowledged >= at_least, (
        f"{bill.acknowledged} results were acknowledged, and {at_least} should have been: the "
        "case shows nothing"
    )
    return bill


async def _stored(
    open_store: Callable[[], object], runs: Iterable[str]
) -> dict[str, tuple[OpenedRun | None, bytes]]:
    store: Any = open_store()
    try:
        found: dict[str, tuple[OpenedRun | None, bytes]] = {}
        for run_id in runs:
            opened = await settled(store.inspect(run_id))
            last = b""
            if opened is not None and opened.last is not None:
                key = RecordKey(*opened.last.header.key)
                (record,) = await settled(store.fetch(run_id, [key]))
                last = record.payload if record is not None else b""
            found[run_id] = opened, last
        return found
    finally:
        closing = close_store(store)
        if isinstance(closing, Awaitable):
            await closing


@dataclass
class _OneRun:
    run_id: str
    lines: Sequence[Line]
    opened: OpenedRun | None
    last: bytes
    excuses: Excuses

    def check(self, expected: Answer) -> Bill:
        bill = Bill(acknowledged=len(self.of("acknowledged")))
        if self.opened is None:
            self.holds(not self.of("acknowledged", "charged"), "the run is gone from the store")
            return bill
        self.stored_was_acknowledged()
        self.acknowledged_did_not_run_again()
        bill.in_doubt = self.in_doubt()
        recorded = {header.usage.model for header in self.paid_headers()}
        bill.recorded = [line for line in self.of("begun") if line.call in recorded]
        self.spend_is_recorded()
        if self.run_id not in self.excuses.incomplete:
            self.is_complete(expected)
            bill.runs = 1
        return bill

    def holds(self, condition: bool, problem: str) -> None:
        assert condition, f"run {self.run_id!r}: {problem}\n{self.story()}"

    def story(self) -> str:
        began = self.lines[0].at
        told = [
            f"{line.number:4} {line.at - began:8.3f} s  pid {line.pid}  {line.event} "
            f"{line.path} {line.call[-6:]} {line.more or ''}"
            for line in self.lines
        ]
        stored = [
            f"     stored {h.epoch} {h.path} {h.kind} {h.attempt} {h.usage.model[-6:]}"
            f" {h.usage.tokens}"
            for h in self.headers
        ]
        return "\n".join([*told, *stored])

    def of(self, *events: str) -> list[Line]:
        return [line for line in self.lines if line.event in events]

    @property
    def headers(self) -> Sequence[RecordHeader]:
        return () if self.opened is None else self.opened.headers

    def paid_headers(self) -> list[RecordHeader]:
        """Return the records that are charged for a call that somebody made."""
        beside = ("", RESERVED)
        return [h for h in self.headers if h.usage.tokens and h.usage.model not in beside]

    # -- acknowledged ⊆ stored ⊆ attempted ---------------------------------------------------

    def stored_was_acknowledged(self) -> None:
        """Check that what was acknowledged is stored, and what is stored was answered."""
        headers = {header.usage.model: header for header in self.paid_headers()}
        twice = [
            n
            for n, count in Counter(h.usage.model for h in self.paid_headers()).items()
            if count > 1
        ]
        self.holds(not twice, f"the calls {twice} are recorded twice")
        for line in self.of("acknowledged", "charged"):
            if not line.call or self.may_be_forgotten(line):
                continue
            header = headers.get(line.call)
            kind = "result" if line.event == "acknowledged" else "attempt"
            self.holds(
                header is not None, f"{line.path}: line {line.number} was told, is not stored"
            )
            assert header is not None
            self.holds(
                (header.path, header.kind, header.epoch) == (line.path, kind, line.epoch),
                f"line {line.number} is stored as {header.path}, {header.kind}",
            )
        answered = {line.call: line for line in self.of("answered")}
        for call, header in headers.items():
            made = answered.get(call)
            self.holds(made is not None, f"{header.path}: what nobody called is stored")
            assert made is not None
            self.holds(
                (made.path, made.tokens) == (header.path, header.usage.tokens),
                f"{header.path}: {header.usage.tokens} tokens are stored of line {made.number}",
            )

    def acknowledged_did_not_run_again(self) -> None:
        """Check that no call began for a place whose result had been acknowledged."""
        done: dict[tuple[int, str], Line] = {}
        for line in self.lines:
            place = line.epoch, line.path
            if line.event == "acknowledged":
                self.holds(
                    place not in done or self.may_be_forgotten(done[place]),
                    f"{line.path} was acknowledged twice: line {line.number}",
                )
                done[place] = line
            elif line.event == "begun" and place in done:
                self.holds(
                    line.pid in self.excuses.stale or self.may_be_forgotten(done[place]),
                    f"{line.path} was bought again: line {line.number}, after line "
                    f"{done[place].number}",
                )

    def may_be_forgotten(self, line: Line) -> bool:
        return any(since <= line.at <= until for since, until in self.excuses.lost_after)

    # -- money -------------------------------------------------------------------------------

    def in_doubt(self) -> list[Line]:
        """Return the calls that are not recorded; each has to be in doubt for a reason."""
        recorded = {header.usage.model for header in self.paid_headers()}
        missing = [line for line in self.of("begun") if line.call not in recorded]
        listed = Counter(path for path, _, model in self.listed() if model not in recorded)
        for line in missing:
            listed[line.path] -= 1
            ends = [end for end in self.of("ended", "lost") if end.pid == line.pid]
            unsaved = any(
                line.path in end.more["unsaved"] or self.counts(end, line) for end in ends
            )
            told = any(line.path == path for end in ends for path, _, _ in end.more["in_doubt"])
            died = line.pid in self.excuses.killed and not self.excuses.all_listed
            self.holds(
                listed[line.path] >= 0
                or (unsaved and self.excuses.is_unsaved_known)
                or (told and not self.excuses.all_listed)
                or died
                or line.pid in self.excuses.stale
                or self.may_be_forgotten(line),
                f"{line.path}: the call of line {line.number} is neither recorded nor in doubt",
            )
        for pid in {line.pid for line in missing} & {*self.excuses.killed}:
            left = [line for line in missing if line.pid == pid]
            self.holds(
                len(left) <= CONCURRENCY or pid in self.excuses.stale,
                f"killed worker {pid} left {len(left)} calls in doubt, not {CONCURRENCY}",
            )
        return missing

    def counts(self, end: Line, call: Line) -> bool:
        """Say whether a result counted a call that failed, and that its store did not take."""
        recorded = {header.usage.model for header in self.paid_headers()}
        before = [
            line for line in self.of("ended") if line.pid == end.pid and line.number < end.number
        ]
        began = before[-1].number if before else -1
        if not began < call.number < end.number or not end.tokens:
            return False
        known = [
            line.tokens
            for line in self.of("answered")
            if line.number < end.number
            and (line.call in recorded or (line.pid == end.pid and line.number > began))
        ]
        return end.tokens >= sum(known)

    def listed(self) -> list[tuple[str, int, str]]:
        """Return path, tokens and model of what the last complete result lists as in doubt."""
        return [tuple(each) for end in self.completions()[-1:] for each in end.more["in_doubt"]]

    def completions(self) -> list[Line]:
        return [
            line for line in self.of("ended") if line.more["status"] in ("COMPLETED", "RESUMED")
        ]

    def spend_is_recorded(self) -> None:
        """Check that the run has spent what its recorded calls cost, and what is in doubt."""
        assert self.opened is not None
        run = self.opened.run
        first = max((e.number for e in run.epochs if not e.carries_spend), default=0)
        calls = {line.call: line for line in self.of("begun")}
        paid = [h for h in self.paid_headers() if h.epoch >= first]
        charged = sum(calls[h.usage.model].tokens for h in paid)
        for end in self.completions():
            doubts = [tokens for _, tokens, model in end.more["in_doubt"] if model not in calls]
            spent = charged + sum(doubts)
            self.holds(
                end.tokens == spent,
                f"line {end.number}: {end.tokens} tokens are spent; the recorded calls cost "
                f"{charged}, and {doubts} are charged in doubt",
            )
            self.holds(
                run.spend.tokens == end.tokens,
                f"its record says {run.spend.tokens} tokens, and line {end.number} {end.tokens}",
            )

    def is_complete(self, expected: Answer) -> None:
        """Check that the run came to the end that it has without faults."""
        assert self.opened is not None
        run = self.opened.run
        self.holds(run.status is RunStatus.COMPLETED, f"it is {run.status}: {run.stop_reason}")
        self.holds(run.owner == "", f"it is complete, and owned by {run.holder}")
        results = {h.path for h in self.headers if h.kind == "result"}
        self.holds({*PAID, "both", "fan_out(extract)"} <= results, f"results are {sorted(results)}")
        answer = json.loads(self.last)
        self.holds(answer == expected.model_dump(), f"it ends with {answer}, not with {expected!r}")
        for end in self.completions():
            self.holds(end.more["final"] == answer, f"line {end.number} ends with another state")
