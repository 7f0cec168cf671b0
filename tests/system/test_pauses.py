"""A pause of the API, in which no heartbeat can arrive, costs no worker and no attempt."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.system.conftest import Up
from tests.system.supervising import all_completed, ask, submit

pytestmark = pytest.mark.slow
# Longer than a silent worker is waited for, and than its lease lasts.
_PAUSE_SECONDS = 6


async def test_nobody_is_lost_while_the_api_is_paused(tmp_path: Path) -> None:
    up = Up(
        tmp_path / "state",
        CONVENER_HEARTBEAT_INTERVAL_SECONDS="1",
        CONVENER_LOST_AFTER_SECONDS="3",
        CONVENER_LEASE_SECONDS="4",
    )
    try:
        await up.start("--mode", "production", "--min-workers", "1", "--max-workers", "1")
        await _until(up, "/workers", 1, "ready")
        # It ends while nobody can be told of it.
        ids = await submit(up, 1, _PAUSE_SECONDS / 2)
        await _pause_api(up, 1)
        await all_completed(up, ids)
        async with httpx.AsyncClient(base_url=up.url, headers=up.bearer("operator"), trust_env=False) as client:
            version = (await client.get("/config")).headers["etag"]
            pool = {"worker_pool": {"min_workers": 3, "max_workers": 3}}
            order = await client.patch("/config", json=pool, headers={"If-Match": version})
        assert order.is_success, order.text
        await _until(up, "/workers", 3, "ready")
        ids += await submit(up, 3, _PAUSE_SECONDS + 1)
        await _pause_api(up, 3)
        await all_completed(up, ids)
        tasks = [await ask(up, f"/tasks/{task_id}") for task_id in ids]
        assert [(task["rescues"], task["attempts"]) for task in tasks] == [(0, [])] * 4
        assert (await ask(up, "/replacements"))["items"] == []
        assert [worker["incarnation"] for worker in (await ask(up, "/workers"))["items"]] == [1, 1, 1]
    finally:
        up.stop()


async def _pause_api(up: Up, executing: int) -> None:
    """Stop the API for a while as soon as so many tasks run."""
    await _until(up, "/tasks", executing, "executing")
    api = await up.running("app.main")
    api.suspend()
    await asyncio.sleep(_PAUSE_SECONDS)
    api.resume()


async def _until(up: Up, path: str, count: int, state: str) -> None:
    async with asyncio.timeout(60):
        while True:
            items: list[dict[str, Any]] = (await ask(up, path))["items"]
            if [item["state"] for item in items].count(state) == count:
                return
            await asyncio.sleep(0.1)
