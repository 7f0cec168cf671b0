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
    _open: set[asyncio.Event] = field(default_factory=set)

    def hush(self) -> None:
        """From now on nothing goes through on the connections that are open."""
        for hushed in self._open:
            hushed.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, port: int) -> None:
        """Carry one connection."""
        hushed = asyncio.Event()
        self._open.add(hushed)
        with contextlib.suppress(OSError):
            far_reader, far_writer = await asyncio.open_connection(host, port)
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


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, hushed: asyncio.Event) -> None:
    while data := await reader.read(1 << 16):
        if not hushed.is_set():
            writer.write(data)
            await writer.drain()
    writer.close()
