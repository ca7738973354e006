"""How servers are reached, and what is said when they cannot be."""

from __future__ import annotations

import asyncio
import gc
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio

from stroma.checkpoint import Durability
from stroma.errors import ConfigError, OutcomeUnknown, StoreUnavailable, StoreUnusable
from stroma.records import ClaimQuery, RunQuery
from stroma_redis import RedisStore, SyncRedisStore
from tests.core.stores.support import Note, commit, in_child, record, request
from tests.redis.support import local_cluster, opened
from tests.servers.certificates import make_certificate
from tests.servers.process import ServerProcess, find_program, missing
from tests.servers.redis import KINDS, Address, Kind, local_server

pytestmark = pytest.mark.server

PASSWORD = "p@ss/w:rd#%"
QUOTED = "p%40ss%2Fw%3Ard%23%25"


class TestEventLoops:
    def test_one_store_serves_loops_one_after_the_other(self, server: Address, prefix: str) -> None:
        """Without `aclose`: a loop that ends takes its connections along."""
        store = RedisStore(server.url, key_prefix=prefix)
        for i in range(3):
            asyncio.run(store.save("run", f"n{i}", Note(text=str(i))))
        assert asyncio.run(store.load_typed("run", "n0", Note)) == Note(text="0")
        gc.collect()  # an unclosed socket would be told now

    def test_a_ready_client_serves_one_loop_and_lends_its_settings_to_others(
        self, server: Address, prefix: str
    ) -> None:
        async def first(store: RedisStore) -> None:
            await store.save("run", "a", Note(text="a"))
            await asyncio.to_thread(asyncio.run, store.save("run", "b", Note(text="b")))
            found = await asyncio.to_thread(asyncio.run, store.load_typed("run", "b", Note))
            assert found == Note(text="b")
            await store.aclose()
            await client.ping()  # still open: who handed it in closes it
            await client.aclose()

        client = redis.asyncio.Redis(host=server.host, port=server.port)
        store = RedisStore(client, key_prefix=prefix)
        asyncio.run(first(store))
        gc.collect()


class TestClosing:
    async def test_afterwards_every_operation_is_refused(
        self, server: Address, prefix: str
    ) -> None:
        store = RedisStore(server.url, key_prefix=prefix)
        await uses(store)
        for _ in range(2):
            await store.aclose()
        for operation, arguments in OPERATIONS.items():
            with pytest.raises(StoreUnusable, match=r"RedisStore.* is closed: make another one"):
                await getattr(store, operation)(*arguments)

    def test_of_the_sync_store(self, server: Address, prefix: str) -> None:
        store = SyncRedisStore(server.url, key_prefix=prefix)
        store.health()
        for _ in range(2):
            store.close()
        for operation, arguments in OPERATIONS.items():
            with pytest.raises(StoreUnusable, match=r"SyncRedisStore.* is closed: make another"):
                getattr(store, operation)(*arguments)

    @pytest.mark.parametrize("is_warm", [False, True])
    def test_operations_under_way_leave_no_connection_open(
        self, server: Address, prefix: str, client: redis.Redis, *, is_warm: bool
    ) -> None:
        """The store is closed at each turn of the loop, so that some of them are connecting."""

        async def close_after(turns: int) -> None:
            store = RedisStore(server.url, key_prefix=prefix)
            if is_warm:
                await store.inspect("run")
            under_way = [asyncio.create_task(store.inspect("run")) for _ in range(3)]
            for _ in range(turns):
                await asyncio.sleep(0)
            await store.aclose()
            for outcome in await asyncio.gather(*under_way, return_exceptions=True):
                assert outcome is None or isinstance(outcome, StoreUnavailable | StoreUnusable)

        with warnings.catch_warnings(record=True) as left:
            warnings.simplefilter("always")
            for turns in range(30):
                asyncio.run(close_after(turns))
            gc.collect()
        assert [str(warning.message) for warning in left] == []

    async def test_a_ready_client_stays_open(self, server: Address, prefix: str) -> None:
        async with redis.asyncio.Redis(host=server.host, port=server.port) as client:
            store = RedisStore(client, key_prefix=prefix)
            await store.aclose()
            with pytest.raises(StoreUnusable, match="is closed"):
                await store.health()
            await RedisStore(client, key_prefix=prefix).health()


