"""Output of handlers under `convener up`, read while they run and after their worker was killed."""

import asyncio
import os
import signal
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.system.conftest import Up
from tests.system.supervising import ask

pytestmark = pytest.mark.slow


async def _output(up: Up, task_id: str, pieces: int) -> list[dict[str, Any]]:
    """All pieces, once there are so many."""
    async with asyncio.timeout(90):
        while True:
            items: list[dict[str, Any]] = (await ask(up, f"/tasks/{task_id}/logs"))["items"]
            if len(items) >= pieces:
                return items
            await asyncio.sleep(0.2)


async def test_what_an_attempt_wrote_outlives_its_worker(up: Up) -> None:
    await up.start("--handlers", "tests.worker_agent.agents", "--workers", "1")
    task_id = str(uuid4())
    payload = {"do": "talk", "seconds": 300}
    task = {"id": task_id, "agent_type": "generation", "payload": payload}
    async with httpx.AsyncClient(base_url=up.url, headers=up.bearer("operator"), trust_env=False) as client:
        assert (await client.post("/tasks", json=task)).is_success
        # The handler goes on, and has written nothing at its end yet.
        before = await _output(up, task_id, 2)
        assert [piece["text"].splitlines()[-1][-6:] for piece in before] in (["line 0", "logged"], ["logged", "line 0"])
        worker_id = (await ask(up, f"/tasks/{task_id}"))["worker_id"]
        os.kill((await ask(up, f"/workers/{worker_id}"))["pid"], signal.SIGKILL)
        after = await _output(up, task_id, 4)
        assert after[:2] == before
        assert [piece["stream"] for piece in after] == [piece["stream"] for piece in before] * 2
        assert len({piece["token"] for piece in after}) == 2
        assert (await client.post(f"/tasks/{task_id}/cancel", json={})).is_success
