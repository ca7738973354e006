"""Checkpoints of Stroma's runs in Redis or Valkey.

`import stroma` finds the plugin in this package; the driver is imported when a store is asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from stroma_redis._version import __version__

if TYPE_CHECKING:
    from stroma_redis._async import RedisStore
    from stroma_redis._options import RedisOptions
    from stroma_redis._sync import SyncRedisStore

_PLACES = {"RedisOptions": "_options", "RedisStore": "_async", "SyncRedisStore": "_sync"}

__all__ = ["RedisOptions", "RedisStore", "SyncRedisStore", "__version__"]


def __getattr__(name: str) -> object:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