OPERATIONS: dict[str, tuple[Any, ...]] = {
    "setup": (),
    "open_run": (request(),),
    "inspect": ("run",),
    "commit_many": ([commit(record())],),
    "renew": ([("run", "alice")], 1000),
    "release": ("run", "alice"),
    "fetch": ("run", [record().header.key]),
    "runs": (RunQuery(),),
    "claimable": (ClaimQuery(),),
    "delete": ("run",),
    "purge": (RunQuery(),),
    "health": (),
    "save": ("run", "node", Note()),
    "load_typed": ("run", "node", Note),
}


class TestForks:
    @pytest.mark.parametrize("kind", [RedisStore, SyncRedisStore])
    def test_parent_and_child_write(self, server: Address, prefix: str, kind: type) -> None:
        store = kind(server.url, key_prefix=prefix)

        def save(name: str) -> str:
            for i in range(20):
                done = store.save("run", f"{name}{i}", Note(text=name))
                if kind is RedisStore:
                    loop.run_until_complete(done)
            return "done"

        loop = asyncio.new_event_loop()
        save("before")
        child = in_child(lambda: in_new_loop(store, kind))
        save("parent")
        assert child.read() == "done"
        save("after")
        for name in ("parent19", "child19", "after19"):
            found = store.load_typed("run", name, Note)
            assert (loop.run_until_complete(found) if kind is RedisStore else found) is not None
        closed = store.aclose() if kind is RedisStore else store.close()
        if closed is not None:
            loop.run_until_complete(closed)
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


def in_new_loop(store: Any, kind: type) -> str:
    for i in range(20):
        done = store.save("run", f"child{i}", Note(text="child"))
        if kind is RedisStore:
            asyncio.run(done)
    return "done"


class TestReadyClients:
    @pytest.mark.parametrize("is_text", [False, True])
    @pytest.mark.parametrize("protocol", [2, 3])
    async def test_of_any_kind(
        self, server: Address, prefix: str, is_text: bool, protocol: int
    ) -> None:
        settings: dict[str, Any] = {"decode_responses": is_text, "protocol": protocol}
        async with redis.asyncio.Redis(host=server.host, port=server.port, **settings) as client:
            store = RedisStore(client=client, ttl_seconds=60, key_prefix=prefix)
            await uses(store)
            await store.aclose()
        with redis.Redis(host=server.host, port=server.port, **settings) as sync_client:
            other = SyncRedisStore(sync_client, key_prefix=prefix)
            other.setup()
            assert len(other.runs(RunQuery()).runs) == 1
            other.close()

    def test_of_the_wrong_kind(self) -> None:
        with pytest.raises(ConfigError, match=r"redis\.asyncio"):
            RedisStore(redis.Redis())  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="RedisStore takes one"):
            SyncRedisStore(client=redis.asyncio.Redis())  # type: ignore[arg-type]

    def test_their_settings_are_their_own(self) -> None:
        with pytest.raises(ConfigError, match=r"'max_connections'.*ready client"):
            RedisStore(client=redis.asyncio.Redis(), max_connections=3)


async def uses(store: RedisStore) -> None:
    """Do a bit of everything."""
    await store.setup()
    await store.health()
    await store.open_run(request())
    one = record()
    assert await store.commit_many([commit(one)]) == [None]
    assert await store.fetch("run", [one.header.key]) == [one]
    found = await store.inspect("run")
    assert found is not None
    assert (found.headers, found.last) == ([one.header], one)
    assert [run.run_id for run in (await store.runs(RunQuery())).runs] == ["run"]
    assert (await store.claimable(ClaimQuery())).runs == ()
    await store.release("run", "alice")
    assert [run.run_id for run in (await store.claimable(ClaimQuery())).runs] == ["run"]
    await store.open_run(request())


