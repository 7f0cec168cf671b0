"""Connections to PostgreSQL: asyncpg's own pool for the hot path, SQLAlchemy for everything else."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import datetime
from typing import Any, TypeVar

import asyncpg
from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError, DisconnectionError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolExhausted
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from app.db import dialect
from app.db.connections import SELECT_SERVER, UNSUPPORTED, Connections, Limits, RunningServer
from app.db.notify import Announcer, begin_locked_work, pop_news
from app.db.shared_objects import SharedObjects, get_or_create, share
from app.db.statement_pool import StatementPool
from app.kernel.database_urls import check_database_url
from app.kernel.errors import DatabaseUnavailable, Locked, Unstorable
from app.kernel.refused_writes import MEANINGS, RefusedWrite, WriteTrouble, trouble_of
from app.outage import DatabaseOutage

Kind = TypeVar("Kind")

_CALLBACKS = "convener_ended"
_LAST_WORK = "convener_last_work"
# On the hot path everything takes milliseconds, and what is locked for longer must not hold up the others of a batch.
HOT = Limits(statement_seconds=5.0, lock_seconds=0.5)
# Of transactions that write, and of those that only read.
_LOCK_SECONDS, _READ_LOCK_SECONDS = 5.0, 2.0
# Reads under way and those that wait for a connection; more would only wait in vain.
_MAX_READS = 100
_LOCK_NOT_AVAILABLE = "55P03"
_SERVER = text(SELECT_SERVER)


class Database:
    """Connections to one database, opened when first used, so that a service can start before its database.

    Where `url` leads to a connection pooler, as pgbouncer is, `direct_url` leads to the server itself.
    Of `connections` all are kept, the spare ones only while they are in use.
    `statement_seconds` limits every statement, also when the network is silent, and with it how long one waits for a
    lock; None, for commands, leaves it at the server's limit. Reads have connections of their own, and submits of one
    statement: however many of them wait for something, the hot path and all that writes go on.
    """

    def __init__(
        self,
        url: str,
        *,
        direct_url: str | None = None,
        hot_connections: int = 6,
        submit_connections: int = 3,
        connections: int = 6,
        spare_connections: int = 4,
        statement_seconds: float | None = None,
        outage: DatabaseOutage | None = None,
    ) -> None:
        self.url = plain_url(url)
        self.direct_url = None if direct_url is None else plain_url(direct_url)
        self._connections = Connections(self.url, self.direct_url)
        is_limited = statement_seconds is not None
        self._limits = Limits(statement_seconds=statement_seconds, lock_seconds=_LOCK_SECONDS if is_limited else None)
        self.hot = StatementPool(self.url, lambda: self._connections.open(HOT), hot_connections)
        self.submits = StatementPool(self.url, lambda: self._connections.open(self._limits), submit_connections)
        self.outage = outage or DatabaseOutage()
        self.announcer = Announcer(self.connect, on_silence=self._connections.cut, outage=self.outage)
        self.shared_objects: SharedObjects = {DatabaseOutage: self.outage}
        self.engine = self._engine(self._limits, connections, overflow=spare_connections, timeout=5)
        read_limits = Limits(statement_seconds=statement_seconds, lock_seconds=_READ_LOCK_SECONDS)
        self._read_engine = self._engine(read_limits, 4, overflow=2, timeout=3)
        self._reads = 0
        self._watch: asyncio.Task[None] | None = None

    def _engine(self, limits: Limits, size: int, *, overflow: int, timeout: float) -> AsyncEngine:
        engine = create_async_engine(
            dialect.URL,
            async_creator=lambda: self._connections.open(limits),
            pool_size=size,
            max_overflow=overflow,
            pool_timeout=timeout,
            # The one that was used last has its plans and caches at hand, and the others need none.
            pool_use_lifo=True,
        )
        event.listen(engine.sync_engine, "checkout", _refuse_closed)
        event.listen(engine.sync_engine, "connect", lambda _, record: share(record.info, self.shared_objects))
        return engine

    def shared(self, kind: type[Kind]) -> Kind:
        """The one object of this kind that users of the database share in this process; made when first needed."""
        return get_or_create(self.shared_objects, kind)

    async def connect(self) -> "asyncpg.Connection[asyncpg.Record]":
        """Open a connection with a session of its own, past any connection pooler; the caller has to close it."""
        return await self._connections.open_session(self._limits)

    async def connect_for_statements(self) -> "asyncpg.Connection[asyncpg.Record]":
        """Open a connection as those of the hot path are; the caller has to close it."""
        return await self._connections.open(HOT)

    @property
    def is_pooled(self) -> bool:
        """Whether a connection pooler is in between: there limits hold for transactions alone."""
        return self.direct_url is not None

    async def pool(self) -> "asyncpg.Pool[asyncpg.Record]":
        """The pool of the hot path."""
        return await self.hot.open()

    def transaction(self) -> AbstractAsyncContextManager[AsyncConnection]:
        """A transaction that commits at the end of the `with` body; nothing else commits.

        News noted in it is announced after the commit. Raises DatabaseUnavailable, and Unstorable for a value.
        """
        return self._transaction(self.engine)

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """As `transaction`, for a request that reads, on connections that nothing else has."""
        if self._reads >= _MAX_READS:
            raise DatabaseUnavailable("too many reads wait for the database; send this one again in a moment")
        self._reads += 1
        try:
            async with self._transaction(self._read_engine) as connection:
                yield connection
        finally:
            self._reads -= 1

    @asynccontextmanager
    async def _transaction(self, engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
        try:
            async with engine.connect() as connection:
                pop_news(connection)
                # In variables too: once a connection has broken, asking it for its `info` raises and hides the reason.
                locked_work = begin_locked_work(connection)
                callbacks: list[Callable[[], None]] = []
                connection.info[_CALLBACKS] = callbacks
                last_work: list[Callable[[], Awaitable[None]]] = []
                connection.info[_LAST_WORK] = last_work
                try:
                    async with connection.begin():
                        yield connection
                        for work in last_work:
                            await work()
                except BaseException:
                    self.announcer.announce(locked_work)
                    raise
                finally:
                    for callback in callbacks:
                        callback()
                self.announcer.announce(pop_news(connection))
                self.outage.note_answer()
        except (SQLAlchemyError, asyncpg.InterfaceError, OSError, TimeoutError) as error:
            self.note_failure(error)
            raise cancellation_or(error) from error

    def note_failure(self, error: BaseException) -> None:
        """Let the log tell of an error that means that the database is away, or refuses writes."""
        cause = _cause(error)
        if is_gone(error):
            self.outage.note_failure(cause or error)
        elif trouble := _write_trouble(cause):
            self.outage.note_refused(RefusedWrite(trouble=trouble, words=str(cause).partition("\n")[0]))

    async def is_former_primary(self, connection: AsyncConnection) -> bool:
        """Whether the connection leads to a server in whose place another one was promoted, as a pooler's may."""
        primary = self._connections.primary
        if primary is None:
            return False
        row = (await connection.execute(_SERVER)).mappings().one()
        return primary.has_replaced(RunningServer(**row))

    def start(self) -> None:
        """Begin to announce and to hear news, and to watch which of several servers is the primary."""
        self.announcer.start()
        self._watch = asyncio.create_task(self._connections.watch(), name="primary")

    async def close(self) -> None:
        """Close all connections, without waiting for any answer."""
        await self.announcer.stop()
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        self.give_up()
        for pool in (self.hot, self.submits):
            pool.terminate()
        await self.engine.dispose()
        await self._read_engine.dispose()

    def give_up(self) -> None:
        """Let whatever still waits for the database fail at once, now and later."""
        self._connections.close()


