"""The table of what leaves run() as an exception, and what becomes a result, row by row."""

import asyncio
import inspect
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, SecretStr

import stroma
from stroma import (
    AsyncInMemoryStore,
    ExecutionResult,
    FailurePolicy,
    NodeHooks,
    SQLiteStore,
    StoreUnavailable,
    StromaRunner,
)
from tests.docs.pages import ROOT

PAGE = (ROOT / "docs/reference/runner.md").read_text(encoding="utf-8")
TABLE = PAGE.partition("## What leaves `run()`")[2].partition("\n## ")[0]
ROWS = dict(re.findall(r"^\| (?!-|What happens)(.+?) \| (.+) \|$", TABLE, re.MULTILINE))
ONCE = FailurePolicy(max_retries=0)


class Text(BaseModel):
    text: str


class Secret(BaseModel):
    key: SecretStr


class Number(BaseModel):
    number: int


@stroma.node
async def echo(state: Text) -> Text:
    return state


@stroma.node(id="echo")
async def number(state: Text) -> Number:
    return Number(number=1)


@stroma.node
async def hide(state: Text) -> Secret:
    return Secret(key=SecretStr(state.text))


@stroma.node
async def pay(state: Text) -> tuple[Text, int, int, str]:
    return state, 100, 0, "a model that nobody knows"


@stroma.node
async def misfit(state: Text) -> Text:
    return {"wrong": 1}  # type: ignore[return-value]


def raising(error: BaseException) -> Any:
    @stroma.node(id="raising", policy=ONCE)
    async def node(state: Text) -> Text:
        raise error

    return node


class Broken(AsyncInMemoryStore):
    """A store whose operations can be made to fail."""

    def __init__(self, **errors: Exception) -> None:
        super().__init__()
        self.errors = errors

    async def open_run(self, request: Any) -> Any:
        if "open_run" in self.errors:
            raise self.errors["open_run"]
        return await super().open_run(request)

    async def commit_many(self, commits: Any) -> Any:
        if "commit_many" in self.errors:
            raise self.errors["commit_many"]
        return await super().commit_many(commits)

    async def fetch(self, run_id: str, keys: Any) -> Any:
        found = await super().fetch(run_id, keys)
        return [None for _ in found] if "fetch" in self.errors else found


@asynccontextmanager
async def closing(store: SQLiteStore) -> AsyncIterator[SQLiteStore]:
    try:
        yield store
    finally:
        await store.aclose()


def runner_of(store: object = None, **options: Any) -> StromaRunner:
    return StromaRunner.quick(store=store or AsyncInMemoryStore(), save_policy=ONCE, **options)


async def run(
    *nodes: Any, store: object = None, options: dict[str, Any] | None = None, **arguments: Any
) -> ExecutionResult:
    arguments.setdefault("initial_state", Text(text="hello"))
    return await runner_of(store, **(options or {})).run(list(nodes), **arguments)


async def recorded(*nodes: Any) -> AsyncInMemoryStore:
    """Return a store with a run "r" of these nodes."""
    store = Broken()
    await run(*nodes, store=store, run_id="r")
    return store


async def wrong_use() -> ExecutionResult:
    return await run(echo, echo)


async def cannot_come_back() -> ExecutionResult:
    return await run(hide)


async def no_initial_state() -> ExecutionResult:
    return await run(echo, initial_state=None)


async def nothing_to_resume() -> ExecutionResult:
    return await run(echo, run_id="r", resume=True)


async def another_input() -> ExecutionResult:
    return await run(echo, store=await recorded(echo), run_id="r", initial_state=Text(text="x"))


async def other_nodes() -> ExecutionResult:
    return await run(pay, store=await recorded(echo), run_id="r")


async def another_schema() -> ExecutionResult:
    return await run(number, store=await recorded(echo), run_id="r")


async def a_gap() -> ExecutionResult:
    store = await recorded(raising(ValueError()), echo)
    return await run(raising(ValueError()), echo, store=store, run_id="r", resume_from="echo")


async def wrong_digest() -> ExecutionResult:
    class Damaged(AsyncInMemoryStore):
        async def open_run(self, request: Any) -> Any:
            opened = await super().open_run(request)
            last = opened.last and opened.last._replace(payload=b"{}")
            return opened._replace(last=last)

    store = Damaged()
    await run(echo, raising(ValueError()), store=store, run_id="r")
    return await run(echo, raising(ValueError()), store=store, run_id="r")


async def owned() -> ExecutionResult:
    store = AsyncInMemoryStore()

    @stroma.node
    async def meanwhile(state: Text) -> Text:
        await run(meanwhile, store=store, run_id="r")
        return state

    result = await run(meanwhile, store=store, run_id="r", options={"policy_map": {}})
    assert result.error
    raise result.error


async def taken_over() -> ExecutionResult:
    return await run(echo, store=Broken(commit_many=stroma.StaleOwner("lost")))


async def foreign_file(folder: Path) -> ExecutionResult:
    file = folder / "letter.db"
    file.write_text("Dear Sir or Madam, " * 100)
    async with closing(SQLiteStore(file)) as store:
        return await run(echo, store=store)


