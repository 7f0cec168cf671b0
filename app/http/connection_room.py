"""The number of connections: as many as there are files for, and room for new ones when there are more."""

import asyncio
import logging
import math
import time
from collections.abc import Iterable
from typing import Protocol

from worker_agent.connections.file_limit import ConnectionLimits, raise_file_limit

MAX_CONNECTIONS = 20_000
_FILES_FOR_OTHERS = 128
_REPEAT_SECONDS = 60.0
log = logging.getLogger(__name__)


def raise_limits() -> ConnectionLimits:
    """Let this process open as many files as it may, and share them out."""
    return connection_limits(raise_file_limit(1 << 20))


def connection_limits(files: int) -> ConnectionLimits:
    """The share of connections in the number of files that a process may open."""
    # All that wait are taken in at once, before the first of the others can be closed.
    waiting = min(2048, files // 4)
    return ConnectionLimits(open=max(16, min(MAX_CONNECTIONS, files - waiting - _FILES_FOR_OTHERS)), waiting=waiting)


class Evictable(Protocol):
    """A connection that can be closed for another one."""

    transport: asyncio.Transport
    began_at: float

    @property
    def is_admitted(self) -> bool:
        """Whether its last request came with a key that let it in."""

    @property
    def is_answered(self) -> bool:
        """Whether its last request has been answered; true before the first one."""


class ConnectionRoom:
    """Closes connections that nobody has used with a key for new ones, then those that idle, the oldest first."""

    def __init__(self, max_connections: int) -> None:
        self.max_connections = max_connections
        # Connections that may be made until others are closed for them again.
        self._places = 0
        self._told_at = -math.inf

    def make(self, connections: Iterable[Evictable]) -> None:
        """Make room for a connection that is one too many; itself is one of these."""
        if self._places > 0:
            self._places -= 1
            return
        others = [c for c in connections if not c.transport.is_closing()]
        closable = [c for c in others if not c.is_admitted or c.is_answered]
        # Many at once, so that a flood of connections does not sort all of them again for each one.
        count = max(1, self.max_connections // 16)
        for connection in sorted(closable, key=lambda c: (c.is_admitted, c.began_at))[:count]:
            connection.transport.abort()
        self._tell()
        self._places = min(count, len(closable))

    def _tell(self) -> None:
        """Log, once a minute, that connections are closed for want of room."""
        if time.monotonic() - self._told_at < _REPEAT_SECONDS:
            return
        self._told_at = time.monotonic()
        remedy = "let this process open more files (ulimit -n, LimitNOFILE)"
        if self.max_connections >= MAX_CONNECTIONS:
            remedy = "start another one"
        log.warning("all %d connections are in use, and new ones end others: %s", self.max_connections, remedy)
