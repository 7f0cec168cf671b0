"""Many clients at once, over HTTP: every task is accepted exactly once, and a stale token never changes anything."""

import asyncio
import random
from collections import Counter
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import httpx
import pytest

from app.domain.access import Role
from app.domain.agents import AgentType
from tests.system.conftest import Api

_TASKS = 20_000
_SUBMITTERS = 4
_WORKERS = 32


async def _submit(api: Api, count: int) -> set[str]:
    """Submit `count` tasks in batches, each batch sometimes twice, as a client does that lost the answer."""
    ids: set[str] = set()
    async with httpx.AsyncClient(base_url=api.url, headers=api.bearer(Role.SUPERVISOR), timeout=60) as client:
        for _ in range(count // 500):
            tasks = [
                {"id": str(uuid4()), "agent_type": random.choice(list(AgentType)), "goal_id": "flood", "payload": {}}
                for _ in range(500)
            ]
            for _ in range(1 + (random.random() < 0.2)):
                answer = await client.post("/tasks/batch", json={"tasks": tasks})
                assert answer.status_code == 201, answer.text
            ids |= {str(task["id"]) for task in tasks}
    return ids


class _Worker:
    """A client that leases and completes, repeats itself, and now and then tries a token that is not good."""

    def __init__(self, client: httpx.AsyncClient, number: int) -> None:
        self._client = client
        self._number = number
        self._worker_id = ""
        self.accepted: list[str] = []
        self.stale_accepted = 0

    async def register(self, api: Api) -> None:
        body = {"name": f"w{self._number}", "host": "test", "pid": 1, "memory_gb": 1, "cpu_cores": 1}
        answer = await self._client.post(
            "/workers", json=body | {"capabilities": list(AgentType)}, headers=api.bearer(Role.WORKER)
        )
        registered = answer.json()
        self._worker_id = registered["worker_id"]
        self._client.headers["Authorization"] = f"Bearer {registered['key']}"
        await self._beat(None)

    async def work(self, done: asyncio.Event) -> None:
        lease: dict[str, Any] | None = None
        while not done.is_set():
            lease = lease or await self._lease()
            if lease is not None:
                lease = await self._complete(lease)

    async def _lease(self) -> dict[str, Any] | None:
        request = {"request_id": str(uuid4()), "wait_seconds": 0.5, "acknowledge": True}
        answer = await self._client.post("/lease", json=request)
        if random.random() < 0.05:
            again = await self._client.post("/lease", json=request)
            if answer.status_code == 200:
                assert again.json() == answer.json()
            answer = again
        return answer.json() if answer.status_code == 200 else None

    async def _complete(self, lease: dict[str, Any]) -> dict[str, Any] | None:
        path = f"/leases/{lease['task_id']}/complete"
        body = {"token": lease["token"], "result": {"by": self._number}}
        if random.random() < 0.05:
            stale = await self._client.post(path, json=body | {"token": lease["token"] + random.choice([1, 2])})
            self.stale_accepted += stale.status_code == 200
        answer = await self._client.post(path, json=body | {"next": {"request_id": str(uuid4()), "acknowledge": True}})
        assert answer.status_code == 200, answer.text
        self.accepted.append(lease["task_id"])
        if random.random() < 0.05:
            other = await self._client.post(path, json=body | {"result": {"by": "somebody else"}})
            self.stale_accepted += other.status_code == 200
        following: dict[str, Any] | None = answer.json()["lease"]
        return following

    async def _beat(self, lease: dict[str, Any] | None) -> None:
        await self._client.post(f"/workers/{self._worker_id}/heartbeat", json={"state": "ready", "lease": lease})


@pytest.mark.slow
async def test_20000_tasks_are_each_accepted_exactly_once(api: Api, database_url: str, tmp_path: Path) -> None:
    clients = [httpx.AsyncClient(base_url=api.url, timeout=60, trust_env=False) for _ in range(_WORKERS)]
    workers = [_Worker(client, number) for number, client in enumerate(clients)]
    for worker in workers:
        await worker.register(api)
    done = asyncio.Event()
    working = [asyncio.create_task(worker.work(done)) for worker in workers]
    batches = await asyncio.gather(*(_submit(api, _TASKS // _SUBMITTERS) for _ in range(_SUBMITTERS)))
    connection = await asyncpg.connect(database_url)
    async with asyncio.timeout(240):
        while await connection.fetchval("SELECT count(*) FROM tasks"):
            await asyncio.sleep(0.2)
    done.set()
    await asyncio.gather(*working)
    for client in clients:
        await client.aclose()
    submitted = set().union(*batches)
    accepted = Counter(task_id for worker in workers for task_id in worker.accepted)
    assert set(accepted) == submitted
    assert set(accepted.values()) == {1}
    assert sum(worker.stale_accepted for worker in workers) == 0
    await _check_database(connection, submitted)
    await connection.close()


async def _check_database(connection: Any, submitted: set[str]) -> None:
    rows = await connection.fetch("SELECT id, state, token, rescues, failures, result->'by' AS by FROM task_history")
    assert {row["id"] for row in rows} == {UUID(task_id) for task_id in submitted}
    assert len(rows) == len(submitted)
    assert {(row["state"], row["token"], row["rescues"], row["failures"]) for row in rows} == {("completed", 1, 0, 0)}
    assert all(row["by"] != '"somebody else"' for row in rows)
    kinds = await connection.fetch(
        "SELECT kind, count(*) AS n, count(DISTINCT task_id) AS tasks FROM events GROUP BY kind"
    )
    assert {row["kind"]: (row["n"], row["tasks"]) for row in kinds} == dict.fromkeys(
        ("task.submitted", "task.assigned", "task.executing", "task.completed"), (len(submitted), len(submitted))
    )
