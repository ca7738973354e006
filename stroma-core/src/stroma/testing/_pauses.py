"""Operations that stand still at one of their I/O calls, while something else happens."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any, Final

from stroma.testing._kills import sampled
from stroma.testing._kit import Driven, Kit
from stroma.testing._processes import IoPoints

_LONGEST_SECONDS: Final = 60.0
_ROUNDS_UNSEEN: Final = 20
_MOMENT_SECONDS: Final = 0.05

Call = tuple[str, tuple[object, ...]]
"""An operation of a store, and its arguments."""


class Pause:
    """A point of an operation at which it waits, maybe holding its locks, until it is let go.

    Args:
        at: number of the point among the operation's I/O calls; None does not wait.
    """

    def __init__(self, at: int | None) -> None:
        self.points = IoPoints(at, self._stand)
        self.has_stopped = False
        self._stands_or_ended = threading.Event()
        self._has_ended = threading.Event()
        self._is_let_go = threading.Event()

    def _stand(self) -> None:
        self.has_stopped = True
        self._stands_or_ended.set()
        self._is_let_go.wait(_LONGEST_SECONDS)

    @contextmanager
    def armed(self) -> Generator[None]:
        """Count, and wait, meanwhile: in a thread that `IoPoints.watching` saw begin."""
        self.points.is_armed = True
        try:
            yield
        finally:
            self.points.is_armed = False
            self._stands_or_ended.set()
            self._has_ended.set()

    def is_waiting(self) -> bool:
        """Say whether it stands still or has ended."""
        return self._stands_or_ended.is_set()

    def wait(self) -> None:
        """Return when it stands still or has ended."""
        self._stands_or_ended.wait(_LONGEST_SECONDS)

    def wait_for_end(self) -> None:
        """Return when it has ended, after it was let go."""
        assert self._has_ended.wait(_LONGEST_SECONDS), "an operation did not end within a minute"

    def let_go(self) -> None:
        """Let it go on."""
        self._is_let_go.set()


class Paused:
    """An operation in a thread of its own, by a store object of its own.

    Args:
        kit: makes the store object.
        at: number of the I/O call at which it waits; None does not wait.
        call: the operation.
    """

    def __init__(self, kit: Kit, at: int | None, call: Call) -> None:
        self.pause = Pause(at)
        self._call = call
        self._answer: Any = None
        with self.pause.points.watching():  # the threads that the store starts, too
            self._store = kit.another()
            self._store.load("stroma-kit", "connects")
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()
            self.pause.wait()

    def _run(self) -> None:
        try:
            self._answer = asyncio.run(self._body())
        except BaseException as exc:
            self._answer = exc

    async def _body(self) -> Any:
        operation, args = self._call
        with self.pause.armed():
            return await self._store.call(operation, *args)

    @contextmanager
    def for_a_moment(self) -> Generator[None]:
        """Let it go on after a moment: what is done meanwhile may have to wait for it."""
        timer = threading.Timer(_MOMENT_SECONDS, self.pause.let_go)
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            self.pause.let_go()

    def end(self) -> Any:
        """Let it go on to its end; return what it returned or raised."""
        self.pause.let_go()
        self._thread.join(_LONGEST_SECONDS)
        assert not self._thread.is_alive(), f"{self._call[0]} did not end within a minute"
        return self._answer


def points_of(kit: Kit, at_most: int, call: Call) -> list[int]:
    """Do an operation; return some of its I/O calls, none if it makes none that is seen."""
    counted = Paused(kit, None, call)
    answer = counted.end()
    assert not isinstance(answer, BaseException), f"{call[0]} failed by itself: {answer!r}"
    return sampled(counted.pause.points.count, at_most)


def interleaved(
    kit: Kit,
    at_most: int,
    prepare: Callable[[str], object],
    first: Callable[[str], Call],
    second: Callable[[str], Call],
) -> Iterator[tuple[str, Any, Any]]:
    """Do two operations on a run, the second while the first stands at its k-th I/O call.

    The first goes on after a moment, since the second may wait for its lock. Where no I/O is
    seen, both begin at the same time, several times.

    Yields:
        The run's id, and what each of the two returned or raised.
    """
    prepare("counted")
    seen: list[int | None] = [*points_of(kit, at_most, first("counted"))]
    for number, point in enumerate(seen or [None] * _ROUNDS_UNSEEN):
        run_id = f"{first('')[0]} beside {second('')[0]} {number}"
        prepare(run_id)
        paused = Paused(kit, point, first(run_id))
        with paused.for_a_moment():
            answer = _answer(kit.store, second(run_id))
        yield run_id, paused.end(), answer


def _answer(store: Driven, call: Call) -> Any:
    operation, args = call
    try:
        return store.do(operation, *args)
    except Exception as exc:
        return exc
