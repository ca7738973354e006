"""Defects that show with several processes or objects, or when a process is killed."""

from __future__ import annotations

from tests.conformance.planted.copies import ASYNC_MEMORY, ONE_FILE, SQLITE, STATES, Edit
from tests.conformance.planted.defect import Defect

_READ = "        if not self._path.exists():\n            return {}\n"


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
            Edit("states.py", '        draft = file.with_suffix(".draft")', "        draft = file"),
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
                (
                    "        entry.run = run if commit.update is None else "
                    "commit.update.apply(run, now)\n"
                ),
                (
                    "        if commit.update is not None:\n"
                    "            first = commit.update._replace(release=False)\n"
                    "            entry.run = first.apply(run, now)\n"
                    "            self._write(entries)\n"
                    "        entry.run = run if commit.update is None else "
                    "commit.update.apply(run, now)\n"
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
)