async def file_removed(folder: Path) -> ExecutionResult:
    @stroma.node(id="remove")
    async def remove(state: Text) -> Text:
        (folder / "runs.db").unlink()
        await asyncio.sleep(0.05)  # the store looks now and then
        return state

    async with closing(SQLiteStore(folder / "runs.db")) as store:
        return await run(remove, store=store)


async def cancelled_by_its_caller() -> ExecutionResult:
    @stroma.node
    async def wait(state: Text) -> Text:
        await asyncio.sleep(10)
        return state

    task = asyncio.ensure_future(run(wait))
    await asyncio.sleep(0.05)
    task.cancel()
    return await task


async def exits() -> ExecutionResult:
    return await run(raising(SystemExit()))


async def wrong_state() -> ExecutionResult:
    return await run(echo, initial_state={"wrong": 1})


async def misfits() -> ExecutionResult:
    return await run(misfit)


async def recoverable() -> ExecutionResult:
    return await run(raising(TimeoutError()))


async def ambiguous() -> ExecutionResult:
    return await run(raising(RuntimeError()))


async def terminal() -> ExecutionResult:
    return await run(raising(TypeError()))


async def budget_reached() -> ExecutionResult:
    return await run(pay, echo, options={"budget": {"tokens": 100}})


async def budget_crossed() -> ExecutionResult:
    result = await run(pay, options={"budget": {"tokens": 99}})
    assert "budget" in result.stop_reason
    return result


async def in_doubt() -> ExecutionResult:
    @stroma.node(on_in_doubt="stop", timeout_ms=5)
    async def slow(state: Text) -> Text:
        await asyncio.sleep(10)
        return state

    return await run(slow)


async def estimator_raises() -> ExecutionResult:
    def estimator(state: BaseModel, scope: object) -> None:
        raise LookupError

    return await run(echo, options={"estimator": estimator})


async def no_price() -> ExecutionResult:
    return await run(pay, options={"budget": {"cost_usd": 1}})


async def store_away() -> ExecutionResult:
    result = await run(echo, store=Broken(open_run=StoreUnavailable("away")))
    assert "nothing was run" in result.stop_reason
    return result


async def save_refused() -> ExecutionResult:
    result = await run(echo, store=Broken(commit_many=StoreUnavailable("away")))
    assert result.unsaved == {"echo": Text(text="hello")}
    return result


async def too_large(folder: Path) -> ExecutionResult:
    @stroma.node
    async def grow(state: Text) -> Text:
        return Text(text="x" * 1000)

    async with closing(SQLiteStore(folder / "runs.db", max_payload_bytes=500)) as store:
        result = await run(grow, store=store)
    assert list(result.unsaved) == ["grow"]
    return result


async def hook_raises() -> ExecutionResult:
    def fail(*args: object) -> None:
        raise ValueError

    hooks = NodeHooks(on_node_start=fail)
    return await run(echo, options={"hooks": hooks, "classifiers": [fail]})


CASES: list[tuple[str, Callable[..., Awaitable[ExecutionResult]]]] = [
    ("Wrong use", wrong_use),
    ("A schema that would not come back", cannot_come_back),
    ("A run that is new, and no initial state", no_initial_state),
    ("`resume=True` or `resume_from` for a run", nothing_to_resume),
    ("Another input", another_input),
    ("Recorded nodes that are not the first", other_nodes),
    ("A recorded state that does not fit", another_schema),
    ("A record that is missing", a_gap),
    ("A record whose digest is wrong", wrong_digest),
    ("Another worker owns the run", owned),
    ("Another worker took the run over", taken_over),
    ("A store that cannot be used", foreign_file),
    ("The caller is cancelled", cancelled_by_its_caller),
    ("`KeyboardInterrupt`", exits),
    ("An initial state, an input or an output", wrong_state),
    ("An initial state, an input or an output", misfits),
    ("A RECOVERABLE failure", recoverable),
    ("An AMBIGUOUS failure", ambiguous),
    ("A TERMINAL failure", terminal),
    ("A limit of the budget is reached", budget_reached),
    ("A call is in doubt", in_doubt),
    ("An estimator raises", estimator_raises),
    ("The last node crosses", budget_crossed),
    ("Tokens that nobody can price", no_price),
    ("The store does not answer", store_away),
    ("The store does not take a result", save_refused),
    ("An output that is larger", too_large),
    ("The store cannot be used any more", file_removed),
    ("A hook or a classifier raises", hook_raises),
]


def row_for(words: str) -> str:
    (found,) = (happens for happens in ROWS if happens.startswith(words))
    return found


@pytest.mark.parametrize(("words", "provoke"), CASES, ids=[case.__name__ for _, case in CASES])
async def test_a_row_says_what_comes_of_it(words: str, provoke: Any, tmp_path: Path) -> None:
    said = ROWS[row_for(words)]

    try:
        arguments = [tmp_path] if inspect.signature(provoke).parameters else []
        result = await provoke(*arguments)
    except BaseException as exc:
        came = type(exc).__name__
        is_through = said.startswith("Goes through") and isinstance(exc, SystemExit)
        assert is_through or came in re.findall(r"[\w.]+", said.replace("asyncio.", "")), came
    else:
        is_going_on = said.startswith("Neither") and result.is_complete
        assert is_going_on or said.startswith(f"Result, {result.status}"), result


def test_every_row_is_provoked() -> None:
    assert {row_for(words) for words, _ in CASES} == set(ROWS)
