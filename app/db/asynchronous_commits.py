"""Commits that answer before their log is on the disk, for whoever waits for a later commit anyway.

A commit writes all of the log to the disk that came before its own end. So a result whose worker is leased its next
task in the same answer need not wait for the disk twice: its own commit does not wait (PostgreSQL's asynchronous
commit), and that of the lease flushes both. Nobody is told that a result is accepted, or of its event, before that.
"""

import math
import time
from datetime import datetime
from typing import NamedTuple

import asyncpg
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db.connections import UNSUPPORTED, Connections, LimitedConnection, Limits
from app.db.shared_objects import shared_by

# Commits with a log of its own, which a transaction that only reads has not, and so waits until it is on the disk.
WRITE_LOG = "pg_logical_emit_message(true, 'convener', '')"
# A transaction with this part of a statement does not wait for the disk when it commits. With synchronous standbys it
# waits for them, as a reader may be told of what is on the disk here and on none of theirs.
WITHOUT_WAIT = """SELECT set_config('synchronous_commit', 'off', true)
    WHERE current_setting('synchronous_standby_names') = ''"""
# `WRITE_LOG` where some log is not on the disk, so that it costs an idle system nothing. A standby, which still serves
# reads, has none of its own.
WRITE_LOG_IF_BEHIND = f"""CASE WHEN pg_is_in_recovery() THEN NULL
    WHEN pg_current_wal_flush_lsn() < pg_current_wal_insert_lsn() THEN {WRITE_LOG} END"""
_WRITE_LOG = text(f"SELECT {WRITE_LOG}")
_USE_ALL = f"""SELECT CASE WHEN NOT pg_is_in_recovery()
    THEN (pg_current_wal_flush_lsn(), pg_current_wal_insert_lsn(), {WRITE_LOG}) END IS NULL"""
_LOOK_SECONDS = 60.0
_STARTED_AT = "SELECT pg_postmaster_start_time()"


class Origin(NamedTuple):
    """The run of the server to which a connection leads, and the monotonic time since when it does."""

    server_started_at: datetime
    opened_at: float


class AsynchronousCommit:
    """A commit whose log may not be on the disk yet; make it before its transaction begins."""

    __slots__ = ("_began_at", "_server_started_at", "is_flushed")

    def __init__(self, connection: "asyncpg.Connection[asyncpg.Record]") -> None:
        origin: Origin | None = getattr(connection, "origin", None)
        self._server_started_at = origin.server_started_at if origin else None
        self._began_at = time.monotonic()
        self.is_flushed = False

    def precedes(self, connection: "asyncpg.Connection[asyncpg.Record]") -> bool:
        """Whether a transaction that has begun on this connection since sees this one, and flushes it when it commits.

        Only then has the server neither crashed nor been replaced in between: no connection outlives that.
        """
        origin: Origin | None = getattr(connection, "origin", None)
        return (
            origin is not None
            and origin.server_started_at == self._server_started_at
            and origin.opened_at <= self._began_at
        )


async def open_traceable(connections: Connections, limits: Limits) -> LimitedConnection:
    """A connection that knows its origin, unless it leads to a connection pooler. Raises as `Connections.open` does."""
    connection = await connections.open(limits)
    if connections.is_pooled:
        return connection
    try:
        connection.origin = Origin(await connection.fetchval(_STARTED_AT), time.monotonic())
    except BaseException:
        connection.terminate()
        raise
    return connection


class LogFunctions:
    """Whether the server has the functions of its log that are used here, and lets this role call them.

    Some of clouds do not. There every commit waits for the disk, so that nobody has to see to it afterwards. One for
    each process, by `Database.shared`.
    """

    __slots__ = ("_looked_at", "are_offered")

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Have it looked at again, as a call of one may have failed."""
        self.are_offered, self._looked_at = False, -math.inf

    @property
    def is_look_due(self) -> bool:
        """Whether it was not looked at yet, or so long ago that another server may offer them by now."""
        return not self.are_offered and time.monotonic() - self._looked_at > _LOOK_SECONDS

    async def look(self, connection: "asyncpg.Connection[asyncpg.Record]") -> None:
        """Call all of them, within a transaction if there is one."""
        try:
            async with connection.transaction():
                await connection.fetchval(_USE_ALL)
        except asyncpg.PostgresError as error:
            if error.sqlstate not in UNSUPPORTED:
                raise
            self.are_offered = False
        else:
            self.are_offered = True
        self._looked_at = time.monotonic()


async def can_flush(connection: AsyncConnection) -> bool:
    """Whether there may be commits whose log is not on the disk yet, and a way to see that it is."""
    functions = shared_by(connection, LogFunctions)
    if functions.is_look_due:
        driver = (await connection.get_raw_connection()).driver_connection
        assert driver is not None
        await functions.look(driver)
    return functions.are_offered


async def flush(connection: AsyncConnection) -> None:
    """Let the commit of this transaction flush all that it has seen, though it only reads."""
    if await can_flush(connection):
        await connection.execute(_WRITE_LOG)
