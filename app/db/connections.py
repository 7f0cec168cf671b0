"""Connections to PostgreSQL that end by limits of their own, also when the network loses everything in silence."""

import asyncio
import logging
import socket
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import asyncpg

from app.kernel.database_urls import server_urls

if TYPE_CHECKING:
    _Base = asyncpg.Connection[asyncpg.Record]
else:
    _Base = asyncpg.Connection

log = logging.getLogger(__name__)
CONNECT_SECONDS = 5.0
_WATCH_SECONDS = 10.0
# The server ends a statement by its own limit first; a client that has heard nothing so much later never will.
_MARGIN_SECONDS = 2.0
_CHECK_INTERVAL = "client_connection_check_interval"
# What a pooler takes from its clients, and sets for whichever session it lends them. Moments within JSON are in UTC.
_GREETING = {"application_name": "convener", "TimeZone": "UTC"}
_STATEMENTS = {
    "extra_float_digits": "1",  # of numbers within JSON, which would come back with fewer
    "jit": "off",
    "enable_nestloop": "on",
    # Every statement has an index made for it. While a table is small, the planner would prefer to read it whole, and a
    # prepared statement would go on doing so when the table has grown.
    "enable_seqscan": "off",
    "max_parallel_workers_per_gather": "0",  # or for next to nothing, as no planner knows how few events are new
}
# Whoever has waited for a lock looks again at what it protects, whatever is set for the server or the role.
_ISOLATION, _COMMITTED = "transaction_isolation", "read committed"
_SESSION = {
    **_GREETING,
    **_STATEMENTS,
    f"default_{_ISOLATION}": _COMMITTED,
    "idle_session_timeout": "0",  # the lock of migrations lasts as long as its session
    # A server whose client is gone without a word gives back what it holds for it.
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "15000",
    _CHECK_INTERVAL: "2000",
}
# As far as this system has them: bytes that nobody acknowledges, or no answer to probes, end a connection after 10 s.
_SOCKET_OPTIONS = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 2, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 10_000}
# What another server may do better, as libpq has it.
_ELSEWHERE = (
    OSError,
    asyncpg.CannotConnectNowError,
    asyncpg.PostgresConnectionError,
    asyncpg.exceptions.TargetServerAttributeNotMatched,
)

# Types below it are PostgreSQL's own, with the same numbers in every database and version.
_FIRST_OWN_OID = 10_000
_types: dict[frozenset[int], Any] = {}
# In place of the statement that would have asked: as one with a name, it has taken the place of no other.
_NAMED = SimpleNamespace(name="types")


# States of errors of a function that a server lacks, or lets others call.
UNSUPPORTED = frozenset({"0A000", "42501", "42883"})
# A promotion begins a new timeline, with a higher number. A standby cannot be asked for its own.
TIMELINE = "CAST(CAST('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8) AS bit(32)) AS integer)"
SELECT_SERVER = f"""
SELECT coalesce(host(inet_server_addr()) || ':', 'port ') || current_setting('port') AS place,
       pg_postmaster_start_time() AS started_at,
       (SELECT system_identifier FROM pg_control_system()) AS system,
       CASE WHEN pg_is_in_recovery() THEN 0 ELSE {TIMELINE} END AS timeline
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningServer:
    """A run of a server: its address, the system that it shares with its standbys, and its timeline, 0 of a standby."""

    place: str
    started_at: datetime
    system: int
    timeline: int

    def has_replaced(self, other: "RunningServer") -> bool:
        """Whether it was promoted later than the other one, which takes writes as well."""
        return self.system == other.system and self.timeline > other.timeline > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Seconds that a statement may take, and that it may wait for a lock of somebody else; None: without a limit.

    The first holds at the client too, where no answer comes. Without it the server ends a statement after 30 s, unless
    its transaction sets another limit there.
    """

    statement_seconds: float | None = None
    lock_seconds: float | None = None


_WATCH_LIMITS = Limits(statement_seconds=2.0)