class TestAccess:
    @pytest.fixture(params=KINDS, ids=[kind.program for kind in KINDS])
    def guarded(self, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ServerProcess]:
        """A server with a password, an ACL user and a Unix socket."""
        kind: Kind = request.param
        socket = tmp_path / "server.sock"
        process = local_server(kind, "--requirepass", PASSWORD, "--unixsocket", str(socket))
        with redis.Redis(port=process.port, password=PASSWORD) as client:
            client.acl_setuser(
                "stroma",
                enabled=True,
                passwords=[f"+{PASSWORD}"],
                keys=["stroma:*"],
                commands=[f"+{name}" for name in NEEDED],
            )
        yield process
        process.remove()

    async def test_passwords_users_and_sockets(
        self, guarded: ServerProcess, tmp_path: Path
    ) -> None:
        port, socket = guarded.port, tmp_path / "server.sock"
        for url, options in (
            (f"redis://:{QUOTED}@127.0.0.1:{port}", {}),
            (f"redis://stroma:{QUOTED}@127.0.0.1:{port}/0", {}),
            (f"redis://127.0.0.1:{port}", {"username": "stroma", "password": PASSWORD}),
            (f"unix://{socket}", {"password": PASSWORD}),
            (f"redis+unix://{socket}?db=1", {"username": "default", "password": PASSWORD}),
        ):
            async with opened(url, **options) as store:
                assert PASSWORD not in repr(store)
                assert QUOTED not in repr(store)
                await store.delete("run")
                await uses(store)
                await store.delete("run")
            sync_store = SyncRedisStore(url, **options)
            sync_store.health()
            sync_store.close()

    async def test_a_ready_client_lends_its_socket_and_password(
        self, guarded: ServerProcess, tmp_path: Path
    ) -> None:
        """To the connections of other event loops, such as the one that renews leases."""
        socket = str(tmp_path / "server.sock")
        for client in (
            redis.asyncio.Redis(unix_socket_path=socket, password=PASSWORD),
            redis.asyncio.Redis(port=guarded.port, username="stroma", password=PASSWORD),
        ):
            store = RedisStore(client)
            await store.open_run(request())
            renewal = store.renew([("run", "alice")], 60_000)
            assert await asyncio.to_thread(asyncio.run, renewal) == [True]
            await store.aclose()
            await client.aclose()

    async def test_a_wrong_password_is_not_repeated(self, guarded: ServerProcess) -> None:
        for url in (
            f"redis://127.0.0.1:{guarded.port}",
            f"redis://:{QUOTED}x@127.0.0.1:{guarded.port}",
            f"redis://nobody:{QUOTED}@127.0.0.1:{guarded.port}",
        ):
            async with opened(url) as store:
                for operation in (store.setup(), store.save("run", "node", Note())):
                    with pytest.raises(StoreUnusable, match="password") as refused:
                        await operation
                    said = f"{refused.value!r} {refused.value.__cause__!r}"
                    assert PASSWORD not in said
                    assert QUOTED not in said

    async def test_a_permission_that_is_missing_is_named(self, guarded: ServerProcess) -> None:
        with redis.Redis(port=guarded.port, password=PASSWORD) as client:
            client.acl_setuser("stroma", enabled=True, commands=["-evalsha", "-eval"])
        async with opened(f"redis://stroma:{QUOTED}@127.0.0.1:{guarded.port}") as store:
            with pytest.raises(StoreUnusable, match="permission"):
                await store.save("run", "node", Note())


NEEDED = (
    *(
        "evalsha",
        "eval",
        "hget",
        "hmget",
        "hset",
        "hlen",
        "hkeys",
        "hexists",
        "pexpire",
        "pttl",
        "time",
    ),
    *("zadd", "zrem", "zscore", "zrandmember", "zrevrangebyscore", "exists", "unlink"),
    *("set", "get"),
)
"""What the README tells administrators to allow; INFO and CONFIG GET are optional."""


