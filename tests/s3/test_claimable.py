"""Which runs a worker may take up: how they are found, and at what price."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from stroma.errors import RecordCorrupt
from stroma.records import ClaimQuery, RunStatus, RunUpdate
from stroma_s3 import S3Store, _claimable
from stroma_s3._documents import NewerFormat
from tests.s3.support import (
    BODIES,
    DONE,
    Held,
    all_pages,
    commit,
    counted,
    damage,
    keys_in,
    record,
    request,
)
from tests.servers.s3 import S3Server

Make = Callable[..., S3Store]
SHORT = 0.3
SUBMITTED = RunUpdate(status=RunStatus.PENDING, release=True)
FAILED = RunUpdate(status=RunStatus.FAILED, release=True)


async def submit(store: S3Store, run_id: str = "run", pipeline: str = "") -> None:
    await store.open_run(request(run_id, pipeline=pipeline))
    assert await store.commit_many([commit(run_id=run_id, update=SUBMITTED)]) == [None]


async def ids_of(store: S3Store, *pipelines: str, limit: int = 100) -> list[str]:
    page = await store.claimable(ClaimQuery(pipelines, limit))
    return [run.run_id for run in page.runs]


async def lapse() -> None:
    await asyncio.sleep(SHORT + 0.2)


@pytest.fixture
def marks(server: S3Server, bucket: str) -> Callable[[], list[tuple[str, int]]]:
    """Tells of which runs there are markers, and for which places in their logs."""

    def found() -> list[tuple[str, int]]:
        parts = [key.split("/") for key in keys_in(server, bucket, "open/")]
        return [(run, int(slot)) for _, _, run, _, slot in parts]

    return found


Marks = Callable[[], list[tuple[str, int]]]


class TestPrice:
    """What it takes does not depend on runs that nobody can claim."""

    async def test_runs_that_ended_cost_nothing(self, make: Make) -> None:
        store, reader = make(), make()
        for i in range(30):
            await store.open_run(request(f"r{i}"))
            await store.commit_many([commit(record(run_id=f"r{i}"), run_id=f"r{i}", update=DONE)])
        await submit(store, "left")
        await store.aclose()
        await reader.setup()
        with counted(reader) as sent:
            assert await ids_of(reader) == ["left"]
        assert len(sent) == 1 + 3  # the markers; the head, the log, and its last step

    async def test_nor_do_those_that_somebody_owns_until_their_lease_ends(self, make: Make) -> None:
        store, reader = make(), make()
        for i in range(5):
            await store.open_run(request(f"r{i}"))
        await store.open_run(request("short", lease_seconds=3))
        assert await ids_of(reader) == []
        with counted(reader) as sent:
            assert await ids_of(reader) == []
        assert len(sent) == 1
        await asyncio.sleep(3.2)
        with counted(reader) as sent:
            assert await ids_of(reader) == ["short"]
        assert len(sent) == 1 + 2

    async def test_nor_do_those_of_other_pipelines_once_they_are_known(self, make: Make) -> None:
        store, reader = make(), make()
        for i in range(6):
            await submit(store, f"r{i}", pipeline="theirs" if i % 2 else "ours")
        assert await ids_of(reader, "ours") == ["r0", "r2", "r4"]
        with counted(reader) as sent:
            assert await ids_of(reader, "ours") == ["r0", "r2", "r4"]
        assert len(sent) == 1 + 3 * 3

    async def test_a_page_reads_little_more_than_it_shows(self, make: Make) -> None:
        store, reader = make(), make()
        for i in range(20):
            await submit(store, f"r{i:02}")
        await store.aclose()
        await reader.setup()
        with counted(reader) as sent:
            assert await ids_of(reader, limit=2) == ["r00", "r01"]
        assert len(sent) <= 1 + 3 * 4


class TestWhatOthersKnow:
    """Others look at a run again as soon as it can be claimed, whatever they knew of its lease."""

    @pytest.mark.parametrize("by", ["submit", "release", "renew"])
    async def test_a_lease_that_ends_sooner_is_seen_at_once(self, make: Make, by: str) -> None:
        store, reader = make(), make()
        await store.open_run(request())
        assert await ids_of(reader) == []
        if by == "submit":
            await store.commit_many([commit(update=SUBMITTED)])
        elif by == "release":
            await store.release("run", "alice")
        else:
            await store.renew([("run", "alice")], int(SHORT * 1000))
            await lapse()
        assert await ids_of(reader) == ["run"]

    async def test_a_run_that_is_taken_up_again_and_again_is_found_each_time(
        self, make: Make, marks: Marks
    ) -> None:
        store, reader = make(), make()
        await submit(store)
        for worker in ("a", "b", "c"):
            assert await ids_of(reader) == ["run"]
            await store.open_run(request(token=worker, lease_seconds=SHORT, must_exist=True))
            assert await ids_of(reader) == []
            await lapse()
        assert await ids_of(reader) == ["run"]
        assert marks() == [("run", 1)]

    async def test_a_run_that_failed_and_was_opened_again_is_found(self, make: Make) -> None:
        store, reader = make(), make()
        await store.open_run(request())
        await store.commit_many([commit(update=FAILED)])
        assert await ids_of(reader) == []
        await store.open_run(request(token="bob", lease_seconds=SHORT))
        await lapse()
        assert await ids_of(reader) == ["run"]


class TestMarkers:
    """Each is written before the step that it is for, and removed when the run ends."""

    async def test_a_run_has_one_from_its_creation_to_its_end(
        self, store: S3Store, marks: Marks
    ) -> None:
        await store.open_run(request())
        await store.commit_many([commit(record("a"))])
        await store.renew([("run", "alice")], 90_000)
        assert marks() == [("run", 0)]
        await store.commit_many([commit(record("b", position=1), update=DONE)])
        await store.aclose()
        assert marks() == []

    async def test_a_submitted_run_has_the_one_of_its_release(
        self, store: S3Store, marks: Marks
    ) -> None:
        await submit(store)
        await store.aclose()
        assert marks() == [("run", 1)]

    @pytest.mark.parametrize("update", [DONE, FAILED, None])
    async def test_a_claim_that_finds_a_run_leaves_none_behind(
        self, make: Make, marks: Marks, update: RunUpdate | None
    ) -> None:
        store = make()
        await store.open_run(request())
        await store.commit_many([commit(update=update)])
        await store.aclose()
        other = make()
        await other.open_run(request())
        await other.aclose()
        assert marks() == {DONE: [], FAILED: [("run", 2)], None: [("run", 0)]}[update]

    @pytest.mark.parametrize("status", [RunStatus.RUNNING, RunStatus.PENDING, RunStatus.FAILED])
    async def test_removal_takes_it_along(
        self, make: Make, marks: Marks, status: RunStatus
    ) -> None:
        store = make()
        for run_id in ("run", "ru", "run2"):
            await store.open_run(request(run_id, created_at=100.0))
        await store.commit_many([commit(update=RunUpdate(status=status))])
        await make().delete("run")
        await store.aclose()
        assert marks() == [("ru", 0), ("run2", 0)]

    async def test_one_that_was_left_behind_is_removed_by_whoever_finds_it(
        self, make: Make, server: S3Server, bucket: str, marks: Marks
    ) -> None:
        """A worker that dies when its run has ended does not remove the marker."""
        store = make()
        await store.open_run(request())
        (key,) = keys_in(server, bucket, "open/")
        await store.commit_many([commit(update=DONE)])
        await store.aclose()
        client = server.client()
        client.put_object(Bucket=bucket, Key=key, Body=b"")
        client.close()
        reader = make()
        assert await ids_of(reader) == []
        assert marks() == []

    async def test_one_whose_step_may_still_come_is_left(self, make: Make, marks: Marks) -> None:
        store, reader = make(), make()
        await store.open_run(request())
        await store.commit_many([commit(update=FAILED)])
        held = Held(store, lambda method, url: method == "PUT" and "/logs/" in url)
        claim = request(token="bob", lease_seconds=SHORT, must_exist=True)
        claiming = asyncio.create_task(store.open_run(claim))
        await asyncio.to_thread(held.is_reached.wait, 30)
        assert await ids_of(reader) == []
        assert ("run", 2) in marks()
        held.let_go()
        assert await claiming is not None
        await lapse()
        assert await ids_of(reader) == ["run"]

    async def test_so_is_that_of_a_run_that_is_being_created(
        self, make: Make, marks: Marks
    ) -> None:
        """A worker that dies then leaves it for a day, as nobody can tell."""
        store, reader = make(), make()
        await store.setup()
        held = Held(store, lambda method, url: method == "PUT" and "/runs/" in url)
        creating = asyncio.create_task(store.open_run(request(lease_seconds=SHORT)))
        await asyncio.to_thread(held.is_reached.wait, 30)
        assert await ids_of(reader) == []
        assert marks() == [("run", 0)]
        held.let_go()
        await creating
        await lapse()
        assert await ids_of(reader) == ["run"]

    async def test_a_day_later_one_without_its_step_is_removed(
        self,
        make: Make,
        server: S3Server,
        bucket: str,
        monkeypatch: pytest.MonkeyPatch,
        marks: Marks,
    ) -> None:
        store = make()
        await store.open_run(request("run"))
        client = server.client()
        client.delete_object(Bucket=bucket, Key="runs/run")
        client.close()
        assert await ids_of(store) == []
        assert marks() == [("run", 0)]
        monkeypatch.setattr(_claimable, "_STRAY_SECONDS", -5.0)
        assert await ids_of(store) == []
        assert marks() == []

    async def test_a_late_removal_does_not_take_the_next_one_along(
        self, make: Make, marks: Marks
    ) -> None:
        """The end of a run is answered before its marker is gone; it may be opened meanwhile."""
        store, other = make(), make()
        await store.open_run(request())
        held = Held(store, lambda method, url: method == "DELETE")
        await store.commit_many([commit(update=FAILED)])
        await asyncio.to_thread(held.is_reached.wait, 30)
        await other.open_run(request(token="bob", lease_seconds=SHORT))
        held.let_go()
        await store.aclose()
        await lapse()
        assert ("run", 2) in marks()
        assert await ids_of(other) == ["run"]


@pytest.mark.parametrize("kind", BODIES)
@pytest.mark.parametrize("name", ["runs/", "logs/"])
async def test_a_damaged_run_is_told_and_hides_no_other(
    make: Make, server: S3Server, bucket: str, name: str, kind: str
) -> None:
    store = make()
    for run_id in ("a/b", "fine", "last"):
        await submit(store, run_id)
    damage(server, bucket, name, BODIES[kind], but=("fine", "last"))
    reader = make()

    runs, told = await all_pages(reader.claimable, ClaimQuery(limit=1))
    assert runs == ["fine", "last"]
    assert told.keys() == {"a/b"}
    assert type(told["a/b"]) is (NewerFormat if "newer" in kind else RecordCorrupt)
    assert name in str(told["a/b"])
    if "newer" in kind:  # what this version does not know, it does not remove
        return
    await store.delete("a/b")
    assert (await reader.claimable(ClaimQuery())).unreadable == ()
