"""Level 0 for stores of level 1: `save`, `load` and their typed kin, over records."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol, TypeVar

from pydantic import BaseModel, ValidationError

from stroma.cost import NO_USAGE
from stroma.errors import SchemaMismatch, StoreError
from stroma.ids import check_id
from stroma.records import (
    PLAIN_EPOCH,
    CheckpointRecord,
    Commit,
    RecordHeader,
    RecordKey,
    check_digest,
    digest_of,
    unique_id,
)
from stroma.schemas import codec_of, describe, registered_model

M = TypeVar("M", bound=BaseModel)


def plain_commit(
    run_id: str, node_id: str, state: BaseModel, schema: type[BaseModel] | None = None
) -> Commit:
    """Return the commit that `save` makes: an upsert outside epochs.

    Raises:
        ConfigError: an id cannot be stored, or the state could not come back.
        pydantic.ValidationError: the state does not fit ``schema``.
    """
    check_id(run_id, "run id")
    check_id(node_id, "node id")
    codec = codec_of(schema or type(state))
    payload = codec.dump(codec.accept(state))
    header = RecordHeader(
        run_id,
        PLAIN_EPOCH,
        node_id,
        "result",
        0,
        -1,
        unique_id(),
        node_id,
        codec.ref,
        codec.fingerprint,
        digest_of(payload),
        NO_USAGE,
        0.0,
        "",
        time.time(),
    )
    return Commit(run_id, "", (CheckpointRecord(header, payload),))


def plain_key(run_id: str, node_id: str) -> RecordKey:
    """Return the key that `load` reads: the plain record, or else the newest epoch's result."""
    return RecordKey(check_id(run_id, "run id"), None, check_id(node_id, "node id"))


def plain_state(record: CheckpointRecord | None, schema: type[M] | None) -> M | BaseModel | None:
    """Return the state in a record, by the given schema or the one registered under its name.

    Raises:
        RecordCorrupt: the payload does not have its digest.
        SchemaMismatch: the payload does not fit the schema.
        UnknownSchema: no schema was given, and the stored reference names none or several.
    """
    if record is None:
        return None
    payload = check_digest(record)
    model = schema or registered_model(record.header.schema_ref)
    try:
        return codec_of(model).load(payload)
    except ValidationError as exc:
        problems = describe(exc)
        raise SchemaMismatch(
            f"run {record.header.run_id!r}, {record.header.path!r}: what was recorded as "
            f"{record.header.schema_ref} does not fit {model.__name__}: {'; '.join(problems)}",
            changes=problems,
        ) from exc


def first_error(outcomes: Sequence[StoreError | None]) -> None:
    """Raise the refusal of a commit that was made alone."""
    for outcome in outcomes:
        if outcome is not None:
            raise outcome


class SyncPlainMethods:
    """Level 0 for a sync level 1 store."""

    def save(self: SyncRecordStore, run_id: str, node_id: str, state: BaseModel) -> None:
        """Keep a state with its type; a later one for the same run and node replaces it."""
        first_error(self.commit_many([plain_commit(run_id, node_id, state)]))

    def save_typed(
        self: SyncRecordStore,
        run_id: str,
        node_id: str,
        state: BaseModel,
        schema: type[BaseModel],
    ) -> None:
        """Keep a state coerced to a schema."""
        first_error(self.commit_many([plain_commit(run_id, node_id, state, schema)]))

    def load(self: SyncRecordStore, run_id: str, node_id: str) -> BaseModel | None:
        """Return what `save` kept, or else the newest result of a run, or None."""
        return plain_state(self.fetch(run_id, [plain_key(run_id, node_id)])[0], None)

    def load_typed(self: SyncRecordStore, run_id: str, node_id: str, schema: type[M]) -> M | None:
        """Return what was kept as an instance of ``schema``, whatever it was saved as."""
        state = plain_state(self.fetch(run_id, [plain_key(run_id, node_id)])[0], schema)
        assert state is None or isinstance(state, schema)
        return state


class AsyncPlainMethods:
    """Level 0 for an async level 1 store."""

    async def save(self: AsyncRecordStore, run_id: str, node_id: str, state: BaseModel) -> None:
        """Keep a state with its type; a later one for the same run and node replaces it."""
        first_error(await self.commit_many([plain_commit(run_id, node_id, state)]))

    async def save_typed(
        self: AsyncRecordStore,
        run_id: str,
        node_id: str,
        state: BaseModel,
        schema: type[BaseModel],
    ) -> None:
        """Keep a state coerced to a schema."""
        first_error(await self.commit_many([plain_commit(run_id, node_id, state, schema)]))

    async def load(self: AsyncRecordStore, run_id: str, node_id: str) -> BaseModel | None:
        """Return what `save` kept, or else the newest result of a run, or None."""
        found = await self.fetch(run_id, [plain_key(run_id, node_id)])
        return plain_state(found[0], None)

    async def load_typed(
        self: AsyncRecordStore, run_id: str, node_id: str, schema: type[M]
    ) -> M | None:
        """Return what was kept as an instance of ``schema``, whatever it was saved as."""
        found = await self.fetch(run_id, [plain_key(run_id, node_id)])
        state = plain_state(found[0], schema)
        assert state is None or isinstance(state, schema)
        return state


class SyncRecordStore(Protocol):
    """What `SyncPlainMethods` stand on."""

    def commit_many(self, commits: Sequence[Commit]) -> Sequence[StoreError | None]:
        """See `RecordStore.commit_many`."""
        ...

    def fetch(self, run_id: str, keys: Sequence[RecordKey]) -> Sequence[CheckpointRecord | None]:
        """See `RecordStore.fetch`."""
        ...


class AsyncRecordStore(Protocol):
    """What `AsyncPlainMethods` stand on."""

    async def commit_many(self, commits: Sequence[Commit]) -> Sequence[StoreError | None]:
        """See `RecordStore.commit_many`."""
        ...

    async def fetch(
        self, run_id: str, keys: Sequence[RecordKey]
    ) -> Sequence[CheckpointRecord | None]:
        """See `RecordStore.fetch`."""
        ...
