"""Many clients at once, over HTTP: every task is accepted exactly once, and a stale token never changes anything."""

import asyncio
import random
from collections import Counter
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from app.kernel.access import Role
from app.kernel.agents import AgentType
from benchmarks.http_client import Connection, connect
from tests.system.conftest import Api

_TASKS = 20_000
_SUBMITTERS = 4
_WORKERS = 32


async def _submit(api: Api, count: int) -> set[str]:
    """Submit `count` tasks in batches, each batch sometimes twice, as a client does that lost the answer."""
    ids: set[str] = set()
    client = await connect(api.port, api.keys[Role.SUPERVISOR])
    for _ in range(count // 500):
        tasks = [
            {"id": str(uuid4()), "agent_type": random.choice(list(AgentType)), "goal_id": "flood", "payload": {}}
            for _ in range(500)
        ]
        for status in (201, 200)[: 1 + (random.random() < 0.2)]:
            answer = await client.post("/tasks/batch", {"tasks": tasks})
            assert answer.status == status, answer.body
        ids |= {str(task["id"]) for task in tasks}
    client.close()
    return ids


class _Worker:
    """A client that leases and completes, repeats itself, and now and then tries a token that is not good."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._client: Connection
        self.accepted: list[str] = []
        self.stale_accepted = 0

    async def register(self, api: Api) -> None:
        pool = await connect(api.port, api.keys[Role.POOL])
        body = {"name": f"w{self._number}", "host": "test", "pid": 1, "memory_gb": 1, "cpu_cores": 1}
        worker = (await pool.post("/workers", body | {"capabilities": list(AgentType)})).json()
        pool.close()
        self._client = await connect(api.port, worker["key"])
        (await self._client.post(f"/workers/{worker['worker_id']}/heartbeat", {"state": "ready"})).json()

    def close(self) -> None:
        self._client.close()

    async def work(self, done: asyncio.Event) -> None:
        lease: dict[str, Any] | None = None
        while not done.is_set():
            lease = lease or await self._lease()
            if lease is not None:
                lease = await self._complete(lease)

    async def _lease(self) -> dict[str, Any] | None:
        request = {"request_id": str(uuid4()), "wait_seconds": 0.5, "acknowledge": True}
        answer = await self._client.post("/lease", request)
        if random.random() < 0.05:
            again = await self._client.post("/lease", request)
            if answer.status == 200:
                first, repeated = answer.json(), again.json()
                # The same lease, renewed.
                assert repeated.pop("expires_at") > first.pop("expires_at")
                assert repeated == first
            answer = again
        return answer.json() if answer.status == 200 else None

    async def _complete(self, lease: dict[str, Any]) -> dict[str, Any] | None:
        path = f"/leases/{lease['task_id']}/complete"
        body = {"token": lease["token"], "result": {"by": self._number}}
        if random.random() < 0.05:
            stale = await self._client.post(path, body | {"token": lease["token"] + random.choice([1, 2])})
            self.stale_accepted += stale.status == 200
        answer = await self._client.post(path, body | {"next": {"request_id": str(uuid4()), "acknowledge": True}})
        assert answer.status == 200, answer.body
        self.accepted.append(lease["task_id"])
        if random.random() < 0.05:
            other = await self._client.post(path, body | {"result": {"by": "somebody else"}})
            self.stale_accepted += other.status == 200
        following: dict[str, Any] | None = answer.json()["lease"]
        return following


@pytest.mark.slow
async def test_20000_tasks_are_each_accepted_exactly_once(api: Api, database_url: str, tmp_path: Path) -> None:
    workers = [_Worker(number) for number in range(_WORKERS)]
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
    for worker in workers:
        worker.close()
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
        "SELECT kind, count(*) AS n, count(DISTINCT task_id) AS tasks FROM every_event GROUP BY kind"
    )
    assert {row["kind"]: (row["n"], row["tasks"]) for row in kinds} == dict.fromkeys(
        ("task.submitted", "task.assigned", "task.executing", "task.completed"), (len(submitted), len(submitted))
    )
