"""Bounds on what a handler writes: buffers for its tail, its head, or whole lines, and the pace at which it is read."""

import math
import time
from collections.abc import Callable

_BYTES_PER_SECOND = 32 * 2**20
_LINES_PER_SECOND = 2000.0
_BURST_SECONDS = 1.0
_PAUSE_SECONDS = 1.0


class TailBuffer:
    """Keeps the last `limit` bytes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._tail = bytearray()

    def feed(self, data: bytes) -> None:
        self._tail += data
        del self._tail[: -self._limit]

    @property
    def text(self) -> str:
        return self._tail.decode("utf-8", "replace").strip()


class HeadBuffer:
    """Keeps the first `limit` bytes; `is_full` says that there were more."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.data = bytearray()
        self.is_full = False

    def feed(self, data: bytes) -> None:
        room = self._limit - len(self.data)
        self.data += data[:room]
        self.is_full = self.is_full or len(data) > room


class LineBuffer:
    """Passes on each whole line; a line beyond the limit is dropped and sets `is_full`."""

    def __init__(self, limit: int, on_line: Callable[[bytes], None]) -> None:
        self._limit = limit
        self._on_line = on_line
        self._partial_line = bytearray()
        self.is_full = False

    def feed(self, data: bytes) -> None:
        *line_ends, rest = data.split(b"\n")
        for part in line_ends:
            line, self._partial_line = self._partial_line + part, bytearray()
            if len(line) <= self._limit:
                self._on_line(bytes(line))
        self._partial_line += rest
        if len(self._partial_line) > self._limit:
            self.is_full = True
            self._partial_line.clear()


class Pace:
    """Slows a reader down to a pace that leaves the rest of the process room; a second's worth may come at once."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._paid_until = -math.inf

    def pause_after(self, byte_count: int, line_count: int = 0) -> float:
        """Seconds to wait before the next read, one at the longest."""
        now = self._clock()
        cost = max(byte_count / _BYTES_PER_SECOND, line_count / _LINES_PER_SECOND)
        self._paid_until = max(self._paid_until, now - _BURST_SECONDS) + cost
        return min(_PAUSE_SECONDS, max(0.0, self._paid_until - now))
