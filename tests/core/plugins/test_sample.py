"""What a third party publishes with nothing but stroma installed, from end to end."""

from __future__ import annotations

from pathlib import Path

from tests.core.plugins.installed import install_sample, python

PROGRAM = """
import asyncio
from pydantic import BaseModel
from stroma import AsyncInMemoryStore, CheckpointManager, StromaRunner, node
from stroma.config import open_store
from stroma.records import PlanDocument

class Text(BaseModel):
    text: str

calls = 0

@node
async def write(state: Text) -> Text:
    global calls
    calls += 1
    if calls == 1:
        raise OSError(28, "disk full")
    return Text(text=state.text + "!")

async def main() -> None:
    manager = CheckpointManager(open_store("dir:///states"))
    await manager.checkpoint("run/1", "../write", Text(text="kept"))
    print(await manager.resume("run/1", "../write", Text))
    await manager.clear("run/1")
    print(await manager.resume("run/1", "../write", Text))

    store = AsyncInMemoryStore()
    result = await StromaRunner.quick(store=store).run([write], Text(text="hi"), run_id="r")
    opened = await store.inspect("r")
    print(result.status.value, calls, PlanDocument.from_json(opened.run.plan).plugins)

asyncio.run(main())
"""


def test_its_store_keeps_states_and_its_classifier_takes_part(tmp_path: Path) -> None:
    install_sample(tmp_path, "stroma-sample-dir")

    done = python(tmp_path, "-c", PROGRAM, STROMA_PLUGINS="dir")

    assert done.stdout.splitlines() == ["text='kept'", "None", "COMPLETED 2 ('dir 1.0.0',)"], done
    assert list((tmp_path / "states").iterdir()) == []


def test_switched_off_it_takes_no_part(tmp_path: Path) -> None:
    install_sample(tmp_path, "stroma-sample-dir")

    done = python(tmp_path, "-c", PROGRAM, STROMA_DISABLE_PLUGINS="*")

    assert "store 'dir' cannot be used: plugin dir (stroma-sample-dir 1.0.0) is switched off" in (
        done.stderr
    )
