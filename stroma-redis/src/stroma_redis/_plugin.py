"""What the entry point names. It is imported by `import stroma`, and so has to be light."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from stroma import hookimpl
from stroma.registry import StoreRegistry

if TYPE_CHECKING:
    from stroma_redis._async import RedisStore
    from stroma_redis._options import RedisOptions

STROMA_API = 1


class RedisFactory:
    """Makes `RedisStore`s; a `stroma.registry.StoreFactory`."""

    @property
    def options(self) -> type[RedisOptions]:
        """The model of the options, imported when it is asked for."""
        from stroma_redis._options import RedisOptions

        return RedisOptions

    def from_url(self, url: str) -> Mapping[str, object]:
        """Return the options of ``redis://``, ``rediss://`` (TLS) and ``redis+unix://``."""
        return {"url": url}

    def open(self, options: RedisOptions) -> RedisStore:
        """Return the store."""
        from stroma_redis._async import RedisStore

        return RedisStore.from_options(options)


@hookimpl
def stroma_register_stores(registry: StoreRegistry) -> None:
    """Offer the store; "unix" alone would be a name too general to take."""
    registry.add("redis", RedisFactory(), schemes=("redis", "rediss", "redis+unix"))
