"""Stores with `save`, `load` and `delete` only: what is asked of them, and what is not."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from pydantic import BaseModel

from stroma.testing import StoreConformance, StoreSubject
from tests.conformance.outages import file_instead_of

SAMPLE = Path(__file__).parents[1] / "plugins/stroma-sample-dir/src/stroma_sample_dir/store.py"


def _sample() -> ModuleType:
    """Load the sample's module from its folder, whether it is installed or not."""
    spec = importlib.util.spec_from_file_location("stroma_sample_dir_store", SAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


make_dir_store: Callable[[Path], object] = _sample().DirStore


class TestDirStore(StoreConformance):
    """The sample plugin's store: sync, in files."""

    kill_points = 12

    @pytest.fixture
    def subject(self, tmp_path: Path) -> StoreSubject:
        folder = tmp_path / "folder"
        return StoreSubject(
            make=lambda: make_dir_store(folder), outage=lambda: file_instead_of(folder)
        )


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
