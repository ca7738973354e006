"""Defects about records, payloads and states: what is committed, and what comes back."""

from __future__ import annotations

from tests.conformance.planted.copies import MEMORY, ONE_FILE, REDIS, SQLITE, STATES, Edit
from tests.conformance.planted.defect import Defect

_ADD = """            found = self.records.setdefault(record[0][1:5], record)
            if found is not record and found[0].commit_id != record[0].commit_id:
                return already_committed(record[0].key)
"""
_REFUSED = """        refused = entry.add(records)
        if refused is not None:
            return refused
"""
_ROW = "    return (*header[:11], *usage_to_row(header.usage), *header[12:], seq, payload)"
_HEALTH = '''
    def health(self) -> None:
        """Return: memory can always be read and written."""'''


def _memory(old: str, new: str) -> tuple[Edit, ...]:
    return (Edit("memory.py", old, new),)


def _tables(old: str, new: str) -> tuple[Edit, ...]:
    return (Edit("_sqlite_tables.py", old, new),)


COMMITS = (
    Defect(
        "last-writer-wins",
        "records",
        "the last writer of a record wins",
        MEMORY,
        _memory(_ADD, "            self.records[record[0][1:5]] = record\n"),
        (
            "test_another_commit_on_a_key_is_refused",
            "test_two_writers_have_one_winner_for_each_record",
        ),
    ),
    Defect(
        "repeat-is-refused",
        "records",
        "commit ids are not compared: a commit that is repeated is refused",
        MEMORY,
        _memory(
            "if found is not record and found[0].commit_id != record[0].commit_id:",
            "if found is not record:",
        ),
        ("test_the_same_commit_again_is_success",),
    ),
    Defect(
        "another-commit-is-success",
        "records",
        "commit ids are not compared: another commit on a record is told that it succeeded",
        MEMORY,
        _memory(_ADD, "            self.records.setdefault(record[0][1:5], record)\n"),
        ("test_another_commit_on_a_key_is_refused",),
    ),
    Defect(
        "reserved-is-attempt",
        "records",
        "a call's reservation is kept in the place of its failed attempt",
        SQLITE,
        (
            Edit(
                "_sqlite_schema.py",
                _ROW,
                '    if header.kind == "reserved":\n'
                '        header = header._replace(kind="attempt")\n' + _ROW,
            ),
        ),
        ("test_a_reservation_is_kept_beside_what_came_of_it",),
    ),
    Defect(
        "half-a-commit",
        "records",
        "a commit that is refused for its second record leaves its first one",
        MEMORY,
        _memory(
            "if len(records) > 1 and (refused := self._conflict(records)) is not None:",
            "if (refused := None) is not None:",
        ),
        ("test_a_commit_is_all_or_nothing",),
    ),
    Defect(
        "half-a-commit-of-one-key",
        "records",
        "two records of one key in one commit are compared with what is stored only",
        MEMORY,
        _memory(
            "            first = ids.setdefault(place, "
            "header.commit_id if kept is None else kept[0].commit_id)",
            "            first = header.commit_id if kept is None else kept[0].commit_id",
        ),
        ("test_two_records_of_one_key_in_one_commit_are_refused",),
    ),
    Defect(
        "update-without-records",
        "records",
        "the update of a commit is applied although its records are refused",
        MEMORY,
        _memory(
            _REFUSED,
            """        refused = entry.add(records)
        if refused is not None:
            if update is not None:
                entry.run = update.apply(run, self._now())
            return refused
""",
        ),
        ("test_a_commit_is_all_or_nothing",),
    ),
    Defect(
        "batch-fails-as-a-whole",
        "records",
        "one refused commit fails its batch",
        MEMORY,
        _memory(
            "            return [self._commit(commit) for commit in commits]",
            "            outcomes = [self._commit(commit) for commit in commits]\n"
            "            bad = next((each for each in outcomes if each is not None), None)\n"
            "            return [bad] * len(commits)",
        ),
        ("test_one_refused_commit_harms_no_other",),
    ),
    Defect(
        "refusal-is-raised",
        "records",
        "a refused commit is raised, and what became of its batch is not told",
        MEMORY,
        _memory(
            "            return [self._commit(commit) for commit in commits]",
            "            outcomes = [self._commit(commit) for commit in commits]\n"
            "            for bad in outcomes:\n"
            "                if bad is not None:\n"
            "                    raise bad\n"
            "            return outcomes",
        ),
        ("test_one_refused_commit_harms_no_other",),
    ),
    Defect(
        "repeat-in-a-batch-is-refused",
        "records",
        "a commit that is twice in a batch is refused the second time",
        MEMORY,
        _memory(
            "            return [self._commit(commit) for commit in commits]",
            "            outcomes, seen = [], set()\n"
            "            for commit in commits:\n"
            "                keys = {r.header.key for r in commit.records if commit.token}\n"
            "                both = keys & seen\n"
            "                refused = already_committed(both.pop()) if both else None\n"
            "                outcomes.append(refused or self._commit(commit))\n"
            "                seen |= keys\n"
            "            return outcomes",
        ),
        ("test_a_commit_may_be_twice_in_a_batch",),
    ),
    Defect(
        "size-checked-late",
        "records",
        "the size of payloads is checked after they were written",
        SQLITE,
        (
            Edit(
                "sqlite.py",
                "        refusals = check_size(commits, self._capabilities)",
                "        late = check_size(commits, self._capabilities)\n"
                "        refusals = [None] * len(commits)",
            ),
            Edit(
                "sqlite.py",
                "        return await self._writer.run(commit_each, Mode.WRITE)",
                "        outcomes = await self._writer.run(commit_each, Mode.WRITE)\n"
                "        return [a or b for a, b in zip(late, outcomes, strict=True)]",
            ),
        ),
        ("test_a_payload_that_is_too_large_is_refused",),
    ),
    Defect(
        "payload-truncated",
        "payloads",
        "payloads are cut after 65,535 bytes",
        MEMORY,
        _memory(
            "        for record in records:\n            found = self",
            "        for header, payload in records:\n"
            "            record = CheckpointRecord(header, payload[:65_535])\n"
            "            found = self",
        ),
        ("test_large_payloads_come_back_whole",),
    ),
    Defect(
        "payload-encoded-again",
        "payloads",
        "payloads are read and written as JSON again",
        ONE_FILE,
        (
            Edit(
                "one_file.py",
                "base64.b64encode(record.payload).decode()]",
                "base64.b64encode(json.dumps(json.loads(record.payload)).encode()).decode()]",
            ),
        ),
        ("test_a_record_comes_back_as_it_was",),
    ),
    Defect(
        "payload-as-text",
        "payloads",
        "payloads are taken for UTF-8",
        MEMORY,
        _memory(
            "        for record in records:\n            found = self",
            "        for header, payload in records:\n"
            '            payload = payload.decode("utf-8", "replace").encode()\n'
            "            record = CheckpointRecord(header, payload)\n"
            "            found = self",
        ),
        ("test_payloads_are_bytes",),
    ),
    Defect(
        "text-is-encoded-strictly",
        "payloads",
        "lone surrogates in a reason to stop raise",
        REDIS,
        (Edit("_codec.py", "    return storable(value).encode()", "    return value.encode()"),),
        ("test_free_text_of_any_kind_is_kept",),
    ),
    Defect(
        "text-without-surrogates",
        "payloads",
        "a worker whose description holds lone surrogates cannot claim",
        SQLITE,
        _tables("                storable(run.holder),", "                run.holder,"),
        ("test_free_text_of_any_kind_is_kept",),
    ),
    Defect(
        "model-without-surrogates",
        "payloads",
        "an answer whose model's name holds a lone surrogate is refused, and bought again",
        SQLITE,
        (
            Edit(
                "_sqlite_schema.py",
                _ROW,
                "    usage = (*usage_to_row(header.usage)[:3], *header.usage[3:])\n"
                "    return (*header[:11], *usage, *header[12:], seq, payload)",
            ),
        ),
        ("test_names_of_models_of_any_kind_are_kept",),
    ),
    Defect(
        "cost-as-float",
        "usage",
        "costs are kept as floats",
        SQLITE,
        (
            Edit(
                "_sqlite_schema.py",
                _ROW,
                "    usage = list(usage_to_row(header.usage))\n"
                '    usage[2] = str(float(usage[2])) if usage[2] else ""\n'
                "    return (*header[:11], *usage, *header[12:], seq, payload)",
            ),
        ),
        ("test_a_record_comes_back_as_it_was",),
    ),
    Defect(
        "unknown-price-is-nothing",
        "usage",
        "an unknown price is kept as 0",
        SQLITE,
        (
            Edit(
                "_sqlite_schema.py",
                _ROW,
                "    usage = list(usage_to_row(header.usage))\n"
                '    usage[2] = usage[2] or "0"\n'
                "    return (*header[:11], *usage, *header[12:], seq, payload)",
            ),
        ),
        ("test_an_unknown_price_comes_back_unknown",),
    ),
    Defect(
        "unknown-spend-is-nothing",
        "usage",
        "what a run has spent is 0 when a price is unknown",
        SQLITE,
        _tables(
            "*((None,) * 5 if update.spend is None else usage_to_row(update.spend)),",
            "*((None,) * 5 if update.spend is None else "
            'usage_to_row(update.spend._replace(cost_usd=update.spend.cost_usd or "0"))),',
        ),
        ("test_spend_that_cannot_be_priced_stays_unknown",),
    ),
    Defect(
        "plain-is-ignored",
        "reading",
        "a state that was saved outside of runs is ignored when a key names no epoch",
        MEMORY,
        _memory("        if plain is not None:\n            return plain\n", ""),
        ("test_fetch_without_epoch_prefers_the_plain_record",),
    ),
    Defect(
        "oldest-epoch",
        "reading",
        "the first epoch is read instead of the newest",
        MEMORY,
        _memory(
            "newest = max((p for p in self.records",
            "newest = min((p for p in self.records",
        ),
        ("test_fetch_without_epoch_prefers_the_plain_record",),
    ),
    Defect(
        "epochs-as-text",
        "reading",
        "epochs are compared as text, so that 9 is newer than 10",
        SQLITE,
        _tables(
            '"ORDER BY epoch = ? DESC, epoch DESC LIMIT 1"',
            '"ORDER BY epoch = ? DESC, CAST(epoch AS TEXT) DESC LIMIT 1"',
        ),
        ("test_fetch_without_epoch_prefers_the_plain_record",),
    ),
    Defect(
        "headers-by-path",
        "reading",
        "headers come in the order of their keys",
        SQLITE,
        _tables("AND epoch <> ? ORDER BY seq", "AND epoch <> ? ORDER BY path"),
        ("test_headers_are_oldest_first",),
    ),
    Defect(
        "headers-have-plain-ones",
        "reading",
        "states that were saved outside of runs are among a run's headers",
        MEMORY,
        _memory(" if r.header.epoch != PLAIN_EPOCH]", "]"),
        ("test_headers_are_oldest_first",),
    ),
    Defect(
        "last-is-the-latest",
        "reading",
        "the last result is the one that was written last",
        MEMORY,
        _memory(
            "    last = last_result(headers)\n    record = None",
            "    last = headers[-1] if headers else None\n    record = None",
        ),
        ("test_last_is_the_furthest_result",),
    ),
    Defect(
        "last-of-any-epoch",
        "reading",
        "the last result is the furthest one of any epoch",
        MEMORY,
        _memory(
            "    last = last_result(headers)\n    record = None",
            "    last = max(headers, key=lambda h: h.position, default=None)\n    record = None",
        ),
        ("test_last_is_of_the_newest_epoch_that_has_any",),
    ),
    Defect(
        "states-are-shared",
        "states",
        "a saved object is kept itself, and changes with what its node does to it",
        MEMORY,
        _memory(
            _HEALTH,
            """
    def save(self, run_id, node_id, state):
        self.__dict__.setdefault("states", {})[run_id, node_id] = state

    def load(self, run_id, node_id):
        return self.__dict__.get("states", {}).get((run_id, node_id))
"""
            + _HEALTH,
        ),
        ("test_what_is_stored_does_not_follow_the_callers_object",),
    ),
    Defect(
        "stored-names-are-imported",
        "states",
        "the class of a state is imported by the name that is stored",
        STATES,
        (
            Edit(
                "states.py",
                '_resolve_schema(document["schema"])',
                "getattr(__import__(document[\"schema\"].partition(':')[0]), "
                "document[\"schema\"].partition(':')[2])",
            ),
        ),
        ("test_a_stored_name_is_never_imported",),
    ),
    Defect(
        "stored-names-are-imported-for-records",
        "states",
        "the class of a record's payload is imported by the name that is stored",
        MEMORY,
        _memory(
            _HEALTH,
            """
    def load(self, run_id, node_id):
        record = self.fetch(run_id, [RecordKey(run_id, None, node_id)])[0]
        if record is None:
            return None
        module, _, name = record.header.schema_ref.partition(":")
        import importlib
        return getattr(importlib.import_module(module), name).model_validate_json(record.payload)
"""
            + _HEALTH,
        ),
        ("test_a_stored_name_is_never_imported",),
    ),
    Defect(
        "states-are-unpickled",
        "states",
        "states are pickled: loading one runs what is stored",
        STATES,
        (
            Edit(
                "states.py",
                "        draft.write_text(json.dumps(document))",
                "        import pickle\n        draft.write_bytes(pickle.dumps(state))",
            ),
            Edit(
                "states.py",
                "            document = json.loads(self._file(run_id, node_id).read_text())\n",
                "            import pickle\n"
                "            return pickle.loads(self._file(run_id, node_id).read_bytes())\n",
            ),
        ),
        ("test_nothing_is_unpickled",),
    ),
)
