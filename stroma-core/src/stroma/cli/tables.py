"""Output for people."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from stroma.cli.plain import printable
from stroma.cli.views import in_doubt, record_view, recorded_nodes, run_view, total_usage
from stroma.cost import Usage
from stroma.records import OpenedRun, PlanDocument, RecordHeader, RunPage, RunRecord

_LEAST_CELLS = 80
"""Below this tables would lose columns: a narrower terminal breaks the lines itself."""
_ANY_CELLS = 1_000_000_000


def print_runs(page: RunPage) -> None:
    """Print a page of runs, and how to see more."""
    console = _console()
    if page.runs:
        console.print(_runs_table(page.runs))
    elif not page.unreadable:
        console.print("no runs")
    if page.cursor:
        console.print(Text(f"more: --cursor {_quoted(page.cursor)}"), soft_wrap=True)


def _runs_table(runs: Sequence[RunRecord]) -> Table:
    table = _table("run", "status", "pipeline", "tags", "tokens", "USD", "updated", "reason")
    for run in runs:
        pipeline = f"{run.pipeline} {run.version}".strip()
        _add(
            table,
            run.run_id,
            run.status.value,
            pipeline,
            ", ".join(run.tags),
            str(run.spend.tokens),
            _usd(run.spend),
            str(run_view(run)["updated_at"]),
            run.stop_reason,
        )
    return table


def print_run(opened: OpenedRun) -> None:
    """Print one run: what it is, what is recorded, and what that cost."""
    run, console = opened.run, _console()
    plan = PlanDocument.from_json(run.plan)
    facts = Table.grid(padding=(0, 2))
    for name, value in _facts(opened, plan):
        if value:
            facts.add_row(name, Text(printable(value), overflow="fold"))
    console.print(facts)
    table = _table("record", "kind", "attempt", "epoch", "model", "in", "out", "USD", "at")
    for header in opened.headers:
        _add(table, *_record_cells(header))
    if opened.headers:
        console.print(table)


def _facts(opened: OpenedRun, plan: PlanDocument) -> list[tuple[str, str]]:
    run, view = opened.run, run_view(opened.run)
    recorded = recorded_nodes(opened, plan)
    spend = total_usage(opened.headers)
    return [
        ("run", run.run_id),
        ("status", run.status.value),
        ("reason", run.stop_reason),
        ("pipeline", f"{run.pipeline} {run.version}".strip()),
        ("tags", ", ".join(run.tags)),
        ("owner", _owner(run)),
        ("recorded", ", ".join(node for node in plan.node_ids if node in recorded)),
        ("left", ", ".join(node for node in plan.node_ids if node not in recorded)),
        (
            "in doubt",
            ", ".join(f"{d.path}, call {d.attempt}: {d.reason}" for d in in_doubt(opened)),
        ),
        ("spend", f"{spend.tokens} tokens, {_usd(spend)} USD"),
        ("budget", ", ".join(f"{limit} {name}" for name, limit in plan.budget.items())),
        ("active", f"{run.active_ms:.0f} ms"),
        ("plugins", ", ".join(plan.plugins)),
        ("created", str(view["created_at"])),
        ("updated", str(view["updated_at"])),
    ]


def _owner(run: RunRecord) -> str:
    if not run.owner:
        return ""
    told = f"{run.holder} until {run_view(run)['lease_expires_at']}"
    is_over = run.lease_expires_at <= time.time()
    return f"{told}, which is over: another worker may take it up" if is_over else told


def _record_cells(header: RecordHeader) -> tuple[str, ...]:
    usage = header.usage
    return (
        header.path,
        header.kind,
        str(header.attempt or ""),
        str(header.epoch),
        usage.model,
        str(usage.input_tokens),
        str(usage.output_tokens),
        _usd(usage),
        str(record_view(header)["created_at"]),
    )


def _usd(usage: Usage) -> str:
    return "?" if usage.cost_usd is None else f"{usage.cost_usd:f}"


def _quoted(cursor: str) -> str:
    return "'" + cursor.replace("'", "'\\''") + "'"


def _console() -> Console:
    """Return what prints to a terminal, or to a file or another program, where no line ends."""
    is_terminal = sys.stdout.isatty()
    console = Console(highlight=False, markup=False, force_terminal=is_terminal)
    console.width = max(console.width, _LEAST_CELLS) if is_terminal else _ANY_CELLS
    return console


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _add(table: Table, *cells: str) -> None:
    table.add_row(*(Text(printable(cell)) for cell in cells))