class LimitedConnection(_Base):
    """A connection that is cut when a statement on it is over its limit, or is no longer waited for.

    Behind a connection pooler each transaction may be on another session: `beginning` are statements that set for one
    transaction what is otherwise set for the session, and go to the server together with its BEGIN.
    """

    __slots__ = ("beginning",)

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.beginning = ""

    async def execute(
        self,
        query: str,
        *args: object,
        timeout: float | None = None,  # noqa: ASYNC109 - as the driver has it
    ) -> str:
        """As the driver's, which begins every transaction by it."""
        if self.beginning and not args and query.startswith("BEGIN"):
            query += self.beginning
        return await super().execute(query, *args, timeout=timeout)

    def _cancel_current_command(self, waiter: Any, cancel_waiter: Any = None) -> None:
        # The driver would ask the server, over another connection, to cancel the statement, and wait for that before
        # this connection serves again: for ever where the network is silent. The server sees that this one is closed.
        asyncio.get_running_loop().call_soon(self.terminate)

    async def _introspect_types(self, oids: Collection[int], timeout: float | None) -> Any:  # noqa: ASYNC109
        # The driver would ask for them on every connection, by a query that costs the server several milliseconds.
        key = frozenset(oids)
        if types := _types.get(key):
            return types, _NAMED
        types, statement = await super()._introspect_types(oids, timeout)  # type: ignore[misc]  # not in its stubs
        if all(oid < _FIRST_OWN_OID for oid in key):
            _types[key] = types
        return types, statement

    async def _cleanup_stmts(self) -> None:
        # The driver closes statements that it has no room for without any limit.
        async with asyncio.timeout(CONNECT_SECONDS):
            await super()._cleanup_stmts()  # type: ignore[misc]  # not in the stubs of the driver


class Connections:
    """Opens the connections of one process to one database, and can cut them all.

    `direct_url` leads to the server itself where `url` leads to a connection pooler.
    """

    def __init__(self, url: str, direct_url: str | None = None) -> None:
        self._servers = server_urls(url)
        self._direct_servers = None if direct_url is None else server_urls(direct_url)
        self._open: WeakSet[LimitedConnection] = WeakSet()
        self._opening: set[asyncio.Timeout] = set()
        self._is_closed = False
        self._rivals: set[RunningServer] = set()
        self.primary: RunningServer | None = None
        """That of several servers on which this process works, as it was last looked at."""

    async def open(self, limits: Limits) -> LimitedConnection:
        """A new connection for transactions. Raises OSError, TimeoutError, and what asyncpg raises."""
        if self._direct_servers is None:
            return await self._connect(self._servers, limits, _SESSION | _seconds(limits))
        # A pooler refuses parameters of the session, which is none of ours.
        connection = await self._connect(self._servers, limits, _GREETING)
        settings = {_ISOLATION: _COMMITTED, **_STATEMENTS, **_seconds(limits)}
        connection.beginning = "".join(f"SET LOCAL {name} = '{value}';" for name, value in settings.items())
        return connection

    async def open_session(self, limits: Limits) -> LimitedConnection:
        """A new connection whose session is its own, as LISTEN needs it. Raises as `open` does."""
        return await self._connect(self._direct_servers or self._servers, limits, _SESSION | _seconds(limits))

    async def _connect(self, servers: list[str], limits: Limits, settings: Mapping[str, str]) -> LimitedConnection:
        if self._is_closed:
            raise ConnectionError("the connections to the database are closed")
        async with asyncio.timeout(CONNECT_SECONDS) as limit:
            self._opening.add(limit)
            try:
                connection = await self._find(servers, limits, settings)
            finally:
                self._opening.discard(limit)
        _limit_silence(connection)
        self._open.add(connection)
        return connection

    async def _find(self, servers: list[str], limits: Limits, settings: Mapping[str, str]) -> LimitedConnection:
        """A connection to the server on which this process works; moves to another one where that lets nobody in."""
        while True:
            order = tuple(servers)
            connection, url = await _first_to_answer(order, limits, settings)
            server = None if url == order[0] else await self._refuse_former(connection)
            if url != order[0] and order == tuple(servers):
                self.primary = server
                self._move(servers, url)
            elif url != servers[0]:
                # The process has moved meanwhile, and this one leads to where it no longer works.
                connection.terminate()
                continue
            return connection

    def _move(self, servers: list[str], server: str) -> None:
        """Leave the server on which this process works for another one.

        It never works on both at once, of which one may be a former primary that nobody has stopped; and it stays where
        it is, though an earlier one comes back.
        """
        servers.remove(server)
        servers.insert(0, server)
        self.cut()

    async def _refuse_former(self, connection: LimitedConnection) -> RunningServer | None:
        try:
            server = await _read_server(connection)
            if server is not None and self.primary is not None and self.primary.has_replaced(server):
                raise ConnectionRefusedError(f"{server.place} is a former primary, and its successor does not answer")
        except BaseException:
            connection.terminate()
            raise
        return server

    async def watch(self) -> None:
        """Leave a primary in whose place another of several servers was promoted, for as long as this runs."""
        servers = self._direct_servers or self._servers
        while len(servers) > 1:
            try:
                await self._look_for_successor(servers)
            except Exception:
                # Nothing would start this task again.
                log.exception("the look for a promoted server stumbled, trying again")
            await asyncio.sleep(_WATCH_SECONDS)

    async def _look_for_successor(self, servers: list[str]) -> None:
        order = tuple(servers)
        present = await _server_at(order[0])
        if present is None or order != tuple(servers):
            return
        self.primary, rivals = present, set()
        for url in order[1:]:
            server = await _server_at(url)
            if order != tuple(servers):
                return  # this process has moved meanwhile
            # Two addresses may lead to one server.
            if server is None or not server.timeline or server.started_at == present.started_at:
                continue
            rivals.add(server)
            if server not in self._rivals:
                places = " and ".join(f"{one.place} (timeline {one.timeline})" for one in (present, server))
                log.error("two servers take writes, %s: stop the one that is no longer the primary", places)
            if server.has_replaced(present):
                log.error("this process goes from %s to %s, which was promoted", present.place, server.place)
                self.primary = server
                self._move(servers, url)
                break
        self._rivals = rivals

    @staticmethod
    def session_settings(limits: Limits) -> dict[str, str]:
        """Settings of a session of our own with these limits, but for those of its connection."""
        names = (*_STATEMENTS, f"default_{_ISOLATION}", _CHECK_INTERVAL)
        return {name: _SESSION[name] for name in names} | _seconds(limits)

    def cut(self) -> None:
        """Close all connections at once: what is under way on them fails, and whoever comes next gets new ones."""
        for connection in tuple(self._open):
            connection.terminate()

    def close(self) -> None:
        """Close all connections at once, those too that are being made; there will be no others."""
        self._is_closed = True
        for limit in tuple(self._opening):
            limit.reschedule(asyncio.get_running_loop().time())
        self.cut()


