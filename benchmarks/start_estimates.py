"""Estimates of starts in live bursts: the share of tasks that real workers begin before the stated p50 and p90."""

import asyncio
import random
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import httpx

from benchmarks import configuration
from benchmarks.figures import Figure
from benchmarks.testbed import Testbed, run_process, start_testbed

_WORKERS = 6
_AGENTS = ("generation", "ranking", "reflection")
_MEAN_SECONDS, _DEVIATION = 0.6, 0.6
_LEARNING, _BURST = 60, 240
# The tasks of one burst are all early or all late together: one alone tells little.
_BURSTS = 12
# Asked at once, and of how many tasks the estimate is asked for again while the burst lasts.
_ASKED_AT_ONCE = 8
_ROUNDS = 2
_PATIENCE = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What was stated of the start of a task."""

    task_id: str
    p50: datetime
    p90: datetime


async def measure(seed: int = 1) -> list[Figure]:
    """The figures of all bursts together."""
    rng = random.Random(seed)
    async with AsyncExitStack() as stack:
        testbed = await stack.enter_async_context(start_testbed(with_loops=True))
        client = await stack.enter_async_context(
            httpx.AsyncClient(
                base_url=f"http://127.0.0.1:{testbed.port}",
                headers={"Authorization": f"Bearer {testbed.key}"},
                trust_env=False,
                timeout=60,
            )
        )
        # As many workers as there are, so that nobody expects more.
        await configuration.change(testbed, {"worker_pool": {"min_workers": _WORKERS, "max_workers": _WORKERS}})
        for _ in range(_WORKERS):
            await _start_worker(stack, testbed)
        await _until_idle(client, await _submit(client, rng, _LEARNING))
        estimates: list[Estimate] = []
        started: dict[str, datetime] = {}
        for _ in range(_BURSTS):
            ids = await _submit(client, rng, _BURST)
            for _ in range(_ROUNDS):
                estimates += await _ask(client, ids)
                await asyncio.sleep(_BURST * _MEAN_SECONDS / _WORKERS / (_ROUNDS + 1))
            await _until_idle(client, ids)
            started |= {task_id: await _started_at(client, task_id) for task_id in ids}
    return _figures(estimates, started)


async def _start_worker(stack: AsyncExitStack, testbed: Testbed) -> None:
    environment = {
        "CONVENER_URL": f"http://127.0.0.1:{testbed.port}",
        "CONVENER_KEY": testbed.pool_key,
        "CONVENER_LOG_LEVEL": "error",
    }
    command = [sys.executable, "-m", "app.cli", "worker", "--handlers", "examples.echo"]
    await stack.enter_async_context(run_process(command, environment))


async def _submit(client: httpx.AsyncClient, rng: random.Random, count: int) -> list[str]:
    """Tasks whose lengths have a lognormal distribution."""
    middle = _MEAN_SECONDS / (1 + _DEVIATION**2) ** 0.5
    tasks = [
        {
            "agent_type": rng.choice(_AGENTS),
            "payload": {"sleep_seconds": min(5.0, middle * rng.lognormvariate(0, _DEVIATION))},
        }
        for _ in range(count)
    ]
    answer = await client.post("/tasks/batch", json={"tasks": tasks})
    answer.raise_for_status()
    return [str(task["id"]) for task in answer.json()["tasks"]]


async def _until_idle(client: httpx.AsyncClient, ids: Sequence[str]) -> None:
    async with asyncio.timeout(_PATIENCE):
        left = list(ids)
        while left:
            await asyncio.sleep(0.5)
            tasks = [(await client.get(f"/tasks/{task_id}")).json() for task_id in left[:20]]
            left = [task["id"] for task in tasks if task["state"] != "completed"] + left[20:]


async def _ask(client: httpx.AsyncClient, ids: Sequence[str]) -> list[Estimate]:
    """The estimates of the tasks that wait."""
    turn = asyncio.Semaphore(_ASKED_AT_ONCE)

    async def ask(task_id: str) -> Estimate | None:
        async with turn:
            why: dict[str, Any] = (await client.get(f"/tasks/{task_id}/why")).json()
        if why["start"] is None:
            return None
        p50, p90 = (datetime.fromisoformat(why["start"][name]) for name in ("p50", "p90"))
        return Estimate(task_id=task_id, p50=p50, p90=p90)

    return [estimate for estimate in await asyncio.gather(*map(ask, ids)) if estimate is not None]


async def _started_at(client: httpx.AsyncClient, task_id: str) -> datetime:
    return datetime.fromisoformat((await client.get(f"/tasks/{task_id}")).json()["leased_at"])


def _figures(estimates: Sequence[Estimate], started: dict[str, datetime]) -> list[Figure]:
    before_p50 = sum(started[estimate.task_id] <= estimate.p50 for estimate in estimates)
    before_p90 = sum(started[estimate.task_id] <= estimate.p90 for estimate in estimates)
    count = max(1, len(estimates))
    return [
        Figure(name="estimates", value=len(estimates)),
        Figure(name="started before p50", value=100 * before_p50 / count, unit="%"),
        Figure(name="started before p90 (85 to 95 %)", value=100 * before_p90 / count, unit="%", target=85),
    ]
