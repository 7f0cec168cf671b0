"""A control plane of raw bytes, and a client of the gateway that sees each piece of an answer as it comes."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from starlette.types import ASGIApp, Message

Handler = Callable[["Arrival", asyncio.StreamWriter], Awaitable[None]]


@dataclass(slots=True)
class Arrival:
    """A request as it arrived; `rest` is read by whoever wants the body."""

    line: str
    headers: dict[str, str]
    rest: asyncio.StreamReader

    async def body(self) -> bytes:
        """The whole body."""
        if self.headers.get("transfer-encoding") != "chunked":
            return await self.rest.readexactly(int(self.headers.get("content-length", "0")))
        body = b""
        while size := int(await self.rest.readline(), 16):
            body += await self.rest.readexactly(size)
            await self.rest.readline()
        await self.rest.readline()
        return body


@dataclass(slots=True)
class FarSide:
    """Where it serves, and how many connections it took."""

    port: int = 0
    connections: int = 0
    arrivals: list[Arrival] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)


@asynccontextmanager
async def far_side(handler: Handler | None = None, **options: Any) -> AsyncIterator[FarSide]:
    """A server that takes requests one after the other on each connection; without a handler it answers `{}`."""
    side = FarSide()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        side.connections += 1
        # A body that breaks off is no number of bytes either.
        with suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError, ValueError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                fields = [line.split(": ", 1) for line in head[1:-2]]
                arrival = Arrival(head[0], {name.lower(): value for name, value in fields}, reader)
                side.arrivals.append(arrival)
                if handler is not None:
                    await handler(arrival, writer)
                else:
                    side.bodies.append(await arrival.body())
                    writer.write(answer(b"{}"))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, **options)
    side.port = server.sockets[0].getsockname()[1]
    try:
        yield side
    finally:
        server.close()


def answer(body: bytes, status: str = "200 OK", *headers: str) -> bytes:
    """The bytes of an answer."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Content-Type: application/json", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


@dataclass(slots=True)
class Call:
    """One request to an ASGI application, whose client takes each piece when the test says so."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    pieces: "asyncio.Queue[bytes | None]" = field(default_factory=asyncio.Queue)
    task: "asyncio.Task[None] | None" = None
    _messages: "asyncio.Queue[Message]" = field(default_factory=asyncio.Queue)

    def begin(
        self, app: ASGIApp, path: str, *, method: str = "POST", headers: tuple[tuple[str, str], ...] = ()
    ) -> None:
        """Send the head."""
        path, _, query = path.partition("?")
        head = [(b"host", b"relay"), *[(name.encode(), value.encode()) for name, value in headers]]
        scope: dict[str, Any] = {"type": "http", "http_version": "1.1", "method": method, "path": path, "headers": head}
        scope |= {"raw_path": path.encode(), "query_string": query.encode(), "state": {}}

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.status = message["status"]
                self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
                return
            if body := message.get("body", b""):
                await self.pieces.put(body)
            if not message.get("more_body", False):
                await self.pieces.put(None)

        async def run() -> None:
            await app(scope, self._messages.get, send)

        self.task = asyncio.create_task(run())

    def body(self, piece: bytes, *, more: bool = False) -> None:
        """Send part of the body."""
        self._messages.put_nowait({"type": "http.request", "body": piece, "more_body": more})

    def hang_up(self) -> None:
        """Hang up."""
        self._messages.put_nowait({"type": "http.disconnect"})

    async def text(self) -> bytes:
        """The whole body of the answer."""
        whole = b""
        async with asyncio.timeout(30):
            while (piece := await self.pieces.get()) is not None:
                whole += piece
        return whole


async def asked(
    app: ASGIApp, path: str, body: bytes = b"", *, method: str = "POST", headers: tuple[tuple[str, str], ...] = ()
) -> tuple[Call, bytes]:
    """A request that was answered, and the body of its answer."""
    call = Call()
    length = (("content-length", str(len(body))),) if body else ()
    call.begin(app, path, method=method, headers=(*headers, *length))
    call.body(body)
    text = await call.text()
    assert call.task is not None
    await asyncio.wait_for(call.task, 30)
    return call, text
