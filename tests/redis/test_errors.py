"""What an operation says when its server cannot be reached, or refuses it."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from redis.exceptions import (
    AskError,
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    MovedError,
    RedisClusterException,
    ResponseError,
)
from redis.exceptions import ConnectionError as NoConnection

from stroma.errors import StoreError, StoreUnavailable, StoreUnusable
from stroma.records import ClaimQuery, RunQuery
from stroma_redis import RedisStore
from stroma_redis._errors import Failure, store_error, unreached
from tests.core.stores.support import commit, record, request


@pytest.fixture
def nobody() -> Iterator[str]:
    """The URL of a port where nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen: nobody else can have it
        yield f"redis://127.0.0.1:{taken.getsockname()[1]}"


async def test_what_only_reads_does_not_speak_of_writing(nobody: str) -> None:
    store = RedisStore(nobody)
    for reading in (
        store.setup(),
        store.inspect("r"),
        store.fetch("r", []),
        store.runs(RunQuery()),
        store.claimable(ClaimQuery()),
    ):
        with pytest.raises(StoreUnavailable, match=f"{nobody}/0: it could not be reached ") as told:
            await reading
        assert "written" not in str(told.value)
    await store.aclose()


async def test_what_writes_says_that_nothing_was_written(nobody: str) -> None:
    store = RedisStore(nobody)
    told = f"{nobody}/0: nothing was written: it could not be reached "
    for writing in (store.open_run(request()), store.delete("run"), store.health()):
        with pytest.raises(StoreUnavailable, match=told):
            await writing
    (refused,) = await store.commit_many([commit(record())])
    assert told in str(refused)
    await store.aclose()


def test_a_read_that_is_refused_gives_the_reason_alone() -> None:
    failure = Failure(BusyLoadingError("Redis is loading the dataset in memory"), was_sent=True)
    told = store_error(failure, "redis://h:1/0", "run 'r'", is_write=False)
    assert str(told) == (
        "run 'r': redis://h:1/0: it is loading its data (Redis is loading the dataset in memory)"
    )


@pytest.mark.parametrize("error", [MovedError("1 h:1"), AskError("1 h:1")])
def test_a_cluster_that_was_not_told_to_be_one_stays_one(error: Exception) -> None:
    told = store_error(Failure(error, was_sent=True), "redis://h:1/0", "run 'r'", is_write=True)
    assert isinstance(told, StoreUnusable)
    assert "nothing was written: it is a cluster: give the option cluster=True" in str(told)


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (ResponseError("This instance has cluster support disabled"), StoreUnusable),
        (
            ResponseError("unknown command `CLUSTER`, with args beginning with: `SLOTS`"),
            StoreUnusable,
        ),
        (AuthenticationError("invalid username-password pair"), StoreUnusable),
        (ClusterDownError("The cluster is down"), StoreUnavailable),
        (BusyLoadingError("Redis is loading the dataset in memory"), StoreUnavailable),
        (NoConnection("Error 111 connecting to h:1. Connection refused."), StoreUnavailable),
    ],
)
def test_what_a_node_of_a_cluster_said_counts_and_not_what_the_driver_makes_of_it(
    said: Exception, kind: type[StoreError]
) -> None:
    wrapped = RedisClusterException("Redis Cluster cannot be connected")
    wrapped.__cause__ = RedisClusterException("Cluster mode is not enabled on this node")
    wrapped.__cause__.__context__ = said
    told = store_error(unreached(wrapped), "redis://h:1/0", "", is_write=False)
    assert type(told) is kind
    assert str(said) in str(told)
    assert told.__cause__ is said


def test_a_cluster_that_lacks_slots_may_get_them() -> None:
    error = RedisClusterException("All slots are not covered after query all startup_nodes.")
    told = store_error(unreached(error), "redis://h:1/0", "", is_write=False)
    assert type(told) is StoreUnavailable
