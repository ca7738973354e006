"""Writes the golden files of a version of Stroma, to be read by all later ones.

Once for a version that stays, from the root of the repository:

    git worktree add /tmp/then COMMIT
    PYTHONPATH=/tmp/then/stroma-core/src:. python tests/core/golden/make.py COMMIT
    git worktree remove /tmp/then

It writes `tests/core/golden/COMMIT/runs.db`, and `records.json`: what stores get that keep records
as JSON. What a version once wrote is never written again.
"""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

from stroma import SQLiteStore, StromaRunner
from tests.core.golden import app

HERE = Path(__file__).parent
RUNS = ("complete", "half", "again", "refused", "nested", "killed", "renamed")


async def write(database: Path) -> None:
    async with StromaRunner.quick(store=f"sqlite:///{database}", tags=["golden"]) as runner:
        await runner.run(app.short, app.SEA, run_id="complete")
        await runner.run(app.report, app.SEA, run_id="half")
        await runner.run(app.short, app.SEA, run_id="again")
        await runner.run(app.short, run_id="again", resume_from="research")
        await runner.run(app.counted, app.SEA, run_id="refused")
        await runner.run(app.nested, app.SEA, run_id="nested")
        await runner.run(app.report, app.SEA, run_id="renamed")


async def write_and_die(database: Path) -> None:
    async with StromaRunner.quick(store=f"sqlite:///{database}", lease_seconds=0.01) as runner:
        await runner.run(app.killed, app.SEA, run_id="killed")


async def records(database: Path) -> dict[str, Any]:
    from stroma.record_codec import header_to_json, run_to_json

    store, found = SQLiteStore(database), {}
    for run_id in RUNS:
        opened: Any = await store.inspect(run_id)
        kept: Any = await store.fetch(run_id, [header.key for header in opened.headers])
        found[run_id] = {
            "run": run_to_json(opened.run).decode(),
            "records": [
                [header_to_json(header).decode(), base64.b64encode(payload).decode()]
                for header, payload in kept
            ],
        }
    await store.aclose()
    return found


def main() -> None:
    socket.gethostname = lambda: "golden"  # what owners are called is kept
    folder = HERE / sys.argv[1]
    database = folder / "runs.db"
    if len(sys.argv) > 2:
        asyncio.run(write_and_die(database))
    folder.mkdir()
    asyncio.run(write(database))
    subprocess.run([sys.executable, __file__, sys.argv[1], "die"], check=False)
    connection = sqlite3.connect(database)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    shutil.rmtree(folder / "runs.db-owners")  # they are dead
    try:
        found = asyncio.run(records(database))
    except ImportError:  # a version that kept no records as JSON
        return
    (folder / "records.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
