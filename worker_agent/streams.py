"""What becomes of the bytes that a handler writes: all, the tail, or whole lines; never more than a bound of them."""

from collections.abc import Callable


class Tail:
    """Keeps the last bytes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept = bytearray()

    def feed(self, data: bytes) -> None:
        self._kept += data
        del self._kept[: -self._limit]

    @property
    def text(self) -> str:
        return self._kept.decode("utf-8", "replace").strip()


class Whole:
    """Keeps everything up to a limit; `is_full` tells that there was more."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.data = bytearray()
        self.is_full = False

    def feed(self, data: bytes) -> None:
        room = self._limit - len(self.data)
        self.data += data[:room]
        self.is_full = self.is_full or len(data) > room


class Lines:
    """Hands on each whole line; a line beyond the limit is dropped and sets `is_full`."""

    def __init__(self, limit: int, on_line: Callable[[bytes], None]) -> None:
        self._limit = limit
        self._on_line = on_line
        self._open = bytearray()
        self.is_full = False

    def feed(self, data: bytes) -> None:
        *whole, rest = data.split(b"\n")
        for part in whole:
            line, self._open = self._open + part, bytearray()
            if len(line) <= self._limit:
                self._on_line(bytes(line))
        self._open += rest
        if len(self._open) > self._limit:
            self.is_full = True
            self._open.clear()
