"""A Supervisor beside `convener up`: it submits, waits as long as it takes, and counts what was completed."""

import asyncio
from collections import Counter
from typing import Any
from uuid import uuid4

import httpx

from tests.system.conftest import Up

GOAL = "kills"


async def submit(up: Up, count: int, seconds: float, **fields: Any) -> list[str]:
    """Ids of so many new tasks that take so long; `fields` are others of each."""
    tasks = [
        {
            "id": str(uuid4()),
            "agent_type": "generation",
            "goal_id": GOAL,
            "payload": {"sleep_seconds": seconds},
            **fields,
        }
        for _ in range(count)
    ]
    async with httpx.AsyncClient(base_url=up.url, headers=up.bearer("supervisor"), trust_env=False) as client:
        answer = await client.post("/tasks/batch", json={"tasks": tasks})
    assert answer.status_code == 201, answer.text
    return [str(task["id"]) for task in tasks]


async def ask(up: Up, path: str, **query: str) -> Any:
    """An answer, however long the API may be away."""
    async with httpx.AsyncClient(base_url=up.url, headers=up.bearer("operator"), trust_env=False) as client:
        for _ in range(600):
            try:
                answer = await client.get(path, params=query)
            except httpx.TransportError:
                await asyncio.sleep(0.1)
                continue
            if answer.status_code == 200:
                return answer.json()
            await asyncio.sleep(0.1)
    raise AssertionError(f"{path} never answered")


async def all_completed(up: Up, ids: list[str]) -> None:
    """Return once these tasks, which must be all, are completed."""
    async with asyncio.timeout(180):
        while True:
            page = await ask(up, "/tasks", goal_id=GOAL, limit="500")
            states = {task["id"]: task["state"] for task in page["items"]}
            assert set(states) == set(ids), "a task is lost"
            if set(states.values()) == {"completed"}:
                return
            await asyncio.sleep(0.3)


async def completions(up: Up) -> Counter[str]:
    """How often each task was completed, by the events."""
    completed: Counter[str] = Counter()
    cursor: dict[str, str] = {}
    while True:
        page = await ask(up, "/events", limit="500", **cursor)
        completed.update(event["task_id"] for event in page["items"] if event["kind"] == "task.completed")
        if not page["items"]:
            return completed
        cursor = {"after": page["next"]}
