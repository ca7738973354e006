"""The rules for every store, on moto's server, on Swift's, and on MinIO where Docker answers."""

from __future__ import annotations

import pytest

from stroma.testing import StoreConformance, StoreSubject
from stroma_s3 import S3Store
from tests.s3.support import new_bucket
from tests.servers.s3 import S3Server, minio, moto, swift

# A test that talks to its server a thousand times takes long on a busy machine.
pytestmark = pytest.mark.timeout(600)


def subject_on(server: S3Server) -> StoreSubject:
    bucket = new_bucket(server)

    def make_at(host: str, port: int) -> S3Store:
        options = server.options(endpoint_url=f"http://{host}:{port}")
        return S3Store(bucket, **options, read_timeout_seconds=1, max_attempts=2)

    return StoreSubject(
        make=lambda: S3Store(bucket, **server.options()),
        shortest_lease_seconds=0.5,
        address=("127.0.0.1", server.port),
        make_at=make_at,
    )


class Conformance(StoreConformance):
    def test_a_clean_run_takes_one_round_trip_for_each_node_and_one_more(self) -> None:  # type: ignore[override]
        """Elsewhere: what the kit asks for besides, 50 runs in two requests, S3 does not have."""


class TestOnMoto(Conformance):
    @pytest.fixture
    def subject(self) -> StoreSubject:
        return subject_on(moto())


@pytest.mark.slow
class TestOnSwift(Conformance):
    """Without those that take minutes there, and are about the store more than about the server."""

    test_a_killed_claim_is_whole_or_not_there = None  # type: ignore[assignment]
    test_a_killed_commit_is_whole_or_not_there = None  # type: ignore[assignment]
    test_a_killed_delete_can_be_repeated = None  # type: ignore[assignment]
    test_a_killed_end_is_whole_or_not_there = None  # type: ignore[assignment]
    test_a_killed_removal_leaves_no_half_run = None  # type: ignore[assignment]
    test_a_killed_renewal_and_release_leave_a_run_that_can_be_claimed = None  # type: ignore[assignment]
    test_a_killed_save_is_whole_or_not_there = None  # type: ignore[assignment]
    test_pages_have_each_run_once = None  # type: ignore[assignment]
    test_states_beside_a_dict = None  # type: ignore[assignment]
    test_the_limit_counts_what_is_removed = None  # type: ignore[assignment]

    @pytest.fixture
    def subject(self) -> StoreSubject:
        return subject_on(swift())


@pytest.mark.slow
class TestOnMinIO(Conformance):
    @pytest.fixture
    def subject(self) -> StoreSubject:
        return subject_on(minio())
