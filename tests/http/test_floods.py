"""Strangers with many connections or large bodies neither keep others out nor fill the memory."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import psutil
import pytest

from app.http.connection_room import connection_limits
from app.kernel.access import Role
from tests.support.sql import PATIENCE
from tests.system.conftest import Api, api_process

pytestmark = pytest.mark.slow
_PIECE = b"[]," * 20_000


@pytest.fixture
async def process(database_url: str, tmp_path: Path) -> AsyncIterator[Api]:
    async with api_process(database_url, tmp_path, "tests.support.few_files") as process:
        yield process


def _head(length: int, key: str | None, path: str = "/tasks") -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: x", "Content-Type: application/json", f"Content-Length: {length}"]
    lines += [f"Authorization: Bearer {key}"] if key else []
    return "\r\n".join([*lines, "", ""]).encode()


async def _connect(process: Api) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
    try:
        return await asyncio.open_connection("127.0.0.1", process.port)
    except OSError:
        return None


async def _until_answered(process: Api) -> float:
    """Seconds until a new connection with a key is answered, whatever is tried in vain before."""
    start = time.monotonic()
    while time.monotonic() - start < PATIENCE:
        try:
            async with httpx.AsyncClient(trust_env=False, timeout=2) as client:
                answer = await client.get(f"{process.url}/goals", headers=process.bearer(Role.ADMIN))
                assert answer.status_code == 200
                return time.monotonic() - start
        except httpx.TransportError:
            await asyncio.sleep(0.05)
    raise AssertionError("nobody was answered")


async def test_silent_connections_keep_nobody_out(process: Api) -> None:
    async with httpx.AsyncClient(base_url=process.url, headers=process.bearer(Role.ADMIN), trust_env=False) as regular:
        assert (await regular.get("/goals")).status_code == 200
        silent = [c for c in await asyncio.gather(*(_connect(process) for _ in range(1100))) if c]
        assert len(silent) > 500
        # Others are let in while the silent ones would have stayed for another 10 s, and whoever was there stays.
        assert await _until_answered(process) < 5
        assert psutil.Process(process.pid).num_fds() < 1000
        assert (await regular.get("/goals")).status_code == 200
        for _, writer in silent:
            writer.close()


async def test_a_process_opens_as_many_files_as_it_may(process: Api) -> None:
    assert psutil.Process(process.pid).rlimit(psutil.RLIMIT_NOFILE) == (1024, 1024)


@pytest.mark.parametrize("files", [64, 256, 1024, 4096, 20_000, 1 << 20])
def test_connections_leave_files_to_others(files: int) -> None:
    limits = connection_limits(files)
    assert limits.open + limits.waiting <= max(files - 128, files // 2)
    assert limits.open >= 16


async def test_a_stranger_is_refused_before_a_byte_of_the_body(process: Api) -> None:
    memory = psutil.Process(process.pid).memory_info().rss
    streams = [await asyncio.open_connection("127.0.0.1", process.port) for _ in range(40)]
    for number, (_, writer) in enumerate(streams):
        writer.write(_head(12 << 20, key="cvn_0_0" if number % 2 else None))
    for reader, writer in streams:
        # After so many failures of one address it is 429.
        assert (await asyncio.wait_for(reader.readline(), PATIENCE)).split()[1] in (b"401", b"429")
        for _ in range(50):
            writer.write(_PIECE)
    await asyncio.sleep(0.5)
    assert psutil.Process(process.pid).memory_info().rss < memory + (40 << 20)
    for _, writer in streams:
        writer.close()


async def test_half_sent_bodies_take_a_share_of_the_memory(process: Api) -> None:
    """The first 5 of a key's bodies are taken, then the others are asked to come later; other keys notice nothing."""
    memory = psutil.Process(process.pid).memory_info().rss
    key = process.keys[Role.SUPERVISOR]
    streams = [await asyncio.open_connection("127.0.0.1", process.port) for _ in range(40)]

    async def send(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        writer.write(_head(12 << 20, key) + b'{"agent_type":"ranking","payload":{"a":"')
        for _ in range(11 << 4):
            writer.write(b"x" * 65_536)
            await writer.drain()
        return await reader.readline()

    sending = [asyncio.create_task(send(*stream)) for stream in streams]
    refused = 0
    for first_line in asyncio.as_completed(sending):
        refused += (await first_line).startswith(b"HTTP/1.1 429")
        if refused == 30:
            break
    assert psutil.Process(process.pid).memory_info().rss < memory + (200 << 20)
    body = b'{"agent_type":"ranking","payload":{"a":"' + b"x" * 500_000 + b'"}}'
    async with httpx.AsyncClient(base_url=process.url, headers=process.bearer(Role.ADMIN), trust_env=False) as other:
        answer = await other.post("/tasks", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 201
    for task in sending:
        task.cancel()
    await asyncio.gather(*sending, return_exceptions=True)
    for _, writer in streams:
        writer.close()
