"""Clauses about a medium that is out of order: operations say so, and nothing is lost by it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

from stroma.errors import OutcomeUnknown, StoreError, StoreUnavailable, StoreUnusable
from stroma.records import ClaimQuery, RunQuery
from stroma.testing._checks import written
from stroma.testing._clauses import clauses
from stroma.testing._kit import Driven, Kit, leaked
from stroma.testing._network import recovers
from stroma.testing._values import Note, commit, record, request


def _if_outage(kit: Kit) -> str | None:
    if kit.subject.outage is not None or kit.subject.address is not None:
        return None
    return "no StoreSubject.outage: it was not said how to put its medium out of order"


@clauses("outage", _if_outage)
class OutageClauses:
    """What is promised while a folder is gone or a server is down, and after it."""

    def test_operations_without_a_medium(self, kit: Kit) -> None:
        """Without its medium an operation ends in time, with a `StoreError` or the truth."""
        place = _Place.of(kit)
        store, fresh = place.store, kit.untouched(place.make)
        one = _fill(kit, store)
        with place.outage():
            answers = [
                _tried(kit, each, operation, *args, expected=expected)
                for each in (store, fresh)
                for operation, args, expected in _calls(kit, one)
            ]
        assert any(isinstance(each, Exception) for each in answers), (
            "no operation failed, so that the medium was in order: StoreSubject.outage has to "
            "put it out of order for objects that are in use, or for new ones"
        )
        for each in (store, fresh):
            _goes_on(kit, each)

    def test_what_is_kept_over_an_outage(self, kit: Kit) -> None:
        """What returned before an outage or during it is there, and what was refused is not."""
        place = _Place.of(kit)
        store, committed = place.store, None
        _fill(kit, store)
        with place.outage():
            saved = _tried(kit, store, "save", "run", "during", Note())
            if kit.keeps_records:
                one = commit(record(path="during", position=1))
                committed = _tried(kit, store, "commit_many", [one])
        _goes_on(kit, store)
        reader = kit.another()
        assert reader.load("run", "node") == Note(text="before"), (
            "a state that was saved before an outage is lost"
        )
        _is_as_said("save", saved, is_there=reader.load("run", "during") is not None)
        if kit.keeps_records:
            paths = [header.path for header in reader.inspect("run").headers]
            assert paths[:1] == ["before"], "a record that was committed before an outage is lost"
            _is_as_said("commit", committed, is_there="during" in paths)
            written(store, record(path="later", position=2))


class _Place(NamedTuple):
    """A store object whose medium can be put out of order, and how others are made."""

    store: Driven
    make: Callable[[], object]
    outage: Callable[[], AbstractContextManager[object]]

    @classmethod
    def of(cls, kit: Kit) -> _Place:
        subject = kit.subject
        if subject.outage is not None:
            return cls(kit.store, subject.make, subject.outage)
        proxy, store = kit.behind_proxy()
        make_at = subject.make_at
        assert make_at is not None

        @contextmanager
        def down() -> Generator[None]:
            proxy.refuse()
            proxy.reset()
            try:
                yield
            finally:
                proxy.heal()

        return cls(store, lambda: make_at(proxy.host, proxy.port), down)


def _fill(kit: Kit, store: Driven) -> Any:
    answer = kit.bounded(store, "save", "run", "node", Note(text="before"))
    assert answer is None, f"before an outage, a save ended in {answer!r}"
    if not kit.keeps_records:
        return None
    one = record(path="before")
    store.open_run(request())
    written(store, one)
    return one


_NOT_SAID: Any = object()


def _calls(kit: Kit, one: Any) -> Iterator[tuple[str, tuple[Any, ...], Any]]:
    """Yield operations, their arguments, and the only true answer of those that read."""
    yield "load", ("run", "node"), Note(text="before")
    yield "save", ("run", "other", Note()), _NOT_SAID
    yield "delete", ("gone",), _NOT_SAID
    if kit.keeps_records:
        yield "fetch", ("run", [one.header.key]), [one]
        yield "renew", ([("run", "alice")], 9_000_000), [True]
        yield "commit_many", ([commit(one)],), None
        yield "open_run", (request("new"),), _NOT_SAID
        yield "inspect", ("run",), _NOT_SAID
        yield "runs", (RunQuery(limit=5),), _NOT_SAID
        yield "claimable", (ClaimQuery(limit=5),), _NOT_SAID
        yield "purge", (RunQuery(tag="none"),), _NOT_SAID
        yield "release", ("other", "alice"), _NOT_SAID
        yield "health", (), _NOT_SAID
        yield "setup", (), _NOT_SAID


def _tried(
    kit: Kit, store: Driven, operation: str, *args: object, expected: Any = _NOT_SAID
) -> Any:
    """Do an operation in an outage; return its answer, which is true, or what it raised."""
    answer = kit.bounded(store, operation, *args)
    if operation == "commit_many" and not isinstance(answer, BaseException):
        (answer,) = answer
    if not isinstance(answer, BaseException):
        assert expected is _NOT_SAID or answer == expected, (
            f"while its medium was out of order, {operation} gave {answer!r} and not "
            f"{expected!r}: a worker would go on from that. Raise StoreUnavailable"
        )
    elif kit.keeps_records:
        assert isinstance(answer, StoreError), leaked(operation, answer)
        assert isinstance(answer, StoreUnavailable | OutcomeUnknown | StoreUnusable), (
            f"while its medium was out of order, {operation} ended in {answer!r}, which is about "
            "the run; StoreUnavailable, OutcomeUnknown and StoreUnusable are about the store"
        )
        # A store may find out by itself that it cannot be used, as by a look at its version.
        assert answer.__cause__ is not None or isinstance(answer, StoreUnusable), (
            f"{operation} raised {answer!r} without a cause: chain the driver's exception"
        )
    return answer


def _goes_on(kit: Kit, store: Driven) -> None:
    """Check that a store object works as before."""
    problem = "after an outage"
    recovers(kit, store, lambda s: s.save("run", "after", Note(text="after")), problem)
    found = recovers(kit, store, lambda s: s.load("run", "after"), problem)
    assert found == Note(text="after"), f"after an outage, load gave {found!r}"


def _is_as_said(what: str, answer: object, *, is_there: bool) -> None:
    if not isinstance(answer, Exception):
        assert is_there, f"a {what} returned during an outage, and is lost"
    elif isinstance(answer, StoreUnavailable | StoreUnusable):
        assert not is_there, (
            f"a {what} raised {type(answer).__name__}, which says that nothing was written, and "
            f"was done: raise OutcomeUnknown ({answer})"
        )