class TestTls:
    @pytest.fixture(params=KINDS, ids=[kind.program for kind in KINDS])
    def secure(self, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ServerProcess]:
        """A server that speaks TLS only, and wants the client's certificate."""
        make_certificate(tmp_path)
        files = [
            *("--tls-cert-file", str(tmp_path / "cert.pem")),
            *("--tls-key-file", str(tmp_path / "key.pem")),
            *("--tls-ca-cert-file", str(tmp_path / "cert.pem")),
        ]
        program = find_program(request.param.program)
        if program is None:
            missing(request.param.name, f"install {request.param.program}")

        def command(folder: Path, port: int) -> list[str]:
            return [program, "--port", "0", "--tls-port", str(port), "--dir", str(folder), *files]

        def is_up(port: int) -> bool:
            try:
                with redis.Redis(
                    port=port,
                    ssl=True,
                    ssl_ca_certs=str(tmp_path / "cert.pem"),
                    ssl_certfile=str(tmp_path / "cert.pem"),
                    ssl_keyfile=str(tmp_path / "key.pem"),
                    ssl_check_hostname=False,
                ) as client:
                    return bool(client.ping())
            except redis.ConnectionError:
                return False

        process = ServerProcess(command, is_ready=is_up).start()
        yield process
        process.remove()

    async def test_certificates_on_both_sides(self, secure: ServerProcess, tmp_path: Path) -> None:
        files = {
            "ssl_ca_certs": tmp_path / "cert.pem",
            "ssl_certfile": tmp_path / "cert.pem",
            "ssl_keyfile": tmp_path / "key.pem",
        }
        async with opened(f"rediss://localhost:{secure.port}", **files) as store:
            await uses(store)
        sync_store = SyncRedisStore(f"rediss://localhost:{secure.port}", **files)
        sync_store.health()
        sync_store.close()
        by_number = f"rediss://127.0.0.1:{secure.port}"  # the certificate is for localhost
        async with opened(by_number, **files) as store:
            with pytest.raises(StoreUnusable, match="correct the host in the URL"):
                await store.health()
        async with opened(by_number, **files, ssl_check_hostname=False) as store:
            await store.health()

    async def test_what_a_server_will_never_accept_is_told_as_lasting(
        self, secure: ServerProcess, tmp_path: Path
    ) -> None:
        trusted = {"ssl_ca_certs": tmp_path / "cert.pem"}
        for options, told in (
            ({}, "its certificate is not accepted: .* ssl_ca_certs"),
            ({"ssl_ca_certs": tmp_path / "none.pem"}, "a file that ssl_ca_certs, .* is missing"),
            ({"ssl_ca_certs": tmp_path / "key.pem"}, "a file that ssl_ca_certs, .* of no use"),
            (trusted | {"ssl_certfile": tmp_path / "key.pem"}, "a file that .* of no use"),
        ):
            await tells(f"rediss://localhost:{secure.port}", StoreUnusable, told, **options)

    async def test_a_client_without_the_certificate_that_a_server_wants(
        self, secure: ServerProcess, tmp_path: Path
    ) -> None:
        """The server closes the connection, and its reason may get lost."""
        trusted = {"ssl_ca_certs": tmp_path / "cert.pem"}
        kinds = (StoreUnavailable, StoreUnusable)
        told = "certificate.*: see ssl_certfile|certificate.*, see ssl_certfile"
        await tells(f"rediss://localhost:{secure.port}", kinds, told, **trusted)

    async def test_a_server_that_speaks_only_tls(self, secure: ServerProcess) -> None:
        """It closes the connection, as one that stops does."""
        told = "it broke the connection off: if it speaks only TLS, write rediss:// in the URL"
        for options in ({}, {"password": PASSWORD}, {"cluster": True}):
            await tells(f"redis://localhost:{secure.port}", StoreUnavailable, told, **options)

    async def test_a_ready_client_that_speaks_tls_is_not_told_to(
        self, secure: ServerProcess
    ) -> None:
        async with redis.asyncio.Redis(port=secure.port, ssl=True, retry=None) as client:
            with pytest.raises(StoreUnusable, match=f"rediss://localhost:{secure.port}/0: "):
                await RedisStore(client).health()

    async def test_a_server_that_speaks_no_tls(self, server: Address) -> None:
        """It waits for the end of a line; what is random in a handshake may hold one."""
        url = f"rediss://{server.host}:{server.port}"
        kinds = (StoreUnavailable, StoreUnusable)
        for longest in (0.1, 1):
            wait = {"connect_timeout_seconds": 0.2, "timeout_seconds": longest}
            await tells(url, kinds, "write redis:// in the URL", **wait)

    async def test_what_is_answered_without_tls_is_proof(self, own: ServerProcess) -> None:
        with redis.Redis(port=own.port) as client:
            client.config_set("maxclients", 1)  # a server that is full says so at once
            told = "it does not speak TLS here: write redis:// in the URL"
            await tells(f"rediss://127.0.0.1:{own.port}", StoreUnusable, told)


