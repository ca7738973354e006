"""Clauses about large values: whole, or refused before anything is written."""

from __future__ import annotations

import pytest

from stroma.errors import RecordTooLarge
from stroma.records import PLAIN_EPOCH
from stroma.testing._checks import outcome_is, same_run, written
from stroma.testing._clauses import clauses, if_records
from stroma.testing._kit import Kit
from stroma.testing._values import DONE, Note, commit, key, record, request

_MEGABYTE = 1 << 20
_LARGEST_TRIED_BYTES = 32 * _MEGABYTE


def _if_limit(kit: Kit) -> str | None:
    found = if_records(kit)
    if found is not None:
        return found
    limit = kit.capabilities.max_payload_bytes
    if limit is None:
        return "capabilities.max_payload_bytes is None: it names no limit"
    if limit > _LARGEST_TRIED_BYTES:
        return f"its limit of {limit} bytes is too large to be tried"
    return None


@clauses("large values", if_records)
class LargeValueClauses:
    """Payloads of some megabytes."""

    def test_large_payloads_come_back_whole(self, kit: Kit) -> None:
        """Payloads around the sizes at which buffers end, and of some megabytes, are whole."""
        limit = kit.capabilities.max_payload_bytes or _LARGEST_TRIED_BYTES
        kit.store.open_run(request())
        sizes = (4095, 65_535, 65_536, 65_537, _MEGABYTE - 1, _MEGABYTE, 5 * _MEGABYTE + 1)
        for size in sizes:
            if size > limit:
                continue
            payload = (b"0123456789abcdef" * (size // 16 + 1))[:size]
            one = record(path=f"of {size}", payload=payload)
            written(kit.store, one)
            (found,) = kit.another().fetch("run", one.header.key)
            assert found is not None, f"a payload of {size} bytes was committed, and is not there"
            assert len(found.payload) == size, (
                f"a payload of {size} bytes came back with {len(found.payload)}"
            )
            assert found == one, f"a payload of {size} bytes came back changed"

    def test_a_large_last_result_comes_with_the_claim(self, kit: Kit) -> None:
        """The one payload that `open_run` returns is whole, too."""
        limit = kit.capabilities.max_payload_bytes or _LARGEST_TRIED_BYTES
        payload = b"x" * min(2 * _MEGABYTE, limit)
        kit.store.open_run(request())
        one = record(payload=payload)
        assert kit.store.commit(commit(one, update=DONE)) is None
        last = kit.store.open_run(request(token="bob")).last
        assert last is not None
        assert last.payload == payload, f"{len(payload)} bytes came back as {len(last.payload)}"


@clauses("largest value", _if_limit)
class LimitClauses:
    """What is larger than the store takes."""

    def test_a_payload_that_is_too_large_is_refused(self, kit: Kit) -> None:
        """It is refused with its run and node, nothing of its commit is written, others are."""
        limit = kit.capabilities.max_payload_bytes
        assert limit is not None
        before = kit.store.open_run(request()).run
        kit.store.open_run(request("other"))
        large = record(path="large", payload=b"x" * (limit + 1))
        outcomes = kit.store.commit_many(
            [
                commit(record("other", "a")),
                commit(record(path="small"), large, update=DONE),
                commit(record("other", "b")),
            ]
        )
        assert [outcomes[0], outcomes[2]] == [None, None], f"other commits of its batch: {outcomes}"
        outcome_is(outcomes[1], RecordTooLarge, f"a payload of {limit + 1} bytes")
        text = str(outcomes[1])
        assert "'run'" in text, f"the refusal does not name the run: {text}"
        assert "'large'" in text, f"the refusal does not name the node: {text}"
        assert kit.store.fetch("run", key(path="small"), key(path="large")) == [None, None]
        same_run(kit, kit.store.inspect("run").run, before, "a refused commit changed the run")

    def test_a_payload_of_the_largest_size_is_taken(self, kit: Kit) -> None:
        """The largest payload that the store says it takes is taken, alone and as a state."""
        limit = kit.capabilities.max_payload_bytes
        assert limit is not None
        kit.store.open_run(request())
        one = record(payload=b"x" * limit)
        written(kit.store, one)
        assert kit.store.fetch("run", one.header.key) == [one]

    def test_a_state_that_is_too_large_is_refused(self, kit: Kit) -> None:
        """`save` of a state that is too large raises, and keeps the state before."""
        limit = kit.capabilities.max_payload_bytes
        assert limit is not None
        kit.store.save("run", "node", Note(text="before"))
        try:
            kit.store.save("run", "node", Note(text="x" * limit))
        except RecordTooLarge as exc:
            assert "'run'" in str(exc), f"the refusal does not name the run: {exc}"
            assert "'node'" in str(exc), f"the refusal does not name the node: {exc}"
        else:
            pytest.fail(f"a state of more than {limit} bytes was taken")
        assert kit.store.load("run", "node") == Note(text="before")
        (plain,) = kit.store.fetch("run", key(epoch=PLAIN_EPOCH))
        assert plain is not None
