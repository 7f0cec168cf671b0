"""A server that tells what has become of requests, behind the protocol that all our servers have."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from app.http.bounds import BoundedHeads
from app.http.quiet_server import QuietServer

_PAUSE_SECONDS = 0.2


async def _echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with method, address, headers and body."""
    body, message = b"", await receive()
    while message["type"] == "http.request":
        body += message["body"]
        if not message["more_body"]:
            break
        message = await receive()
    headers = [(name.decode(), value.decode()) for name, value in scope["headers"]]
    text = json.dumps([scope["method"], scope["path"], headers, body.decode()]).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(text))]})
    await send({"type": "http.response.body", "body": text})


@asynccontextmanager
async def serving_app(app: ASGIApp) -> AsyncIterator[QuietServer]:
    """Serve this application until the end of the block."""
    config = uvicorn.Config(app, port=0, http=BoundedHeads, log_config=None, access_log=False, lifespan="off")
    server = QuietServer(config)
    config.load()
    server.lifespan = config.lifespan_class(config)
    await server.startup()
    try:
        yield server
    finally:
        await server.shutdown()


def port_of(server: QuietServer) -> int:
    """The port that it listens on."""
    port: int = server.servers[0].sockets[0].getsockname()[1]
    return port


@asynccontextmanager
async def echo() -> AsyncIterator[int]:
    """Serve until the end of the block; the port."""
    async with serving_app(_echo) as server:
        yield port_of(server)


async def answers(port: int, *segments: bytes) -> tuple[list[int], list[Any]]:
    """Statuses and bodies of all answers to these segments, sent one after the other, until the server hangs up."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for number, segment in enumerate(segments):
        if number:
            await asyncio.sleep(_PAUSE_SECONDS)
        writer.write(segment)
    async with asyncio.timeout(30):
        text = await reader.read()
    writer.close()
    return _parts(text)


def _parts(text: bytes) -> tuple[list[int], list[Any]]:
    statuses: list[int] = []
    bodies: list[Any] = []
    while text:
        head, _, text = text.partition(b"\r\n\r\n")
        lines = head.decode().lower().split("\r\n")
        length = next(int(line.split(":")[1]) for line in lines if line.startswith("content-length:"))
        statuses.append(int(lines[0].split()[1]))
        bodies.append(json.loads(text[:length]))
        text = text[length:]
    return statuses, bodies


def headers_of(body: Any) -> dict[str, str]:
    """The headers that an echo tells of."""
    return dict(body[2])
