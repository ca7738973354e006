"""The rules that every store keeps: on PostgreSQL 15 and 18, and behind PgBouncer."""

from __future__ import annotations

import pytest

from stroma.testing import StoreConformance, StoreSubject
from stroma.testing._kit import Kit
from stroma.testing._records import written
from stroma.testing._values import record, request
from stroma_postgres import PostgresStore
from tests.servers.postgres import Server

pytestmark = [pytest.mark.server, pytest.mark.slow]


def subject_of(server: Server, schema: str) -> StoreSubject:
    def at(host: str, port: int) -> PostgresStore:
        return PostgresStore(
            server.at(host, port).dsn,
            schema=schema,
            acquire_timeout_seconds=2,
            command_timeout_seconds=2,
        )

    return StoreSubject(
        make=lambda: at(server.host, server.port),
        address=(server.host, server.port),
        make_at=at,
    )


class TestPostgresStore(StoreConformance):
    @pytest.fixture(params=["older", "newest"])
    def server(self, request: pytest.FixtureRequest) -> Server:
        found: Server = request.getfixturevalue(request.param)
        return found

    @pytest.fixture
    def subject(self, server: Server, schema: str) -> StoreSubject:
        return subject_of(server, schema)


class TestPostgresStoreBehindPgBouncer(StoreConformance):
    @pytest.fixture
    def server(self, pgbouncer: Server) -> Server:
        return pgbouncer

    @pytest.fixture
    def subject(self, server: Server, schema: str) -> StoreSubject:
        return subject_of(server, schema)

    def test_a_clean_run_takes_one_round_trip_for_each_node_and_one_more(self, kit: Kit) -> None:
        """Without prepared statements, each takes two: the statement, and what to put in."""
        proxy, store = kit.behind_proxy()
        store.open_run(request("warm"))
        before = proxy.round_trips
        store.open_run(request())
        for i in range(3):
            written(store, record(path=f"n{i}", position=i))
        assert proxy.round_trips - before == 2 * (3 + 1)
