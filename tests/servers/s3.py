"""Servers that speak S3: moto, OpenStack Swift's s3api, and MinIO where Docker answers.

moto has the conditional writes of S3, and checks no signatures, checksums or limits. Swift
checks those, and its conditional writes are not atomic.
"""

from __future__ import annotations

import functools
import http.client
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.servers.process import ServerProcess, has_docker, missing

REGION = "us-east-1"


class S3Server(NamedTuple):
    """A server and how to reach it.

    Attributes:
        port: on the loopback interface.
        access_key_id: of a user who may do everything.
        secret_access_key: that user's.
        process: to restart it; None if it was not started here.
    """

    port: int
    access_key_id: str
    secret_access_key: str
    process: ServerProcess | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def options(self, **others: Any) -> dict[str, Any]:
        """Return the options of a store on this server, but for the bucket."""
        return {
            "endpoint_url": self.url,
            "region": REGION,
            "access_key_id": self.access_key_id,
            "secret_access_key": self.secret_access_key,
            "addressing_style": "path",
            **others,
        }

    def client(self, **others: Any) -> Any:
        """Return a client of boto3."""
        import boto3
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=self.url,
            region_name=REGION,
            aws_access_key_id=self.access_key_id,
            aws_secret_access_key=self.secret_access_key,
            config=Config(s3={"addressing_style": "path"}, **others),
        )


def responds(port: int) -> bool:
    """Say whether a server answers requests, whatever it says."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", "/")
        return connection.getresponse().status < 500
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


@functools.cache
def moto() -> S3Server:
    """Return moto's server, started at the first call."""
    if importlib.util.find_spec("moto") is None:
        missing("moto's server", 'pip install "moto[server]"')
    script = str(Path(__file__).with_name("moto_in_turn.py"))
    server = ServerProcess(
        lambda folder, port: [sys.executable, script, f"{port}"], is_ready=responds
    )
    server.start()
    return S3Server(server.port, "testing", "testing", server)


@functools.cache
def minio() -> S3Server:
    """Return MinIO in a container. The only server that CI may lack: not all of it has Docker."""
    if not has_docker():
        pytest.skip("Docker does not answer, and MinIO comes as an image")
    from testcontainers.community.minio import MinioContainer

    container = MinioContainer()
    container.start()
    port = int(container.get_exposed_port(9000))
    return S3Server(port, container.access_key, container.secret_key)


@functools.cache
def swift() -> S3Server:
    """Return OpenStack Swift with its s3api, started at the first call."""
    python = _python_with_swift()
    if python is None:
        missing(
            "OpenStack Swift",
            "pip install swift, or set STROMA_TEST_SWIFT_PYTHON to one that has it",
        )
    script = str(Path(__file__).with_name("swift_in_one_process.py"))
    server = ServerProcess(
        lambda folder, port: [python, script, str(folder), f"{port}", "tester", "testing"],
        is_ready=responds,
    )
    server.start()
    return S3Server(server.port, "test:tester", "testing", server)


def _python_with_swift() -> str | None:
    if importlib.util.find_spec("swift") is not None:
        return sys.executable
    return os.environ.get("STROMA_TEST_SWIFT_PYTHON")
