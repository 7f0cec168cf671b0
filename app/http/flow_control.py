"""Control of reading: bytes behind a request that has to wait are held, and parsed when it is their turn."""

import asyncio
from collections.abc import Sized
from typing import Protocol

from uvicorn.protocols.http.flow_control import FlowControl

# Parsed at once; 26 bytes are a request, which takes 15 us and some kilobytes.
PIECE_BYTES = 8 << 10


class _Connection(Protocol):
    """The connection whose reading is controlled."""

    loop: asyncio.AbstractEventLoop

    @property
    def pipeline(self) -> Sized:
        """Requests that wait for the answers to those before."""

    def parse(self, data: bytes) -> None:
        """Parse bytes, which may pause reading."""


class HoldingFlowControl(FlowControl):
    """uvicorn's control of reading, which goes on only when what was read before is worked on."""

    # Bytes that have been read and not parsed yet.
    held = b""

    def __init__(self, connection: _Connection, transport: asyncio.Transport) -> None:
        super().__init__(transport)
        self._connection = connection

    def resume_reading(self) -> None:
        """Read on, first what is held; not while requests wait for the answers to those before.

        Until then nobody sees the client hang up: a call that waits for a task, with other requests behind it on its
        connection, waits its time out. Clients send none behind a call that waits, and a lease without a holder ends.
        """
        if not self.read_paused or self._connection.pipeline:
            return
        if self.held:
            self.read_paused = False
            self._connection.loop.call_soon(self._parse_held)
        else:
            super().resume_reading()

    def hold(self, data: bytes) -> None:
        """Parse bytes behind those that are held, and hold what is left when a request has to wait."""
        self.held += data
        self._parse_held()

    def _parse_held(self) -> None:
        start = 0
        while start < len(self.held) and not self.read_paused and not self._transport.is_closing():
            self._connection.parse(self.held[start : start + PIECE_BYTES])
            start += PIECE_BYTES
        self.held = self.held[start:]
        if self.held:
            self._transport.pause_reading()
        elif not self.read_paused:
            self._transport.resume_reading()
