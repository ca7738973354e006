"""`stroma submit` and `stroma worker`: how pipelines are named, and what comes of it."""

from __future__ import annotations

import asyncio
import io
import json
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import HTTPError

import pytest

from stroma import RunStatus, SQLiteStore
from stroma.cli import main
from tests.core.helpers import stored_run

APP = """
import asyncio, pathlib, sys
import stroma
from pydantic import BaseModel


class Text(BaseModel):
    text: str


@stroma.node
async def shout(state: Text) -> Text:
    pathlib.Path("called").open("a").write(state.text + "\\n")
    while state.text.startswith("slow") and not pathlib.Path("go").exists():
        await asyncio.sleep(0.01)
    return Text(text=state.text.upper())


@stroma.node
async def mark(state: Text) -> Text:
    return Text(text=state.text + "!")


digest = stroma.Pipeline("digest", [shout, mark], version="1")
cheap = stroma.StromaRunner.quick(store="sqlite:///own.db", tags=["cheap"])
report = stroma.Pipeline("report", [mark], runner=cheap)
number = 7
"""


class Done(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a module that holds pipelines, where the command is called."""
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "broken.py").write_text("import not_installed\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STROMA_STORE", f"sqlite:///{tmp_path}/runs.db")
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in ("app", "broken"):
        sys.modules.pop(name, None)


@pytest.fixture
def stroma(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Done]:
    def run(*arguments: str) -> Done:
        monkeypatch.setattr("sys.argv", ["stroma", *arguments])
        with pytest.raises(SystemExit) as caught:
            main()
        out, err = capsys.readouterr()
        return Done(int(caught.value.code or 0), out, err)

    return run


def run_record(folder: Path, run_id: str) -> Any:
    async def look() -> Any:
        store = SQLiteStore(folder / "runs.db")
        try:
            return await stored_run(store, run_id)
        finally:
            await store.aclose()

    return asyncio.run(look())


# -- submit ----------------------------------------------------------------------------------


def test_a_run_is_submitted(stroma: Callable[..., Done], folder: Path) -> None:
    done = stroma("submit", "app:digest", "--input", '{"text": "a"}', "--run-id", "1", "--tag", "x")
    assert done == (0, "1 PENDING\n", "")
    run = run_record(folder, "1")
    assert (run.status, run.pipeline, run.tags) == (RunStatus.PENDING, "digest", ("x",))


@pytest.mark.parametrize("source", ["file", "standard input"])
def test_the_input_may_be_elsewhere(
    stroma: Callable[..., Done], folder: Path, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "input.json").write_text('{"text": "ü"}', encoding="utf-8")
    monkeypatch.setattr("sys.stdin", io.StringIO('{"text": "ü"}'))
    given = "@input.json" if source == "file" else "-"
    done = stroma("submit", "app:digest", "--input", given, "--run-id", "1", "--json")
    assert json.loads(done.out) == {"run_id": "1", "status": "PENDING"}
    assert json.loads(run_record(folder, "1").input_payload) == {"text": "ü"}


def test_another_store_is_named(stroma: Callable[..., Done], folder: Path) -> None:
    url = f"sqlite:///{folder}/other.db"
    done = stroma("submit", "app:digest", "--input", '{"text": "a"}', "--store", url)
    assert (done.code, done.out.split()[1]) == (0, "PENDING")
    assert (folder / "other.db").exists()
    assert not (folder / "runs.db").exists()


def test_the_pipelines_runner_says_how_in_another_store_too(
    stroma: Callable[..., Done], folder: Path
) -> None:
    url = f"sqlite:///{folder}/runs.db"
    stroma("submit", "app:report", "--input", '{"text": "a"}', "--run-id", "1", "--store", url)
    assert run_record(folder, "1").tags == ("cheap",)


def test_the_store_of_the_pipelines_runner_is_closed(
    worker: Callable[..., Process], stroma: Callable[..., Done], folder: Path
) -> None:
    stroma("submit", "app:report", "--input", '{"text": "a"}', "--run-id", "1")
    assert not list(folder.glob("own.db-owners/*"))
    process = worker("app:report")
    process.wait_for("run '1' ended as COMPLETED")
    assert list(folder.glob("own.db-owners/*"))
    process.send(signal.SIGTERM)
    assert process.end() == 0
    assert not list(folder.glob("own.db-owners/*"))


def test_without_a_store_nothing_is_submitted(
    stroma: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("STROMA_STORE")
    done = stroma("submit", "app:digest", "--input", '{"text": "a"}')
    assert done.code == 2
    assert "no store that workers share" in done.err


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("app",), "'app' is no MODULE:PIPELINE"),
        (("app:",), "'app:' is no MODULE:PIPELINE"),
        (("apps:digest",), "there is no module 'apps' here"),
        (("app.py:digest",), "a module is named without .py: app:digest"),
        (("apps.more:digest",), "there is no module 'apps' here"),
        (("app:digests",), "app has no 'digests'; its pipelines are digest, report"),
        (("app:number",), "app has 'number', which is no Pipeline but of type int; its pipelines"),
        (("app:digest", "--input", "hunter2"), "--input is no JSON"),
        (("app:digest", "--input", "[1]"), "--input must be a JSON object, not list"),
        (("app:digest", "--input", "@missing"), "'missing' cannot be read"),
        (("app:digest", "--input", '{"txt": "a"}'), "shout (input): text: "),
        (("app:digest",), "an input is missing: "),
        (("app:digest", "--run-id", "1"), "run '1' does not exist, and there is no initial state"),
        (("../app:digest",), "is no MODULE:PIPELINE: a module is named as in an import, such as"),
        ((".app:digest",), "is no MODULE:PIPELINE: a module is named as in an import, such as"),
        (("sub/app.py:digest",), "is no MODULE:PIPELINE: a module is named as in an import, such"),
    ],
    ids=str,
)
def test_wrong_use_is_named(
    stroma: Callable[..., Done], arguments: tuple[str, ...], problem: str
) -> None:
    done = stroma("submit", *arguments)
    assert done.code == 2
    assert problem in done.err
    assert "hunter2" not in done.err


def test_a_module_that_cannot_be_imported_says_why(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "stroma", "submit", "broken:digest"], capture_output=True, text=True
    )
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert "broken.py" in lines[1], "the traceback begins in the module"
    assert lines[-1] == (
        "error: 'broken:digest': the module cannot be imported: "
        "ModuleNotFoundError: No module named 'not_installed'"
    )


@pytest.mark.parametrize("command", ["submit", "worker"])
@pytest.mark.parametrize("code", ["0", "", "'done'"])
def test_a_module_that_exits_says_so(
    stroma: Callable[..., Done], folder: Path, command: str, code: str
) -> None:
    (folder / "broken.py").write_text(f"import sys\nsys.exit({code})\n")
    done = stroma(command, "broken:digest")
    assert (done.code, done.out) == (1, "")
    assert done.err == (
        f"error: 'broken:digest': the module exited while it was imported (SystemExit({code})): "
        'put what ends the program under `if __name__ == "__main__":`\n'
    )


RESOLVE = ("1", "shout", "--outcome", "lost")


@pytest.mark.parametrize(
    ("command", "more"), [("submit", ()), ("worker", ()), ("resolve", RESOLVE)], ids=str
)
def test_a_store_in_memory_is_seen_by_no_other_process(
    stroma: Callable[..., Done],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    more: tuple[str, ...],
) -> None:
    (folder / "app.py").write_text(APP.replace('store="sqlite:///own.db", ', 'store="memory:", '))
    monkeypatch.setenv("STROMA_STORE", "memory:")
    for named, arguments in {
        "store 'Memory:'": ("app:digest", *more, "--store", "Memory:"),
        "pipeline 'report'": ("app:report", *more),
        "STROMA_STORE": ("app:digest", *more),
    }.items():
        done = stroma(command, *arguments)
        assert (done.code, done.out) == (2, "")
        assert done.err.startswith(
            f"error: {named}: a store in memory is seen by one process only, and ends with it"
        )


# -- worker ----------------------------------------------------------------------------------


class Process:
    """A worker in a process of its own."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder = folder
        self.log = (folder / "log").open("w+")
        command = [sys.executable, "-m", "stroma", "worker", "app:digest", "--poll", "0.05"]
        self.process = subprocess.Popen(
            [*command, *arguments], cwd=folder, stderr=self.log, stdout=subprocess.DEVNULL
        )

    def lines(self) -> list[str]:
        text = (self.folder / "log").read_text()
        return [line.split(" ", 3)[3] for line in text.splitlines() if line[:1].isdigit()]

    def wait_for(self, text: str) -> str:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            for line in self.lines():
                if text in line:
                    return line
            assert self.process.poll() is None, (self.folder / "log").read_text()
            time.sleep(0.02)
        raise AssertionError(f"the worker did not say {text!r}: {self.lines()}")

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self) -> int:
        return self.process.wait(20)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.log.close()


