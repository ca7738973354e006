"""The commands on a store: what they print, and how they exit."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from stroma import InMemoryStore, SQLiteStore
from stroma.cli import access, main
from stroma.config import open_store
from stroma.cost import NO_USAGE, Usage
from stroma.errors import StoreUnusable
from stroma.records import (
    CheckpointRecord,
    Commit,
    Epoch,
    OpenRequest,
    PlanDocument,
    RecordHeader,
    RecordKind,
    RunPage,
    RunRecord,
    RunStatus,
    RunUpdate,
    UnreadableRun,
    digest_of,
)

PLAN = PlanDocument(("fetch", "ask", "sum[up]"), {}, {"cost_usd": "1.5"}, ("otel 1.0",))
USAGE = Usage(1200, 300, Decimal("0.00615"), "gpt-4o", "a list")


class FakeClock:
    def __init__(self) -> None:
        self.time = time.time() - 40 * 86400

    def now(self) -> float:
        return self.time

    monotonic = now

    async def sleep(self, seconds: float) -> None:
        self.time += seconds


class Done(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Command = Callable[..., Done]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def store(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> InMemoryStore:
    """A store that every invocation finds under "memory:", since memory outlives none."""
    store = InMemoryStore(clock=clock)
    monkeypatch.setattr(access, "open_shared_store", lambda spec: store)
    monkeypatch.setenv("STROMA_STORE", "memory:")
    return store


@pytest.fixture
def stroma(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Done]:
    def run(*arguments: str) -> Done:
        monkeypatch.setattr("sys.argv", ["stroma", *arguments])
        with pytest.raises(SystemExit) as caught:
            main()
        out, err = capsys.readouterr()
        return Done(int(caught.value.code or 0), out, err)

    return run


def record(
    run_id: str, path: str, kind: RecordKind = "result", attempt: int = 0, epoch: int = 0
) -> CheckpointRecord:
    position = -1 if kind == "attempt" else {"fetch": 0, "ask": 1}.get(path, -1)
    usage = NO_USAGE if path == "fetch" else USAGE
    header = RecordHeader(
        run_id, epoch, path, kind, attempt, position, f"{epoch}{path}{kind}{attempt}", path,
        "m:M", "f", digest_of(b"{}"), usage, 5.0, "", time.time(),
    )  # fmt: skip
    return CheckpointRecord(header, b"{}")


def add(
    store: InMemoryStore,
    run_id: str,
    status: RunStatus = RunStatus.PARTIAL,
    *records: CheckpointRecord,
    epochs: tuple[Epoch, ...] | None = None,
    is_left_owned: bool = False,
    **columns: Any,
) -> None:
    new = RunRecord(run_id, RunStatus.PENDING, plan=PLAN.to_json(), **columns)
    store.open_run(OpenRequest(run_id, "token", "worker 7", 60_000_000_000, new))
    update = RunUpdate(status, "it stopped", epochs, spend=USAGE, release=not is_left_owned)
    assert store.commit_many([Commit(run_id, "token", records, update)]) == [None]


def test_runs_are_listed_the_last_updated_first(
    store: InMemoryStore, clock: FakeClock, stroma: Command
) -> None:
    add(store, "older", pipeline="digest", version="3", tags=("eu",))
    clock.time += 60
    add(store, "newer", RunStatus.FAILED)

    done = stroma("runs")

    assert done.code == 0
    lines = done.out.splitlines()
    newer, older = (next(x for x in lines if run in x) for run in ("newer", "older"))
    assert lines.index(newer) < lines.index(older)
    assert "FAILED" in newer
    for cell in ("PARTIAL", "digest 3", "eu", "1500", "0.00615", "it stopped"):
        assert cell in older


LONG = "".join(f"{number:03}," for number in range(128))
"""As long as an id can be; no part of it looks like another one."""


@pytest.fixture
def long_values(store: InMemoryStore) -> str:
    """Two runs whose ids, tags and reasons no terminal has room for; the reason is returned."""
    reason = "the site is down, " * 60
    for run_id in (LONG, f"{LONG[:-4]}128,"):
        new = RunRecord(run_id, RunStatus.PENDING, plan=PLAN.to_json(), tags=(LONG,))
        store.open_run(OpenRequest(run_id, "token", "worker 7", 60_000, new))
        update = RunUpdate(RunStatus.PARTIAL, reason, release=True)
        records = (record(run_id, LONG[:-1]),)
        assert store.commit_many([Commit(run_id, "token", records, update)]) == [None]
    return reason.strip()


@pytest.mark.parametrize(
    "environment", [{}, {"COLUMNS": "40"}, {"FORCE_COLOR": "1", "TERM": "dumb"}]
)
def test_what_is_piped_is_neither_wrapped_nor_cut(
    environment: dict[str, str],
    long_values: str,
    stroma: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    def lines(*arguments: str) -> list[str]:
        return [line.rstrip() for line in stroma(*arguments).out.splitlines()]

    runs, shown, more = lines("runs"), lines("show", LONG), lines("runs", "--limit", "1")[-1]

    (row,) = (line for line in runs if line.split()[:1] == [LONG])
    assert row.count(LONG) == 2, "its id, and its tag"
    assert row.endswith(long_values)
    facts = [line.split(maxsplit=1) for line in shown]
    assert ["run", LONG] in facts
    assert ["reason", long_values] in facts
    assert any(line.startswith(f" {LONG[:-1]}  ") and "result" in line for line in shown)
    assert more.startswith("more: --cursor '")
    assert more.endswith("'")


@pytest.mark.usefixtures("long_values")
@pytest.mark.parametrize("columns", ["1", "20", "80", "200"])
def test_in_a_terminal_ids_are_folded_and_not_cut(
    columns: str, stroma: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"COLUMNS": columns, "LINES": "25", "TERM": "dumb"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)

    *lines, more = stroma("runs", "--limit", "1").out.splitlines()

    pieces = [line.split()[0] for line in lines[3:] if line.strip()]
    assert len(pieces) > 1
    assert LONG[:-4] in "".join(pieces), "all but the number that the two differ in"
    assert "\N{HORIZONTAL ELLIPSIS}" not in "".join(lines)
    assert more.startswith("more: --cursor '")
    assert more.endswith("'"), "a command that is copied is one line"


def test_runs_as_json_and_page_by_page(
    store: InMemoryStore, clock: FakeClock, stroma: Command
) -> None:
    for number in range(3):
        add(store, f"run {number}")
        clock.time += 1

    first = stroma("runs", "--limit", "2", "--json").json
    second = stroma("runs", "--limit", "2", "--json", "--cursor", first["cursor"]).json

    assert [run["run_id"] for run in first["runs"] + second["runs"]] == ["run 2", "run 1", "run 0"]
    assert second["cursor"] == ""
    assert first["runs"][0]["spend"]["cost_usd"] == "0.00615"
    assert first["runs"][0]["lease_expires_at"] is None
    assert "more: --cursor '" in stroma("runs", "--limit", "2").out


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ((), {"a", "b", "c"}),
        (("--status", "failed"), {"b"}),
        (("--status", "FAILED", "--status", "completed"), {"b", "c"}),
        (("--pipeline", "digest"), {"a"}),
        (("--tag", "eu"), {"b"}),
    ],
)
def test_runs_are_selected(
    options: tuple[str, ...], found: set[str], store: InMemoryStore, stroma: Command
) -> None:
    add(store, "a", pipeline="digest")
    add(store, "b", RunStatus.FAILED, tags=("eu",))
    add(store, "c", RunStatus.COMPLETED)

    listed = stroma("runs", "--json", *options).json["runs"]

    assert {run["run_id"] for run in listed} == found


def test_no_runs(store: InMemoryStore, stroma: Command) -> None:
    assert stroma("runs") == Done(0, "no runs\n", "")


def test_a_run_is_shown_with_its_records_and_what_they_cost(
    store: InMemoryStore, stroma: Command
) -> None:
    add(
        store,
        "r",
        RunStatus.PARTIAL,
        record("r", "fetch"),
        record("r", "ask", "attempt", 1),
        record("r", "ask"),
        pipeline="digest",
    )

    done, shown = stroma("show", "r"), stroma("show", "r", "--json").json

    assert done.code == 0
    for text in ("PARTIAL", "it stopped", "3000 tokens, 0.01230 USD", "1.5 cost_usd", "otel 1.0"):
        assert text in done.out
    assert shown["status"] == "PARTIAL"
    assert shown["spend"]["cost_usd"] == "0.01230"
    assert shown["nodes"] == [
        {"node_id": "fetch", "is_recorded": True},
        {"node_id": "ask", "is_recorded": True},
        {"node_id": "sum[up]", "is_recorded": False},
    ]
    assert [(r["path"], r["kind"], r["attempt"]) for r in shown["records"]] == [
        ("fetch", "result", 0),
        ("ask", "attempt", 1),
        ("ask", "result", 0),
    ]
    assert (shown["owner"], shown["budget"]) == ("", {"cost_usd": "1.5"})


def test_calls_in_doubt_are_shown_and_each_call_is_counted_once(
    store: InMemoryStore, stroma: Command
) -> None:
    add(
        store,
        "r",
        RunStatus.WAITING,
        record("r", "ask", "reserved", 1),
        record("r", "ask", "attempt", 1),
        record("r", "ask", "reserved", 2),
    )

    done, shown = stroma("show", "r"), stroma("show", "r", "--json").json

    assert "ask, call 2: died" in done.out
    assert [(d["path"], d["attempt"], d["reason"]) for d in shown["in_doubt"]] == [
        ("ask", 2, "died")
    ]
    assert shown["in_doubt"][0]["charged"] == shown["records"][0]["usage"]
    assert shown["spend"]["input_tokens"] == 2 * USAGE.input_tokens


def test_showing_a_run_does_not_claim_it(store: InMemoryStore, stroma: Command) -> None:
    add(store, "r", is_left_owned=True)
    before = store.inspect("r")

    done = stroma("show", "r")

    assert "worker 7 until" in done.out
    assert store.inspect("r") == before
    assert before is not None
    assert not before.is_claimed


def test_who_owns_a_run_and_until_when_is_shown(
    store: InMemoryStore, clock: FakeClock, stroma: Command
) -> None:
    new = RunRecord("r", RunStatus.PENDING, plan=PLAN.to_json())
    clock.time = datetime(2999, 1, 1, tzinfo=UTC).timestamp()
    store.open_run(OpenRequest("r", "token", "worker 7", 60_000, new))

    shown = stroma("show", "r", "--json").json

    assert stroma("show", "r").out.count("worker 7 until 2999-01-01T00:01:00+00:00\n") == 1
    assert (shown["status"], shown["owner"], shown["lease_expires_at"]) == (
        "RUNNING",
        "worker 7",
        "2999-01-01T00:01:00+00:00",
    )


def test_an_owner_whose_lease_has_ended_is_shown_as_such(
    store: InMemoryStore, clock: FakeClock, stroma: Command
) -> None:
    new = RunRecord("r", RunStatus.PENDING, plan=PLAN.to_json())
    clock.time = datetime(2001, 1, 1, tzinfo=UTC).timestamp()
    store.open_run(OpenRequest("r", "token", "worker 7", 60_000, new))

    told = "worker 7 until 2001-01-01T00:01:00+00:00, which is over: another worker may take it up"
    assert told in stroma("show", "r").out


@pytest.mark.parametrize("seconds", [1e12, 1e308])
def test_times_after_the_year_9999_are_shown_as_seconds(
    store: InMemoryStore, clock: FakeClock, stroma: Command, seconds: float
) -> None:
    clock.time = seconds
    store.open_run(OpenRequest("r", "token", "worker 7", 60_000, RunRecord("r", RunStatus.PENDING)))

    assert f"{seconds:g} s after 1970" in stroma("runs").out
    assert f"worker 7 until {seconds:g} s after 1970" in stroma("show", "r").out
    (run,) = stroma("runs", "--json").json["runs"]
    assert run["updated_at"] == run["lease_expires_at"] == f"{seconds:g} s after 1970"


def test_a_result_that_a_later_epoch_left_behind_is_not_recorded_any_more(
    store: InMemoryStore, stroma: Command
) -> None:
    epochs = (Epoch(0, 0, False), Epoch(1, 1, True))
    records = [record("r", "fetch"), record("r", "ask"), record("r", "sum[[up]", epoch=1)]
    add(store, "r", RunStatus.PARTIAL, *records, epochs=epochs)

    shown = stroma("show", "r", "--json").json

    assert [node["is_recorded"] for node in shown["nodes"]] == [True, False, True]


def test_ids_are_data(store: InMemoryStore, stroma: Command) -> None:
    run_id = "[red]x[/red]\x1b[2J"
    add(store, run_id)

    for done in (stroma("runs"), stroma("show", run_id), stroma("delete", run_id)):
        assert done.code == 0
        assert "[red]x[/red]\\x1b[2J" in done.out
        assert "\x1b" not in done.out


@pytest.mark.parametrize("command", ["show", "delete"])
def test_a_run_that_does_not_exist(command: str, store: InMemoryStore, stroma: Command) -> None:
    assert stroma(command, "r") == Done(1, "", "error: the store has no run 'r'\n")


def test_a_run_is_deleted(store: InMemoryStore, stroma: Command) -> None:
    add(store, "r")
    add(store, "other")

    assert stroma("delete", "r") == Done(0, "deleted r\n", "")
    assert stroma("delete", "other", "--json").json == {"deleted": "other"}
    assert store.inspect("r") is None


def test_an_owned_run_is_deleted_by_force_only(store: InMemoryStore, stroma: Command) -> None:
    add(store, "r", is_left_owned=True)

    refused = stroma("delete", "r")

    assert refused.code == 1
    assert "run 'r' is owned by worker 7, for at least" in refused.err
    assert "--force" in refused.err
    assert stroma("delete", "r", "--force").code == 0
    assert store.inspect("r") is None


@pytest.fixture
def damaged(tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store of two old runs, "fine" and "r", of which the latter cannot be read."""
    monkeypatch.setenv("STROMA_STORE", f"sqlite:///{tmp_path}/runs.db")

    async def submitted() -> None:
        store = SQLiteStore(tmp_path / "runs.db", clock=clock)
        for run_id in ("r", "fine"):
            new = RunRecord(run_id, RunStatus.PENDING)
            await store.open_run(OpenRequest(run_id, "t", "w", 1, new))
            await store.release(run_id, "t")
        await store.aclose()

    asyncio.run(submitted())
    with closing(sqlite3.connect(tmp_path / "runs.db")) as connection, connection:
        connection.execute("UPDATE runs SET epochs = 'junk' WHERE run_id = 'r'")