async def _first_to_answer(
    servers: Sequence[str], limits: Limits, settings: Mapping[str, str]
) -> tuple[LimitedConnection, str]:
    """A connection to the first of the servers that lets us in, and which one that is.

    The driver would wait for one that is silent, a host that is off, until no time is left for the others.
    """
    seconds = limits.statement_seconds
    failure: Exception | None = None
    for server in servers:
        try:
            async with asyncio.timeout(CONNECT_SECONDS / len(servers)):
                connection: LimitedConnection = await asyncpg.connect(
                    server,
                    connection_class=LimitedConnection,
                    command_timeout=None if seconds is None else seconds + _MARGIN_SECONDS,
                    server_settings=dict(settings),
                )
            return connection, server
        except _ELSEWHERE as error:
            failure = error
    assert failure is not None
    raise failure


async def _server_at(url: str) -> RunningServer | None:
    """The server at a URL; None where it lets nobody in."""
    try:
        connection, _ = await _first_to_answer([url], _WATCH_LIMITS, _GREETING)
        try:
            return await _read_server(connection)
        finally:
            connection.terminate()
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError):
        return None


async def _read_server(connection: LimitedConnection) -> RunningServer | None:
    """The server of a connection; None where it does not tell, as some of clouds have no log of their own."""
    try:
        row = await connection.fetchrow(SELECT_SERVER)
    except asyncpg.PostgresError as error:
        if error.sqlstate not in UNSUPPORTED:
            raise
        return None
    assert row is not None
    return RunningServer(**row)


def _limit_silence(connection: LimitedConnection) -> None:
    transport: asyncio.Transport = connection._transport  # type: ignore[attr-defined]  # no public way leads there
    own_socket = transport.get_extra_info("socket")
    if own_socket is None or own_socket.family == socket.AF_UNIX:
        return
    own_socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _SOCKET_OPTIONS.items():
        if (option := getattr(socket, name, None)) is not None:
            own_socket.setsockopt(socket.IPPROTO_TCP, option, value)


def _seconds(limits: Limits) -> dict[str, str]:
    seconds = limits.statement_seconds
    limits_by_name = {
        "statement_timeout": 30.0 if seconds is None else seconds,
        "lock_timeout": limits.lock_seconds or 0.0,
        # What holds locks and does nothing has most likely lost its client.
        "idle_in_transaction_session_timeout": 30.0 if seconds is None else 8.0,
    }
    return {name: f"{limit * 1000:.0f}" for name, limit in limits_by_name.items()}
