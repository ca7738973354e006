"""What the entry point names. It is imported by `import stroma`, and so has to be light."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, unquote, urlsplit

from stroma import hookimpl
from stroma.registry import StoreRegistry

if TYPE_CHECKING:
    from stroma_s3._options import S3Options
    from stroma_s3.store import S3Store

STROMA_API = 1
_CREDENTIALS = {"access_key_id", "secret_access_key", "session_token"}


class S3Factory:
    """Makes `S3Store`s; a `stroma.registry.StoreFactory`."""

    @property
    def options(self) -> type[S3Options]:
        """The model of the options, imported when it is asked for."""
        from stroma_s3._options import S3Options

        return S3Options

    def from_url(self, url: str) -> Mapping[str, object]:
        """Read ``s3://bucket/prefix?region=…``; the query holds options."""
        parts = urlsplit(url)
        if not parts.netloc:
            raise ValueError("a bucket is missing, as in s3://bucket/prefix")
        options: dict[str, object] = dict(parse_qsl(parts.query, keep_blank_values=True))
        if {"@", ":"} & set(parts.netloc) or _CREDENTIALS & options.keys():
            raise ValueError(
                "credentials do not go into the URL: leave them to boto3, or give the options "
                "access_key_id and secret_access_key"
            )
        for name in ("bucket", "prefix"):
            if name in options:
                raise ValueError(f"the {name} stands before the question mark")
        if parts.path.strip("/"):
            options["prefix"] = unquote(parts.path).strip("/")
        return {**options, "bucket": unquote(parts.netloc)}

    def open(self, options: S3Options) -> S3Store:
        """Return a store; it connects on first use."""
        from stroma_s3.store import S3Store

        return S3Store.from_options(options)


@hookimpl
def stroma_register_stores(registry: StoreRegistry) -> None:
    """Offer the store."""
    registry.add("s3", S3Factory(), schemes=("s3",))