@pytest.mark.usefixtures("damaged")
def test_a_damaged_run_is_named_and_the_others_are_listed(stroma: Command) -> None:
    found = stroma("runs")

    assert found.code == 1
    assert "fine" in found.out
    assert found.err.startswith("error: run 'r': its row cannot be read: ")
    found = stroma("runs", "--json")
    assert [run["run_id"] for run in found.json["runs"]] == ["fine"]
    (told,) = found.json["unreadable"]
    assert told["run_id"] == "r"
    assert told["error"].startswith("run 'r': its row cannot be read: ")
    assert found.code == 1
    assert "more: --cursor " in stroma("runs", "--limit", "1").out


@pytest.mark.usefixtures("damaged")
def test_a_damaged_run_is_left_by_a_purge_that_says_so(stroma: Command) -> None:
    purged = stroma("purge", "--older-than", "30d")

    assert (purged.code, purged.out) == (0, "purged 1 run\n")
    assert purged.err.startswith("left alone: run 'r': its row cannot be read: ")
    assert purged.err.endswith(
        "nobody can tell whether a worker owns what cannot be read: "
        "`stroma delete ID --force` removes it\n"
    )
    again = stroma("purge", "--older-than", "30d", "--json").json
    assert (again["purged"], [run["run_id"] for run in again["left"]]) == (0, ["r"])


