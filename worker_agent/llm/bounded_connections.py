"""Bounds of the connections to the proxy, which whoever shares the machine can reach: their number and their heads."""

import asyncio
from typing import ClassVar

from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from worker_agent.connections.file_limit import ConnectionLimits, raise_file_limit

MAX_HEAD_BYTES = 16 << 10
_MAX_CONNECTIONS = 2048


def raise_limits() -> ConnectionLimits:
    """Let this process open as many files as it may; leave a quarter of them to whatever else the worker does."""
    files = raise_file_limit(1 << 16)
    # All that wait are taken in at once, before the first of the others can be closed.
    return ConnectionLimits(open=min(_MAX_CONNECTIONS, files // 2), waiting=min(_MAX_CONNECTIONS, files // 4))


class BoundedConnections(H11Protocol):
    """uvicorn's protocol that bounds heads, as httptools keeps those of any length, with a bound on connections."""

    max_connections: ClassVar[int] = _MAX_CONNECTIONS
    _began_at = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Make room for this connection, or end it where there is none."""
        super().connection_made(transport)
        self._began_at = self.loop.time()
        if len(self.connections) <= self.max_connections:
            return
        # Whoever has no key is answered at once, so what is left to wait for is asked by tasks of this worker.
        others = [c for c in self.connections if isinstance(c, BoundedConnections) and c is not self and c._is_idle]
        min(others, key=lambda c: c._began_at, default=self).transport.abort()

    @property
    def _is_idle(self) -> bool:
        """Whether nobody waits for an answer here."""
        cycle: RequestResponseCycle | None = self.cycle
        return not self.transport.is_closing() and (cycle is None or cycle.response_complete)
