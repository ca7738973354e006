"""The store."""

import hashlib
import shutil
import uuid
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from stroma.checkpoint import _resolve_schema, _schema_ref

M = TypeVar("M", bound=BaseModel)


class DirStore:
    """Keeps a state in ``<folder>/<run>/<node>``; ids are hashed, since they may be anything."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, run_id: str, node_id: str, state: BaseModel) -> None:
        """Keep a state, with a reference to its model on the first line."""
        target = self._file(run_id, node_id)
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = target.with_suffix(f".{uuid.uuid4().hex}")  # two may save at once
        draft.write_text(f"{_schema_ref(state)}\n{state.model_dump_json()}", encoding="utf-8")
        draft.replace(target)

    def load(self, run_id: str, node_id: str) -> BaseModel | None:
        """Return a state by the model that it was saved as, or None."""
        found = self._read(run_id, node_id)
        return None if found is None else _resolve_schema(found[0]).model_validate_json(found[1])

    def load_typed(self, run_id: str, node_id: str, schema: type[M]) -> M | None:
        """Return a state as an instance of a model, or None."""
        found = self._read(run_id, node_id)
        return None if found is None else schema.model_validate_json(found[1])

    def delete(self, run_id: str) -> None:
        """Remove what was kept of a run."""
        shutil.rmtree(self._file(run_id, "").parent, ignore_errors=True)

    def _read(self, run_id: str, node_id: str) -> tuple[str, str] | None:
        try:
            text = self._file(run_id, node_id).read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        reference, _, payload = text.partition("\n")
        return reference, payload

    def _file(self, run_id: str, node_id: str) -> Path:
        return self.folder / _hashed(run_id) / _hashed(node_id)


def _hashed(id_: str) -> str:
    return hashlib.sha256(id_.encode()).hexdigest()
