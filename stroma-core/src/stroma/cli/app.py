"""The typer application."""

from __future__ import annotations

import json
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Annotated, TypeAlias

import typer

from stroma._version import __version__
from stroma.cli import EXIT_FAILED, EXIT_WRONG_USE, access, tables, views
from stroma.cli.loading import load_pipeline
from stroma.cli.plain import plugins_as_json, plugins_as_text, printable
from stroma.errors import ConfigError, ContractViolation, PluginError, RecordCorrupt, StromaError
from stroma.plugins import list_plugins
from stroma.records import RunQuery

app = typer.Typer(
    name="stroma",
    help="What is installed, what a store holds, and workers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

StoreOption: TypeAlias = Annotated[
    str | None,
    typer.Option("--store", metavar="URL", help="The store; else the configured one."),
]
JsonOption: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON.")]
StatusOption: TypeAlias = Annotated[
    list[str] | None, typer.Option("--status", help="Only with this status; may be repeated.")
]
PipelineOption: TypeAlias = Annotated[
    str | None, typer.Option("--pipeline", help="Only of this pipeline.")
]
TagOption: TypeAlias = Annotated[str | None, typer.Option("--tag", help="Only with this tag.")]
RunId: TypeAlias = Annotated[str, typer.Argument(metavar="RUN_ID", help="The run.")]


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        typer.echo(f"stroma {__version__}")
        raise typer.Exit


@app.command()
def plugins(as_json: JsonOption = False) -> None:
    """List the installed plugins, with what they offer and what is wrong with them."""
    installed = list_plugins()
    typer.echo(plugins_as_json(installed) if as_json else plugins_as_text(installed))


@app.command()
def runs(
    status: StatusOption = None,
    pipeline: PipelineOption = None,
    tag: TagOption = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many at most.")] = 20,
    cursor: Annotated[str, typer.Option(help="Where the page before ended.")] = "",
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """List runs, the last updated first."""
    with _errors_reported():
        statuses = views.statuses_of(status or ())
        query = RunQuery(statuses, pipeline, views.tag_of(tag), limit=limit, cursor=cursor)
        page = access.with_store(store, lambda opened: access.list_runs(opened, query))
        if as_json:
            _echo_json(views.page_view(page))
        else:
            tables.print_runs(page)
        for run in page.unreadable:
            _complain(views.unreadable_text(run))
        if page.unreadable:
            raise typer.Exit(EXIT_FAILED)


@app.command()
def show(run_id: RunId, store: StoreOption = None, as_json: JsonOption = False) -> None:
    """Show a run: its status, what is recorded, and what it cost."""
    with _errors_reported():
        found = access.with_store(store, lambda opened: access.inspect(opened, run_id))
        if as_json:
            _echo_json(views.opened_view(found))
        else:
            tables.print_run(found)


@app.command()
def delete(
    run_id: RunId,
    force: Annotated[
        bool, typer.Option("--force", help="Even if a worker owns it, or nobody can tell.")
    ] = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove a run and all its records. What they cost would have to be paid again."""
    with _errors_reported():
        access.with_store(store, lambda opened: access.delete(opened, run_id, is_forced=force))
        if as_json:
            _echo_json({"deleted": run_id})
        else:
            typer.echo(printable(f"deleted {run_id}"))


@app.command()
def purge(
    older_than: Annotated[
        str, typer.Option("--older-than", metavar="DURATION", help="Such as 12h, 30d or 2w.")
    ],
    status: StatusOption = None,
    pipeline: PipelineOption = None,
    tag: TagOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove runs that were not changed for some time and that no worker owns."""
    with _errors_reported():
        before = time.time() - views.seconds_of(older_than)
        statuses = views.statuses_of(status or ())
        query = RunQuery(statuses, pipeline, views.tag_of(tag), before)
        removed, left = access.with_store(store, lambda opened: access.purge(opened, query))
        if as_json:
            _echo_json({"purged": removed, "left": [views.unreadable_view(run) for run in left]})
        else:
            typer.echo(f"purged {removed} {'run' if removed == 1 else 'runs'}")
        for run in left:
            typer.echo(printable(f"left alone: {views.unreadable_text(run)}"), err=True)
        if any(isinstance(run.error, RecordCorrupt) for run in left):
            typer.echo(
                "nobody can tell whether a worker owns what cannot be read: "
                "`stroma delete ID --force` removes it",
                err=True,
            )


PipelineName: TypeAlias = Annotated[
    str, typer.Argument(metavar="MODULE:PIPELINE", help="A Pipeline in a module.")
]
PipelineNames: TypeAlias = Annotated[
    list[str], typer.Argument(metavar="MODULE:PIPELINE...", help="Pipelines in modules.")
]


@app.command()
def submit(
    pipeline: PipelineName,
    input: Annotated[
        str | None,
        typer.Option("--input", metavar="JSON", help="The input; @FILE, or - for standard input."),
    ] = None,
    run_id: Annotated[str | None, typer.Option("--run-id", help="The id; else a new one.")] = None,
    tag: Annotated[list[str] | None, typer.Option("--tag", help="May be repeated.")] = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a run for a worker to take up, or queue again one that has stopped."""
    from stroma.cli import work

    with _errors_reported():
        submitted = work.submit(
            load_pipeline(pipeline),
            work.read_json(input, "--input"),
            run_id=run_id,
            tags=tag,
            store=store,
        )
        if as_json:
            _echo_json({"run_id": submitted.run_id, "status": submitted.status.value})
        else:
            typer.echo(printable(f"{submitted.run_id} {submitted.status}"))


@app.command()
def resolve(
    pipeline: PipelineName,
    run_id: RunId,
    path: Annotated[str, typer.Argument(metavar="PATH", help="The node's place.")],
    outcome: Annotated[
        str,
        typer.Option(
            metavar="answered|lost|never_made",
            help=(
                "It gave --output; or it was billed, and the answer is lost; or it was never made."
            ),
        ),
    ],
    output: Annotated[
        str | None,
        typer.Option(
            "--output", metavar="JSON", help="The answer; @FILE, or - for standard input."
        ),
    ] = None,
    input_tokens: Annotated[int, typer.Option(min=0, help="Tokens billed as sent.")] = 0,
    output_tokens: Annotated[int, typer.Option(min=0, help="Tokens billed as received.")] = 0,
    model: Annotated[str, typer.Option(help="The model, for the price.")] = "",
    cost_usd: Annotated[
        str | None, typer.Option(help="Dollars billed, where they are known.")
    ] = None,
    attempt: Annotated[int | None, typer.Option(min=1, help="Which call, if several are.")] = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what became of a call that is in doubt; a run that waits for this may go on."""
    from stroma.cli import work

    with _errors_reported():
        said = {
            "path": path,
            "outcome": outcome,
            "output": work.read_json(output, "--output"),
            "input_tokens": input_tokens,
            "output_tokens": output_tokens,
            "model": model,
            "cost_usd": cost_usd,
            "attempt": attempt,
        }
        work.resolve(load_pipeline(pipeline), run_id, said, store=store)
        if as_json:
            _echo_json({"run_id": run_id, "path": path, "outcome": outcome})
        else:
            typer.echo(printable(f"{run_id} {path}: {outcome}"))


@app.command()
def worker(
    pipelines: PipelineNames,
    concurrency: Annotated[int, typer.Option(min=1, help="How many runs at once.")] = 10,
    drain: Annotated[
        float, typer.Option(metavar="SECONDS", help="How long to await calls when told to stop.")
    ] = 30.0,
    poll: Annotated[
        float, typer.Option(metavar="SECONDS", help="Time between two looks for runs.")
    ] = 1.0,
    health: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Answer /livez and /readyz there.")
    ] = None,
    store: StoreOption = None,
) -> None:
    """Take up runs that wait, the oldest first, until SIGTERM or SIGINT."""
    from stroma.cli.work import refuse_memory, work
    from stroma.worker import Worker

    with _errors_reported():
        loaded = [load_pipeline(name) for name in dict.fromkeys(pipelines)]
        if store is None:
            refuse_memory(loaded)
        made = Worker(
            *loaded,
            store=store,
            concurrency=concurrency,
            poll_seconds=poll,
            drain_seconds=drain,
            health=health,
        )
        work(made, loaded)


def _echo_json(value: views.JsonObject) -> None:
    typer.echo(json.dumps(value, indent=2))


def _complain(text: str) -> None:
    typer.echo(printable(f"error: {text}"), err=True)


@contextmanager
def _errors_reported() -> Generator[None]:
    """Turn what may go wrong into one line and an exit code."""
    try:
        yield
    except StromaError as exc:
        _complain(str(exc))
        is_wrong_use = isinstance(exc, ConfigError | ContractViolation | PluginError)
        raise typer.Exit(EXIT_WRONG_USE if is_wrong_use else EXIT_FAILED) from exc
