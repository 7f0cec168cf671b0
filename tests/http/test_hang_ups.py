"""A client that hangs up on the answers to several requests in a row is no error of ours, as uvloop would have it."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from app.kernel.access import Role
from tests.support.service import registration
from tests.system.conftest import Api, api_process

_LARGE = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n"
_TIMES = 5


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hang_ups")


@pytest.fixture(scope="module")
async def process(module_database_url: str, directory: Path) -> AsyncIterator[Api]:
    async with api_process(module_database_url, directory) as process:
        yield process


def _reset_unread(process: Api, requests: bytes) -> socket.socket:
    """A client with room for few bytes, which sends all of these and takes no answer."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.connect(("127.0.0.1", process.port))
    client.sendall(requests)
    return client


def _post(path: str, body: bytes, *lines: str) -> bytes:
    own = ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: x", *own, *lines, "", ""]).encode() + body


async def _heartbeat(process: Api) -> bytes:
    """A lean call that is answered with 200."""
    async with httpx.AsyncClient(base_url=process.url, trust_env=False) as client:
        answer = await client.post("/workers", json=registration(), headers=process.bearer(Role.POOL))
    worker = answer.json()
    return _post(
        f"/workers/{worker['worker_id']}/heartbeat", b'{"state": "ready"}', f"Authorization: Bearer {worker['key']}"
    )


@pytest.mark.parametrize("lane", ["lean", "lean with a key", "plain", "general", "page"])
async def test_answers_that_nobody_takes_any_more_are_dropped(process: Api, directory: Path, lane: str) -> None:
    requests = {
        "lean": _post("/lease", b"{}"),
        "plain": _post("/tasks", b"{}"),
        "general": b"GET /tasks HTTP/1.1\r\nHost: x\r\n\r\n",
        "page": b"GET /docs HTTP/1.1\r\nHost: x\r\n\r\n",
    }
    request = await _heartbeat(process) if lane == "lean with a key" else requests[lane]
    log = directory / "api.log"
    start = log.stat().st_size
    with ExitStack() as clients:
        for _ in range(_TIMES):
            clients.enter_context(_reset_unread(process, (_LARGE + request) * 30))
        await asyncio.sleep(0.5)
    await asyncio.sleep(0.5)
    async with httpx.AsyncClient(base_url=process.url, trust_env=False) as other:
        assert (await other.get("/livez")).status_code == 200
    told = log.read_text()[start:]
    assert "Traceback" not in told, told[:2000]
    assert "returned without" not in told, told[:2000]


@pytest.mark.parametrize("path", ["/dashboard/login", "/dashboard/logout", "/tasks", "/tasks/cancel", "/lease"])
async def test_clients_that_hang_up_in_a_body_leave_no_traces(process: Api, directory: Path, path: str) -> None:
    log = directory / "api.log"
    start = log.stat().st_size
    key = f"Authorization: Bearer {process.keys[Role.ADMIN]}\r\n"
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\n{key}Content-Length: 100\r\n\r\nhalf"
    _, writer = await asyncio.open_connection("127.0.0.1", process.port)
    writer.write(head.encode())
    await writer.drain()
    await asyncio.sleep(0.2)
    writer.close()
    await asyncio.sleep(0.3)
    async with httpx.AsyncClient(base_url=process.url, trust_env=False) as other:
        assert (await other.get("/livez")).status_code == 200
        metrics = await other.get("/metrics", headers=process.bearer(Role.READER))
    assert "Traceback" not in log.read_text()[start:]
    assert 'status="5xx"' not in metrics.text
