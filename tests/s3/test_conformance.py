"""The rules for every store, on moto's server, on Swift's, and on MinIO where Docker answers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import settings

from stroma.testing import StoreConformance, StoreSubject
from stroma_s3 import S3Store, _probe
from tests.s3.support import known_bucket, verdict_on, vouch
from tests.servers.s3 import S3Server, minio, moto, swift

# A test that talks to its server a thousand times takes long on a busy machine.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def subject_on(server: S3Server) -> StoreSubject:
    bucket = known_bucket(server)

    def make_at(host: str, port: int) -> S3Store:
        url = f"http://{host}:{port}"
        vouch(server, bucket, url)
        options = server.options(endpoint_url=url, read_timeout_seconds=1, max_attempts=2)
        return S3Store(bucket, **options)

    return StoreSubject(
        make=lambda: S3Store(bucket, **server.options()),
        shortest_lease_seconds=0.5,
        address=("127.0.0.1", server.port),
        make_at=make_at,
    )


class Conformance(StoreConformance):
    """Few points of each kind: test_kills dies before and after every request."""

    kill_points = 4
    pause_points = 3
    machine_settings = settings(StoreConformance.machine_settings, max_examples=2)

    def test_a_clean_run_takes_one_round_trip_for_each_node_and_one_more(self) -> None:  # type: ignore[override]
        """In test_requests: here a claim writes two objects, and a finished run takes several."""

    def test_a_batch_takes_few_round_trips(self) -> None:  # type: ignore[override]
        """No request of S3 writes several objects: 50 runs take 50."""


class TestOnMoto(Conformance):
    @pytest.fixture
    def subject(self) -> StoreSubject:
        return subject_on(moto())


class TestOnMinIO(Conformance):
    @pytest.fixture
    def subject(self) -> StoreSubject:
        return subject_on(minio())


def only(*names: str) -> Callable[[type[StoreConformance]], type[StoreConformance]]:
    """Leave out the other tests of a class."""

    def left(cls: type[StoreConformance]) -> type[StoreConformance]:
        for name in dir(cls):
            if name.startswith("test_") and name not in names:
                setattr(cls, name, None)
        assert all(callable(getattr(cls, name)) for name in names)
        return cls

    return left


@only(
    "test_a_saved_state_is_loaded",
    "test_a_later_state_replaces_an_earlier_one",
    "test_what_was_not_saved_is_none",
    "test_a_large_nested_state_comes_back",
    "test_ids_are_data",
    "test_run_and_node_ids_are_not_joined",
    "test_delete_is_exact",
    "test_a_record_comes_back_as_it_was",
    "test_the_same_commit_again_is_success",
    "test_another_commit_on_a_key_is_refused",
    "test_fetch_without_epoch_prefers_the_plain_record",
    "test_large_payloads_come_back_whole",
    "test_a_new_run_is_created_with_its_columns",
    "test_a_new_runs_times_are_the_stores",
    "test_free_text_of_any_kind_is_kept",
    "test_an_update_changes_what_it_names",
    "test_the_last_updated_run_comes_first",
    "test_a_listing_does_not_show_what_was_deleted",
    "test_a_connection_that_breaks_under_a_commit",
    "test_one_object_serves_event_loops_at_the_same_time",
)
class TestOnSwift(StoreConformance):
    """What a server may take otherwise, keys and bodies; the rest is about the store alone."""

    @pytest.fixture
    def subject(self, monkeypatch: pytest.MonkeyPatch) -> StoreSubject:
        server = swift()
        verdict = verdict_on(server)
        # A verdict that is not the best is looked into again by each store.
        monkeypatch.setattr(_probe, "setup", lambda *_: verdict)
        return subject_on(server)
