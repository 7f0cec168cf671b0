"""How long a waiting worker waits for a task that comes in while nothing else happens."""

import asyncio
import random
import time

from benchmarks.http_client import Connection, connect
from benchmarks.surroundings import Surroundings
from benchmarks.workers import Worker, hire

SAMPLES = 300
_WARM_UP = 20
_TASK = {"agent_type": "reflection", "payload": {"topic": "planetary motion"}}


async def seconds_to_lease(where: Surroundings, samples: int = SAMPLES) -> list[float]:
    """From just before POST /tasks until the lease is in the worker's hands, one task at a time."""
    (worker,) = await hire(where, 1)
    supervisor = await connect(where.port, where.key)
    measured = [await _one(worker, supervisor) for _ in range(_WARM_UP + samples)]
    worker.close()
    supervisor.close()
    return measured[_WARM_UP:]


async def _one(worker: Worker, supervisor: Connection) -> float:
    arrival = asyncio.create_task(_arrival(worker))
    # Until the worker waits, and not in step with anything that happens at regular intervals.
    await asyncio.sleep(random.uniform(0.015, 0.025))
    started = time.perf_counter()
    (await supervisor.post("/tasks", _TASK)).json()
    return await arrival - started


async def _arrival(worker: Worker) -> float:
    lease = await worker.lease(wait_seconds=30)
    arrived = time.perf_counter()
    if lease is None:
        raise RuntimeError("a waiting worker was not given the task")
    await worker.complete(lease, and_next=False)
    return arrived