def before_commit(connection: AsyncConnection, work: Callable[[], Awaitable[None]]) -> None:
    """Do this as the last work of the transaction of the connection; not where that is given up before."""
    connection.info[_LAST_WORK].append(work)


def when_ended(connection: AsyncConnection, callback: Callable[[], None]) -> None:
    """Call back when the transaction of the connection is over, committed or not."""
    connection.info.setdefault(_CALLBACKS, []).append(callback)


def _refuse_closed(connection: Any, *_: object) -> None:
    # The driver knows when the server has hung up, without a round trip. The error makes the pool reconnect.
    if connection.driver_connection.is_closed():
        raise DisconnectionError


_ONE_SNAPSHOT = text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
_READ_WHOLE_TABLES = text("SET LOCAL enable_seqscan = on")
# A server before PostgreSQL 17 knows no limit for transactions.
_DISABLE_TIME_LIMITS = text("""
SELECT set_config(name, '0', true) FROM pg_settings WHERE name IN ('statement_timeout', 'transaction_timeout')
""")
_SHORT_LOCK_TIMEOUT = text("SET LOCAL lock_timeout = '200ms'")


async def hold_moment(connection: AsyncConnection) -> None:
    """Let all that follows in this transaction, of which this is the first statement, only read, and see one moment."""
    await connection.execute(_ONE_SNAPSHOT)


async def allow_whole_tables(connection: AsyncConnection) -> None:
    """Let statements of this transaction that no index serves read tables as a whole."""
    await connection.execute(_READ_WHOLE_TABLES)


async def disable_time_limits(connection: AsyncConnection) -> None:
    """Let this transaction and its statements run as long as they need, which grows with the database."""
    await connection.execute(_DISABLE_TIME_LIMITS)


async def limit_lock_waits(connection: AsyncConnection) -> None:
    """Wait for each lock only briefly from now on in this transaction, as others wait for what it holds."""
    await connection.execute(_SHORT_LOCK_TIMEOUT)


async def now(connection: AsyncConnection) -> datetime:
    """The start of this transaction by the database's clock, the only one that decides."""
    moment: datetime = (await connection.execute(text("SELECT now()"))).scalar_one()
    return moment


_TAKES_WRITES = text("SELECT current_setting('transaction_read_only') = 'off'")


async def takes_writes(connection: AsyncConnection) -> bool:
    """Whether the server is no standby, and nothing says that our transactions may only read."""
    return bool((await connection.execute(_TAKES_WRITES)).scalar_one())


