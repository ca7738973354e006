"""Checkpoints of Stroma's runs in Amazon S3, and in servers that speak its language."""

from __future__ import annotations

from stroma_s3._options import S3Options
from stroma_s3._version import __version__
from stroma_s3.store import S3Store

__all__ = ["S3Options", "S3Store", "__version__"]
