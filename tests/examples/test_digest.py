"""examples/digest.py with its local extractor: crashes, inputs, options."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import time
from pathlib import Path

import pytest

from stroma.stores.sqlite import SQLiteStore
from tests.examples.processes import (
    ROOT,
    Done,
    finish,
    kill,
    kill_when,
    records,
    records_in,
    run,
    start,
)

RECORDED = "Recorded before, and not run again: "
BEFORE = "Spent before: "
NOW = "Spent by this start: "
IN_ALL = "Spent in all: "


def write_texts(folder: Path) -> None:
    """Write texts of some forty passages below a folder, the same ones each time."""
    dice = random.Random(3)
    words = ("alpha", "beta", "gamma", "delta", "stroma", "pipeline", "answer", "crash")
    for number in range(4):
        paragraphs = [
            f"Paragraph {n} of text {number}. " + " ".join(dice.choices(words, k=150)) + "."
            for n in range(10)
        ]
        path = folder / "texts" / f"sub{number % 2}" / f"text{number}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n\n".join(paragraphs))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder to work in, with texts in it."""
    write_texts(tmp_path)
    return tmp_path


def digest(folder: Path, *options: object) -> Done:
    return run("digest.py", "texts", *options, cwd=folder)


def report(folder: Path, name: str = "report.md") -> bytes:
    return Path(folder, name).read_bytes()


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The report of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    write_texts(folder)
    done = digest(folder, "--store", "memory:")
    assert done.code == 0, done.err
    return report(folder)


def test_a_first_start_says_what_it_spent_and_a_second_one_spends_nothing(folder: Path) -> None:
    first = digest(folder)
    assert (first.code, first.err) == (0, "")
    assert RECORDED not in first.out
    assert "each word is a token, and costs nothing" in first.out
    written = report(folder)
    (folder / "report.md").unlink()
    second = digest(folder)
    assert second.code == 0
    assert second.tokens(BEFORE) == second.tokens(IN_ALL) == first.tokens(NOW) > 0
    assert second.tokens(NOW) == 0
    assert "load, split, fan_out(extract)" in second.line(RECORDED)
    assert second.line("Run ") == first.line("Run ")
    assert report(folder) == written


async def recorded_and_continued(folder: Path, expected: bytes) -> None:
    """Start the killed run "r" again, and compare what it says with what the store had."""
    database = folder / "digest.db"
    before = await records(database, "r")
    done = digest(folder, "--run-id", "r")
    assert done.code == 0, done.err
    after = await records(database, "r")
    assert before.headers.items() <= after.headers.items()  # nothing was made again
    assert report(folder) == expected
    assert done.tokens(IN_ALL) == after.tokens
    assert done.tokens(NOW) == after.tokens - before.tokens
    if before.headers:
        assert done.tokens(BEFORE) == before.tokens
        told = done.line(RECORDED)
        for key in before.headers:
            assert key.path.startswith("extract[") or key.path in told
        if not any(key.path.startswith("fan_out") for key in before.headers) and before.items:
            assert told.endswith(f", {len(before.items)} passages")


@pytest.mark.crash
@pytest.mark.slow
@pytest.mark.parametrize("count", [0, 1, 3, 25, 41])
async def test_killed_after_so_many_records(folder: Path, expected: bytes, count: int) -> None:
    options = ("--run-id", "r", "--delay-ms", 30, "--concurrency", 4)
    process = start("digest.py", "texts", *options, cwd=folder)
    store = SQLiteStore(folder / "digest.db")

    async def is_time() -> bool:
        return len((await records_in(store, "r")).headers) >= count

    try:
        await kill_when(process, is_time)
    finally:
        await store.aclose()
    assert not (folder / "report.md").exists()
    await recorded_and_continued(folder, expected)


@pytest.mark.crash
@pytest.mark.slow
async def test_killed_again_and_again_at_random(folder: Path, expected: bytes) -> None:
    seed = int.from_bytes(os.urandom(4))
    print(f"seed {seed}")
    dice = random.Random(seed)
    options = ("--run-id", "r", "--delay-ms", 20, "--concurrency", 3)
    for _ in range(5):
        process = start("digest.py", "texts", *options, cwd=folder)
        time.sleep(dice.uniform(0.2, 0.8))
        kill(process)
    await recorded_and_continued(folder, expected)


@pytest.mark.crash
@pytest.mark.slow
async def test_interrupted_from_the_keyboard(folder: Path, expected: bytes) -> None:
    process = start("digest.py", "texts", "--run-id", "r", "--delay-ms", 1000, cwd=folder)
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    done = finish(process)
    assert done.code == 1
    assert "Start the same command again" in done.err
    assert "Traceback" not in done.err
    await recorded_and_continued(folder, expected)


@pytest.mark.slow
def test_a_second_worker_is_refused(folder: Path) -> None:
    process = start("digest.py", "texts", "--delay-ms", 400, cwd=folder)
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(0.2)
    second = digest(folder)
    assert second.code == 1
    assert "is owned by process" in second.err
    assert finish(process).code == 0


@pytest.mark.slow
def test_a_changed_input_is_another_run(folder: Path) -> None:
    first = digest(folder)
    Path(folder, "texts", "sub0", "text0.md").write_text("Something else stands here now.")
    second = digest(folder)
    assert second.code == 0
    assert second.line("Run ").split(":")[0] != first.line("Run ").split(":")[0]
    assert RECORDED not in second.out
    assert b"Something else stands here now." in report(folder)


