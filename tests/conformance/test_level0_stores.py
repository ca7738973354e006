"""Stores with `save`, `load` and `delete` only: what is asked of them, and what is not."""

from __future__ import annotations

import asyncio

import pytest
from pydantic import BaseModel

from stroma.testing import StoreConformance, StoreSubject


class DictStore:
    """The smallest store: async, gone with its object."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, str], BaseModel] = {}

    async def save(self, run_id: str, node_id: str, state: BaseModel) -> None:
        await asyncio.sleep(0)
        self.kept[run_id, node_id] = state.model_copy(deep=True)

    async def load(self, run_id: str, node_id: str) -> BaseModel | None:
        await asyncio.sleep(0)
        found = self.kept.get((run_id, node_id))
        return None if found is None else found.model_copy(deep=True)

    async def delete(self, run_id: str) -> None:
        self.kept = {place: state for place, state in self.kept.items() if place[0] != run_id}


class TestDictStore(StoreConformance):
    @pytest.fixture
    def subject(self) -> StoreSubject:
        store = DictStore()
        return StoreSubject(make=lambda: store)
