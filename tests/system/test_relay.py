"""Real workers through a real relay: whoever is killed, every task is completed once; many that wait cost little."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest

from app.kernel.access import Role
from tests.support.processes import process
from tests.support.replicas import IS_REPLICATED
from tests.system.conftest import Api, api_process, is_ready, until
from tests.system.relaying import (
    Relay,
    all_completed_once,
    callers,
    relay_to,
    submit,
    until_completed,
    until_waiting,
    waiting_leases,
    workers,
)

pytestmark = pytest.mark.slow
_WAITING = 300
_ID = "8f14e45f-ceea-467f-ab8a-1d2e3f4a5b6c"


def _clients(relay: Relay) -> int:
    assert relay.child is not None
    connections = psutil.Process(relay.child.pid).net_connections("tcp")
    return sum(one.laddr.port == relay.port and one.status == psutil.CONN_ESTABLISHED for one in connections)


async def test_work_goes_on_when_the_relay_is_killed_and_comes_back_to_it(
    api: Api, database_url: str, tmp_path: Path
) -> None:
    async with relay_to(api.url, tmp_path) as relay:
        with workers(f"{relay.address},{api.url}", api.keys[Role.POOL], tmp_path, 2):
            ids = await submit(api, 60, sleep_seconds=0.02)
            await until_completed(database_url, 10)
            assert _clients(relay) >= 2
            relay.kill()
            ids |= await submit(api, 20, sleep_seconds=0.02)
            await all_completed_once(database_url, ids)
            await relay.start()
            await until(lambda: _clients(relay) >= 2, what="workers at the relay again")
            ids |= await submit(api, 20)
            await all_completed_once(database_url, ids)


async def test_workers_that_know_only_the_relay_find_it_again(api: Api, database_url: str, tmp_path: Path) -> None:
    async with relay_to(api.url, tmp_path, path=tmp_path / "relay.sock") as relay:
        with workers(relay.address, api.keys[Role.POOL], tmp_path, 2):
            ids = await submit(api, 60, sleep_seconds=0.02)
            await until_completed(database_url, 10)
            relay.kill()
            await asyncio.sleep(0.5)
            await relay.start()
            await all_completed_once(database_url, ids)


@pytest.mark.skipif(IS_REPLICATED, reason="the other API would answer")
async def test_work_goes_on_when_the_api_behind_is_killed(api: Api, database_url: str, tmp_path: Path) -> None:
    async with relay_to(api.url, tmp_path) as relay:
        with workers(relay.address, api.keys[Role.POOL], tmp_path, 2):
            ids = await submit(api, 60, sleep_seconds=0.02)
            await until_completed(database_url, 10)
            os.kill(api.pid, signal.SIGKILL)
            async with httpx.AsyncClient(trust_env=False, base_url=relay.address) as client:
                away = await client.post("/lease", json={}, headers={"Authorization": "Bearer cvn_a_b"})
                assert (away.status_code, away.json()["code"]) == (502, "control_plane_away")
                assert (await client.get("/livez")).status_code == 200
            environment = {"CONVENER_DATABASE_URL": database_url, "CONVENER_PORT": str(api.port)}
            with process("app.main", environment, tmp_path / "again.log"):
                await all_completed_once(database_url, ids)
                assert await is_ready(relay.address)


async def test_many_that_wait_hold_few_connections_and_each_gets_a_task(database_url: str, tmp_path: Path) -> None:
    # They say nothing while they register, and complete, one after the other.
    patience = {"CONVENER_LOST_AFTER_SECONDS": "600", "CONVENER_LEASE_SECONDS": "600"}
    async with (
        api_process(database_url, tmp_path, **patience) as api,
        relay_to(api.url, tmp_path) as relay,
    ):
        everybody = await callers(api, relay.port, _WAITING)
        waiting = [asyncio.create_task(caller.lease(30)) for caller in everybody]
        await until_waiting(api, _WAITING)
        assert relay.connections_to(api.port) <= 16
        # Those that hang up wait no longer there either; the others do.
        for caller, task in zip(everybody[:100], waiting[:100], strict=True):
            caller.connection.close()
            task.cancel()
        await until_waiting(api, _WAITING - 100)
        ids = await submit(api, _WAITING - 100)
        leases = [lease for task in waiting[100:] if (lease := await asyncio.wait_for(task, 60))]
        assert {lease["task_id"] for lease in leases} == ids
        for caller, lease in zip(everybody[100:], leases, strict=True):
            answer = await caller.connection.post(
                f"/leases/{lease['task_id']}/complete", {"token": lease["token"], "result": {}}
            )
            assert answer.status == 200, answer.body
            caller.connection.close()
        await all_completed_once(database_url, ids)


async def test_a_stop_sends_away_who_waits_and_takes_five_seconds_at_most(api: Api, tmp_path: Path) -> None:
    async with relay_to(api.url, tmp_path) as relay:
        (caller,) = await callers(api, relay.port, 1)
        waiting = asyncio.create_task(caller.connection.post("/lease", {"request_id": _ID, "wait_seconds": 30}))
        await until_waiting(api, 1)
        # A client that stops in the middle of its body, and one that never says anything.
        _, half = await asyncio.open_connection("127.0.0.1", relay.port)
        half.write(b"POST /tasks HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{")
        _, silent = await asyncio.open_connection("127.0.0.1", relay.port)
        began_at = time.monotonic()
        assert await asyncio.to_thread(relay.kill, signal.SIGTERM) == 0
        assert time.monotonic() - began_at < 30
        assert (await asyncio.wait_for(waiting, 30)).status == 503
        await until_waiting(api, 0)
        for writer in (half, silent):
            writer.close()


async def test_a_long_body_passes_without_being_kept_and_a_slow_client_holds_up_nobody(
    api: Api, tmp_path: Path
) -> None:
    async with relay_to(api.url, tmp_path) as relay:
        assert relay.child is not None
        relay_process = psutil.Process(relay.child.pid)
        (caller,) = await callers(api, relay.port, 1)
        _, slow = await asyncio.open_connection("127.0.0.1", relay.port)
        slow.write(b"POST /lease HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer cvn_a_b\r\nContent-Length: 10\r\n\r\n")
        before = relay_process.memory_info().rss
        async with httpx.AsyncClient(trust_env=False, base_url=relay.address, timeout=30) as client:
            client.headers.update(api.bearer(Role.SUPERVISOR))
            refused = await client.post("/tasks", content=b"x" * (13 << 20))
        assert (refused.status_code, refused.json()["code"]) == (413, "body_too_large")
        reader, endless = await asyncio.open_connection("127.0.0.1", relay.port)
        endless.write(b"POST /tasks HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999\r\n\r\n")
        assert b"413" in await asyncio.wait_for(reader.readline(), 30)
        endless.close()
        assert relay_process.memory_info().rss - before < 32 << 20
        assert await caller.lease(0) is None
        assert await waiting_leases(api) == 0
        slow.close()
        caller.connection.close()


@pytest.mark.parametrize(
    ("url", "listen", "words"),
    [
        ("http://127.0.0.1:1", "0.0.0.0:0", "in clear: listen on 127.0.0.1 or a unix socket"),
        ("http://far.test", "127.0.0.1:0", "in clear: use https://"),
    ],
)
async def test_nobody_sends_keys_over_the_network_in_clear(url: str, listen: str, words: str) -> None:
    command = [sys.executable, "-m", "app.cli", "relay", "--url", url, "--listen", listen]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, words in " ".join(done.stderr.split())) == (2, True), done.stderr