async def tells(
    url: str, kind: type[Exception] | tuple[type[Exception], ...], told: str, **options: Any
) -> None:
    """Assert what both stores say of a server, at once and whatever is asked."""
    async with opened(url, **options) as store:
        for operation in (store.setup(), store.inspect("run"), store.open_run(request())):
            with pytest.raises(kind, match=told):
                await operation
        (outcome,) = await store.commit_many([commit(record())])
        assert isinstance(outcome, kind)
    sync_store = SyncRedisStore(url, **options)
    for read in (sync_store.setup, sync_store.health):
        with pytest.raises(kind, match=told):
            read()
    sync_store.close()


class TestTroubles:
    async def test_nobody_listens(self) -> None:
        async with opened("redis://127.0.0.1:1") as store:
            with pytest.raises(StoreUnavailable, match=r"127\.0\.0\.1:1") as refused:
                await store.open_run(request())
            assert isinstance(refused.value.__cause__, redis.ConnectionError)
            (outcome,) = await store.commit_many([commit(record())])
            assert isinstance(outcome, StoreUnavailable)
            assert "'run'" in str(outcome)

    async def test_what_is_no_cursor_is_refused_before_anything_is_sent(self) -> None:
        async with opened("redis://127.0.0.1:1") as store:
            for limit in (0, 10):
                with pytest.raises(ConfigError, match=r"'\[1,2\]' is no cursor: pass the one"):
                    await store.runs(RunQuery(limit=limit, cursor="[1,2]"))
                with pytest.raises(ConfigError, match=r"'\[1,2\]' is no cursor: pass the one"):
                    await store.claimable(ClaimQuery(limit=limit, cursor="[1,2]"))

    async def test_a_restart_in_between(self, own: ServerProcess) -> None:
        """Connections that died while idle are replaced before anything is sent."""
        async with opened(f"redis://127.0.0.1:{own.port}") as store:
            await store.open_run(request())
            own.restart()
            assert await store.inspect("run") is None
            assert (await opened_run(store)).is_new
            assert await store.commit_many([commit(record())]) == [None]

    async def test_a_server_that_hangs(self, own: ServerProcess) -> None:
        import signal

        url = f"redis://127.0.0.1:{own.port}"
        async with opened(url, timeout_seconds=0.3) as store:
            await store.open_run(request())
            os.kill(own.pid, signal.SIGSTOP)
            try:
                (outcome,) = await store.commit_many([commit(record())])
                assert isinstance(outcome, OutcomeUnknown)
                assert "0.3 s" in str(outcome)
            finally:
                os.kill(own.pid, signal.SIGCONT)
            await store.health()

    async def test_memory_that_is_full(self, own: ServerProcess) -> None:
        async with opened(f"redis://127.0.0.1:{own.port}") as store:
            await store.open_run(request())
            one = record(payload=b"x" * 1_000_000)
            with redis.Redis(port=own.port) as client:
                client.config_set("maxmemory", client.info("memory")["used_memory"])
                (outcome,) = await store.commit_many([commit(one)])
                assert isinstance(outcome, StoreUnavailable)
                assert "memory is full" in str(outcome)
                client.config_set("maxmemory", 0)
            assert await store.fetch("run", [one.header.key]) == [None]
            assert await store.commit_many([commit(one)]) == [None]

    async def test_a_replica(self, own: ServerProcess) -> None:
        with redis.Redis(port=own.port) as client:
            client.config_set("replica-serve-stale-data", "yes")
            client.replicaof("127.0.0.1", 1)
            async with opened(f"redis://127.0.0.1:{own.port}") as store:
                with pytest.raises(StoreUnavailable, match="connect to the primary"):
                    await store.open_run(request())
                with pytest.raises(StoreUnavailable, match="connect to the primary"):
                    await store.health()
                client.config_set("replica-serve-stale-data", "no")
                with pytest.raises(StoreUnavailable, match="down"):
                    await store.inspect("run")

    async def test_keys_of_somebody_else(self, own: ServerProcess) -> None:
        with redis.Redis(port=own.port) as client:
            client.set("stroma:run:{run}", "mine", ex=60)
        async with opened(f"redis://127.0.0.1:{own.port}") as store:
            with pytest.raises(StoreUnusable, match="key_prefix"):
                await store.open_run(request())

    async def test_more_work_than_connections(self, server: Address, prefix: str) -> None:
        async with opened(server.url, key_prefix=prefix, max_connections=2) as store:
            await asyncio.gather(*(store.open_run(request(f"r{i}")) for i in range(100)))
            assert len((await store.runs(RunQuery(limit=200))).runs) == 100

    @pytest.mark.parametrize(
        ("settings", "durability"),
        [
            (("--appendonly", "no"), Durability.PROCESS),
            (("--appendonly", "yes"), Durability.INTERVAL_FSYNC),
            (("--appendonly", "yes", "--appendfsync", "always"), Durability.FSYNC),
            (("--appendonly", "yes", "--appendfsync", "no"), Durability.PROCESS),
        ],
    )
    async def test_durability_is_the_servers(
        self, settings: tuple[str, ...], durability: Durability
    ) -> None:
        process = local_server(KINDS[0], *settings)
        async with opened(f"redis://127.0.0.1:{process.port}") as store:
            assert store.capabilities.durability is Durability.PROCESS
            await store.setup()
            assert store.capabilities.durability is durability
        async with opened(f"redis://127.0.0.1:{process.port}", durability="replicated") as store:
            await store.setup()
            assert store.capabilities.durability is Durability.REPLICATED
        process.remove()


