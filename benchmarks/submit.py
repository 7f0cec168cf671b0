"""Throughput of submitting tasks over HTTP, in batches."""

import asyncio
import time

from app.kernel.agents import AgentType
from benchmarks.http_client import Connection, connect
from benchmarks.testbed import Testbed

BATCH = 500
CLIENTS = 4
_TASKS = [
    {
        "agent_type": agent.value,
        "goal_id": "kepler",
        "payload": {"topic": "planetary motion", "prompt": "Which law explains the periods of the planets?"},
        "labels": {"source": "benchmark"},
    }
    for agent in AgentType
]


async def tasks_per_second(testbed: Testbed, count: int) -> float:
    """Submit `count` tasks, spread over all agent types; they stay as the backlog of what is measured next."""
    batches = [BATCH] * (count // BATCH) + ([count % BATCH] if count % BATCH else [])
    connections = [await connect(testbed.port, testbed.key) for _ in range(CLIENTS)]
    start_time = time.perf_counter()
    await asyncio.gather(*(_submit(connection, batches) for connection in connections))
    seconds = time.perf_counter() - start_time
    for connection in connections:
        connection.close()
    return count / seconds


async def _submit(connection: Connection, batches: list[int]) -> None:
    """Submit batches from the list that all clients share, until it is empty."""
    while batches:
        size = batches.pop()
        (await connection.post("/tasks/batch", {"tasks": [_TASKS[n % len(_TASKS)] for n in range(size)]})).json()
