"""Which files a SQLite store takes, what it says of the others, and that it leaves them alone."""

from __future__ import annotations

import asyncio
import hashlib
import os
import resource
import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from stroma.checkpoint import Durability
from stroma.errors import (
    ConfigError,
    RecordTooLarge,
    StoreError,
    StoreUnavailable,
    StoreUnusable,
)
from stroma.records import RunQuery, RunStatus, RunUpdate
from stroma.stores import _sqlite_file, _sqlite_session
from stroma.stores.sqlite import SQLiteStore
from tests.core.stores.support import Note, commit, in_child, record, request


def execute(path: Path, *statements: str) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    for statement in statements:
        connection.execute(statement)
    connection.close()


def contents(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


async def refusal(path: Path) -> str:
    """Return why a store cannot be used, after having seen that nothing was touched."""
    before = contents(path.parent) if path.parent.is_dir() and path.is_file() else {}
    store = SQLiteStore(path, busy_timeout_seconds=0.1)
    with pytest.raises(StoreUnusable) as refused:
        await store.setup()
    with pytest.raises(StoreUnusable):
        await store.save("run", "node", Note())
    await store.aclose()
    if before:
        assert contents(path.parent) == before
    return str(refused.value)


class TestPaths:
    @pytest.mark.parametrize("path", ["", ":memory:", "file:runs.db?mode=ro", "a\0b"])
    def test_what_names_no_file(self, path: str) -> None:
        with pytest.raises(ConfigError, match="path"):
            SQLiteStore(path)

    @pytest.mark.parametrize("name", ["a b.db", "100%.db", "a?b#c.db", "\N{SNOWMAN}.db", "x'y.db"])
    async def test_any_file_name_will_do(self, tmp_path: Path, name: str) -> None:
        for _ in range(2):
            store = SQLiteStore(tmp_path / name)
            await store.save("run", "node", Note(text=name))
            assert await store.load("run", "node") == Note(text=name)
            await store.aclose()
        assert [p.name for p in tmp_path.iterdir()] == [name]

    async def test_a_relative_path_stays_where_it_was(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        store = SQLiteStore("runs.db")
        monkeypatch.chdir("/")
        await store.setup()
        await store.aclose()
        assert store.path == tmp_path / "runs.db"
        assert repr(store) == f"SQLiteStore('{tmp_path}/runs.db')"
        assert store.path.is_file()

    @pytest.mark.parametrize(
        "options",
        [
            {"busy_timeout_seconds": -1},
            {"busy_timeout_seconds": float("nan")},
            {"max_payload_bytes": 0},
            {"max_payload_bytes": 10**10},
        ],
    )
    def test_numbers_out_of_range(self, database: Path, options: dict[str, float]) -> None:
        with pytest.raises(ConfigError, match="must be from"):
            SQLiteStore(database, **options)  # type: ignore[arg-type]

    async def test_making_a_store_touches_nothing(self, database: Path) -> None:
        await SQLiteStore(database).aclose()
        assert not database.exists()


class TestForeignFiles:
    async def test_another_programs_database(self, database: Path) -> None:
        execute(database, "CREATE TABLE bookmarks (url)", "INSERT INTO bookmarks VALUES ('x')")
        assert "another program" in await refusal(database)

    async def test_another_programs_mark(self, database: Path) -> None:
        execute(database, "PRAGMA application_id = 7")
        assert "0x7" in await refusal(database)

    async def test_another_programs_log_is_not_folded_in(self, database: Path) -> None:
        theirs = sqlite3.connect(database, isolation_level=None)
        theirs.execute("PRAGMA journal_mode = WAL")
        theirs.execute("CREATE TABLE bookmarks (url)")
        theirs.execute("PRAGMA wal_checkpoint")
        theirs.execute("INSERT INTO bookmarks VALUES ('x')")
        before = database.with_name("runs.db-wal").read_bytes()
        assert "another program" in await refusal(database)
        assert database.with_name("runs.db-wal").read_bytes() == before
        assert theirs.execute("SELECT * FROM bookmarks").fetchall() == [("x",)]
        theirs.close()

    async def test_no_database_at_all(self, database: Path) -> None:
        database.write_text("pipelines:\n  - digest\n" * 100)
        assert "no SQLite database" in await refusal(database)

    async def test_an_empty_file_becomes_a_store(self, database: Path) -> None:
        database.touch()
        store = SQLiteStore(database)
        await store.save("run", "node", Note())
        await store.aclose()
        assert database.read_bytes()[:6] == b"SQLite"

    async def test_a_newer_format(self, database: Path, sqlite: SQLiteStore) -> None:
        await sqlite.setup()
        await sqlite.aclose()
        execute(database, "PRAGMA user_version = 99")
        assert "format 99" in await refusal(database)

    async def test_a_store_that_another_process_makes_longer_just_now(
        self, database: Path, sqlite: SQLiteStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It is looked at without a lock, and its header may be ahead of the rest for a moment."""
        await sqlite.open_run(request())
        await sqlite.aclose()
        whole = database.read_bytes()
        database.write_bytes(whole[:4096])
        monkeypatch.setattr(_sqlite_file.time, "sleep", lambda _: database.write_bytes(whole))
        store = SQLiteStore(database)
        assert await store.inspect("run") is not None
        await store.aclose()

    async def test_a_damaged_store(self, database: Path, sqlite: SQLiteStore) -> None:
        for i in range(50):
            await sqlite.save("run", f"n{i}", Note(text="x" * 500))
        await sqlite.aclose()
        with database.open("r+b") as file:
            file.seek(4096)
            file.write(b"\xff" * (database.stat().st_size - 4096))
        store = SQLiteStore(database)
        with pytest.raises(StoreUnusable, match="damaged"):
            await store.load("run", "n1")
        await store.aclose()

    async def test_missing_tables(self, database: Path, sqlite: SQLiteStore) -> None:
        await sqlite.setup()
        await sqlite.aclose()
        execute(database, "DROP TABLE records")
        store = SQLiteStore(database)
        with pytest.raises(StoreUnusable, match="no such table"):
            await store.load("run", "n1")
        await store.aclose()

    async def test_a_folder(self, tmp_path: Path) -> None:
        assert "folder" in await refusal(tmp_path)

    async def test_a_pipe(self, database: Path) -> None:
        os.mkfifo(database)
        store = SQLiteStore(database)
        with pytest.raises(StoreUnusable, match="regular file"):
            await store.setup()
        await store.aclose()

    async def test_no_folder_to_be_in(self, tmp_path: Path) -> None:
        text = await refusal(tmp_path / "none" / "runs.db")
        assert f"no folder {tmp_path / 'none'}" in text
        assert not (tmp_path / "none").exists()

    async def test_it_is_marked(self, database: Path, sqlite: SQLiteStore) -> None:
        await sqlite.setup()
        await sqlite.aclose()
        assert database.read_bytes()[68:72] == b"Strm"


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that another user can reach, which pytest's are not."""
    folder = Path(tempfile.mkdtemp(prefix="stroma-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def as_nobody() -> None:
    if os.geteuid() == 0:  # root may write everywhere
        os.setgroups([])
        os.setuid(65534)


class TestPermissions:
    def test_a_read_only_store(self, open_folder: Path) -> None:
        path = open_folder / "runs.db"

        async def fill() -> None:
            store = SQLiteStore(path)
            await store.save("run", "node", Note())
            await store.aclose()

        asyncio.run(fill())
        path.chmod(0o444)
        open_folder.chmod(0o555)

        def use() -> str:
            as_nobody()
            with pytest.raises(StoreUnusable, match=r"permission|to read and write") as refused:
                asyncio.run(SQLiteStore(path).save("run", "node", Note()))
            return type(refused.value.__cause__).__name__

        assert in_child(use).read() == "OperationalError"
        open_folder.chmod(0o755)

    def test_a_folder_that_may_not_be_written(self, open_folder: Path) -> None:
        open_folder.chmod(0o555)

        def use() -> str:
            as_nobody()
            with pytest.raises(StoreUnusable, match="create files in its folder"):
                asyncio.run(SQLiteStore(open_folder / "runs.db").setup())
            return "refused"

        assert in_child(use).read() == "refused"
        open_folder.chmod(0o755)


class TestTrouble:
    async def test_another_process_writes_for_too_long(self, database: Path) -> None:
        store = SQLiteStore(database, busy_timeout_seconds=0.05)
        await store.save("run", "node", Note(text="1"))
        other = sqlite3.connect(database, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable, match="another process is writing") as refused:
            await store.save("run", "node", Note(text="2"))
        assert isinstance(refused.value.__cause__, sqlite3.OperationalError)
        assert await store.load("run", "node") == Note(text="1")
        other.execute("ROLLBACK")
        await store.save("run", "node", Note(text="3"))
        other.close()
        await store.aclose()

    async def test_the_end_of_a_run_always_looks_whether_the_file_is_there(
        self, database: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(_sqlite_session, "CHECK_FILE_SECONDS", 60.0)
        store = SQLiteStore(database)
        await store.open_run(request())
        database.unlink()
        end = RunUpdate(RunStatus.COMPLETED, release=True)
        with pytest.raises(StoreUnusable, match="removed or replaced"):
            await store.commit_many([commit(record(), update=end)])
        await store.aclose()

    async def test_a_file_that_was_removed_while_in_use(
        self, database: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(_sqlite_session, "CHECK_FILE_SECONDS", 0.0)
        store = SQLiteStore(database)
        await store.save("run", "node", Note())
        database.unlink()
        with pytest.raises(StoreUnusable, match="removed or replaced"):
            await store.save("run", "node", Note())
        await store.aclose()

    async def test_a_payload_that_is_too_large(self, database: Path) -> None:
        store = SQLiteStore(database, max_payload_bytes=100)
        assert store.capabilities.durability is Durability.FSYNC
        assert store.capabilities.max_payload_bytes == 100
        await store.open_run(request())
        outcomes = await store.commit_many(
            [commit(record(path="big", payload=b"x" * 101)), commit(record(path="small"))]
        )
        assert [type(o) for o in outcomes] == [RecordTooLarge, type(None)]
        await store.aclose()

    async def test_a_value_that_cannot_be_bound_harms_no_other(self, sqlite: SQLiteStore) -> None:
        await sqlite.open_run(request())
        wide = record(path="wide", position=2**70)
        torn = record(path="torn\ud800")
        outcomes = await sqlite.commit_many(
            [commit(record(path="a"), torn), commit(record(path="b"), wide), commit(record())]
        )
        assert [type(o) for o in outcomes] == [StoreError, RecordTooLarge, type(None)]
        opened = await sqlite.open_run(request())
        assert opened is not None
        assert [h.path for h in opened.headers] == ["node"]

    async def test_stop_reasons_are_any_text(self, sqlite: SQLiteStore) -> None:
        await sqlite.open_run(request())
        update = RunUpdate(stop_reason="broken \ud800 text")
        assert await sqlite.commit_many([commit(update=update)]) == [None]
        (run,) = (await sqlite.runs(RunQuery())).runs
        assert run.stop_reason == "broken \\ud800 text"

    async def test_headers_keep_their_order_when_the_clock_is_turned_back(
        self, database: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for i, now in enumerate((2_000, 1_000, 1_000)):
            monkeypatch.setattr("stroma.stores._sqlite_tables.time.time_ns", lambda now=now: now)
            store = SQLiteStore(database)
            await store.open_run(request())
            await store.commit_many([commit(record(path=f"{9 - i}"))])
            await store.aclose()
        opened = await (store := SQLiteStore(database)).open_run(request())
        await store.aclose()
        assert opened is not None
        assert [header.path for header in opened.headers] == ["9", "8", "7"]

    def test_a_limit_on_the_file(self, database: Path) -> None:
        """The process may write only so much, as under `ulimit -f`."""

        async def fill() -> str:
            store = SQLiteStore(database)
            await store.save("run", "small", Note(text="kept"))
            resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
            with pytest.raises(StoreUnavailable, match="nothing was written"):
                await store.save("run", "large", Note(text="x" * 500_000))
            resource.setrlimit(
                resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
            )
            assert await store.load("run", "large") is None
            await store.save("run", "later", Note(text="kept"))
            await store.aclose()
            return "done"

        assert in_child(lambda: asyncio.run(fill())).read() == "done"
        store = SQLiteStore(database)
        assert asyncio.run(store.load("run", "later")) == Note(text="kept")
        asyncio.run(store.aclose())

    async def test_a_full_disk(self, small_disk: Path) -> None:
        store = SQLiteStore(small_disk / "runs.db")
        await store.save("run", "small", Note(text="kept"))
        with pytest.raises(StoreUnavailable, match="disk is full"):
            await store.save("run", "large", Note(text="x" * 2_000_000))
        assert await store.load("run", "large") is None
        assert await store.load("run", "small") == Note(text="kept")
        await store.save("run", "later", Note(text="fits"))
        await store.aclose()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    options = ["-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if mount is None or subprocess.run([mount, *options], capture_output=True).returncode:
        pytest.skip("no permission to mount a small disk; test_a_limit_on_the_file stands in")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
