"""The rules that every store keeps, on Redis and on Valkey, async and sync."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from stroma.testing import StoreConformance, StoreSubject
from stroma_redis import RedisStore, SyncRedisStore
from tests.servers.redis import Address

pytestmark = [pytest.mark.server, pytest.mark.slow]


def subject_of(kind: Callable[..., object], server: Address, prefix: str) -> StoreSubject:
    def at(host: str, port: int) -> object:
        return kind(
            f"redis://{host}:{port}",
            key_prefix=prefix,
            timeout_seconds=2,
            connect_timeout_seconds=2,
        )

    return StoreSubject(make=lambda: at(*server), address=server, make_at=at)


class TestRedisStore(StoreConformance):
    @pytest.fixture
    def subject(self, server: Address, prefix: str) -> StoreSubject:
        return subject_of(RedisStore, server, prefix)


class TestSyncRedisStore(StoreConformance):
    @pytest.fixture
    def subject(self, server: Address, prefix: str) -> StoreSubject:
        return subject_of(SyncRedisStore, server, prefix)