# A password that is changed on both sides, a database that is restored, others that take all connections, or a standby
# that is promoted, while no server takes writes, is right again later.
_NOT_LET_IN = (
    asyncpg.exceptions.TooManyConnectionsError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.exceptions.TargetServerAttributeNotMatched,
)


def is_outage(error: BaseException) -> bool:
    """Whether an error means that the database is away, so that the same call may succeed later."""
    if isinstance(error, DBAPIError):
        if error.connection_invalidated:
            return True
        return error.orig is not None and error.orig.__cause__ is not None and is_outage(error.orig.__cause__)
    return _was_cut(error) or isinstance(
        error,
        (
            OSError,
            TimeoutError,
            asyncpg.PostgresConnectionError,
            asyncpg.InterfaceError,
            asyncpg.InternalClientError,
            asyncpg.exceptions.OperatorInterventionError,
            asyncpg.exceptions.InsufficientResourcesError,
            # A standby that is about to be promoted.
            asyncpg.exceptions.ReadOnlySQLTransactionError,
            *_NOT_LET_IN,
        ),
    )


NO_CONNECTION_LEFT = "the database has no connection left for us"


def is_crowded(error: BaseException) -> bool:
    """Whether others have taken all connections that the server, the database or the role may have."""
    return isinstance(_cause(error), asyncpg.exceptions.TooManyConnectionsError)


def _was_cut(error: BaseException) -> bool:
    """Whether a connection was closed between two steps of a statement, where the driver does not look for that."""
    return isinstance(error, AttributeError) and error.name == "bind_execute"


def is_gone(error: BaseException) -> bool:
    """Whether no connection could be made, or it broke."""
    if isinstance(error, DBAPIError):
        return error.connection_invalidated or isinstance(_cause(error), _NOT_LET_IN)
    away = (OSError, asyncpg.PostgresConnectionError, *_NOT_LET_IN)
    return _was_cut(error) or (isinstance(error, away) and not isinstance(error, PoolExhausted))


def _cause(error: BaseException) -> BaseException | None:
    """The driver's error."""
    return error.orig.__cause__ if isinstance(error, DBAPIError) and error.orig else error


def _write_trouble(cause: BaseException | None) -> WriteTrouble | None:
    # One without words, as no server sends any, cannot even be written as text.
    return (
        trouble_of(str(cause.sqlstate), str(cause)) if isinstance(cause, asyncpg.PostgresError) and cause.args else None
    )


def is_locked(error: BaseException | None) -> bool:
    """Whether an error means that somebody else has held a lock for longer than the statement may wait."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    return getattr(cause, "sqlstate", None) == _LOCK_NOT_AVAILABLE


def is_unsupported(error: DBAPIError) -> bool:
    """Whether an error means that this server has no such function, or not for this role."""
    return getattr(error.orig, "sqlstate", None) in UNSUPPORTED


def cancellation_or(error: Exception) -> BaseException:
    """Return what `translate_error` does, or the cancellation of this task, which the error has replaced.

    A statement that is cancelled costs its connection, so whatever ends the transaction on it fails.
    """
    task = asyncio.current_task()
    return asyncio.CancelledError() if task is not None and task.cancelling() else translate_error(error)


def translate_error(error: Exception) -> Exception:
    """Return the domain's error for an outage, a conflict or a value that cannot be stored; others as they are."""
    if isinstance(error, PoolExhausted):
        return DatabaseUnavailable("all connections to the database are in use; send this one again in a moment")
    cause = _cause(error)
    if trouble := _write_trouble(cause):
        return DatabaseUnavailable(f"{MEANINGS[trouble]}; send this one again later", reason=trouble.value)
    return _translate_other(error, cause)


def _translate_other(error: Exception, cause: BaseException | None) -> Exception:
    if isinstance(cause, asyncpg.exceptions.QueryCanceledError):
        return DatabaseUnavailable("this takes the database too long; ask for less at once, or again in a moment")
    if is_crowded(error):
        return DatabaseUnavailable(f"{NO_CONNECTION_LEFT}; send this one again in a moment")
    if is_outage(error):
        return DatabaseUnavailable()
    if is_locked(error):
        return Locked()
    if isinstance(cause, asyncpg.InvalidCachedStatementError):
        # A migration has added a column to what the statement reads; the driver has forgotten its plans by now.
        return DatabaseUnavailable("the schema has just changed; send this one again in a moment")
    if isinstance(cause, asyncpg.exceptions.TransactionRollbackError):
        return DatabaseUnavailable("another request was in the way; send this one again in a moment")
    if isinstance(cause, asyncpg.DataError):
        return Unstorable(str(cause).splitlines()[0])
    return error


def plain_url(url: str) -> str:
    """Return the URL as asyncpg takes it, whichever driver it names. Raises ValueError."""
    try:
        check_database_url(url)
    except ValueError as error:
        raise ValueError(f"the database URL {error}") from None
    return f"postgresql://{url.partition('://')[2]}"
