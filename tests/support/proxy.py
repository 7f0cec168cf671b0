"""A line to the database that can lose everything without telling anybody."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit


@dataclass(slots=True, kw_only=True)
class Line:
    """What is connected when it is hushed hears nothing any more; what is connected later does."""

    url: str = ""
    count: int = 0
    is_dead: bool = False
    _open: set[asyncio.Event] = field(default_factory=set)
    _writers: list[asyncio.StreamWriter] = field(default_factory=list)

    def hush(self) -> None:
        """From now on nothing goes through on the connections that are open."""
        for hushed in self._open:
            hushed.set()

    def die(self) -> None:
        """From now on nothing goes through on any connection, also on those that are made later."""
        self.is_dead = True
        self.hush()

    def come_back(self) -> None:
        """From now on new connections work; those that were open while the line was dead stay silent for ever."""
        self.is_dead = False

    def close(self) -> None:
        """Hang up at both ends of every connection."""
        for writer in self._writers:
            writer.close()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, port: int) -> None:
        """Carry one connection."""
        hushed = asyncio.Event()
        self._open.add(hushed)
        self.count += 1
        if self.is_dead:
            hushed.set()
        with contextlib.suppress(OSError):
            far_reader, far_writer = await asyncio.open_connection(host, port)
            self._writers += [writer, far_writer]
            await asyncio.gather(_carry(reader, far_writer, hushed), _carry(far_reader, writer, hushed))


@asynccontextmanager
async def silent_line(url: str) -> AsyncIterator[Line]:
    """A line to the database of this URL."""
    parts, line = urlsplit(url), Line()
    host, port = parts.hostname or "127.0.0.1", parts.port or 5432
    serving = await asyncio.start_server(lambda r, w: line.serve(r, w, host, port), "127.0.0.1", 0)
    own = serving.sockets[0].getsockname()[1]
    line.url = parts._replace(netloc=f"{parts.netloc.rpartition('@')[0]}@127.0.0.1:{own}").geturl()
    try:
        yield line
    finally:
        serving.close()
        line.close()


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, hushed: asyncio.Event) -> None:
    while data := await reader.read(1 << 16):
        if not hushed.is_set():
            writer.write(data)
            await writer.drain()
    # A silent line does not carry the end of a connection either.
    if not hushed.is_set():
        writer.close()
