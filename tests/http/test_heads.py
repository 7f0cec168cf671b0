"""A client without a key cannot fill the memory of the service, and one with long bodies is left alone."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from app.kernel.access import Role
from tests.system.conftest import Api, api_process

_PIECE = b"a" * 65_536
_MANY = 1000


@pytest.fixture
async def process(database_url: str, tmp_path: Path) -> AsyncIterator[Api]:
    async with api_process(database_url, tmp_path) as process:
        yield process


async def _until_cut_off(process: Api, head: str) -> tuple[bytes, int]:
    """The answer to a head that would go on for 64 MB, and how many pieces of it were taken."""
    reader, writer = await asyncio.open_connection("127.0.0.1", process.port)
    writer.write(head.encode())
    sent = 0
    try:
        for sent in range(_MANY):  # noqa: B007 (how far it came)
            writer.write(_PIECE)
            await writer.drain()
        answer = await reader.read(1000)
    except ConnectionError:
        answer = b""
    finally:
        writer.close()
    return answer, sent


@pytest.mark.parametrize(
    "head",
    [
        "GET /livez HTTP/1.1\r\nHost: x\r\nX: ",
        "GET /",
        "POST /tasks HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nX: ",
    ],
    ids=["header", "address", "trailer"],
)
async def test_a_head_without_end_is_cut_off(process: Api, head: str) -> None:
    before = psutil.Process(process.pid).memory_info().rss
    async with asyncio.timeout(30):
        _, sent = await _until_cut_off(process, head)
    assert sent < _MANY - 1
    assert psutil.Process(process.pid).memory_info().rss < before + 30_000_000


async def test_long_bodies_and_many_requests_in_a_row_are_not(process: Api) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", process.port)
    body = b'{"agent_type": "ranking", "payload": {"a": "' + b"a" * 1_000_000 + b'"}}'
    key = process.keys[Role.SUPERVISOR]
    lines = ["POST /tasks HTTP/1.1", "Host: x", f"Authorization: Bearer {key}", "Content-Type: application/json"]
    post = "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body
    get = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
    last = get.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    writer.write(post * 3 + get * 200 + last)
    async with asyncio.timeout(30):
        answers = await reader.read()
    assert (answers.count(b"HTTP/1.1 201"), answers.count(b"HTTP/1.1 200")) == (3, 201)
    writer.close()


async def test_requests_that_wait_for_each_other_take_no_memory(process: Api) -> None:
    """Each is some kilobytes once it is parsed, and 10,000 of them come in one read."""
    before = psutil.Process(process.pid).memory_info().rss
    connections = [await asyncio.open_connection("127.0.0.1", process.port) for _ in range(10)]
    for _, writer in connections:
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 40_000)
    async with asyncio.timeout(30):
        for reader, _ in connections:
            assert (await reader.read(12)) == b"HTTP/1.1 404"
        other_reader, other = await asyncio.open_connection("127.0.0.1", process.port)
        other.write(b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert b" 200 " in await other_reader.read(1000)
    assert psutil.Process(process.pid).memory_info().rss < before + 50_000_000
    for _, writer in (*connections, (other_reader, other)):
        writer.close()
