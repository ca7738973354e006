"""How a store reaches its server: connections per loop, set-up on first use, one retry."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

import asyncpg

from stroma.checkpoint import Durability
from stroma.errors import StoreError, StoreUnusable
from stroma.per_loop import PerLoop
from stroma_postgres._errors import (
    NO_ANSWER,
    connect_error,
    is_loss,
    is_unanswered,
    is_value_error,
    lacks_tables,
    operation_error,
    timed,
)
from stroma_postgres._names import names_of
from stroma_postgres._options import PostgresOptions
from stroma_postgres._pool import (
    Borrowed,
    Connections,
    Lender,
    OwnConnection,
    close_politely,
    fetch,
)
from stroma_postgres._setup import look, migrate
from stroma_postgres._statements import Statements, statements
from stroma_postgres._url import hidden_values, shown

if TYPE_CHECKING:
    from stroma_postgres._pool import Connection, HandedInPool, Rows

T = TypeVar("T")

_DEFAULT_STATEMENT_CACHE: Final = 100


class Client:
    """Runs statements of one store, in whatever event loop it is called.

    Args:
        options: of the store; its ``dsn`` is not looked at beside a pool.
        pool: connections to use instead of own ones; it belongs to one event loop.
    """

    def __init__(self, options: PostgresOptions, pool: HandedInPool | None = None) -> None:
        self._options = options
        self._names = names_of(options.schema_name, options.table_prefix)
        self.sql: Statements = statements(self._names)
        self.address = "the pool's server" if pool else shown(options.dsn)
        self._dsn = "" if pool else options.dsn
        self._hidden = hidden_values(
            self._dsn, options.connect_options.get("server_settings") or {}
        )
        self.durability = Durability.FSYNC
        self._pool_loop: asyncio.AbstractEventLoop | None = getattr(pool, "_loop", None)
        self._hot = (self.sql.open, self.sql.add_one, self.sql.commit_one, self.sql.commit)
        self._timeout = options.command_timeout_seconds
        self._is_set_up = False
        self._is_closed = False
        self._statement_cache_size = options.statement_cache_size
        self._is_direct = False
        self._lenders: PerLoop[Connections] = PerLoop(
            self._make_lender, Connections.aclose, Connections.abandon
        )
        self._borrowed = Borrowed(pool, options.acquire_timeout_seconds) if pool else None

    async def setup(self) -> None:
        """Look at the server, and create or check the tables.

        Raises:
            StoreUnusable: the server or its schema cannot be used.
            StoreUnavailable: it could not be reached now.
        """
        await self._in_the_pools_loop(self._setup)

    async def run(
        self, what: str, statement: str, arguments: Sequence[Any], *, is_write: bool
    ) -> Answer:
        """Send one statement; once more if its connection breaks, as it may be done twice.

        Args:
            what: is done, to which run, for messages.
            statement: the SQL.
            arguments: of the SQL.
            is_write: it changes something.

        Raises:
            StoreError: it was not done, or nobody knows.
        """
        send = partial(self._send, what, statement, arguments, is_write=is_write)
        return await self._in_the_pools_loop(send)

    async def _in_the_pools_loop(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run it here; or where a pool that was handed in belongs, which works nowhere else."""
        self._refuse_if_closed()
        if self._borrowed is None:
            return await work()
        here = asyncio.get_running_loop()
        if self._pool_loop is None:
            self._pool_loop = here
        if self._pool_loop is here:
            return await work()
        if self._pool_loop.is_closed():
            raise StoreUnusable(
                "the pool that was handed in belongs to an event loop that is closed: hand in "
                "one of this loop, or give the store a dsn"
            )
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work(), self._pool_loop))

    async def _send(
        self, what: str, statement: str, arguments: Sequence[Any], *, is_write: bool
    ) -> Answer:
        if not self._is_set_up:
            await self._setup()
        lender = self._lender()
        maybe_done = False
        for is_last in (False, True):
            connection = await self._acquire(lender, what, maybe_done=maybe_done)
            try:
                rows = await fetch(connection, statement, arguments, self._timeout)
            except BaseException as exc:
                await _take_back(lender, connection, exc)
                if not isinstance(exc, Exception):
                    raise
                if lacks_tables(exc):
                    self._is_set_up = False  # the next operation makes them, or says what to do
                maybe_done = maybe_done or (is_write and is_unanswered(exc))
                if is_last or not is_loss(exc):
                    error = self._error(exc, what, is_lost_write=maybe_done)
                    raise error from error.__cause__
                # The server restarted, or ended an idle connection: the others are gone, too.
                lender.expire()
            else:
                await lender.give_back(connection)
                return Answer(rows, maybe_done)
        raise AssertionError("the second try returns or raises")

    async def _acquire(self, lender: Lender, what: str, *, maybe_done: bool) -> Connection:
        try:
            return await lender.acquire()
        except Exception as exc:
            error = self._connect_error(exc)
            if maybe_done:
                error = self._error(exc, what, is_lost_write=True)
            raise error from error.__cause__

    def _connect_error(self, exc: Exception) -> StoreError:
        return connect_error(exc, self.address, self._names, self._dsn, self._hidden)

    def _error(self, exc: Exception, what: str, *, is_lost_write: bool) -> StoreError:
        return operation_error(
            exc,
            self.address,
            self._names,
            what,
            is_lost_write=is_lost_write,
            hidden=self._hidden,
        )

    def _lender(self) -> Lender:
        if self._borrowed is not None:
            return self._borrowed
        return self._lenders.get()

    def _refuse_if_closed(self) -> None:
        if self._is_closed:
            raise StoreUnusable("the store is closed: make another one")

    def _make_lender(self) -> Connections:
        self._refuse_if_closed()  # what waited for the tables would connect, and nobody close
        options = self._options
        return Connections(
            self._connect,
            max_size=options.max_connections,
            acquire_timeout_seconds=options.acquire_timeout_seconds,
            max_idle_seconds=options.max_idle_seconds,
        )

    async def _connect(self) -> OwnConnection:
        size = self._statement_cache_size or 0
        connection = await self._connect_with(size)
        try:
            with timed(NO_ANSWER, self._timeout, "command_timeout_seconds"):
                await connection.make_ready(self._hot if size else (), is_direct=self._is_direct)
        except Exception:
            await close_politely(connection)  # or the statement would wait on at the server
            raise
        except BaseException:
            connection.terminate()
            raise
        return connection

    async def _connect_with(self, statement_cache_size: int) -> OwnConnection:
        options = self._options
        seconds = options.acquire_timeout_seconds
        with timed("the server did not let the store in", seconds, "acquire_timeout_seconds"):
            return await asyncpg.connect(
                options.dsn,
                timeout=seconds,
                command_timeout=options.command_timeout_seconds,
                statement_cache_size=statement_cache_size,
                connection_class=OwnConnection,
                **options.connect_options,
            )

    async def _setup(self) -> None:
        async with self._lender().setting_up:
            if self._is_set_up:
                return
            try:
                await self._look_and_migrate()
            except Exception as exc:
                error = self._error(exc, "setup", is_lost_write=False)
                raise error from error.__cause__
            self._is_set_up = True

    async def _look_and_migrate(self) -> None:
        if self._borrowed is not None:
            connection = await self._acquire(self._borrowed, "setup", maybe_done=False)
            try:
                await self._prepare(connection)
            finally:
                await self._borrowed.give_up(connection)
            return
        # Without prepared statements, as a pooler may stand in between; so not one of those
        # that are kept.
        lender = self._lenders.get()
        try:
            own = await lender.open_apart(partial(self._connect_with, 0))
        except Exception as exc:
            error = self._connect_error(exc)
            raise error from error.__cause__
        try:
            await self._prepare(own)
        except BaseException:
            lender.give_up_apart(own)
            raise
        await lender.close_apart(own)

    async def _prepare(self, connection: Connection) -> None:
        with timed(NO_ANSWER, self._timeout, "command_timeout_seconds"):
            found = await look(connection, self.sql, self._timeout)
        self._is_direct = not found.has_pooler
        if type(connection) is OwnConnection:
            connection.is_direct = self._is_direct
        own_time = timed(NO_ANSWER, self._timeout, "command_timeout_seconds")
        # A pool that was handed in has a time of its own for this.
        with own_time if self._borrowed is None else nullcontext():
            await migrate(connection, self.sql, self._names, may_change=self._options.migrate)
        self.durability = found.durability
        if self._statement_cache_size is None:
            self._statement_cache_size = 0 if found.has_pooler else _DEFAULT_STATEMENT_CACHE

    async def aclose(self) -> None:
        """Close the store's own connections, in every loop that has some."""
        self._is_closed = True
        await self._lenders.aclose()


class Answer(NamedTuple):
    """What a statement returned.

    Attributes:
        rows: of the last try.
        is_repeated: the first try was not answered, and may have been done, too.
    """

    rows: Rows
    is_repeated: bool


async def _take_back(lender: Lender, connection: Connection, exc: BaseException) -> None:
    """Return a connection that is as good as before, and give up any other."""
    is_answered = isinstance(exc, asyncpg.PostgresError) and not is_loss(exc)
    if is_answered or is_value_error(exc):
        await lender.give_back(connection)
    else:
        await lender.give_up(connection)
