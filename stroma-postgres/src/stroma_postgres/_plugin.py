"""What the entry point names. `import stroma` imports it, and so it has to be light."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from stroma import hookimpl
from stroma.registry import StoreRegistry

if TYPE_CHECKING:
    from stroma_postgres._options import PostgresOptions
    from stroma_postgres.store import PostgresStore

STROMA_API: Final = 1


class PostgresFactory:
    """Makes `PostgresStore`s; a `stroma.registry.StoreFactory`."""

    @property
    def options(self) -> type[PostgresOptions]:
        """The model of the options, imported when it is asked for."""
        from stroma_postgres._options import PostgresOptions

        return PostgresOptions

    def from_url(self, url: str) -> Mapping[str, object]:
        """Take a URL as PostgreSQL's own programs and asyncpg read it."""
        return {"dsn": url}

    def open(self, options: PostgresOptions) -> PostgresStore:
        """Return the store; it connects on first use."""
        from stroma_postgres.store import PostgresStore

        return PostgresStore.from_options(options)


@hookimpl
def stroma_register_stores(registry: StoreRegistry) -> None:
    """Offer the store."""
    registry.add("postgres", PostgresFactory(), schemes=("postgres", "postgresql"))