@pytest.fixture
def worker(folder: Path) -> Iterator[Callable[..., Process]]:
    made: list[Process] = []

    def start(*arguments: str) -> Process:
        made.append(Process(folder, *arguments))
        return made[-1]

    yield start
    for process in made:
        process.close()


def test_a_worker_takes_up_what_is_submitted_and_stops_when_it_is_told(
    stroma: Callable[..., Done], worker: Callable[..., Process], folder: Path
) -> None:
    process = worker()
    stroma("submit", "app:digest", "--input", '{"text": "a"}', "--run-id", "1")
    process.wait_for("run '1' ended as COMPLETED")
    process.send(signal.SIGTERM)
    assert process.end() == 0
    assert process.lines() == [
        "the worker takes up runs of 'digest', 10 at once",
        "run '1' of 'digest', version '1' is taken up",
        "run '1' ended as COMPLETED; 0 tokens, $0",
        "the worker has stopped",
    ]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_that_come_late_do_not_spoil_the_exit_code(
    worker: Callable[..., Process], number: signal.Signals
) -> None:
    process = worker()
    process.wait_for("the worker takes up runs")
    while process.process.poll() is None:  # as of a supervisor that tells the whole group, too
        process.send(number)
        time.sleep(0.001)
    assert process.end() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_call_under_way_end_and_begins_no_other(
    stroma: Callable[..., Done],
    worker: Callable[..., Process],
    folder: Path,
    number: signal.Signals,
) -> None:
    stroma("submit", "app:digest", "--input", '{"text": "slow"}', "--run-id", "1")
    process = worker("--health", "127.0.0.1:0")
    told = process.wait_for("health is told on")
    process.wait_for("run '1' of 'digest'")
    address = told.rpartition(" ")[2]
    assert ask(address, "/readyz") == (200, "ok")
    process.send(number)
    process.wait_for("the worker stops: it awaits what one run has under way, for 30 s at most")
    assert ask(address, "/readyz") == (503, "stopping")
    assert ask(address, "/livez") == (200, "ok")
    (folder / "go").touch()
    assert process.end() == 0
    assert "run '1' is given back, for another worker" in process.lines()
    run = run_record(folder, "1")
    assert (run.status, run.owner) == (RunStatus.PENDING, "")

    second = worker()
    second.wait_for("run '1' ended as RESUMED")
    assert (folder / "called").read_text() == "slow\n"


