"""Copies of stores under other names, to plant defects in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tests.docs.pages import blocks_of

ROOT = Path(__file__).resolve().parents[3]


class Edit(NamedTuple):
    """A piece of a copy that is replaced.

    Attributes:
        file: the file of the copy.
        old: what stands there exactly once.
        new: what it becomes.
    """

    file: str
    old: str
    new: str


class DoesNotApply(AssertionError):
    """A defect's text is not in the store any more, or more than once."""


@dataclass(frozen=True)
class Store:
    """A store that is copied.

    Attributes:
        name: for the ids of tests.
        package: what its modules are imported from, up to the name of each file; "" for one
            module that imports none of the others.
        sources: the files of the copy and where they come from: a module, or the block of a page
            with this text in it, as "page.md: text".
        subject: the body of the fixture `subject`, where PACKAGE stands for the copy's.
        server: it needs a server.
    """

    name: str
    package: str
    sources: dict[str, str]
    subject: str
    server: bool = False

    def edited(self, edits: tuple[Edit, ...] = (), name: str = "") -> dict[str, str]:
        """Return the texts of the files, with a defect of this name.

        Raises:
            DoesNotApply: the text of an edit does not occur exactly once.
        """
        texts = {file: _text_of(source) for file, source in self.sources.items()}
        for edit in edits:
            count = texts[edit.file].count(edit.old)
            if count != 1:
                raise DoesNotApply(
                    f"{name}, {self.name}, {edit.file}: this occurs {count} times, and not once: "
                    f"adapt the defect to the store as it is now:\n{edit.old}"
                )
            texts[edit.file] = texts[edit.file].replace(edit.old, edit.new)
        return texts

    def write(self, texts: dict[str, str], package: Path) -> None:
        """Write files as a package."""
        package.mkdir()
        for file, text in texts.items():
            renamed = text.replace(self.package, package.name) if self.package else text
            (package / file).write_text(renamed, encoding="utf-8")


def _text_of(source: str) -> str:
    path, _, mark = source.partition(": ")
    text = (ROOT / path).read_text(encoding="utf-8")
    if not mark:
        return text
    (found,) = (block.text for block in blocks_of(text) if mark in block.text)
    return found


_CORE = "stroma-core/src/stroma/stores"
MEMORY = Store(
    "memory",
    "stroma.stores",
    {name: f"{_CORE}/{name}" for name in ("memory.py", "rules.py")},
    """
        from PACKAGE.memory import InMemoryStore
        clock = FakeClock()
        return StoreSubject(make=lambda: InMemoryStore(clock=clock), clock=clock)
""",
)

ASYNC_MEMORY = Store(
    "async memory",
    MEMORY.package,
    MEMORY.sources,
    MEMORY.subject.replace("InMemoryStore", "AsyncInMemoryStore"),
)

SQLITE = Store(
    "sqlite",
    "stroma.stores",
    {
        path.name: path.relative_to(ROOT).as_posix()
        for path in (ROOT / _CORE).glob("*.py")
        if path.name not in ("__init__.py", "memory.py")
    },
    """
        from PACKAGE.sqlite import SQLiteStore
        clock = FakeClock()
        path = tmp_path / "runs.db"
        return StoreSubject(
            make=lambda: SQLiteStore(path, clock=clock, max_payload_bytes=2_000_000), clock=clock
        )
""",
)

ONE_FILE = Store(
    "one file",
    "",
    {"one_file.py": "docs/how-to/write-a-store.md: class OneFileStore(SyncPlainMethods)"},
    """
        from PACKAGE.one_file import OneFileStore
        from tests.conformance.outages import file_instead_of
        folder = tmp_path / "folder"
        folder.mkdir()
        return StoreSubject(
            make=lambda: OneFileStore(folder / "runs.json"),
            outage=lambda: file_instead_of(folder),
        )
""",
)

STATES = Store(
    "states",
    "",
    {"states.py": "docs/how-to/write-a-store.md: class FolderStore:"},
    """
        from PACKAGE.states import FolderStore
        return StoreSubject(make=lambda: FolderStore(tmp_path / "states"))
""",
)

_REDIS_FOLDER = ROOT / "stroma-redis/src/stroma_redis"
REDIS = Store(
    "redis",
    "stroma_redis",
    {
        path.name: path.relative_to(ROOT).as_posix()
        for path in sorted(_REDIS_FOLDER.glob("*.py"))
        if path.name not in ("__init__.py", "_plugin.py")
    },
    """
        from PACKAGE._async import RedisStore
        host, _, port = os.environ["STROMA_PLANTED_SERVER"].rpartition(":")
        def at(host, port):
            return RedisStore(
                f"redis://{host}:{port}",
                key_prefix=f"planted-{hashlib.md5(str(tmp_path).encode()).hexdigest()}",
                timeout_seconds=1,
                connect_timeout_seconds=1,
            )
        return StoreSubject(
            make=lambda: at(host, int(port)),
            address=(host, int(port)),
            make_at=at,
            longest_wait_seconds=4,
        )
""",
    server=True,
)
SYNC_REDIS = Store(
    "sync redis",
    REDIS.package,
    REDIS.sources,
    REDIS.subject.replace("_async import RedisStore", "_sync import SyncRedisStore as RedisStore"),
    server=True,
)

STORES = (MEMORY, ASYNC_MEMORY, SQLITE, ONE_FILE, STATES, REDIS, SYNC_REDIS)
