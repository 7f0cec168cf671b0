"""`convener up` under a burst: the pool grows and shrinks between its bounds, and every task is done once."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import httpx
import pytest

from app.kernel.agents import AgentType
from tests.system.conftest import Up

pytestmark = pytest.mark.slow

_LEAST, _MOST, _TASKS, _BATCH = 2, 12, 500, 125
# Each task is a process, which costs more of a machine than the sleep. Together they are ten seconds of work of all.
_TASK_SECONDS = 0.25
_SIZE = """
SELECT count(*) FILTER (WHERE state IN ('starting', 'ready', 'draining')) AS live,
       count(*) FILTER (WHERE state IN ('starting', 'ready') AND directive IS NULL) AS staying FROM workers
"""


class _Watch:
    """Looks at the pool again and again, by a connection of its own."""

    def __init__(self) -> None:
        self.live: list[int] = []
        self.staying: list[int] = []

    async def look(self, url: str) -> None:
        connection = await asyncpg.connect(url)
        try:
            while True:
                row = await connection.fetchrow(_SIZE)
                assert row is not None
                self.live.append(row["live"])
                self.staying.append(row["staying"])
                await asyncio.sleep(0.1)
        finally:
            await connection.close()


@asynccontextmanager
async def _watched(up: Up) -> AsyncIterator[_Watch]:
    watch, url = _Watch(), up.database_url
    looking = asyncio.create_task(watch.look(url))
    try:
        yield watch
        assert not looking.done(), looking
    finally:
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)


async def test_a_burst_grows_the_pool_and_its_end_shrinks_it(up: Up) -> None:
    await up.start("--mode", "production", "--min-workers", str(_LEAST), "--max-workers", str(_MOST), "--workers", "2")
    async with httpx.AsyncClient(base_url=up.url, headers=up.bearer("operator"), trust_env=False, timeout=60) as client:
        await _until(client, lambda now: now["current_workers"] >= _LEAST)
        async with _watched(up) as watch:
            ids = await _submit(client)
            await _until_done(client)
            await _until(client, lambda now: now["current_workers"] == _LEAST)
        assert max(watch.live) == _MOST
        assert min(watch.staying) >= _LEAST
        assert watch.staying[-1] == _LEAST
        assert await _completions(client) == Counter(dict.fromkeys(ids, 1))
        assert (await _get(client, "/dead-letters"))["items"] == []
        await _check_decisions(client)
    assert up.stop() == 0


async def _submit(client: httpx.AsyncClient) -> list[str]:
    """A burst of short tasks of all types."""
    agents, ids, payload = list(AgentType), list[str](), {"sleep_seconds": _TASK_SECONDS}
    for first in range(0, _TASKS, _BATCH):
        tasks = [
            {"agent_type": agents[n % len(agents)], "goal_id": f"goal-{n % 7}", "payload": payload}
            for n in range(first, first + _BATCH)
        ]
        answer = await client.post("/tasks/batch", json={"tasks": tasks})
        assert answer.status_code == 201, answer.text
        ids += [task["id"] for task in answer.json()["tasks"]]
    return ids


async def _get(client: httpx.AsyncClient, path: str, **query: Any) -> Any:
    answer = await client.get(path, params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def _until(client: httpx.AsyncClient, condition: Any) -> None:
    async with asyncio.timeout(150):
        while not condition(await _get(client, "/scaling/recommendation")):
            await asyncio.sleep(0.3)


async def _until_done(client: httpx.AsyncClient) -> None:
    async with asyncio.timeout(240):
        while (await _get(client, "/status"))["tasks"]:
            await asyncio.sleep(0.3)


async def _completions(client: httpx.AsyncClient) -> Counter[str]:
    completed: Counter[str] = Counter()
    query: dict[str, str] = {}
    while (page := await _get(client, "/events", limit=500, **query))["items"]:
        completed.update(event["task_id"] for event in page["items"] if event["kind"] == "task.completed")
        query = {"after": page["next"]}
    return completed


async def _check_decisions(client: httpx.AsyncClient) -> None:
    """Within the bounds, in the specification's words, and the same again."""
    page = await _get(client, "/scaling/decisions", limit=500)
    kinds = Counter(item["decision_type"] for item in page["items"])
    assert kinds["scale_up"] >= 2
    assert kinds["scale_down"] >= 1
    for item in page["items"]:
        assert _LEAST <= item["target_workers"] <= _MOST
        assert (item["decision_type"] == "scale_up") == (item["target_workers"] > item["current_workers"])
        assert (item["decision_type"] == "scale_down") == (item["target_workers"] < item["current_workers"])
    after: int | None = 0
    while after is not None:
        answer = await client.post("/scaling/decisions/replay", json={"after": after, "limit": 100})
        assert answer.json()["different"] == []
        after = answer.json()["next"]