@pytest.mark.parametrize("how", ["a second signal", "the drain ends"])
def test_a_call_that_does_not_end_is_cut(
    stroma: Callable[..., Done], worker: Callable[..., Process], folder: Path, how: str
) -> None:
    stroma("submit", "app:digest", "--input", '{"text": "slow"}', "--run-id", "1")
    process = worker("--drain", "0.1" if how == "the drain ends" else "600")
    process.wait_for("run '1' of 'digest'")
    process.send(signal.SIGTERM)
    if how == "a second signal":
        process.wait_for("the worker stops")
        process.send(signal.SIGTERM)
    assert process.end() == 0
    assert "run '1' is cut, and given back for another worker" in process.lines()
    run = run_record(folder, "1")
    assert (run.status, run.owner) == (RunStatus.PENDING, "")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("app:digests",), "app has no 'digests'"),
        (("app:digest", "--health", "here"), "'here' is no HOST:PORT"),
        (("app:digest", "--poll", "0"), "poll_seconds must be a number of seconds"),
        (("app:digest", "--store", "nowhere"), "nowhere"),
    ],
    ids=str,
)
def test_a_worker_that_cannot_begin_says_why(
    stroma: Callable[..., Done], arguments: tuple[str, ...], problem: str
) -> None:
    done = stroma("worker", *arguments)
    assert done.code == 2
    assert problem in done.err


def ask(address: str, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode().strip()
    except HTTPError as exc:
        with exc:
            return exc.code, exc.read().decode().strip()
