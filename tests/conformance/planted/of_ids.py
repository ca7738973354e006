"""Defects about ids, and about what `delete` takes along."""

from __future__ import annotations

from tests.conformance.planted.copies import MEMORY, REDIS, SQLITE, STATES, Edit
from tests.conformance.planted.defect import Defect

_ENTRIES = "        self._entries: dict[str, _Entry] = {}"
_POP = "        self._entries.pop(run_id, None)\n        self._unfinished.pop(run_id, None)"


def _folded(form: str) -> tuple[Edit, ...]:
    new = (
        "        import unicodedata\n"
        "        from tests.conformance.planted.folded import Folded\n"
        f"        self._entries = Folded({form})"
    )
    return (Edit("memory.py", _ENTRIES, new),)


IDS = (
    Defect(
        "ids-normalized",
        "ids",
        "ids are normalized, so that two spellings of é are one run",
        MEMORY,
        _folded('lambda run_id: unicodedata.normalize("NFC", run_id)'),
        ("test_ids_are_data", "test_ids_of_runs_are_data"),
    ),
    Defect(
        "ids-folded",
        "ids",
        "ids are folded, so that A is a",
        MEMORY,
        _folded("str.casefold"),
        ("test_ids_are_data",),
    ),
    Defect(
        "paths-folded",
        "ids",
        "node ids are compared without case",
        SQLITE,
        (
            Edit(
                "_sqlite_schema.py",
                "        path TEXT NOT NULL,",
                "        path TEXT NOT NULL COLLATE NOCASE,",
            ),
        ),
        ("test_paths_of_records_are_data",),
    ),
    Defect(
        "ids-stripped",
        "ids",
        "ids are stripped of spaces",
        MEMORY,
        _folded("str.strip"),
        ("test_ids_of_runs_are_data",),
    ),
    Defect(
        "ids-truncated",
        "ids",
        "ids are cut after 255 bytes",
        MEMORY,
        _folded("lambda run_id: run_id.encode()[:255]"),
        ("test_ids_are_data",),
    ),
    Defect(
        "ids-joined",
        "ids",
        'run and node id are joined by ":", so that ("a:b", "c") is ("a", "b:c")',
        STATES,
        (
            Edit(
                "states.py",
                """self._run(run_id) / f"node-{name_of(node_id)}.json\"""",
                """self._folder / f"{name_of(f'{run_id}:{node_id}')}.json\"""",
            ),
        ),
        ("test_run_and_node_ids_are_not_joined",),
    ),
    Defect(
        "delete-by-glob",
        "deletion",
        "`delete` takes its id as a pattern of a shell",
        SQLITE,
        (
            Edit(
                "_sqlite_tables.py",
                '"DELETE FROM records WHERE run_id = ?",',
                '"DELETE FROM records WHERE run_id GLOB ?",',
            ),
        ),
        ("test_delete_is_exact",),
    ),
    Defect(
        "delete-by-like",
        "deletion",
        "`delete` takes its id as a pattern of SQL",
        SQLITE,
        (
            Edit(
                "_sqlite_tables.py",
                '"DELETE FROM records WHERE run_id = ?",',
                '"DELETE FROM records WHERE run_id LIKE ?",',
            ),
        ),
        ("test_delete_is_exact",),
    ),
    Defect(
        "delete-by-keys",
        "deletion",
        "`delete` removes what KEYS finds with the id",
        REDIS,
        (
            Edit(
                "_keys.py",
                'quote(run_id, safe="")',
                "run_id",
            ),
            Edit(
                "_commands.py",
                '        unlink = (b"UNLINK", self.keys.run(run_id))',
                "        script = b\"for _, key in ipairs(redis.call('KEYS', ARGV[1])) do \"\n"
                "        script += b\"redis.call('UNLINK', key) end return 1\"\n"
                '        unlink = (b"EVAL", script, b"0", self.keys.run(run_id))',
            ),
        ),
        ("test_delete_is_exact",),
    ),
    Defect(
        "delete-by-prefix",
        "deletion",
        "`delete` takes runs along whose ids begin alike",
        MEMORY,
        (
            Edit(
                "memory.py",
                _POP,
                "        for other in [o for o in self._entries if o.startswith(run_id)]:\n"
                "            del self._entries[other]",
            ),
        ),
        ("test_delete_of_joined_ids_is_exact", "test_delete_leaves_other_runs"),
    ),
    Defect(
        "delete-leaves-plain",
        "deletion",
        "`delete` leaves the states that were saved outside of runs",
        MEMORY,
        (
            Edit(
                "memory.py",
                _POP,
                "        entry = self._entries.get(run_id, _Entry())\n"
                "        entry.run = None\n"
                "        entry.records = {\n"
                "            place: r for place, r in entry.records.items() if place[0] < 0\n"
                "        }",
            ),
        ),
        ("test_delete_removes_a_run", "test_a_deleted_run_takes_no_commits"),
    ),
    Defect(
        "delete-leaves-records",
        "deletion",
        "`delete` leaves records, which a new run of that id has again",
        SQLITE,
        (Edit("_sqlite_tables.py", '    "DELETE FROM records WHERE run_id = ?",\n', ""),),
        ("test_a_deleted_run_takes_no_commits",),
    ),
    Defect(
        "unknown-run-is-a-key-error",
        "errors",
        "an unknown run is a KeyError",
        MEMORY,
        (
            Edit(
                "memory.py",
                "entry.find(key) if entry is not None else None",
                "self._entries[run_id].find(key)",
            ),
        ),
        ("test_what_was_not_saved_is_none",),
    ),
)
