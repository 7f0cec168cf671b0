"""Bounded buffers for the bytes that a handler writes: the tail, the head, or whole lines."""

from collections.abc import Callable


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
