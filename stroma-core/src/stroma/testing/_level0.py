"""Clauses for every store: states are kept as they were, under ids that are data."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from pydantic import BaseModel

from stroma._aio import settled
from stroma.errors import ConfigError
from stroma.testing._clauses import always, clauses
from stroma.testing._kit import Kit, in_threads
from stroma.testing._values import (
    EVERYTHING,
    HOSTILE_IDS,
    PATTERN_IDS,
    SPLIT_PAIRS,
    Everything,
    Note,
)
from stroma.testing._watch import unpickled_classes


@clauses("states", always)
class StateClauses:
    """Saving, loading and deleting."""

    def test_a_saved_state_is_loaded(self, kit: Kit) -> None:
        """What was saved is what is loaded."""
        kit.store.save("run", "node", Note(text="kept"))
        found = kit.store.load("run", "node")
        assert found == Note(text="kept"), (
            f"load returned {found!r} after save of {Note(text='kept')!r}: a continued run would "
            "go on from something else than it had reached"
        )

    def test_a_later_state_replaces_an_earlier_one(self, kit: Kit) -> None:
        """The last state saved for a run and node is the one that is loaded."""
        for i in range(3):
            kit.store.save("run", "node", Note(text=str(i)))
        found = kit.store.load("run", "node")
        assert found == Note(text="2"), (
            f"the last of three saves wrote '2', and load gave {found!r}"
        )

    def test_what_was_not_saved_is_none(self, kit: Kit) -> None:
        """An unknown run or node loads as None, and is no error."""
        kit.store.save("run", "node", Note())
        for run_id, node_id in (("run", "other"), ("other", "node"), ("node", "run")):
            found = kit.store.load(run_id, node_id)
            assert found is None, (
                f"load({run_id!r}, {node_id!r}) returned {found!r}, and only ('run', 'node') was "
                "saved: a node that never ran would be taken for done"
            )

    def test_a_state_comes_back_by_its_type(self, kit: Kit) -> None:
        """Each state is loaded as an instance of the model that it was saved as."""
        kit.store.save("run", "a", Note(text="a"))
        kit.store.save("run", "b", EVERYTHING)
        kinds = [type(kit.store.load("run", node_id)) for node_id in ("a", "b")]
        assert kinds == [Note, Everything], f"states of Note and Everything came back as {kinds}"

    def test_every_kind_of_value_comes_back_as_it_was(self, kit: Kit) -> None:
        """Text of any script, decimals, times, nested models and large integers stay."""
        kit.store.save("run", "node", EVERYTHING)
        found = kit.store.load("run", "node")
        assert isinstance(found, Everything)
        changed = [
            f"{name}: {getattr(EVERYTHING, name)!r} came back as {getattr(found, name)!r}"
            for name in Everything.model_fields
            if getattr(found, name) != getattr(EVERYTHING, name)
        ]
        assert not changed, "; ".join(changed)
        assert str(found.price) == str(EVERYTHING.price), (
            f"the price {EVERYTHING.price} came back as {found.price}: decimals went through float"
        )

    def test_a_large_nested_state_comes_back(self, kit: Kit) -> None:
        """A state of a megabyte is not cut."""
        state = Note(text="\N{GRINNING FACE}\u00e9x" * 150_000)
        kit.store.save("run", "node", state)
        found = kit.store.load("run", "node")
        assert isinstance(found, Note)
        assert found.text == state.text, (
            f"a text of {len(state.text)} characters came back with {len(found.text)}"
        )

    def test_a_state_is_loaded_as_the_schema_that_is_asked_for(self, kit: Kit) -> None:
        """`load_typed` returns an instance of the given schema, or None where nothing is."""
        if not hasattr(kit.store.inner, "load_typed"):
            pytest.skip("states: the store has no load_typed; load is used instead")
        kit.store.save("run", "node", Note(text="kept"))
        found = kit.store.load_typed("run", "node", Titled)
        assert found == Titled(text="kept"), f"load_typed(…, Titled) returned {found!r}"
        assert kit.store.load_typed("run", "other", Titled) is None

    def test_a_state_is_saved_as_the_schema_that_is_given(self, kit: Kit) -> None:
        """`save_typed` keeps a state as the given schema has it."""
        if not hasattr(kit.store.inner, "save_typed"):
            pytest.skip("states: the store has no save_typed; save is used instead")
        kit.store.save_typed("run", "node", Note(text="kept"), Titled)
        found = kit.store.load_typed("run", "node", Titled)
        assert found == Titled(text="kept"), f"save_typed(…, Titled) kept {found!r}"

    def test_what_is_stored_does_not_follow_the_callers_object(self, kit: Kit) -> None:
        """A state that is changed after it was saved, or loaded, changes nothing in the store."""
        state = EVERYTHING.model_copy(deep=True)
        kit.store.save("run", "node", state)
        state.parts[1].names.append("later")
        state.text = "later"
        first = kit.store.load("run", "node")
        assert first == EVERYTHING, (
            "a state that its node changed after the save changed in the store, too: what is "
            "continued from is not what was recorded"
        )
        assert isinstance(first, Everything)
        first.parts[1].names.append("later")
        assert kit.store.load("run", "node") == EVERYTHING, (
            "a loaded state that was changed changed in the store, too: two loads share one object"
        )

    def test_delete_removes_a_run(self, kit: Kit) -> None:
        """After `delete` no state of the run is loaded, and deleting it again is no error."""
        for node_id in ("a", "b", "c/d", "*"):
            kit.store.save("run", node_id, Note())
        kit.store.delete("run")
        left = [n for n in ("a", "b", "c/d", "*") if kit.store.load("run", n) is not None]
        assert not left, f"delete left the states of {left}: deleted data are still there"
        kit.store.delete("run")

    def test_deleting_a_run_that_is_not_there_is_no_error(self, kit: Kit) -> None:
        """`delete` of an unknown run does nothing."""
        kit.store.save("run", "node", Note())
        kit.store.delete("other")
        assert kit.store.load("run", "node") == Note(), "delete('other') removed a state of 'run'"

    def test_a_deleted_run_begins_anew(self, kit: Kit) -> None:
        """What is saved after `delete` is kept, and nothing from before comes back."""
        kit.store.save("run", "a", Note(text="old"))
        kit.store.save("run", "b", Note(text="old"))
        kit.store.delete("run")
        kit.store.save("run", "a", Note(text="new"))
        found = (kit.store.load("run", "a"), kit.store.load("run", "b"))
        assert found == (Note(text="new"), None), f"after delete and one save, load gave {found}"

    def test_another_object_sees_what_was_saved(self, kit: Kit) -> None:
        """A store object that is made later reads, replaces and deletes what another one wrote."""
        kit.store.save("run", "node", Note(text="1"))
        other = kit.another()
        assert other.load("run", "node") == Note(text="1"), (
            "another store object over the same data does not see what was saved: another process "
            "could not continue the run (if the data live in the object, StoreSubject.make must "
            "return the same object each time)"
        )
        other.save("run", "node", Note(text="2"))
        assert kit.store.load("run", "node") == Note(text="2"), (
            "the first object does not see what another one saved after it: it keeps a copy"
        )
        other.delete("run")
        assert kit.store.load("run", "node") is None, "another object's delete is not seen"

    def test_saves_at_the_same_time_are_all_kept(self, kit: Kit) -> None:
        """States of different nodes that are saved at the same time do not undo each other."""
        calls = [
            (kit.store, "save", (f"run{i % 2}", f"node{i}", Note(text=str(i)))) for i in range(40)
        ]
        errors = [each for each in kit.together(*calls) if isinstance(each, BaseException)]
        assert not errors, f"{len(errors)} of 40 saves at the same time failed: {errors[0]!r}"
        lost = [
            i for i in range(40) if kit.store.load(f"run{i % 2}", f"node{i}") != Note(text=str(i))
        ]
        assert not lost, f"{len(lost)} of 40 saves at the same time were lost: nodes {lost[:5]}"

    def test_of_saves_to_one_node_at_the_same_time_one_stays(self, kit: Kit) -> None:
        """Saves of one node by two objects leave one of the states, whole."""
        states = [Note(text=str(i) * 5000) for i in range(10)]
        stores = (kit.store, kit.another())
        calls = [(stores[i % 2], "save", ("run", "node", states[i])) for i in range(10)]
        errors = [each for each in kit.together(*calls) if isinstance(each, BaseException)]
        assert not errors, f"saves of one node at the same time failed: {errors[0]!r}"
        assert kit.store.load("run", "node") in states, "two saves of one node were mixed up"

    def test_one_object_serves_event_loops_one_after_another(self, kit: Kit) -> None:
        """A store object works in a loop that begins after another one has ended."""
        store = kit.store.inner
        for i in range(3):

            async def use(i: int = i) -> BaseModel | None:
                await settled(store.save("run", f"node{i}", Note(text=str(i))))
                return await settled(store.load("run", f"node{i}"))

            try:
                found = asyncio.run(use())
            except Exception as exc:
                raise AssertionError(
                    f"in loop {i + 1} of 3, one after another, the store failed: {exc!r}; a "
                    "client belongs to one loop: stroma.per_loop.PerLoop keeps one for each"
                ) from exc
            assert found == Note(text=str(i)), f"in loop {i + 1} of 3, load gave {found!r}"
        kept = [kit.store.load("run", f"node{i}") for i in range(3)]
        assert kept == [Note(text=str(i)) for i in range(3)]

    def test_one_object_serves_event_loops_at_the_same_time(self, kit: Kit) -> None:
        """A store object works in the loops of several threads at once."""
        store = kit.store.inner

        def use(worker: int) -> None:
            async def body() -> None:
                for i in range(10):
                    await settled(store.save(f"run{worker}", f"n{i}", Note(text=f"{worker}-{i}")))
                    found = await settled(store.load(f"run{worker}", f"n{i}"))
                    assert found == Note(text=f"{worker}-{i}"), f"worker {worker} loaded {found!r}"

            asyncio.run(body())

        errors = [
            each
            for each in in_threads([lambda: use(0), lambda: use(1), lambda: use(2)])
            if isinstance(each, BaseException)
        ]
        assert not errors, (
            f"one store object in the loops of three threads failed: {errors[0]!r}; a client "
            "belongs to one loop: stroma.per_loop.PerLoop keeps one for each"
        )

    def test_a_stored_name_is_never_imported(
        self, kit: Kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Loading a state whose model this process does not know raises, and imports nothing."""
        bait = "stroma_kit_bait"
        (tmp_path / f"{bait}.py").write_text("class Bait:\n    pass\n", encoding="utf-8")
        monkeypatch.syspath_prepend(str(tmp_path))
        _store_a_state_of(kit, bait)
        try:
            found = kit.store.load("run", "node")
        except Exception:
            found = None
        assert bait not in sys.modules, (
            "load imported a module because stored data named it: whoever can write to the store "
            "runs code here. Resolve references with stroma.checkpoint._resolve_schema"
        )
        assert found is None or not kit.outlives_process, (
            f"load made {found!r} of a state whose model nobody registered"
        )

    def test_nothing_is_unpickled(self, kit: Kit) -> None:
        """Loading a state does not unpickle it: that runs whatever is stored."""
        kit.store.save("run", "node", EVERYTHING)
        with unpickled_classes() as found:
            state = kit.another().load("run", "node")
        assert not found, (
            f"load unpickled {', '.join(found)[:200]}: whoever can write to the store runs code "
            "here. Keep states as JSON"
        )
        assert state == EVERYTHING


