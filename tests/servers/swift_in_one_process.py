"""Run OpenStack Swift with its s3api on loopback, all servers in this process.

    python swift_in_one_process.py FOLDER PORT USER KEY

The proxy listens on PORT; account, container and object server on ports that the system gives.
"""

from __future__ import annotations

import eventlet

eventlet.monkey_patch()

import os  # noqa: E402  (sockets and threads have to be eventlet's before others see them)
import sys  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import eventlet.wsgi  # noqa: E402

CONF = """
[DEFAULT]
swift_dir = {folder}
devices = {folder}/devices
mount_check = false
[pipeline:main]
pipeline = {pipeline}
[app:{app}-server]
use = egg:swift#{app}
account_autocreate = true
fallocate_reserve = 0
[filter:s3api]
use = egg:swift#s3api
s3_acl = no
check_bucket_owner = no
location = us-east-1
allow_multipart_uploads = no
[filter:tempauth]
use = egg:swift#tempauth
user_test_{user} = {key} .admin .reseller_admin
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:gatekeeper]
use = egg:swift#gatekeeper
[filter:bulk]
use = egg:swift#bulk
"""
PROXY = "catch_errors gatekeeper bulk s3api tempauth proxy-server"


def main() -> None:
    folder, port, user, key = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
    configure(folder)
    servers = {"account": "sda1", "container": "sdb1", "object": "sdc1"}
    listening = {}
    for server, device in servers.items():
        (folder / "devices" / device).mkdir(parents=True, exist_ok=True)
        listening[server] = eventlet.listen(("127.0.0.1", 0))
        write_ring(folder, server, listening[server].getsockname()[1], device)
    for server, socket in listening.items():
        serve(socket, load(folder, server, f"{server}-server", user, key))
    public = eventlet.listen(("127.0.0.1", port))
    eventlet.wsgi.server(public, load(folder, "proxy", PROXY, user, key), log_output=False)


def configure(folder: Path) -> None:
    """Set what Swift reads from /etc/swift elsewhere."""
    from swift.common import utils
    from swift.common.storage_policy import POLICIES

    utils.HASH_PATH_PREFIX, utils.HASH_PATH_SUFFIX = b"stroma", b"tests"
    utils.SWIFT_CONF_FILE = str(folder / "swift.conf")
    (folder / "swift.conf").write_text(
        "[swift-hash]\nswift_hash_path_prefix = stroma\nswift_hash_path_suffix = tests\n"
    )
    assert POLICIES.default is not None


def write_ring(folder: Path, server: str, port: int, device: str) -> None:
    from swift.common.ring import RingBuilder

    builder = RingBuilder(4, 1, 1)
    builder.add_dev(
        {
            "id": 0,
            "region": 1,
            "zone": 1,
            "ip": "127.0.0.1",
            "port": port,
            "device": device,
            "weight": 1.0,
        }
    )
    builder.rebalance()
    builder.get_ring().save(str(folder / f"{server}.ring.gz"))


def load(folder: Path, app: str, pipeline: str, user: str, key: str) -> Any:
    from swift.common.wsgi import loadapp

    conf = folder / f"{app}.conf"
    conf.write_text(CONF.format(folder=folder, pipeline=pipeline, app=app, user=user, key=key))
    return loadapp(str(conf), global_conf={"log_level": "WARNING"})


def serve(socket: Any, app: Any) -> None:
    eventlet.spawn(eventlet.wsgi.server, socket, app, log_output=False)


if __name__ == "__main__":
    os.umask(0o077)
    main()
