"""What a damaged file does to other runs: nothing."""

from pathlib import Path

import pytest
from stroma_sample_dir.store import DirStore

from stroma.records import ClaimQuery, OpenRequest, RunQuery, RunRecord, RunStatus


@pytest.mark.parametrize("damage", [b"junk", b'{"format": 99}', b"{}"])
def test_a_damaged_run_is_told_not_purged_and_hides_no_other(tmp_path: Path, damage: bytes) -> None:
    store = DirStore(tmp_path)
    for run_id in ("damaged", "fine"):
        new = RunRecord(run_id, RunStatus.PENDING)
        store.open_run(OpenRequest(run_id, "token", "a worker", 60_000, new))
        store.release(run_id, "token")
        if run_id == "damaged":
            (head,) = tmp_path.glob("*/run.json")
            head.write_bytes(damage)

    for page in (store.claimable(ClaimQuery()), store.runs(RunQuery())):
        assert [run.run_id for run in page.runs] == ["fine"]
        (told,) = page.unreadable
        assert told.run_id == head.parent.name
        assert str(head) in str(told.error)
    assert store.purge(RunQuery()) == 1
    assert len(store.runs(RunQuery()).unreadable) == 1, "nobody can tell whether it is owned"
    store.delete("damaged")
    assert store.claimable(ClaimQuery()).unreadable == ()
    assert store.runs(RunQuery()).unreadable == ()
