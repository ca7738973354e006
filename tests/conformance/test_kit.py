"""What an author sees of the kit: what is asked, what is skipped, and what is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stroma.testing import StoreConformance, StoreSubject
from stroma.testing import subject as subjects
from stroma.testing.stores import clauses_of
from tests.servers.process import not_measured

HEAD = """
import pytest
from stroma import InMemoryStore
from stroma.testing import FakeClock, StoreConformance, StoreSubject

"""


def run(folder: Path, text: str, *args: str) -> str:
    """Run a test file of an author in a process of its own, and return what is printed."""
    (folder / "test_mine.py").write_text(HEAD + text, encoding="utf-8")
    (folder / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")  # no settings from above
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *args]
    path = os.pathsep.join(str(Path(each).resolve()) for each in sys.path if each)
    done = subprocess.run(
        [*command, "test_mine.py"],
        cwd=folder,
        env={**not_measured(os.environ), "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    return done.stdout + done.stderr


FEW = ("-k", "a_saved_state or a_new_run_is_created or forked or lost_replies_of_saves")
MEMORY = """
class TestMine(StoreConformance):
    @pytest.fixture
    def subject(self):
        clock = FakeClock()
        return StoreSubject(make=lambda: InMemoryStore(clock=clock), clock=clock)
"""


@pytest.mark.parametrize(
    "mode", [("-p", "no:asyncio"), ("-o", "asyncio_mode=strict"), ("-o", "asyncio_mode=auto")]
)
def test_any_mode_of_the_project_will_do_and_the_report_says_what_is_kept(
    tmp_path: Path, mode: tuple[str, ...]
) -> None:
    printed = run(tmp_path, MEMORY, *mode, *FEW)
    assert "2 passed, 2 skipped" in printed, printed
    for line in (
        "test_mine.py::TestMine",
        "  states                       yes: 1 clause kept",
        "  runs                         yes: 1 clause kept",
        "  processes                    no: its data are gone with the process",
        "  network                      no: no StoreSubject.address and make_at: there is",
    ):
        assert line in printed, printed


BROKEN = """
class Forgetful(InMemoryStore):
    def load(self, run_id, node_id):
        return None

class TestForgetful(StoreConformance):
    @pytest.fixture
    def subject(self):
        return StoreSubject(make=Forgetful)

class TestNoFixture(StoreConformance):
    pass

class TestStore(StoreConformance):
    @pytest.fixture
    def subject(self):
        return InMemoryStore()

class TestDict(StoreConformance):
    @pytest.fixture
    def subject(self):
        return StoreSubject(make=dict)

class TestRaises(StoreConformance):
    @pytest.fixture
    def subject(self):
        return StoreSubject(make=lambda: 1 / 0)
"""


def test_what_is_wrong_is_told(tmp_path: Path) -> None:
    printed = run(tmp_path, BROKEN, "-k", "a_saved_state_is_loaded")
    for message in (
        "load returned None after save",
        "  states                       NO: 1 of 1 clauses are broken",
        "TestNoFixture needs a fixture: def subject(self) -> StoreSubject",
        "give StoreSubject(make=…)",
        "returned dict, which has no save, load, delete",
        "StoreSubject.make failed: ZeroDivisionError",
    ):
        assert message in printed, printed


SLOW = """
import time

class Slow(InMemoryStore):
    def load(self, run_id, node_id):
        time.sleep(0.01)
        return super().load(run_id, node_id)

class Broken(Slow):
    def save(self, run_id, node_id, state):
        super().save(run_id, "n" + node_id.strip("bcn:[0]*"), state)

class TestSlow(StoreConformance):
    machine_seconds = 3.0

    @pytest.fixture
    def subject(self):
        store = Slow()
        return StoreSubject(make=lambda: store)

class TestBroken(StoreConformance):
    machine_seconds = 3.0

    @pytest.fixture
    def subject(self):
        store = Broken()
        return StoreSubject(make=lambda: store)
"""


def test_random_orders_of_a_slow_store_end(tmp_path: Path) -> None:
    """All of them would take far longer, and making one that fails shorter, minutes."""
    begin = time.monotonic()
    printed = run(tmp_path, SLOW, "-k", "beside_a_dict")
    assert "1 failed, 1 passed" in printed, printed
    assert "state = MachineOfStates()" in printed, printed
    assert time.monotonic() - begin < 60


def make() -> object:
    return None


@pytest.mark.parametrize(
    ("subject", "message"),
    [
        (None, "must return a stroma.testing.StoreSubject, not NoneType"),
        (
            StoreSubject(make=make, outage=1),  # type: ignore[arg-type]
            "outage must be a function that returns a context manager",
        ),
        (StoreSubject(make=1), "must be a function that returns a store, not int"),  # type: ignore[arg-type]
        (StoreSubject(make=make, clock=1), "clock must be the stroma.testing.FakeClock"),  # type: ignore[arg-type]
        (StoreSubject(make=make, address=("h", 1)), "go together"),
        (StoreSubject(make=make, address=("h", 1), make_at=1), "a host and a port"),  # type: ignore[arg-type]
        (StoreSubject(make=make, shortest_lease_seconds=0), "must be above 0"),
    ],
)
def test_wrong_subjects_are_told(subject: object, message: str) -> None:
    assert message in str(subjects.problem_of(subject))


def test_an_async_fixture_is_told() -> None:
    async def fixture() -> None: ...

    given = fixture()
    assert "make it a plain one" in str(subjects.problem_of(given))
    given.close()


def test_a_good_subject_has_no_problem() -> None:
    assert subjects.problem_of(StoreSubject(make=make)) is None


def test_every_clause_says_its_guarantee_in_one_sentence() -> None:
    found = list(clauses_of(StoreConformance))
    assert len(found) > 100
    for capability, name, guarantee in found:
        assert capability, name
        assert guarantee.endswith("."), f"{name}: {guarantee}"


def test_the_core_does_not_import_the_kit() -> None:
    modules = ("pytest", "hypothesis", "stroma.testing.stores", "stroma.testing.subject")
    program = f"import sys, stroma, stroma.testing; print([m in sys.modules for m in {modules}])"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str([False] * 4)
