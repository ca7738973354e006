"""The connections of one event loop.

`asyncpg.Pool` starts a task and two timers for every use and sends a reset, which together take
longer than the statement. Nothing of that is needed here: the store keeps no session state, and
a connection that anything happened to is not used again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias, cast

import asyncpg

from stroma.errors import StoreUnavailable, StoreUnusable
from stroma_postgres._errors import NO_ANSWER, timed, timeout_told
from stroma_postgres._opening import Openings, uncut_task

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy
    from asyncpg.prepared_stmt import PreparedStatement

    BaseConnection: TypeAlias = asyncpg.Connection[asyncpg.Record]
    HandedInPool: TypeAlias = asyncpg.Pool[asyncpg.Record]
    BorrowedConnection: TypeAlias = PoolConnectionProxy[asyncpg.Record]
    Connection: TypeAlias = BaseConnection | BorrowedConnection
    Rows: TypeAlias = Sequence[asyncpg.Record]
    Connect: TypeAlias = Callable[[], Coroutine[Any, Any, "OwnConnection"]]
else:
    BaseConnection = asyncpg.Connection

_CLOSE_SECONDS: Final = 5.0
"""How long a connection may take to be cancelled and closed politely."""

_TRUSTED_SECONDS: Final = 1.0
"""A connection that was used so lately is not looked at before it is used again."""

_TURNS: Final = 6
"""Turns of the event loop in which the end of a connection gets from the socket to the driver."""


class OwnConnection(BaseConnection):
    """A connection that has the commonest statements prepared before its first use.

    The driver would prepare them when they are first sent, by a round trip of a run's own.

    Attributes:
        is_direct: no pooler stands in between, as far as is known.
    """

    __slots__ = ("_ready", "is_direct")
    _ready: dict[str, PreparedStatement[asyncpg.Record]]

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.is_direct = False

    async def make_ready(self, statements: Sequence[str], *, is_direct: bool) -> None:
        """Prepare statements, to be sent by `fetch_ready`; one that cannot be says so then."""
        self.is_direct = is_direct
        self._ready = {}
        with contextlib.suppress(asyncpg.PostgresError):
            for statement in statements:
                self._ready[statement] = await self.prepare(statement)

    async def fetch_ready(self, statement: str, arguments: Sequence[Any], timeout: float) -> Rows:
        """Return what `fetch` returns."""
        ready = self._ready.get(statement)
        if ready is None:
            return await self.fetch(statement, *arguments, timeout=timeout)
        return await ready.fetch(*arguments, timeout=timeout)

    def _cancel_current_command(self, *waiters: Any) -> None:
        """Have the statement under way cancelled at the server, as the driver does, but uncut.

        The driver does so by a connection of its own, which it opens in a task that the end of a
        loop cuts: see `Openings`. Here closing waits for that task, and the loop for closing.

        A pooler is not asked: the connection is dropped, and the statement ends by itself.
        PgBouncer before 1.18 may cancel a statement of somebody else's, and PgBouncer 1.18 to
        1.20 may exit, as 1.18 does when whoever asked is gone before the answer:
        https://github.com/pgbouncer/pgbouncer/pull/717, /pull/846, /pull/927, /pull/928
        """
        driver: Any = self  # what it keeps to itself is not in its stubs
        if self.is_direct:
            driver._cancellations.add(uncut_task(driver._cancel(*waiters)))
        else:
            # Not at once: the driver is in the middle of its own work.
            driver._loop.call_soon(self._drop, waiters)

    def _drop(self, waiters: Sequence[asyncio.Future[None]]) -> None:
        self.terminate()
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)


class Lender(Protocol):
    """Lends connections for one statement at a time."""

    setting_up: asyncio.Lock
    """Held while the store looks at the server for the first time."""

    async def acquire(self) -> Connection:
        """Return a connection that is nobody else's.

        Raises:
            StoreUnavailable: none became free in time.
            Exception: the driver's, when it could not connect.
        """
        ...

    async def give_back(self, connection: Connection) -> None:
        """Take a connection back whose last statement was answered."""
        ...

    async def give_up(self, connection: Connection) -> None:
        """Take a connection back that may have a statement under way, or be gone."""
        ...

    def expire(self) -> None:
        """Use none of the connections again that lie idle now."""
        ...


async def fetch(
    connection: Connection, statement: str, arguments: Sequence[Any], timeout: float
) -> Rows:
    """Send a statement, and return its rows."""
    try:
        # Not isinstance, which the driver answers for its proxies, too.
        if type(connection) is OwnConnection:
            return await connection.fetch_ready(statement, arguments, timeout)
        return await connection.fetch(statement, *arguments, timeout=timeout)
    except TimeoutError as exc:
        raise timeout_told(exc, NO_ANSWER, timeout, "command_timeout_seconds") from exc.__cause__


async def close_politely(connection: OwnConnection) -> None:
    """Cancel what is under way, say goodbye and close, whatever happens meanwhile."""
    try:
        await connection.close(timeout=_CLOSE_SECONDS)
    except Exception:
        connection.terminate()


class Connections:
    """Connections of the store's own.

    Args:
        connect: opens one.
        max_size: how many at most, those that are being closed included.
        acquire_timeout_seconds: how long to wait for one of them.
        max_idle_seconds: how long to keep one that nobody uses.
    """

    def __init__(
        self,
        connect: Connect,
        *,
        max_size: int,
        acquire_timeout_seconds: float,
        max_idle_seconds: float,
    ) -> None:
        self._connect = connect
        self._max_size = max_size
        self._acquire_timeout = acquire_timeout_seconds
        self._max_idle = max_idle_seconds
        self._loop = asyncio.get_running_loop()
        self._size = 0
        self._idle: deque[tuple[OwnConnection, float]] = deque()
        # Each gets a connection, or None: the right to open one.
        self._waiting: deque[asyncio.Future[OwnConnection | None]] = deque()
        self._openings: Openings[OwnConnection] = Openings()
        self._closing: set[asyncio.Task[None]] = set()
        self._sweeper: asyncio.TimerHandle | None = None
        self._watch: AsyncGenerator[None, None] | None = None
        self._is_closed = False
        self.setting_up = asyncio.Lock()

    @property
    def size(self) -> int:
        """How many connections there are, those that are being opened and closed included."""
        return self._size

    @property
    def idle_size(self) -> int:
        """How many of them nobody uses."""
        return len(self._idle)

    async def acquire(self) -> OwnConnection:
        """Return a connection that is nobody else's; see `Lender.acquire`."""
        if self._is_closed:
            raise StoreUnusable("the store's connections are closed")
        await self._watch_the_loop()
        while self._idle:
            connection = await self._idle_one()
            if connection is not None:
                return connection
        if self._size < self._max_size:
            self._size += 1
            return await self._open()
        return await self._wait_for_one() or await self._open()

    async def _idle_one(self) -> OwnConnection | None:
        connection, since = self._idle.pop()
        idle_for = self._loop.time() - since
        if idle_for > self._max_idle:
            self._discard(connection)
            return None
        if idle_for > _TRUSTED_SECONDS:
            # A loop that was busy, or a server that went away: the driver learns of it now.
            try:
                for _ in range(_TURNS):
                    await asyncio.sleep(0)
            except BaseException:
                self._lend_on(connection)
                raise
        if connection.is_closed():
            self._free_slot()
            return None
        return connection

    async def _open(self) -> OwnConnection:
        connection = await self._openings.open(self._connect, self._take_late)
        if self._is_closed:
            self._discard(connection)
            raise StoreUnusable("the store was closed meanwhile")
        return connection

    def _take_late(self, connection: OwnConnection | None) -> None:
        if connection is None:
            self._free_slot()
        else:
            self._lend_on(connection)

    async def open_apart(self, connect: Connect) -> OwnConnection:
        """Return a connection that is not one of these: `close_apart` is for it."""
        await self._watch_the_loop()
        return await self._openings.open(connect, self.give_up_apart)

    async def close_apart(self, connection: OwnConnection) -> None:
        """Close such a connection; whoever waits for that may be cancelled meanwhile."""
        await asyncio.wait((self._in_a_task(close_politely(connection)),))

    def give_up_apart(self, connection: OwnConnection | None) -> None:
        """Have such a connection closed that may have a statement under way."""
        if connection is not None:
            self._in_a_task(close_politely(connection))

    async def _wait_for_one(self) -> OwnConnection | None:
        turn: asyncio.Future[OwnConnection | None] = self._loop.create_future()
        self._waiting.append(turn)
        try:
            async with asyncio.timeout(self._acquire_timeout):
                return await turn
        except BaseException as exc:
            self._leave_queue(turn)
            if isinstance(exc, TimeoutError):
                raise StoreUnavailable(
                    f"no connection became free within {self._acquire_timeout:g} s: all "
                    f"{self._max_size} are in use; raise max_connections, or find out what "
                    "the database is waiting for"
                ) from exc
            raise

    def _leave_queue(self, turn: asyncio.Future[OwnConnection | None]) -> None:
        with contextlib.suppress(ValueError):
            self._waiting.remove(turn)
        if not turn.done() or turn.cancelled() or turn.exception() is not None:
            return
        connection = turn.result()
        if connection is None:
            self._free_slot()
        else:
            self._lend_on(connection)

    async def give_back(self, connection: Connection) -> None:
        """Take a connection back whose last statement was answered."""
        self._lend_on(cast("OwnConnection", connection))

    def _lend_on(self, connection: OwnConnection) -> None:
        if connection.is_closed():
            self._free_slot()
        elif self._is_closed:
            self._discard(connection)
        elif (turn := self._next_turn()) is not None:
            turn.set_result(connection)
        else:
            self._idle.append((connection, self._loop.time()))
            if self._sweeper is None:
                self._sweeper = self._loop.call_later(self._max_idle, self._sweep)

    def _free_slot(self) -> None:
        turn = self._next_turn()
        if turn is None:
            self._size -= 1
        else:
            turn.set_result(None)

    def _next_turn(self) -> asyncio.Future[OwnConnection | None] | None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                return turn
        return None

    async def give_up(self, connection: Connection) -> None:
        """Close a connection; its statement under way is cancelled at the server."""
        self._discard(cast("OwnConnection", connection))

    def _discard(self, connection: OwnConnection) -> None:
        # In a task of its own: whoever gave it up may be cancelled, and need not wait. The slot
        # is free when it is closed, so that there are never more than the server was promised.
        self._in_a_task(self._close_one(connection))

    def _in_a_task(self, closing: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = uncut_task(closing)
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
        return task

    async def _close_one(self, connection: OwnConnection) -> None:
        try:
            await close_politely(connection)
        finally:
            self._free_slot()

    def expire(self) -> None:
        """Use none of the connections again that lie idle now."""
        while self._idle:
            self._discard(self._idle.pop()[0])

    def _sweep(self) -> None:
        """Close what nobody has used for long; the last used is taken first, so the rest ages."""
        self._sweeper = None
        ends_before = self._loop.time() - self._max_idle
        while self._idle and self._idle[0][1] <= ends_before:
            self._discard(self._idle.popleft()[0])
        if self._idle:
            self._sweeper = self._loop.call_at(self._idle[0][1] + self._max_idle, self._sweep)

    async def _watch_the_loop(self) -> None:
        """Have the connections closed when the loop ends, as nobody can close them afterwards.

        `asyncio.run` and `asyncio.Runner` close the asynchronous generators that are still
        suspended, by `loop.shutdown_asyncgens`: the only notice that a loop gives of its end.
        """
        if self._watch is None:
            self._watch = self._until_the_end()
            await anext(self._watch)

    async def _until_the_end(self) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            await self._close_all()

    async def aclose(self) -> None:
        """Close what is idle now, and what is in use when it comes back."""
        await self._close_all()
        watch, self._watch = self._watch, None
        if watch is not None:
            await watch.aclose()

    async def _close_all(self) -> None:
        self._is_closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        while (turn := self._next_turn()) is not None:
            turn.set_exception(StoreUnusable("the store was closed meanwhile"))
        self.expire()
        await self._openings.end()
        if self._closing:
            await asyncio.wait(self._closing, timeout=_CLOSE_SECONDS)

    def abandon(self) -> None:
        """Close the sockets of a loop that was closed without `loop.shutdown_asyncgens`."""
        while self._idle:
            _drop(self._idle.pop()[0])


def _drop(connection: OwnConnection) -> None:
    """Close the socket of a connection whose loop is closed, as well as that can be done.

    asyncio closes a transport by a callback of the loop, which this loop does not call any more;
    so it is called here. Loops of other makers close their sockets with themselves.
    """
    transport = getattr(connection, "_transport", None)
    with contextlib.suppress(RuntimeError):
        connection.terminate()
    call = getattr(transport, "_call_connection_lost", None)
    if call is not None:
        with contextlib.suppress(Exception):
            call(None)


class Borrowed:
    """Connections of a pool that was handed in.

    Args:
        pool: whoever handed it in closes it.
        acquire_timeout_seconds: how long to wait for one of them.
    """

    def __init__(self, pool: HandedInPool, acquire_timeout_seconds: float) -> None:
        self._pool = pool
        self._acquire_timeout = acquire_timeout_seconds
        self.setting_up = asyncio.Lock()

    async def acquire(self) -> Connection:
        """Return a connection that is nobody else's; see `Lender.acquire`."""
        what = "the pool that was handed in lent no connection"
        with timed(what, self._acquire_timeout, "acquire_timeout_seconds"):
            return await self._pool.acquire(timeout=self._acquire_timeout)

    async def give_back(self, connection: Connection) -> None:
        """Take a connection back whose last statement was answered."""
        await self._pool.release(cast("BorrowedConnection", connection))

    async def give_up(self, connection: Connection) -> None:
        """Take a connection back; the pool waits for a statement that it cancels."""
        with contextlib.suppress(Exception):
            borrowed = cast("BorrowedConnection", connection)
            await self._pool.release(borrowed, timeout=_CLOSE_SECONDS)

    def expire(self) -> None:
        """Leave the pool as it is: it looks for closed connections by itself."""
