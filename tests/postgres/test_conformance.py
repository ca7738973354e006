"""The rules that every store keeps: on PostgreSQL 15 and 18, and behind PgBouncer."""

from __future__ import annotations

import pytest

from stroma.testing import StoreConformance, StoreSubject
from stroma_postgres import PostgresStore
from tests.servers.postgres import Server

pytestmark = pytest.mark.server


class TestPostgresStore(StoreConformance):
    @pytest.fixture
    def subject(self, server: Server, schema: str) -> StoreSubject:
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
