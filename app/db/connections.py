"""Connections to PostgreSQL that end by limits of their own, also when the network loses everything in silence."""

import asyncio
import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import asyncpg

if TYPE_CHECKING:
    _Base = asyncpg.Connection[asyncpg.Record]
else:
    _Base = asyncpg.Connection

CONNECT_SECONDS = 5.0
# The server ends a statement by its own limit first; a client that has heard nothing so much later never will.
_MARGIN_SECONDS = 2.0
_SESSION = {
    "application_name": "convener",
    "jit": "off",
    # Every statement has an index made for it. While a table is small, the planner would prefer to read it whole, and a
    # prepared statement would go on doing so when the table has grown.
    "enable_seqscan": "off",
    # A server whose client is gone without a word gives back what it holds for it.
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "15000",
    "client_connection_check_interval": "2000",
}
# As far as this system has them: bytes that nobody acknowledges, or no answer to probes, end a connection after 10 s.
_SOCKET_OPTIONS = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 2, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 10_000}


class LimitedConnection(_Base):
    """A connection that is cut when a statement on it is over its limit, or is no longer waited for."""

    __slots__ = ()

    def _cancel_current_command(self, waiter: Any, cancel_waiter: Any = None) -> None:
        # The driver would ask the server, over another connection, to cancel the statement, and wait for that before
        # this connection serves again: for ever where the network is silent. The server sees that this one is closed.
        asyncio.get_running_loop().call_soon(self.terminate)

    async def _cleanup_stmts(self) -> None:
        # The driver closes statements that it has no room for without any limit.
        async with asyncio.timeout(CONNECT_SECONDS):
            await super()._cleanup_stmts()  # type: ignore[misc]  # not in the stubs of the driver


class Connections:
    """Opens the connections of one process to one database, and can cut them all."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._open: WeakSet[LimitedConnection] = WeakSet()
        self._opening: set[asyncio.Timeout] = set()
        self._is_closed = False

    async def open(self, *, statement_seconds: float | None) -> LimitedConnection:
        """A new connection; without a limit for its statements the server's is 30 s, until a transaction sets another.

        Raises OSError, TimeoutError, and what asyncpg raises.
        """
        return await self.open_for_pool(**self.options(statement_seconds))

    async def open_for_pool(self, *_: object, **options: Any) -> LimitedConnection:
        """A new connection with these options, as a pool of asyncpg asks for it."""
        if self._is_closed:
            raise ConnectionError("the connections to the database are closed")
        async with asyncio.timeout(CONNECT_SECONDS) as limit:
            self._opening.add(limit)
            try:
                connection: LimitedConnection = await asyncpg.connect(
                    self._url, **{**options, "connection_class": LimitedConnection}
                )
            finally:
                self._opening.discard(limit)
        _limit_silence(connection)
        self._open.add(connection)
        return connection

    @staticmethod
    def options(statement_seconds: float | None) -> Mapping[str, Any]:
        """The options of asyncpg for connections with this limit."""
        limit = 30.0 if statement_seconds is None else statement_seconds
        # What holds locks and does nothing has most likely lost its client.
        idle = 30.0 if statement_seconds is None else 8.0
        session = {
            "statement_timeout": f"{limit * 1000:.0f}",
            "idle_in_transaction_session_timeout": f"{idle * 1000:.0f}",
        }
        return {
            "command_timeout": None if statement_seconds is None else statement_seconds + _MARGIN_SECONDS,
            "server_settings": _SESSION | session,
        }

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


def _limit_silence(connection: LimitedConnection) -> None:
    transport: asyncio.Transport = connection._transport  # type: ignore[attr-defined]  # no public way leads there
    own_socket = transport.get_extra_info("socket")
    if own_socket is None or own_socket.family == socket.AF_UNIX:
        return
    own_socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _SOCKET_OPTIONS.items():
        if (option := getattr(socket, name, None)) is not None:
            own_socket.setsockopt(socket.IPPROTO_TCP, option, value)
