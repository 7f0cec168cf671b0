"""Real processes: a worker whose only signs of life are its calls lives, and one that stops everything is lost."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from app.db.database import Database
from app.kernel.access import Role
from tests.support.ports import free_port
from tests.support.processes import process
from tests.support.service import registration
from tests.support.sql import until, value
from tests.system.conftest import Api, api_process

pytestmark = pytest.mark.slow
_LOST_AFTER = 2.0
_SETTINGS = {"CONVENER_LOST_AFTER_SECONDS": str(_LOST_AFTER), "CONVENER_HEARTBEAT_INTERVAL_SECONDS": "0.5"}


@asynccontextmanager
async def _service(database: Database, tmp_path: Path) -> AsyncIterator[Api]:
    loops = {"CONVENER_DATABASE_URL": database.url, "CONVENER_STATE_DIRECTORY": str(tmp_path), **_SETTINGS}
    loops |= {"CONVENER_PORT": str(free_port()), "CONVENER_POOL_SIZE": "0"}
    with process("app.background", loops, tmp_path / "loops.log"):
        async with api_process(database.url, tmp_path, **_SETTINGS) as api:
            yield api


async def _worker(client: httpx.AsyncClient, api: Api) -> tuple[str, dict[str, str]]:
    """A worker that beats once, and never again; its id and its header."""
    answer = await client.post("/workers", json=registration(), headers=api.bearer(Role.POOL))
    worker, own = answer.json()["worker_id"], {"Authorization": f"Bearer {answer.json()['key']}"}
    beat = await client.post(f"/workers/{worker}/heartbeat", json={"state": "ready"}, headers=own)
    assert beat.status_code == 200, beat.text
    return worker, own


async def _work(client: httpx.AsyncClient, api: Api, own: dict[str, str]) -> None:
    """One task after another, each by its own call for it, its start, its progress and its end."""
    for _ in range(12):
        task = {"agent_type": "ranking"}
        assert (await client.post("/tasks", json=task, headers=api.bearer(Role.SUPERVISOR))).is_success
        wanted = {"request_id": str(uuid4()), "wait_seconds": 5, "agent_types": ["ranking"]}
        lease = (await client.post("/lease", json=wanted, headers=own)).json()
        fence = {"token": lease["token"]}
        for verb, body in (("start", {}), ("progress", {"percent": 50}), ("complete", {"result": {}})):
            answer = await client.post(f"/leases/{lease['task_id']}/{verb}", json=fence | body, headers=own)
            assert answer.is_success, answer.text
            await asyncio.sleep(_LOST_AFTER / 8)


async def _poll(client: httpx.AsyncClient, own: dict[str, str], over: asyncio.Event) -> None:
    """Wait for a task in vain, each time five times as long as a silent worker lives."""
    while not over.is_set():
        wanted = {"request_id": str(uuid4()), "wait_seconds": 5 * _LOST_AFTER, "agent_types": ["generation"]}
        assert (await client.post("/lease", json=wanted, headers=own)).status_code == 204


async def test_calls_keep_a_worker_alive_and_silence_ends_it(own_database: Database, tmp_path: Path) -> None:
    async def state(worker: str) -> str:
        return str(await value(own_database, "SELECT state FROM workers WHERE id = $1", worker))

    async with (
        _service(own_database, tmp_path) as api,
        httpx.AsyncClient(base_url=api.url, trust_env=False, timeout=60) as client,
    ):
        busy, own = await _worker(client, api)
        # More workers than those that go silent, which would look like a fault of our own.
        waiting = [await _worker(client, api) for _ in range(3)]
        silent, _ = await _worker(client, api)
        over = asyncio.Event()
        polls = [asyncio.create_task(_poll(client, header, over)) for _, header in waiting]
        # Each is long over the time after which silence ends a worker.
        await _work(client, api, own)
        assert await state(busy) == "ready"
        assert [await state(worker) for worker, _ in waiting] == ["ready"] * 3
        assert await state(silent) == "lost"
        over.set()
        await asyncio.gather(*polls)

        async def lost() -> bool:
            return await state(busy) == "lost"

        await until(lost)