async def opened_run(store: RedisStore) -> Any:
    found = await store.open_run(request())
    assert found is not None
    return found


class TestClusters:
    async def test_a_server_that_is_none(self, server: Address) -> None:
        told = "it is no cluster: leave the option cluster out"
        await tells(server.url, StoreUnusable, told, cluster=True)

    async def test_who_may_not_ask_for_its_nodes(self, own: ServerProcess) -> None:
        """Although INFO, which `setup` asks, may be forbidden."""
        with redis.Redis(port=own.port) as client:
            commands = ["+@all", "-cluster"]
            client.acl_setuser("stroma", enabled=True, nopass=True, keys=["*"], commands=commands)
            client.config_set("requirepass", PASSWORD)
        url = f"redis://127.0.0.1:{own.port}"
        for options, told in (
            ({}, "username or password are wrong or missing"),
            ({"password": "no"}, "username or password are wrong or missing"),
            ({"username": "stroma", "password": "any"}, "the user lacks a permission.*cluster"),
        ):
            await tells(url, StoreUnusable, told, cluster=True, **options)

    @pytest.fixture
    def cluster(self) -> Iterator[ServerProcess]:
        process = local_cluster()
        yield process
        process.remove()

    async def test_runs_in_a_cluster(self, cluster: ServerProcess) -> None:
        url = f"redis://127.0.0.1:{cluster.port}"
        async with opened(url, cluster=True) as store:
            await uses(store)
            for i in range(30):
                await store.open_run(request(f"r{i}"))
            commits = [commit(record(f"r{i}")) for i in range(30)]
            assert await store.commit_many(commits) == [None] * 30
            assert len((await store.runs(RunQuery())).runs) == 31
            for i in range(30):
                await store.release(f"r{i}", "alice")
            assert await store.purge(RunQuery()) == 30
            await store.delete("run")
        sync_store = SyncRedisStore(url, cluster=True)
        sync_store.setup()
        sync_store.save("run", "node", Note(text="1"))
        assert sync_store.load_typed("run", "node", Note) == Note(text="1")
        sync_store.open_run(request("run"))
        assert len(sync_store.runs(RunQuery()).runs) == 1
        sync_store.close()

    async def test_a_ready_client_of_a_cluster(self, cluster: ServerProcess) -> None:
        async with redis.asyncio.RedisCluster(host="127.0.0.1", port=cluster.port) as client:
            store = RedisStore(client)
            await uses(store)
            with pytest.raises(ConfigError, match="cluster=True"):
                await asyncio.to_thread(asyncio.run, store.health())
            await store.aclose()
