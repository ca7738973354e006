"""What a store's author tells the kit: how to make the store, and what its time is."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from stroma.testing.clock import FakeClock

Address = tuple[str, int]
"""Host and port."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSubject:
    """The store that a conformance class is about. The kit closes what it makes.

    Attributes:
        make: returns a new store object over the same data each time, which are empty when the
            fixture begins. A store whose data live in its object returns the same object.
        clock: the clock that the store's leases and times follow, if one can be given to it.
            None if it has its own, such as its server's: then the kit waits.
        shortest_lease_seconds: the shortest lease whose end the store can tell, and how long a
            moment has to be for two times to differ; larger where the store's own clock is
            coarse. Not used with ``clock``.
        address: host and port of the server that ``make`` talks to, for the clauses about lost
            replies and broken connections. None if there is no server; then ``make_at`` is
            None, too.
        make_at: returns a store object over the same data that reaches its server at another
            host and port: the kit puts its `TcpProxy` between.
        longest_wait_seconds: within how many seconds an operation ends when the server does not
            answer, retries by the driver included: what is asked for is that it ends. It should
            be what the store's timeouts add up to, so let ``make_at`` set short ones.
        outage: returns a context manager during which the store's medium is out of order, such
            as one that puts a file where its folder was, or stops its server; afterwards all is
            as it was. Not needed with ``address``: then the proxy refuses connections.
    """

    make: Callable[[], object]
    clock: FakeClock | None = None
    shortest_lease_seconds: float = 0.2
    address: Address | None = None
    make_at: Callable[[str, int], object] | None = None
    longest_wait_seconds: float = 10.0
    outage: Callable[[], AbstractContextManager[object]] | None = None


def problem_of(subject: object) -> str | None:
    """Return what is wrong with what the fixture `subject` gave, or None."""
    if not isinstance(subject, StoreSubject):
        hint = ""
        if hasattr(subject, "__await__") or hasattr(subject, "__aiter__"):
            hint = "; nothing awaits an async fixture here: make it a plain one"
        elif hasattr(subject, "save"):
            hint = "; give StoreSubject(make=…), where make returns such a store"
        return (
            "the fixture `subject` must return a stroma.testing.StoreSubject, "
            f"not {type(subject).__name__}{hint}"
        )
    return _wrong_field(subject)


def _wrong_field(subject: StoreSubject) -> str | None:
    if not callable(subject.make):
        kind = type(subject.make).__name__
        return f"StoreSubject.make must be a function that returns a store, not {kind}"
    if subject.clock is not None and not callable(getattr(subject.clock, "advance", None)):
        kind = type(subject.clock).__name__
        return (
            f"StoreSubject.clock must be the stroma.testing.FakeClock that the store was made "
            f"with, not {kind}; leave it out if the store has a clock of its own"
        )
    if (subject.address is None) != (subject.make_at is None):
        return (
            "StoreSubject.address and StoreSubject.make_at go together: where the server is, and "
            "how to make a store that looks for it elsewhere"
        )
    if subject.make_at is not None and not callable(subject.make_at):
        return "StoreSubject.make_at must be a function of a host and a port"
    if subject.outage is not None and not callable(subject.outage):
        return "StoreSubject.outage must be a function that returns a context manager"
    if not subject.shortest_lease_seconds > 0 or not subject.longest_wait_seconds > 0:
        return (
            "StoreSubject.shortest_lease_seconds and longest_wait_seconds must be above 0, not "
            f"{subject.shortest_lease_seconds!r} and {subject.longest_wait_seconds!r}"
        )
    return None
