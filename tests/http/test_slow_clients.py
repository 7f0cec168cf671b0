"""A client that stops in the middle of a request is let go, one that is slow but goes on is not."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack, suppress
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from app.db.database import Database
from app.http.bounds import BoundedHeads
from app.http.paces import BodyPace, TakingPace
from app.http.untaken_answers import UntakenAnswers
from app.kernel.access import Role
from tests.support.echo import port_of, serving_app
from tests.support.sql import value
from tests.support.streams import Port, on_a_port

_GET = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture
async def port(database: Database, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Port]:
    monkeypatch.setattr(BoundedHeads, "idle_seconds", 1.0)
    monkeypatch.setattr(BoundedHeads, "pace", BodyPace(gap_seconds=3.0))
    async with on_a_port(database) as port:
        yield port


async def _until_let_go(port: Port, said: bytes) -> bytes:
    """All that is answered to these bytes until the service closes the connection, which the client leaves open."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port.number)
    writer.write(said)
    async with asyncio.timeout(30):
        answer = await reader.read()
    writer.close()
    return answer


def _submit(port: Port, length: int) -> bytes:
    lines = ["POST /tasks HTTP/1.1", "Host: x", f"Authorization: Bearer {port.service.keys[Role.SUPERVISOR]}"]
    lines += ["Content-Type: application/json", f"Content-Length: {length}", "", ""]
    return "\r\n".join(lines).encode()


async def test_who_says_nothing_is_let_go(port: Port) -> None:
    assert await _until_let_go(port, b"") == b""


@pytest.mark.parametrize(
    "said", [b"GET /li", b"GET /livez HTTP/1.1\r\nHost: x\r\n", b"\r\n"], ids=["line", "head", "blank"]
)
async def test_half_a_head_is_answered_with_408(port: Port, said: bytes) -> None:
    assert (await _until_let_go(port, said)).startswith(b"HTTP/1.1 408 Request Timeout\r\n")


@pytest.mark.parametrize("said", [b"GET /li", b"\r\n"], ids=["line", "blank"])
async def test_a_connection_that_was_used_before_waits_no_longer(port: Port, said: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port.number)
    async with asyncio.timeout(30):
        writer.write(_GET)
        await reader.readuntil(b"}")
        writer.write(said)
        assert (await reader.read()).startswith(b"HTTP/1.1 408 Request Timeout\r\n")
    writer.close()


async def test_half_a_head_behind_a_body_that_came_in_pieces_is_answered_with_408(port: Port) -> None:
    body = b'{"agent_type": "ranking", "payload": {}}'
    reader, writer = await asyncio.open_connection("127.0.0.1", port.number)
    async with asyncio.timeout(30):
        writer.write(_submit(port, len(body)) + body[:10])
        while not port.service.app.state.uploads._in_all:  # it is let in before its body is read
            await asyncio.sleep(0.01)
        writer.write(body[10:] + b"GET /li")
        answer = await reader.read()
    assert (answer.count(b"HTTP/1.1 201"), answer.count(b"HTTP/1.1 408")) == (1, 1)
    writer.close()


