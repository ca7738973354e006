"""`stroma resolve`: a run that waits for somebody goes on when that one has said what happened."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from stroma.cli import main

APP = """
import asyncio, pathlib
import stroma
from pydantic import BaseModel


class Order(BaseModel):
    number: int


class Receipt(BaseModel):
    paid: bool


@stroma.node(on_in_doubt="stop", timeout_ms=5)
async def pay(order: Order) -> Receipt:
    if not pathlib.Path("answers").exists():
        await asyncio.sleep(60)
    return Receipt(paid=True)


orders = stroma.Pipeline("orders", [pay])


async def main() -> None:
    async with stroma.StromaRunner.quick() as runner:
        result = await runner.run(orders, Order(number=7), run_id="order-7")
        print(result.status, result.final_state, result.cost_usd)
"""


class Done(NamedTuple):
    code: object
    out: str
    err: str


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "orders_app.py").write_text(APP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STROMA_STORE", f"sqlite:///{tmp_path}/runs.db")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    yield tmp_path
    sys.modules.pop("orders_app", None)


@pytest.fixture
def stroma(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Done]:
    def run(*arguments: str) -> Done:
        monkeypatch.setattr("sys.argv", ["stroma", *arguments])
        with pytest.raises(SystemExit) as caught:
            main()
        return Done(caught.value.code or 0, *capsys.readouterr())

    return run


def start(capsys: pytest.CaptureFixture[str]) -> str:
    """Run the program, and return what it prints."""
    import asyncio

    import orders_app  # type: ignore[import-not-found]

    asyncio.run(orders_app.main())
    return capsys.readouterr().out.strip()


CALL = ("resolve", "orders_app:orders", "order-7", "pay")


def test_an_answer_is_recorded_and_charged(
    stroma: Callable[..., Done], capsys: pytest.CaptureFixture[str]
) -> None:
    assert start(capsys).startswith("WAITING")
    assert "pay, call 1: timeout" in stroma("show", "order-7").out
    answer = ("--outcome", "answered", "--output", '{"paid": true}', "--cost-usd", "0.25")
    assert stroma(*CALL, *answer) == Done(0, "order-7 pay: answered\n", "")
    assert json.loads(stroma("show", "order-7", "--json").out)["status"] == "PENDING"
    assert start(capsys) == "RESUMED paid=True 0.25"


def test_a_call_that_was_never_made_is_made_and_json_is_printed(
    stroma: Callable[..., Done], capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    start(capsys)
    (folder / "answers").touch()
    done = stroma(*CALL, "--outcome", "never_made", "--json", "--store", "sqlite:///runs.db")
    assert json.loads(done.out) == {"run_id": "order-7", "path": "pay", "outcome": "never_made"}
    assert start(capsys) == "COMPLETED paid=True 0"


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("--outcome", "answered"), 2, 'outcome="answered" needs the output'),
        (("--outcome", "answered", "--output", "{"), 2, "--output is no JSON"),
        (("--outcome", "answered", "--output", "@none"), 2, "--output: 'none' cannot be read"),
        (("--outcome", "answered", "--output", '{"paid": "?"}'), 2, "pay (output): paid:"),
        (("--outcome", "lost", "--cost-usd", "much"), 2, "--cost-usd must be a number, not 'much'"),
        (
            ("--outcome", "lost", "--cost-usd", "-1"),
            2,
            "cost_usd must be a number of 0 or more, not -1",
        ),
        (("--outcome", "lost", "--attempt", "3"), 1, "'pay, call 3' is not in doubt"),
        (("--outcome", "dunno"), 2, "must be one of 'answered', 'lost', 'never_made', not 'du"),
        ((), 2, "Missing option '--outcome'"),
    ],
)
def test_what_is_wrong_is_said_and_the_run_goes_on_waiting(
    stroma: Callable[..., Done],
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    code: int,
    told: str,
) -> None:
    start(capsys)
    done = stroma(*CALL, *arguments)
    assert (done.code, told in done.err) == (code, True), done.err
    assert json.loads(stroma("show", "order-7", "--json").out)["status"] == "WAITING"
