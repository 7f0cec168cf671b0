"""Sixty-four callers in processes of their own, some of them killed: a provider that counts never sees too many."""

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from app.kernel.access import Role
from app.llm.rules.permits import PermitPolicy
from tests.system.conftest import Api, api_process, until

pytestmark = pytest.mark.slow

_PROCESSES, _THREADS = 16, 4
_CALL_SECONDS = 0.3
_TTL_SECONDS = 4.0


class Provider:
    """Counts the calls that are under way at once. A killed caller's call goes on here, as it does elsewhere."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._under_way = 0
        self.calls = 0
        self.peak = 0

    def call(self) -> None:
        """One call, from its beginning to its end."""
        with self._lock:
            self._under_way += 1
            self.calls += 1
            self.peak = max(self.peak, self._under_way)
        time.sleep(_CALL_SECONDS)
        with self._lock:
            self._under_way -= 1

    def start_anew(self) -> None:
        """Forget the peak so far."""
        with self._lock:
            self.peak = self._under_way


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A caller was killed while it was being answered."""


@contextmanager
def serving(provider: Provider) -> Iterator[str]:
    """The address of the provider."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            provider.call()
            self.send_response(200)
            self.send_header("content-length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: Any) -> None:
            pass

    with _Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


async def _allow(http: httpx.AsyncClient, calls: int) -> None:
    found = await http.get("/config")
    change = {"resource_limits": {"max_concurrent_llm_calls": calls}}
    answer = await http.patch("/config", json=change, headers={"If-Match": found.headers["etag"]})
    assert answer.status_code == 200, answer.text


async def _list_model(http: httpx.AsyncClient) -> None:
    answer = await http.put("/llm/models/m", json={}, headers={"If-Match": '"0"'})
    assert answer.status_code == 200, answer.text


async def _live(http: httpx.AsyncClient) -> int:
    return len((await http.get("/llm/permits")).json()["items"])


async def _acquire(http: httpx.AsyncClient) -> int:
    wanted = {"request_id": str(uuid4()), "model": "m", "agent_type": "ranking", "estimated_tokens": 10}
    return (await http.post("/llm/permits", json=wanted)).status_code


def _callers(api: Api, address: str) -> list["subprocess.Popen[bytes]"]:
    script = str(Path(__file__).with_name("permit_callers.py"))
    arguments = [api.url.removeprefix("http://"), address, api.keys[Role.SUPERVISOR], str(_THREADS)]
    return [subprocess.Popen([sys.executable, script, *arguments], stdin=subprocess.PIPE) for _ in range(_PROCESSES)]


def _stop(caller: "subprocess.Popen[bytes]") -> int:
    assert caller.stdin is not None
    caller.stdin.close()
    return caller.wait(60)


async def test_never_too_many_at_once_and_none_left_behind(database_url: str, tmp_path: Path) -> None:
    provider = Provider()
    async with (
        api_process(database_url, tmp_path, CONVENER_PERMIT_SECONDS=str(_TTL_SECONDS)) as api,
        httpx.AsyncClient(base_url=api.url, headers=api.bearer(Role.OPERATOR), trust_env=False, timeout=30) as http,
    ):
        await _list_model(http)
        await _allow(http, 8)
        with serving(provider) as address:
            callers = _callers(api, address)
            try:
                await until(lambda: provider.peak == 8, what="eight calls at once")
                for caller in callers[:4]:
                    caller.kill()
                calls = provider.calls
                await until(lambda: provider.calls > calls + 16, what="the others go on")
                assert provider.peak == 8
                await _allow(http, 3)
                await asyncio.sleep(2 * _CALL_SECONDS)
                provider.start_anew()
                calls = provider.calls
                await until(lambda: provider.calls > calls + 6, what="calls within the smaller limit")
                assert provider.peak <= 3
                ended = [await asyncio.to_thread(_stop, caller) for caller in callers[4:]]
            finally:
                for caller in callers:
                    caller.kill()
                    caller.communicate()
        assert set(ended) == {0}

        async def none_left() -> bool:
            return await _live(http) == 0

        async with asyncio.timeout(4 * _TTL_SECONDS):
            while not await none_left():
                await asyncio.sleep(0.1)
        # The last permit is for others while any wait: the places of those who are gone have to lapse.
        await asyncio.sleep(PermitPolicy().max_retry_seconds + PermitPolicy().lapse_seconds)
        assert [await _acquire(http) for _ in range(4)] == [201, 201, 201, 429]
