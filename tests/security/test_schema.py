"""What fits the OpenAPI document, or nearly, is answered as it says, and never with an error of the service.

A short slice runs with all tests; `make test-schema` sends 20,000 requests.
"""

import asyncio
import os
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.db.database import Database
from app.kernel.access import Role
from tests.security.schema_cases import Campaign
from tests.support.service import registration
from tests.system.conftest import Api, api_process

pytestmark = pytest.mark.slow
CASES = int(os.environ.get("CONVENER_SCHEMA_CASES", "0"))
# Requests of the short slice, and through which part of the operations; most of the time is spent on the first of each.
SLICE = {"reader": (80, 4), "worker": (80, 3), "admin": (240, 1)}


@pytest.mark.parametrize("role", SLICE)
async def test_answers_are_those_of_the_document(role: str, own_database: Database, tmp_path: Path) -> None:
    async with api_process(own_database.url, tmp_path) as api:
        existing, worker_key = await _prepare(api)
        key = worker_key if role == "worker" else api.keys[Role(role)]
        campaign = Campaign(url=api.url, key=key, existing=existing)
        cases, every = (-(-CASES // len(SLICE)), 1) if CASES else SLICE[role]
        await asyncio.to_thread(campaign.run, cases, every)
        print(f"{role}: {campaign.requests} requests, {len(campaign.failures)} kinds of failure")
        await _is_alive(api)
    log = (tmp_path / "api.log").read_text()
    assert not campaign.failures, "\n\n".join(f"{kind}\n{text}" for kind, text in campaign.failures.items())
    assert "Traceback" not in log, log[log.index("Traceback") - 1000 :][:4000]


async def _prepare(api: Api) -> tuple[dict[str, list[str]], str]:
    """Ids of things that exist, by the names of path parameters, and the key of a worker."""
    async with httpx.AsyncClient(base_url=api.url, trust_env=False, headers=api.bearer(Role.ADMIN)) as client:

        async def post(path: str, body: Any = None, key: str | None = None) -> Any:
            headers = {"Authorization": f"Bearer {key}"} if key else None
            answer = await client.post(path, json={} if body is None else body, headers=headers)
            assert answer.is_success, answer.text
            return answer.json()

        await post("/goals", {"id": "kepler", "objective": "what moves the planets?"})
        tasks = [
            await post("/tasks", {"agent_type": agent, "payload": {"n": 1}, "goal_id": "kepler"})
            for agent in ("generation", "ranking", "reflection")
        ]
        worker = await post("/workers", registration(), api.keys[Role.POOL])
        await post(f"/workers/{worker['worker_id']}/heartbeat", {"state": "ready"}, worker["key"])
        checkpoint = await post("/checkpoints")
        existing = {
            "goal_id": ["kepler"],
            "task_id": [str(task["id"]) for task in tasks],
            "worker_id": [str(worker["worker_id"])],
            "checkpoint_id": [str(checkpoint["id"])],
            "number": ["1"],
            "version": ["1", "2"],
        }
        return existing, str(worker["key"])


async def _is_alive(api: Api) -> None:
    async with httpx.AsyncClient(base_url=api.url, trust_env=False) as client:
        assert (await client.get("/livez")).status_code == 200
