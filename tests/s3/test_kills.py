"""A worker that dies between two requests leaves all of an operation, or nothing."""

from __future__ import annotations

import asyncio
import functools
import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from typing import Any

import pytest

from stroma.records import CLAIMABLE, ClaimQuery, OpenedRun, RunQuery, RunStatus, RunUpdate
from stroma.stores.rules import is_held
from stroma_s3 import S3Store
from tests.s3.conftest import close
from tests.s3.support import DONE, commit, events_of, keys_in, record, request
from tests.servers.s3 import S3Server

pytestmark = [pytest.mark.crash, pytest.mark.slow]
Make = Callable[..., S3Store]

OPERATIONS = (
    "create",
    "commit",
    "submit",
    "end",
    "takeover",
    "reopen",
    "renew",
    "release",
    "delete",
    "purge",
)
SUBMITTED = RunUpdate(status=RunStatus.PENDING, release=True)
FAILED = RunUpdate(status=RunStatus.FAILED, release=True)


async def prepare(store: S3Store, operation: str) -> None:
    """Bring the run to where the operation begins."""
    if operation == "create":
        return
    await store.open_run(request(lease_seconds=0.2 if operation == "takeover" else 60.0))
    await store.commit_many([commit(record("a"))])
    if operation == "takeover":
        await asyncio.sleep(1.3)  # a new process knows the server's time to a second only
    if operation == "purge":
        await store.release("run", "alice")
    if operation == "reopen":
        await store.commit_many([commit(update=FAILED)])


async def act(store: S3Store, operation: str) -> None:
    if operation == "create":
        await store.open_run(request())
    elif operation == "commit":
        await store.commit_many([commit(record("b", position=1), record("c", position=2))])
    elif operation == "end":
        await store.commit_many([commit(record("b", position=1), update=DONE)])
    elif operation == "submit":
        await store.commit_many([commit(update=SUBMITTED)])
    elif operation in {"takeover", "reopen"}:
        await store.open_run(request(token="bob"))
    elif operation == "renew":
        await store.renew([("run", "alice")], 60_000)
    elif operation == "release":
        await store.release("run", "alice")
    elif operation == "delete":
        await store.delete("run")
    else:
        await store.purge(RunQuery())


def states(found: OpenedRun | None) -> tuple[list[str], str, RunStatus] | None:
    if found is None:
        return None
    return [header.path for header in found.headers], found.run.owner, found.run.status


def is_right(operation: str, state: tuple[list[str], str, RunStatus] | None) -> bool:
    """Say whether a run is as before the operation, or as after it."""
    running = RunStatus.RUNNING
    before = (["a"], "alice", running)
    after: dict[str, list[object]] = {
        "create": [None, ([], "alice", running)],
        "commit": [before, (["a", "b", "c"], "alice", running)],
        "submit": [before, (["a"], "", RunStatus.PENDING)],
        "end": [before, (["a", "b"], "", RunStatus.COMPLETED)],
        "reopen": [(["a"], "", RunStatus.FAILED), (["a"], "bob", running)],
        "takeover": [before, (["a"], "bob", running)],
        "renew": [before],
        "release": [before, (["a"], "", running)],
        "delete": [before, None],
    }
    if operation == "purge":
        return state is None or (state[0] == ["a"] and state[1] != "alice")
    return state in after[operation]


def dies_at(store: S3Store, number: int, *, is_sent: bool) -> None:
    """Kill this process at its n-th request, before it is sent or when it was answered."""
    seen = 0

    def count(**_: object) -> None:
        nonlocal seen
        seen += 1
        if seen == number:
            os.kill(os.getpid(), signal.SIGKILL)

    events_of(store).register("needs-retry.s3" if is_sent else "before-send.s3", count)


def child(settings: dict[str, Any]) -> None:
    async def body() -> None:
        store = S3Store(settings["bucket"], **settings["options"])
        if settings["operation"] in {"commit", "submit", "end", "renew", "release"}:
            await store.open_run(request())  # its own run: the token may claim again
        await store.setup()
        dies_at(store, settings["number"], is_sent=settings["is_sent"])
        await act(store, settings["operation"])
        await store.aclose()

    asyncio.run(body())


def killed_at(server: S3Server, bucket: str, operation: str, number: int, is_sent: bool) -> bool:
    """Do it in a process that dies at a request; False if it came to its end."""
    settings = {
        "bucket": bucket,
        "options": server.options(),
        "operation": operation,
        "number": number,
        "is_sent": is_sent,
    }
    process = _processes().Process(target=child, args=(settings,))
    process.start()
    process.join()
    code = process.exitcode
    process.close()
    assert code in {0, -signal.SIGKILL}, "the process failed; what it printed says why"
    return code != 0


@functools.cache
def _processes() -> ForkServerContext:
    """Return what starts processes that have imported the store already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["boto3", "tests.s3.test_kills"])
    return context


@pytest.mark.timeout(300)
@pytest.mark.parametrize("is_sent", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_kill_at_any_request_leaves_all_or_nothing(
    make: Make, server: S3Server, bucket: str, operation: str, is_sent: bool
) -> None:
    store = make()
    number = 0
    while True:
        number += 1
        asyncio.run(store.delete("run"))
        asyncio.run(prepare(store, operation))
        was_killed = killed_at(server, bucket, operation, number, is_sent)
        reader = make()
        found = asyncio.run(reader.inspect("run"))
        assert is_right(operation, states(found)), f"killed at request {number}: {found}"
        listed = asyncio.run(reader.runs(RunQuery())).runs
        assert listed == (() if found is None else (found.run,))
        assert_is_marked(server, bucket, reader, found)
        asyncio.run(goes_on(reader))
        assert asyncio.run(reader.claimable(ClaimQuery())).runs == ()
        close(reader)
        if not was_killed:
            assert number > 1
            return


def assert_is_marked(
    server: S3Server, bucket: str, reader: S3Store, found: OpenedRun | None
) -> None:
    """Check that a run which is open is found among the others, now or when its lease has ended."""
    if found is None or found.run.status not in CLAIMABLE:
        return
    claimable = asyncio.run(reader.claimable(ClaimQuery())).runs
    services = reader._here().services()
    now = services.bucket.clock.now()
    is_owned = is_held(found.run.owner, found.run.lease_expires_at, now)
    assert claimable == (() if is_owned else (found.run,))
    view = services.logs._read("run")
    assert view is not None
    mark = reader._here().keys.mark(view.run, view.log, view.mark)
    assert mark in keys_in(server, bucket, "open/")


async def goes_on(store: S3Store) -> None:
    """Claim the run, whatever is left of it, and bring it to its end."""
    found = await store.inspect("run")
    owner = "carol" if found is None or not found.run.owner else found.run.owner
    opened = await store.open_run(request(token=owner, reopen=True))
    assert opened is not None
    done = commit(record("last", position=9), token=owner, update=DONE)
    assert await store.commit_many([done]) == [None]
    ended = await store.inspect("run")
    assert ended is not None
    assert ended.last is not None
    assert ended.last.header.path == "last"
