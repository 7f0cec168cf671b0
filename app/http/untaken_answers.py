"""The bytes of answers that the clients of a process have still to take, with a bound on their sum."""

import asyncio


class UntakenAnswers:
    """The account of these bytes by connections; who takes longest is cut off when they are too many."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.total_bytes = 0
        # The oldest first.
        self._sizes: dict[asyncio.Transport, int] = {}

    def __len__(self) -> int:
        return len(self._sizes)

    def add(self, transport: asyncio.Transport) -> None:
        """Count what this client did not take at once, and cut off others while all is too much."""
        self.remove(transport)
        self._sizes[transport] = size = transport.get_write_buffer_size()
        self.total_bytes += size
        while self.total_bytes > self.max_bytes and len(self._sizes) > 1:
            slowest = next(iter(self._sizes))
            self.remove(slowest)
            slowest.abort()

    def remove(self, transport: asyncio.Transport) -> None:
        """Count nothing of this client any more."""
        self.total_bytes -= self._sizes.pop(transport, 0)
