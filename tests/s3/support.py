"""What the tests of the S3 store share: buckets, records to write, requests to watch."""

from __future__ import annotations

import itertools
import os
from typing import Any

from tests.servers.s3 import S3Server

_numbers = itertools.count()


def new_bucket(server: S3Server) -> str:
    """Create an empty bucket."""
    name = f"stroma-{os.getpid()}-{next(_numbers)}"
    client = server.client()
    client.create_bucket(Bucket=name)
    client.close()
    return name


def keys_in(server: S3Server, bucket: str, prefix: str = "") -> list[str]:
    """Return the keys of all objects."""
    client = server.client()
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    found: list[Any] = [each["Key"] for page in pages for each in page.get("Contents", ())]
    client.close()
    return found