def test_a_run_of_a_newer_version_is_left_by_a_purge_without_advice_to_remove_it(
    store: InMemoryStore, stroma: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = UnreadableRun("new", StoreUnusable("format 2: update this program"))
    monkeypatch.setattr(store, "runs", lambda query: RunPage((), "", (newer,)))

    purged = stroma("purge", "--older-than", "30d")

    assert purged.err == "left alone: run 'new': format 2: update this program\n"


@pytest.mark.usefixtures("damaged")
def test_a_damaged_run_is_deleted_by_force_only(stroma: Command) -> None:
    refused = stroma("delete", "r")

    assert refused.code == 1
    assert "run 'r': its row cannot be read" in refused.err
    assert "nobody can tell whether a worker owns it: pass --force to remove it" in refused.err
    assert stroma("delete", "r", "--force") == Done(0, "deleted r\n", "")
    assert stroma("runs").code == 0


def test_purge_removes_what_is_old_and_free(
    store: InMemoryStore, clock: FakeClock, stroma: Command
) -> None:
    add(store, "old", RunStatus.COMPLETED)
    add(store, "old failure", RunStatus.FAILED)
    add(store, "old but owned", RunStatus.RUNNING, is_left_owned=True)
    clock.time = time.time()
    add(store, "new", RunStatus.COMPLETED)

    assert stroma("purge", "--older-than", "30d", "--status", "completed").out == "purged 1 run\n"
    assert stroma("purge", "--older-than", "2w", "--json").json == {"purged": 1, "left": []}
    left = {run["run_id"] for run in stroma("runs", "--json").json["runs"]}
    assert left == {"old but owned", "new"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("runs", "--status", "resumed"), "no run has the status 'resumed'; there are PENDING"),
        (("purge", "--older-than", "soon"), "'soon' is no duration: write one such as 90s"),
        (("purge",), "--older-than"),
        (("runs", "--limit", "0"), "--limit"),
        (("runs", "--tag", ""), "tag '' must have 1 to 512 bytes"),
        (("purge", "--older-than", "1d", "--tag", ""), "tag '' must have 1 to 512 bytes"),
        (("nope",), "nope"),
        (("show",), "RUN_ID"),
    ],
)
def test_wrong_use_exits_with_2(
    arguments: tuple[str, ...], message: str, store: InMemoryStore, stroma: Command
) -> None:
    done = stroma(*arguments)

    assert done.code == 2
    assert message in done.err


