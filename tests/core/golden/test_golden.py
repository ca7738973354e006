"""What older versions of Stroma have written is read, continued and paid for once.

A folder here is named by the commit that wrote it; `make.py` says how. Its files never change.
"""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from stroma import InMemoryStore, RunStatus, SQLiteStore, StromaRunner, recover
from stroma.record_codec import header_from_json, run_from_json
from stroma.records import CheckpointRecord, Commit, OpenRequest, RunRecord, RunUpdate
from tests.core.golden import app

HERE = Path(__file__).parent
FILES = sorted([*HERE.glob("*/runs.db"), *HERE.glob("*/records.json")])


@pytest.fixture(params=FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Any]:
    """A store as an older version has left it."""
    file: Path = request.param
    if file.suffix == ".db":
        shutil.copy(file, tmp_path / "runs.db")
        made = SQLiteStore(tmp_path / "runs.db")
        yield made
        await made.aclose()
    else:
        yield from_json(json.loads(file.read_text()))


@pytest.fixture(autouse=True)
def site(monkeypatch: pytest.MonkeyPatch) -> None:
    """The site that was down is up now, and no node was called yet."""
    monkeypatch.setattr(app, "is_up", True)
    app.calls.clear()


def from_json(documents: dict[str, Any]) -> InMemoryStore:
    """Return a store with the runs that were kept as JSON."""
    store = InMemoryStore()
    for run_id, document in documents.items():
        run = run_from_json(document["run"])
        records = tuple(
            CheckpointRecord(header_from_json(header), base64.b64decode(payload))
            for header, payload in document["records"]
        )
        store.open_run(OpenRequest(run_id, "token", "a reader", 60_000, run))
        assert store.commit_many([Commit(run_id, "token", records, update_to(run))]) == [None]
    return store


def update_to(run: RunRecord) -> RunUpdate:
    return RunUpdate(run.status, run.stop_reason, run.epochs, release=True)


async def test_a_complete_run_is_returned_and_nothing_is_bought(store: Any) -> None:
    result = await StromaRunner.quick(store=store).run(app.short, app.SEA, run_id="complete")
    assert result.status is RunStatus.RESUMED
    assert result.final_state == app.Notes(text="The sea is wide: ü")
    assert (result.tokens, str(result.cost_usd)) == (1500, "0.006")
    assert not app.calls


async def test_a_run_goes_on_where_it_was_with_what_it_had_spent(store: Any) -> None:
    result = await StromaRunner.quick(store=store).run(app.report, app.SEA, run_id="half")
    assert result.status is RunStatus.RESUMED
    assert result.final_state == app.Notes(text="The sea is wide: ü, and deep")
    assert app.calls == {"draft": 1, "publish": 1}
    assert (result.spent_before.tokens, result.tokens) == (1555, 1555 + 175)
    assert result.usage["draft"].tokens == 55 + 175


async def test_what_was_bought_again_by_consent_counts_twice(store: Any) -> None:
    result = await StromaRunner.quick(store=store).run(app.short, run_id="again", resume=True)
    assert (result.status, result.epoch, result.tokens) == (RunStatus.RESUMED, 1, 3000)
    assert not app.calls


async def test_an_output_that_was_refused_fits_a_mended_contract(store: Any) -> None:
    result = await StromaRunner.quick(store=store).run(app.mended, run_id="refused", resume=True)
    assert (result.status, result.final_state) == (RunStatus.RESUMED, app.Mended(n="many"))
    assert not app.calls


async def test_finished_children_and_items_are_not_run_again(store: Any) -> None:
    result = await StromaRunner.quick(store=store).run(app.nested, run_id="nested", resume=True)
    assert result.status is RunStatus.RESUMED
    assert app.calls == {"take 2": 1, "take 3": 1}
    state: Any = result.final_state
    assert (state.length, [part.number for part in state.taken]) == (7, [0, 10, 20, 30])
    assert result.tokens == 7 + 4 * 3


async def test_an_upcaster_mends_what_an_older_pipeline_recorded(store: Any) -> None:
    result = await StromaRunner.quick(store=store).run(app.lined, run_id="renamed", resume=True)
    assert result.final_state == app.Lines(lines=["The sea is wide: ü"])
    assert app.calls == {"draft": 1}


async def test_a_worker_takes_up_the_run_of_a_process_that_was_killed(store: Any) -> None:
    done = await recover(app.killed, app.report, app.nested, store=store)
    (result,) = done.results
    assert (result.run_id, result.status) == ("killed", RunStatus.RESUMED)
    assert app.calls == {"die": 1, "publish": 1}
    assert done.left_alone == ()


def test_the_folders_hold_something() -> None:
    assert len(FILES) >= 3
