"""The least speed of bodies and of answers: who sends or takes them more slowly is let go."""

import asyncio
from typing import NamedTuple

from uvicorn.protocols.http.flow_control import FlowControl

_CHECK_SECONDS = 1.0


class BodyPace(NamedTuple):
    """The least speed of a body: seconds without a byte, in all, and free of a rate; then bytes a second."""

    gap_seconds: float = 30.0
    total_seconds: float = 120.0
    free_seconds: float = 10.0
    bytes_per_second: int = 16 << 10


class TakingPace(NamedTuple):
    """The least speed at which an answer is taken: seconds in which nothing is, and free of a rate; bytes a second."""

    gap_seconds: float = 30.0
    free_seconds: float = 60.0
    bytes_per_second: int = 4 << 10


class BodyWatch:
    """Looks every second at a body of which a part has come, and closes the connection where it comes too slowly."""

    __slots__ = ("_began_at", "_flow", "_last_piece_at", "_loop", "_pace", "_size", "_timer", "_transport")

    def __init__(
        self, transport: asyncio.Transport, flow: FlowControl, loop: asyncio.AbstractEventLoop, pace: BodyPace
    ) -> None:
        self._transport, self._flow, self._loop, self._pace = transport, flow, loop, pace
        self._size = 0
        self._began_at = self._last_piece_at = loop.time()
        self._timer = loop.call_later(_CHECK_SECONDS, self._check)

    def note_piece(self, size: int) -> None:
        """Note that another piece has come, with which the body has this size."""
        self._size, self._last_piece_at = size, self._loop.time()

    def stop(self) -> None:
        """Look no longer."""
        self._timer.cancel()

    def _check(self) -> None:
        if self._transport.is_closing():
            return
        now, pace = self._loop.time(), self._pace
        if self._flow.read_paused:
            # The client waits for room in our memory.
            self._began_at += _CHECK_SECONDS
            self._last_piece_at = now
        seconds = now - self._began_at
        is_late = seconds > pace.total_seconds or now - self._last_piece_at > pace.gap_seconds
        if is_late or self._size < (seconds - pace.free_seconds) * pace.bytes_per_second:
            self._transport.close()
        else:
            self._timer = self._loop.call_later(_CHECK_SECONDS, self._check)


class TakingWatch:
    """Looks every second whether a client takes what was written, until it has taken all, and cuts off who does not."""

    __slots__ = ("_began_at", "_loop", "_pace", "_taken", "_taken_at", "_timer", "_transport", "_untaken")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, pace: TakingPace) -> None:
        self._transport, self._loop, self._pace = transport, loop, pace
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Count from now on what is taken, where that is not done already."""
        if self._timer is None:
            self._untaken, self._taken = self._transport.get_write_buffer_size(), 0
            self._began_at = self._taken_at = self._loop.time()
            self._timer = self._loop.call_later(_CHECK_SECONDS, self._check)

    def stop(self) -> None:
        """Look no longer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _check(self) -> None:
        now, pace, size = self._loop.time(), self._pace, self._transport.get_write_buffer_size()
        self._timer = None
        if not size:
            return
        if size < self._untaken:
            self._taken, self._taken_at = self._taken + self._untaken - size, now
        self._untaken = size
        due = (now - self._began_at - pace.free_seconds) * pace.bytes_per_second
        if now - self._taken_at > pace.gap_seconds or self._taken < due:
            self._transport.abort()
        else:
            self._timer = self._loop.call_later(_CHECK_SECONDS, self._check)
