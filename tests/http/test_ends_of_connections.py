"""A connection that nobody uses ends in time, and leaves nothing behind."""

import asyncio
import gc
import socket
import struct
import weakref
from collections.abc import Callable

import pytest
from starlette.types import Receive, Scope, Send

from app.http.bounds import BoundedHeads
from app.http.paces import TakingPace
from tests.http.test_slow_clients import port as port
from tests.support.echo import port_of, serving_app
from tests.support.streams import Port

_GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
_LENGTH = (b"content-length", b"2")


async def _answer(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [_LENGTH]})
    await send({"type": "http.response.body", "body": b"{}"})


async def test_a_client_that_resets_its_connection_is_forgotten() -> None:
    """At once, not when the connection would have idled for too long."""
    async with serving_app(_answer) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", port_of(server))
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.write(_GET)
        await reader.readuntil(b"{}")
        (connection,) = map(weakref.ref, server.server_state.connections)
        writer.transport.abort()
        async with asyncio.timeout(30):
            while server.server_state.connections:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        gc.collect()
        assert connection() is None


async def test_a_refused_client_that_sends_its_body_late_and_nothing_more_is_let_go(port: Port) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port.number)
    async with asyncio.timeout(30):
        writer.write(b"POST /tasks HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 401")
        await reader.readuntil(b"}")
        writer.write(b"{}")
        assert await reader.read() == b""
    writer.close()


@pytest.mark.parametrize(
    "end", [lambda client: client.sendall(b"nonsense\r\n\r\n"), lambda client: client.shutdown(socket.SHUT_WR)]
)
async def test_who_ends_requests_and_takes_nothing_of_half_an_answer_is_let_go(
    monkeypatch: pytest.MonkeyPatch, end: Callable[[socket.socket], None]
) -> None:
    monkeypatch.setattr(BoundedHeads, "taking_pace", TakingPace(gap_seconds=1.0))
    stuck = asyncio.Event()

    async def answer_half(scope: Scope, receive: Receive, send: Send) -> None:
        """Answer until the client takes no more, with less than what uvloop holds back for."""
        await send({"type": "http.response.start", "status": 200})
        (connection,) = server.server_state.connections
        while not connection.transport.get_write_buffer_size():
            await send({"type": "http.response.body", "body": b"a" * 8192, "more_body": True})
            await asyncio.sleep(0.001)
        stuck.set()
        while (await receive())["type"] != "http.disconnect":
            pass

    async with serving_app(answer_half) as server:
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", port_of(server)))
            client.sendall(_GET)
            async with asyncio.timeout(30):
                await stuck.wait()
                end(client)
                while server.server_state.connections:
                    await asyncio.sleep(0.05)
