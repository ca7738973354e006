"""Checkpoints of Stroma's runs in Amazon S3, and in servers that speak its language."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from stroma_s3._version import __version__

if TYPE_CHECKING:
    from stroma_s3._options import S3Options
    from stroma_s3.store import S3Store

__all__ = ["S3Options", "S3Store", "__version__"]

# `import stroma` loads the plugin, and most programs that do want no store of this kind.
_MODULES = {"S3Options": "stroma_s3._options", "S3Store": "stroma_s3.store"}


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
