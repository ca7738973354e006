"""The backends that come with the core, as a plugin would offer them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl, unquote, urlsplit

from pydantic import BaseModel, ConfigDict, Field

from stroma.registry import StoreRegistration


class MemoryOptions(BaseModel):
    """Options of the store "memory": there are none."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class SQLiteOptions(BaseModel):
    """Options of the store "sqlite".

    Attributes:
        path: the database file; it is created when it does not exist.
        busy_timeout_seconds: how long to wait for another process that is writing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Path
    busy_timeout_seconds: float = Field(default=5.0, ge=0, le=3600, allow_inf_nan=False)


class _MemoryFactory:
    options = MemoryOptions

    def from_url(self, url: str) -> Mapping[str, object]:
        if url.partition(":")[2] not in {"", "//"}:
            raise ValueError("nothing comes after the colon: a memory store has no name")
        return {}

    def open(self, options: MemoryOptions) -> object:
        from stroma.stores.memory import AsyncInMemoryStore

        return AsyncInMemoryStore()


class _SQLiteFactory:
    options = SQLiteOptions

    def from_url(self, url: str) -> Mapping[str, object]:
        parts = urlsplit(url)
        path = unquote(parts.path.removeprefix("/"))
        if parts.netloc or not url[len("sqlite:") :].startswith("///") or not path:
            raise ValueError(
                "three slashes come before a relative path, as in sqlite:///runs.db, and four "
                "before an absolute one, as in sqlite:////var/lib/runs.db"
            )
        return {**dict(parse_qsl(parts.query, keep_blank_values=True)), "path": path}

    def open(self, options: SQLiteOptions) -> object:
        from stroma.stores.sqlite import SQLiteStore

        return SQLiteStore(options.path, busy_timeout_seconds=options.busy_timeout_seconds)


REGISTRATIONS: Final = {
    "memory": StoreRegistration("memory", _MemoryFactory(), ("memory",)),
    "sqlite": StoreRegistration("sqlite", _SQLiteFactory(), ("sqlite",)),
}
"""The built-in backends, by the word that is their name and their URL scheme."""
