"""Output of a handler on its way to the control plane: text by stream and offset, of bounded size."""

import codecs
from collections.abc import Iterator
from threading import Lock

from worker_agent.wire import LogPiece, LogStream

HEAD_BYTES = TAIL_BYTES = 64 << 10
# Of one call: its JSON may be six times as long.
_CALL_BYTES = 64 << 10


class OutputLog:
    """Output of one attempt that has not been sent; safe to use from several threads."""

    def __init__(self) -> None:
        self._streams: dict[LogStream, _StreamLog] = {"stdout": _StreamLog(), "stderr": _StreamLog()}
        self._lock = Lock()

    def feed(self, stream: LogStream, data: bytes) -> None:
        with self._lock:
            self._streams[stream].feed(data)

    def take(self) -> list[LogPiece]:
        """Remove the next pieces, as many as one call may have; none when all is sent."""
        pieces: list[LogPiece] = []
        room = _CALL_BYTES
        with self._lock:
            # The one with less to say comes first, so that a chatty one does not keep it waiting.
            for stream, log in sorted(self._streams.items(), key=lambda item: item[1].unsent_bytes):
                for start, text in log.take(room):
                    pieces.append(LogPiece(stream=stream, start=start, text=text))
                    room -= len(text.encode())
        return pieces


class _StreamLog:
    """Unsent text of one stream, as UTF-8: of its first bytes all, of the others the last."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._parts = [_Part(HEAD_BYTES), _Part(TAIL_BYTES)]
        self._end = 0

    @property
    def unsent_bytes(self) -> int:
        return sum(len(part.text) for part in self._parts)

    def feed(self, data: bytes) -> None:
        # No database holds U+0000.
        text = self._decoder.decode(data).replace("\x00", "\ufffd").encode()
        head, tail = self._parts
        room = max(0, HEAD_BYTES - self._end)
        # Never within a character.
        while room < len(text) and room > 0 and text[room] & 0xC0 == 0x80:
            room += 1
        head.add(self._end, text[:room])
        tail.add(self._end + len(text[:room]), text[room:])
        self._end += len(text)

    def take(self, room: int) -> Iterator[tuple[int, str]]:
        """Remove up to `room` bytes; yield each piece with its offset."""
        for part in self._parts:
            start, text = part.take(room)
            if text:
                room -= len(text)
                yield start, text.decode()
            if part.text:
                return


class _Part:
    """The last `limit` bytes that were added, less what was taken."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._start = 0
        self.text = bytearray()

    def add(self, offset: int, text: bytes) -> None:
        if not text:
            return
        if not self.text:
            self._start = offset
        self.text += text
        if len(self.text) > self._limit + 4:
            self._drop(_boundary(self.text, len(self.text) - self._limit))

    def take(self, room: int) -> tuple[int, bytes]:
        size = len(self.text) if room >= len(self.text) else _boundary(self.text, max(0, room - 3))
        start, text = self._start, bytes(self.text[:size])
        self._drop(size)
        return start, text

    def _drop(self, size: int) -> None:
        del self.text[:size]
        self._start += size


def _boundary(text: bytearray, position: int) -> int:
    """The next place from here on that is not within a character."""
    while position < len(text) and text[position] & 0xC0 == 0x80:
        position += 1
    return position
