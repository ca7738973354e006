"""Servers for pages whose blocks need one: a page says so with ``<!-- servers: redis, s3 -->``.

Its blocks find them by environment variables, as a program in a container would.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from typing import Final

_MARK = re.compile(r"^<!-- servers: ([\w, ]+) -->$", re.MULTILINE)
S3_BUCKET: Final = "stroma-runs"


def servers_of(page: str) -> list[str]:
    """Return the names of the servers that a page's text asks for."""
    found = _MARK.search(page)
    return [] if found is None else [name.strip() for name in found[1].split(",")]


def variables_for(names: list[str]) -> dict[str, str]:
    """Start the servers, once for all pages, and return the variables that lead to them."""
    variables: dict[str, str] = {}
    for name in names:
        variables |= _STARTS[name]()
    return variables


def _redis() -> dict[str, str]:
    from tests.servers.redis import REDIS, shared_server

    return {"REDIS_URL": shared_server(REDIS).url}


def _postgres() -> dict[str, str]:
    from tests.servers.postgres import OLDER, shared_server

    return {"POSTGRES_DSN": shared_server(OLDER).dsn}


def _s3() -> dict[str, str]:
    from tests.servers.s3 import REGION, moto

    server = moto()
    client = server.client()
    with contextlib.suppress(client.exceptions.BucketAlreadyOwnedByYou):
        client.create_bucket(Bucket=S3_BUCKET)
    client.close()
    return {
        "AWS_ENDPOINT_URL_S3": server.url,
        "AWS_ACCESS_KEY_ID": server.access_key_id,
        "AWS_SECRET_ACCESS_KEY": server.secret_access_key,
        "AWS_DEFAULT_REGION": REGION,
    }


_STARTS: Final[dict[str, Callable[[], dict[str, str]]]] = {
    "redis": _redis,
    "postgres": _postgres,
    "s3": _s3,
}