class Titled(BaseModel):
    """Another model that a `Note` fits."""

    text: str
    title: str = "untitled"


def _store_a_state_of(kit: Kit, module: str) -> None:
    """Store a state that says it is of a module that this process has not imported."""
    from stroma.testing._values import commit, record

    if kit.keeps_records:
        written = record(epoch=-1, schema_ref=f"{module}:Bait")
        assert kit.store.commit(commit(written, token="")) is None
        return
    made = type("Bait", (Note,), {"__module__": module})
    kit.store.save("run", "node", made(text="x"))
    _forget(made)
    del made


def _forget(model: type[BaseModel]) -> None:
    """Take a model out of what this process has registered, as if it had never been there."""
    from stroma import schemas

    for known in schemas._registered.values():
        known.discard(model)


@clauses("ids", always)
class IdClauses:
    """Ids are data: any UTF-8 text without NUL up to 512 bytes, none of them special."""

    def test_ids_are_data(self, kit: Kit) -> None:
        """States under patterns, separators, paths, cases, spaces and long ids are kept apart."""
        pairs = [(run_id, "node") for run_id in HOSTILE_IDS]
        pairs += [("one run", node_id) for node_id in HOSTILE_IDS]
        pairs += [(run_id, run_id) for run_id in HOSTILE_IDS]
        _save_all(kit, pairs)
        mixed = _mixed_up(kit, pairs)
        assert not mixed, f"{len(mixed)} ids are not kept apart: {'; '.join(mixed[:5])}"

    def test_run_and_node_ids_are_not_joined(self, kit: Kit) -> None:
        """('a:b', 'c') and ('a', 'b:c') are two states, whatever the mark between."""
        _save_all(kit, SPLIT_PAIRS)
        mixed = _mixed_up(kit, SPLIT_PAIRS)
        assert not mixed, (
            f"run and node id are joined by a mark that ids may contain: {'; '.join(mixed[:5])}; "
            "encode each part"
        )

    def test_delete_is_exact(self, kit: Kit) -> None:
        """`delete` takes its id as data: no pattern, no prefix, no folded case."""
        pairs = [(run_id, "node") for run_id in HOSTILE_IDS]
        _save_all(kit, pairs)
        for gone in PATTERN_IDS:
            kit.store.delete(gone)
            left = kit.store.load(gone, "node")
            assert left is None, f"delete({gone!r}) left {left!r}"
        rest = [pair for pair in pairs if pair[0] not in PATTERN_IDS]
        mixed = _mixed_up(kit, rest)
        assert not mixed, (
            f"deleting the runs {PATTERN_IDS} took others along: {'; '.join(mixed[:5])}"
        )

    def test_delete_of_joined_ids_is_exact(self, kit: Kit) -> None:
        """Deleting run 'a' leaves run 'a:b', whatever the mark between."""
        _save_all(kit, SPLIT_PAIRS)
        kit.store.delete("a")
        mixed = _mixed_up(kit, [pair for pair in SPLIT_PAIRS if pair[0] != "a"])
        assert not mixed, f"delete('a') took other runs along: {'; '.join(mixed[:5])}"
        left = [pair for pair in SPLIT_PAIRS if pair[0] == "a" and kit.store.load(*pair)]
        assert not left, f"delete('a') left its nodes {[node_id for _, node_id in left][:5]}"

    @pytest.mark.parametrize("bad", ["", "a\0b", "x" * 513, "\u00e9" * 257, "\ud800"])
    def test_an_id_that_cannot_be_stored_is_refused(self, kit: Kit, bad: str) -> None:
        """Level 1 `save` and `load` refuse empty and overlong ids, NUL and lone surrogates."""
        if not kit.keeps_records:
            pytest.skip("ids: a level 0 store relies on core's check")
        calls: tuple[Callable[[], object], ...] = (
            lambda: kit.store.save(bad, "node", Note()),
            lambda: kit.store.save("run", bad, Note()),
            lambda: kit.store.load(bad, "node"),
        )
        for call in calls:
            try:
                call()
            except ConfigError:
                continue
            pytest.fail(f"the id {bad[:20]!r} was taken; stroma.ids.check_id refuses it")


def _save_all(kit: Kit, pairs: Iterable[tuple[str, str]]) -> None:
    for run_id, node_id in pairs:
        kit.store.save(run_id, node_id, Note(text=_label(run_id, node_id)))


def _label(run_id: str, node_id: str) -> str:
    return f"{len(run_id)}{run_id!r}{node_id!r}"


def _mixed_up(kit: Kit, pairs: Iterable[tuple[str, str]]) -> list[str]:
    """Name the pairs whose state is not their own."""
    mixed: list[str] = []
    for run_id, node_id in pairs:
        found = kit.store.load(run_id, node_id)
        if found != Note(text=_label(run_id, node_id)):
            what = "nothing" if found is None else f"the state of {getattr(found, 'text', found)}"
            mixed.append(f"({run_id[:20]!r}, {node_id[:20]!r}) has {what[:80]}")
    return mixed
