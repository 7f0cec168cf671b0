"""Throughput of submitting tasks over HTTP, in batches and one by one."""

import asyncio
import itertools
import time

from app.kernel.agents import AgentType
from benchmarks.http_client import Connection, connect
from benchmarks.testbed import Testbed

BATCH = 500
CLIENTS = 4
# Of single tasks, each with a goal of its own.
SINGLE_CLIENTS = (1, 16, 64)
_WARM_UP_SECONDS = 1.0
_TASKS: list[dict[str, object]] = [
    {
        "agent_type": agent.value,
        "payload": {"topic": "planetary motion", "prompt": "Which law explains the periods of the planets?"},
        "labels": {"source": "benchmark"},
    }
    for agent in AgentType
]


async def tasks_per_second(testbed: Testbed, count: int, goals: int = 1) -> float:
    """Submit `count` tasks, spread over all agent types and so many goals.

    They stay as the backlog of what is measured next.
    """
    tasks = [{**task, "goal_id": f"goal-{goal}"} for goal in range(goals) for task in _TASKS]
    batches = [BATCH] * (count // BATCH) + ([count % BATCH] if count % BATCH else [])
    connections = [await connect(testbed.port, testbed.key) for _ in range(CLIENTS)]
    start_time = time.perf_counter()
    await asyncio.gather(*(_submit(connection, tasks, batches) for connection in connections))
    seconds = time.perf_counter() - start_time
    for connection in connections:
        connection.close()
    return count / seconds


async def single_tasks_per_second(testbed: Testbed, clients: int, seconds: float) -> float:
    """Submit tasks one by one for so long, of all agent types in turns, each client to another goal."""
    connections = [await connect(testbed.port, testbed.key) for _ in range(clients)]
    start_time = time.perf_counter() + _WARM_UP_SECONDS
    counts = await asyncio.gather(
        *(_submit_singly(connection, f"goal-{n}", start_time, seconds) for n, connection in enumerate(connections))
    )
    for connection in connections:
        connection.close()
    return sum(counts) / seconds


async def _submit_singly(connection: Connection, goal_id: str, start_time: float, seconds: float) -> int:
    """Submit until the time is over; return how many were answered within it."""
    count, tasks = 0, itertools.cycle(_TASKS)
    while (moment := time.perf_counter()) < start_time + seconds:
        (await connection.post("/tasks", {**next(tasks), "goal_id": goal_id})).json()
        count += moment >= start_time
    return count


async def _submit(connection: Connection, tasks: list[dict[str, object]], batches: list[int]) -> None:
    """Submit batches of these tasks in turns, from the list of sizes that all clients share, until it is empty."""
    while batches:
        size = batches.pop()
        (await connection.post("/tasks/batch", {"tasks": [tasks[n % len(tasks)] for n in range(size)]})).json()
