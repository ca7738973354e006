"""Names: every run in one slot, and no two things under one name."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.crc import key_slot

from stroma.ids import MAX_ID_BYTES
from stroma.records import PLAIN_EPOCH, last_result
from stroma.testing._values import HOSTILE_IDS
from stroma_redis._keys import SHARDS, Keys, field_of, rank_of
from tests.core.stores.support import record

ids = st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1).filter(
    lambda text: len(text.encode()) <= MAX_ID_BYTES
)
paths = st.one_of(ids, st.sampled_from(HOSTILE_IDS))
places = st.tuples(
    st.integers(PLAIN_EPOCH, 12),
    paths,
    st.sampled_from(["result", "attempt", "once"]),
    st.integers(0, 12),
)
KEYS = Keys("stroma")


@given(st.lists(st.one_of(ids, st.sampled_from(HOSTILE_IDS)), unique=True))
def test_every_run_has_a_key_of_its_own(run_ids: list[str]) -> None:
    keys = {KEYS.run(run_id) for run_id in run_ids}
    assert len(keys) == len(run_ids)
    assert not keys & {KEYS.shard(i) for i in range(SHARDS)}


@given(ids)
def test_the_slot_of_a_run_is_its_own_affair(run_id: str) -> None:
    """The hash tag is the encoded id: braces inside it decide nothing."""
    key = KEYS.run(run_id)
    before, _, rest = key.partition(b"{")
    tag, _, after = rest.partition(b"}")
    assert (before, after) == (b"stroma:run:", b"")
    assert tag
    assert key_slot(key) == key_slot(tag)


@given(st.lists(places, unique=True))
def test_every_record_has_a_field_of_its_own(found: list[tuple]) -> None:
    headers = [
        record(path=path, epoch=epoch, kind=kind, attempt=attempt).header
        for epoch, path, kind, attempt in found
    ]
    assert len({field_of(header) for header in headers}) == len(found)


@given(st.lists(st.tuples(st.integers(PLAIN_EPOCH, 9), st.integers(-1, 99)), unique=True))
def test_the_last_result_ranks_highest(found: list[tuple[int, int]]) -> None:
    headers = [
        record(path=f"{epoch}/{position}", epoch=epoch, position=position).header
        for epoch, position in found
    ]
    ranking = [h for h in headers if rank_of(h) != b"-"]
    ranked = max(ranking, key=lambda h: int(rank_of(h)), default=None)
    assert ranked == last_result(h for h in headers if h.epoch != PLAIN_EPOCH)


@pytest.mark.parametrize("run_id", HOSTILE_IDS)
def test_keys_are_legible(run_id: str) -> None:
    assert KEYS.run(run_id).isascii()
    assert b" " not in KEYS.run(run_id)