def test_without_a_store_it_says_where_to_name_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stroma: Command
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("STROMA_STORE", raising=False)

    done = stroma("runs")

    assert done.code == 2
    assert "no store: pass --store URL, set STROMA_STORE, or write it into stroma.toml" in done.err


def test_passwords_of_the_store_are_masked(stroma: Command) -> None:
    done = stroma("runs", "--store", "reddis://u:hidden@h")

    assert done.code == 2
    assert "there is no store 'reddis'" in done.err
    assert "hidden" not in done.err


def test_a_store_that_keeps_states_only_has_no_runs(
    monkeypatch: pytest.MonkeyPatch, stroma: Command
) -> None:
    monkeypatch.setattr(access, "open_shared_store", lambda spec: object())

    done = stroma("runs", "--store", "dir:///x")

    assert (done.code, done.err) == (2, "error: object keeps states only, and no records of runs\n")


@pytest.mark.parametrize("command", [("runs",), ("show", "r"), ("delete", "r")])
def test_a_store_in_memory_is_refused_as_nobody_else_sees_it(
    command: tuple[str, ...], stroma: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = stroma(*command, "--store", "memory")
    assert (refused.code, refused.out) == (2, "")
    assert "store 'memory': a store in memory is seen by one process only" in refused.err
    monkeypatch.setenv("STROMA_STORE", "memory:")
    assert "STROMA_STORE: a store in memory is seen by one process only" in stroma(*command).err


@pytest.mark.parametrize("command", [("runs",), ("show", "r"), ("purge", "--older-than", "1d")])
def test_an_empty_file_stays_empty(
    command: tuple[str, ...], tmp_path: Path, stroma: Command
) -> None:
    path = tmp_path / "empty.db"
    path.touch()

    refused = stroma(*command, "--store", f"sqlite:///{path}")

    assert refused.code == 1
    assert f"the file '{path}' is empty: no run was ever written to it" in refused.err
    assert path.read_bytes() == b""
    assert list(tmp_path.iterdir()) == [path]


def test_a_password_in_what_is_no_url_is_masked(stroma: Command) -> None:
    refused = stroma("runs", "--store", ":WrongPw99@127.0.0.1:17391")

    assert refused.code == 2
    assert "WrongPw99" not in refused.err
    assert "':***@127.0.0.1:17391' is neither a name nor a URL: a URL begins" in refused.err


def test_the_version(stroma: Command) -> None:
    done = stroma("--version")

    assert done.code == 0
    assert done.out.startswith("stroma 1.")


def test_a_mistyped_file_is_not_created(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stroma: Command
) -> None:
    monkeypatch.chdir(tmp_path)

    done = stroma("runs", "--store", "sqlite:///typo.db")

    assert done == Done(1, "", f"error: there is no file '{tmp_path / 'typo.db'}'\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [("runs",), ("show", "r"), ("purge", "--older-than", "1s")])
def test_the_commands_work_on_a_file(
    command: tuple[str, ...], tmp_path: Path, stroma: Command
) -> None:
    url = f"sqlite:///{tmp_path / 'runs.db'}"
    store = open_store(url)

    async def write() -> None:
        assert isinstance(store, SQLiteStore)
        request = OpenRequest("r", "t", "w", 1000, RunRecord("r", RunStatus.PENDING))
        await store.open_run(request)
        await store.release("r", "t")
        await store.aclose()

    asyncio.run(write())

    assert stroma(*command, "--store", url).code == 0


@pytest.mark.parametrize("command", [("runs",), ("show", "ñ日")])
def test_what_the_output_cannot_encode_is_escaped(command: tuple[str, ...], tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'runs.db'}"

    async def write() -> None:
        store = SQLiteStore(tmp_path / "runs.db")
        request = OpenRequest("ñ日", "t", "w", 1000, RunRecord("ñ日", RunStatus.PENDING))
        await store.open_run(request)
        await store.release("ñ日", "t")
        await store.aclose()

    asyncio.run(write())

    done = subprocess.run(
        [sys.executable, "-m", "stroma", *command, "--store", url],
        env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "1"},
        capture_output=True,
        text=True,
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert "\\xf1\\u65e5" in done.stdout