@pytest.mark.slow
def test_a_changed_input_under_a_given_run_id_is_refused(folder: Path) -> None:
    assert digest(folder, "--run-id", "r").code == 0
    Path(folder, "texts", "sub0", "text0.md").write_text("Something else stands here now.")
    before = report(folder)
    second = digest(folder, "--run-id", "r")
    assert second.code == 2
    assert "another input" in second.err
    assert report(folder) == before


def test_a_memory_store_forgets(folder: Path, expected: bytes) -> None:
    done = digest(folder, "--store", "memory:")
    assert done.code == 0
    assert RECORDED not in done.out
    assert report(folder) == expected
    assert not list(folder.glob("*.db"))


def test_the_store_of_the_environment_is_used(folder: Path) -> None:
    env = {"STROMA_STORE": "sqlite:///other.db"}
    assert run("digest.py", "texts", cwd=folder, env=env).code == 0
    assert (folder / "other.db").exists()
    assert not (folder / "digest.db").exists()


def test_concurrency_does_not_change_the_report(folder: Path, expected: bytes) -> None:
    assert digest(folder, "--concurrency", 1).code == 0
    assert report(folder) == expected


@pytest.mark.slow
def test_the_report_is_not_part_of_the_input(folder: Path) -> None:
    first = run("digest.py", ".", "--report", "texts/report.md", cwd=folder)
    second = run("digest.py", ".", "--report", "texts/report.md", cwd=folder)
    assert (first.code, second.code) == (0, 0)
    assert second.tokens(NOW) == 0


@pytest.mark.slow
def test_a_budget_stops_the_run_and_a_higher_one_goes_on(folder: Path, expected: bytes) -> None:
    stopped = digest(folder, "--budget-tokens", 1000, "--concurrency", 1)
    assert stopped.code == 1
    assert "the budget of 1000 tokens is reached" in stopped.err
    assert "with a higher budget" in stopped.err
    done = digest(folder, "--budget-tokens", 1_000_000)
    assert done.code == 0
    assert done.tokens(BEFORE) == stopped.tokens(IN_ALL)
    assert report(folder) == expected


@pytest.mark.slow
def test_the_documentation_of_this_repository(tmp_path: Path) -> None:
    paths = [*sorted(ROOT.glob("*.md")), *(path for path in [ROOT / "docs"] if path.exists())]
    process = start("digest.py", *paths, "--run-id", "d", "--delay-ms", 20, cwd=tmp_path)
    time.sleep(1.0)
    kill(process)
    again = run("digest.py", *paths, "--run-id", "d", cwd=tmp_path)
    whole = run("digest.py", *paths, "--store", "memory:", "--report", "whole.md", cwd=tmp_path)
    assert (again.code, whole.code) == (0, 0)
    assert again.tokens(IN_ALL) == whole.tokens(IN_ALL)
    assert report(tmp_path) == report(tmp_path, "whole.md")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["missing"], "there is no missing"),
        (["empty"], "there is no text to digest in empty"),
        (["blank.md"], "there is no text to digest in blank.md"),
        (["binary.txt"], "binary.txt is no UTF-8 text"),
        (["texts", "--store", "nosuch"], "'nosuch'"),
        (["texts", "--store", "runs.db"], "sqlite:///runs.db"),
        (["texts", "--store", "sqlite"], "path"),
        (["texts", "--store", "sqlite:///notes.db"], "notes.db"),
        (["texts", "--store", "sqlite:///foreign.db"], "foreign.db"),
        (["texts", "--report", "nowhere/report.md"], "cannot be written to nowhere/report.md"),
        (["texts", "--report", "empty"], "cannot be written to empty"),
        (["texts", "--concurrency", "0"], "max_concurrency"),
        (["texts", "--budget-usd", "-1"], "cost_usd"),
        (["texts", "--budget-usd", "nan"], "cost_usd"),
        (["texts", "--budget-tokens", "many"], "--budget-tokens"),
        (["texts", "--delay-ms", "-1"], "--delay-ms"),
        (["texts", "--price", "1", "2"], "--model"),
        (["texts", "--run-id", ""], "run id"),
        (["texts", "--model", "m"], "OPENAI_BASE_URL"),
        ([], "PATH"),
    ],
)
def test_a_wrong_command_is_refused_before_anything_runs(
    folder: Path, args: list[str], message: str
) -> None:
    (folder / "empty").mkdir()
    (folder / "blank.md").write_text("\n \n")
    (folder / "binary.txt").write_bytes(b"\xff\xfe\x00")
    (folder / "notes.db").write_text("These are notes, and no database at all. " * 20)
    foreign = sqlite3.connect(folder / "foreign.db")
    foreign.execute("CREATE TABLE mine (id INTEGER)")
    foreign.close()
    done = run("digest.py", *args, cwd=folder)
    assert done.code == 2, done
    assert message in done.err
    assert "Traceback" not in done.err
    assert "Start the same command again" not in done.err
    assert not (folder / "report.md").exists()


def test_an_unreachable_store_is_said_with_a_hint(folder: Path) -> None:
    done = digest(folder, "--store", "sqlite:///no/such/folder/runs.db")
    assert done.code in (1, 2)
    assert "no/such/folder" in done.err
    assert "Traceback" not in done.err
