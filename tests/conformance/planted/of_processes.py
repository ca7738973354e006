"""Defects that show with several processes or objects, or when a process is killed."""

from __future__ import annotations

from tests.conformance.planted.copies import ASYNC_MEMORY, ONE_FILE, SQLITE, STATES, Edit
from tests.conformance.planted.defect import Defect

_READ = "        if not self._path.exists():\n            return {}\n"
_RAISE = 'raise StoreUnavailable(f"{self._path} cannot be used: {exc}") from exc'


def _one_file(*edits: tuple[str, str]) -> tuple[Edit, ...]:
    return tuple(Edit("one_file.py", old, new) for old, new in edits)


PROCESSES = (
    Defect(
        "lost-update",
        "processes",
        "everything is read, changed and written back without a lock",
        ONE_FILE,
        _one_file(("fcntl.flock(lock, fcntl.LOCK_EX)", "fcntl.flock(lock, fcntl.LOCK_SH)")),
        ("test_saves_at_the_same_time_are_all_kept",),
    ),
    Defect(
        "stale-copy",
        "processes",
        "an object keeps a copy, and does not see what others write",
        ONE_FILE,
        _one_file(
            (
                _READ,
                '        if "kept" in self.__dict__:\n            return self.kept\n' + _READ,
            ),
            (
                "    def _write(self, entries: dict[str, Entry]) -> None:\n",
                (
                    "    def _write(self, entries: dict[str, Entry]) -> None:\n"
                    "        self.kept = entries\n"
                ),
            ),
        ),
        ("test_another_object_sees_what_was_saved",),
    ),
    Defect(
        "acknowledged-early",
        "processes",
        "a commit is acknowledged before it is written, and lost with its process",
        ONE_FILE,
        _one_file(
            (
                _READ,
                '        if "kept" in self.__dict__:\n            return self.kept\n' + _READ,
            ),
            (
                "                    if save:\n                        self._write(entries)\n",
                (
                    "                    if save:\n"
                    "                        import threading\n"
                    "                        self.kept = entries\n"
                    "                        late = threading.Timer(0.2, self._write, [entries])\n"
                    "                        late.daemon = True\n"
                    "                        late.start()\n"
                ),
            ),
        ),
        (
            "test_what_was_saved_outlives_the_process",
            "test_what_was_committed_outlives_the_process",
        ),
    ),
    Defect(
        "file-written-in-place",
        "kills",
        "a file is overwritten in place, and is half there after a kill",
        ONE_FILE,
        _one_file(
            (
                'with open(f"{self._path}.draft", "w") as draft:',
                'with open(self._path, "w") as draft:',
            ),
            (
                '        os.replace(f"{self._path}.draft", self._path)  # all of it, or nothing\n',
                "",
            ),
        ),
        ("test_a_killed_commit_is_whole_or_not_there",),
    ),
    Defect(
        "state-written-in-place",
        "kills",
        "a state is overwritten in place, and is half there after a kill",
        STATES,
        (
            Edit(
                "states.py",
                'file.with_name(f"draft-{uuid.uuid4().hex}")',
                "file",
            ),
            Edit("states.py", "        draft.replace(file)  # nobody ever finds half a file\n", ""),
        ),
        ("test_a_killed_save_is_whole_or_not_there",),
    ),
    Defect(
        "records-then-update",
        "kills",
        "the records of a commit and its update are written one after the other",
        ONE_FILE,
        _one_file(
            (
                "        entry.records += added\n",
                "        entry.records += added\n        self._write(entries)\n",
            )
        ),
        ("test_a_killed_commit_is_whole_or_not_there",),
    ),
    Defect(
        "end-then-release",
        "kills",
        "a run's end and its release are written one after the other",
        ONE_FILE,
        _one_file(
            (
                "            entry.run = commit.update.apply(run, time.time())\n",
                (
                    "            first = commit.update._replace(release=False)\n"
                    "            entry.run = first.apply(run, time.time())\n"
                    "            self._write(entries)\n"
                    "            entry.run = commit.update.apply(run, time.time())\n"
                ),
            )
        ),
        ("test_a_killed_end_is_whole_or_not_there",),
    ),
    Defect(
        "delete-in-two-steps",
        "kills",
        "`delete` removes a run's record before its checkpoint records, and is killed between",
        SQLITE,
        (
            Edit(
                "_sqlite_session.py",
                '        self._execute("BEGIN IMMEDIATE")\n        try:\n            body()\n'
                "            self._commit()\n",
                "        try:\n            body()\n",
            ),
        ),
        ("test_a_killed_removal_leaves_no_half_run",),
    ),
    Defect(
        "database-is-locked",
        "processes",
        "a writer does not wait for another process that writes",
        SQLITE,
        (
            Edit(
                "sqlite.py",
                "busy_timeout_seconds: float = 5.0,",
                "busy_timeout_seconds: float = 0.0,",
            ),
        ),
        ("test_processes_compete_for_a_run",),
    ),
    Defect(
        "thread-writes-on",
        "cancellation",
        "what a cancelled call writes in a thread lands after a later write",
        ASYNC_MEMORY,
        (
            Edit(
                "memory.py",
                "        return self._commit_many(commits)",
                "        import asyncio\n        import time\n\n"
                "        def write():\n"
                '            time.sleep(0.03 if b"after" in commits[0].records[0].payload else 0)\n'
                "            return self._commit_many(commits)\n\n"
                "        return await asyncio.to_thread(write)",
            ),
        ),
        ("test_a_cancelled_save",),
    ),
    Defect(
        "lock-of-a-forked-child",
        "processes",
        "a lock ends with its descriptor, which a forked child has, too",
        ONE_FILE,
        _one_file(("fcntl.flock(lock, fcntl.LOCK_UN)", "pass")),
        ("test_an_idle_child_holds_nothing",),
    ),
    Defect(
        "delete-removes-folders",
        "deletion",
        "`delete` removes a folder that a save has just made",
        STATES,
        (
            Edit(
                "states.py",
                '        for file in self._run(run_id).glob("node-*.json"):\n'
                "            file.unlink(missing_ok=True)\n",
                "        import shutil\n"
                "        shutil.rmtree(self._run(run_id), ignore_errors=True)\n",
            ),
        ),
        ("test_a_save_beside_a_delete",),
    ),
    Defect(
        "one-draft-for-all",
        "states",
        "two saves of one node write to one draft",
        STATES,
        (
            Edit(
                "states.py",
                'file.with_name(f"draft-{uuid.uuid4().hex}")',
                'file.with_suffix(".draft")',
            ),
        ),
        ("test_saves_of_one_node_beside_each_other",),
    ),
    Defect(
        "delete-without-a-lock",
        "deletion",
        "`delete` reads under its lock, and writes without it",
        ONE_FILE,
        _one_file(
            (
                (
                    "        with self._entries(save=True) as entries:\n"
                    "            entries.pop(run_id, None)\n"
                ),
                (
                    "        with self._entries() as entries:\n"
                    "            entries.pop(run_id, None)\n"
                    "        self._write(entries)\n"
                ),
            )
        ),
        ("test_a_claim_beside_a_delete",),
    ),
    Defect(
        "purge-does-not-look-again",
        "retention",
        "`purge` removes what it found before, and does not look whether it was claimed since",
        ONE_FILE,
        _one_file(
            (
                (
                    "            for run in removed:\n"
                    "                del entries[run.run_id]\n"
                    "            return len(removed)\n"
                ),
                (
                    "        for run in removed:\n"
                    "            self.delete(run.run_id)\n"
                    "        return len(removed)\n"
                ),
            )
        ),
        ("test_a_claim_beside_a_purge",),
    ),
    Defect(
        "record-goes-first",
        "kills",
        "a killed `delete` has removed the run's record, and a new run has its results again",
        ONE_FILE,
        _one_file(
            (
                "            entries.pop(run_id, None)\n",
                (
                    "            entries.setdefault(run_id, Entry(None, [])).run = None\n"
                    "            self._write(entries)\n"
                    "            entries.pop(run_id, None)\n"
                ),
            )
        ),
        ("test_a_killed_removal_leaves_no_half_run",),
    ),
    Defect(
        "driver-exceptions-leak",
        "outage",
        "an exception of the driver comes out when the folder is gone",
        ONE_FILE,
        _one_file(
            (
                _RAISE,
                "raise",
            )
        ),
        ("test_operations_without_a_medium",),
    ),
    Defect(
        "no-medium-is-empty",
        "outage",
        "a store whose folder is gone is taken for an empty one",
        ONE_FILE,
        _one_file(
            (
                _RAISE,
                "yield {}",
            )
        ),
        ("test_operations_without_a_medium",),
    ),
    Defect(
        "half-a-commit-of-a-thread",
        "cancellation",
        "what a cancelled call still writes in its thread is seen by halves",
        ONE_FILE,
        _one_file(
            (
                "        entry.records += added\n",
                "        entry.records += added\n        self._write(entries)\n",
            ),
            (
                "                fcntl.flock(lock, fcntl.LOCK_EX)\n",
                "                if save:\n                    fcntl.flock(lock, fcntl.LOCK_EX)\n",
            ),
        ),
        ("test_a_commit_whose_thread_works_on",),
    ),
)