async def test_a_body_that_is_whole_is_awaited_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer may take longer than the body might have."""
    monkeypatch.setattr(BoundedHeads, "pace", BodyPace(gap_seconds=0.5))
    half_is_there = asyncio.Event()

    async def answer_late(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive())["more_body"]:
            half_is_there.set()
        await asyncio.sleep(3)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"{}"})

    async with serving_app(answer_late) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", port_of(server))
        async with asyncio.timeout(30):
            writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{")
            await half_is_there.wait()
            writer.write(b"}")
            assert (await reader.readuntil(b"{}")).startswith(b"HTTP/1.1 200")
        writer.close()


async def test_half_a_body_submits_nothing(port: Port, database: Database, caplog: pytest.LogCaptureFixture) -> None:
    assert await _until_let_go(port, _submit(port, 1000) + b'{"agent_type": "ranking"') == b""
    assert await value(database, "SELECT count(*) FROM tasks") == 0
    assert [record for record in caplog.records if record.exc_info] == []


async def test_a_long_poll_is_no_half_request(port: Port) -> None:
    """It waits for us, longer than we would wait for anybody; and what is asked behind it is answered after it."""
    key = port.service.keys[Role.READER]
    poll = f"GET /events?wait_seconds=2 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n\r\n".encode()
    answer = await _until_let_go(port, poll + _GET + b"GET /li")
    assert (answer.count(b"HTTP/1.1 200"), answer.count(b"HTTP/1.1 408")) == (2, 1)


async def test_a_key_that_is_revoked_in_the_middle_of_a_body_changes_nothing(port: Port, database: Database) -> None:
    call, keys = port.service.client.request, port.service.keys
    body = b'{"agent_type": "ranking", "payload": {}}'
    reader, writer = await asyncio.open_connection("127.0.0.1", port.number)
    async with asyncio.timeout(30):
        writer.write(_submit(port, len(body)) + body[:10])
        while not port.service.app.state.uploads._in_all:  # it is let in before its body is read
            await asyncio.sleep(0.01)
        admin, supervisor = ({"Authorization": f"Bearer {keys[role]}"} for role in (Role.ADMIN, Role.SUPERVISOR))
        path = f"/keys/{keys[Role.SUPERVISOR].split('_')[1]}"
        assert (await call("DELETE", path, headers=admin)).status_code == 204
        while (await call("GET", "/tasks", headers=supervisor)).status_code == 200:
            await asyncio.sleep(0.05)
        writer.write(body[10:])
        assert (await reader.readline()).startswith(b"HTTP/1.1 401")
    writer.close()
    assert await value(database, "SELECT count(*) FROM tasks") == 0


@pytest.mark.slow
async def test_who_is_slow_but_goes_on_is_heard(port: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BoundedHeads, "idle_seconds", 5.0)
    monkeypatch.setattr(BoundedHeads, "pace", BodyPace(gap_seconds=15.0))
    body = b'{"agent_type": "ranking", "payload": {"a": "' + b"a" * 20 + b'"}}'
    reader, writer = await asyncio.open_connection("127.0.0.1", port.number)
    writer.write(_submit(port, len(body)))
    for place in range(0, len(body), 4):
        await asyncio.sleep(0.5)
        writer.write(body[place : place + 4])
    async with asyncio.timeout(30):
        assert (await reader.readline()).startswith(b"HTTP/1.1 201")
    writer.close()


@pytest.mark.parametrize(
    "pace",
    [BodyPace(bytes_per_second=10_000, free_seconds=1), BodyPace(total_seconds=2), BodyPace(gap_seconds=1.5)],
    ids=["rate", "total", "gap"],
)
async def test_a_body_that_comes_too_slowly_is_let_go(
    port: Port, pace: BodyPace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BoundedHeads, "pace", pace)
    monkeypatch.setattr(BoundedHeads, "idle_seconds", 60.0)
    reader, writer = await asyncio.open_connection("127.0.0.1", port.number)
    writer.write(_submit(port, 1_000_000) + b'{"agent_type":')
    ending = asyncio.create_task(reader.read())
    async with asyncio.timeout(30):
        while not ending.done():
            if pace.gap_seconds > 2:
                writer.write(b" ")
            await asyncio.sleep(0.2)
    with suppress(ConnectionResetError):  # by bytes that came after the end
        assert await ending == b""
    writer.close()


async def test_a_refused_body_is_read_as_far_as_anybody_would_take_it(port: Port) -> None:
    """A client that sends all before it reads gets its answer; one that never ends is cut off."""
    head = b"POST /tasks HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", port.number)
    writer.write(
        head
        + b"Content-Length: 8000000\r\n\r\n"
        + b" " * 8_000_000
        + _GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    )
    async with asyncio.timeout(30):
        answer = await reader.read()
    assert (answer.count(b"HTTP/1.1 401"), answer.count(b"HTTP/1.1 200")) == (1, 1)
    writer.close()
    reader, writer = await asyncio.open_connection("127.0.0.1", port.number)
    writer.write(head + b"Content-Length: 80000000\r\n\r\n")

    async def send_all() -> None:
        for _ in range(1000):
            writer.write(b" " * 80_000)
            await writer.drain()

    with pytest.raises(ConnectionError):
        await asyncio.wait_for(send_all(), 30)
    writer.close()


async def test_answers_that_nobody_takes_are_bounded(port: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever takes longest is cut off, and the service forgets what it has counted of them."""
    untaken = UntakenAnswers(max_bytes=1_000_000)
    monkeypatch.setattr(BoundedHeads, "untaken_answers", untaken)
    # An answer with the end of the one before it is within the bound: the last client is not cut off for its own.
    task_id = await port.service.submitted(payload={"a": "a" * 900_000})
    head = (
        f"GET /tasks/{task_id} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {port.service.keys[Role.OPERATOR]}\r\n\r\n"
    )
    with ExitStack() as clients:
        for _ in range(12):
            client = clients.enter_context(socket.socket())
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", port.number))
            client.sendall(head.encode() * 16)  # more than the kernel takes
        accepted: set[Any] = set()
        async with asyncio.timeout(30):
            while not any(connection.transport.is_closing() for connection in accepted):
                accepted |= port.server.server_state.connections
                await asyncio.sleep(0.01)
        assert 0 < untaken.total_bytes <= 1_000_000
    async with asyncio.timeout(30):
        while len(untaken):
            await asyncio.sleep(0.05)
    assert untaken.total_bytes == 0


def _large_answers(port: Port, task_id: str, requests: int) -> bytes:
    """Requests for answers of a megabyte."""
    key = port.service.keys[Role.OPERATOR]
    return f"GET /tasks/{task_id} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n\r\n".encode() * requests


@pytest.mark.parametrize(
    "pace",
    [TakingPace(gap_seconds=1.0), TakingPace(free_seconds=1.0, bytes_per_second=1 << 30)],
    ids=["gap", "rate"],
)
@pytest.mark.parametrize(
    "last", [b"", b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"], ids=["open", "closed"]
)
async def test_who_does_not_take_its_answers_is_let_go(
    port: Port, monkeypatch: pytest.MonkeyPatch, pace: TakingPace, last: bytes
) -> None:
    task_id = await port.service.submitted(payload={"a": "a" * 1_000_000})
    monkeypatch.setattr(BoundedHeads, "taking_pace", pace)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", port.number))
        mine = client.getsockname()
        client.sendall(_large_answers(port, task_id, 8) + last)

        def is_there() -> bool:
            connections: set[Any] = port.server.server_state.connections
            return any(connection.client == mine for connection in connections)

        async with asyncio.timeout(30):
            while not is_there():
                await asyncio.sleep(0.01)
            while is_there():
                await asyncio.sleep(0.05)


async def test_who_takes_its_answers_slowly_gets_them(port: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    task_id = await port.service.submitted(payload={"a": "a" * 1_000_000})
    monkeypatch.setattr(BoundedHeads, "taking_pace", TakingPace(gap_seconds=5.0))
    reader, writer = await asyncio.open_connection("127.0.0.1", port.number, limit=4096)
    writer.write(_large_answers(port, task_id, 8))
    size = 0
    async with asyncio.timeout(60):
        while size < 8_000_000:
            piece = await reader.read(1 << 20)
            assert piece, "let go"
            size += len(piece)
            if size % 16 == 0:
                await asyncio.sleep(0.05)
    writer.close()
