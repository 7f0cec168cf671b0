"""Latency from submit to lease, for a waiting worker in an otherwise idle system."""

import asyncio
import random
import time

from benchmarks.http_client import Connection, connect
from benchmarks.testbed import Testbed
from benchmarks.workers import Worker, register_workers, retire_workers

SAMPLES = 300
_WARM_UP = 20
_TASK = {"agent_type": "reflection", "payload": {"topic": "planetary motion"}}


async def seconds_to_lease(testbed: Testbed, samples: int = SAMPLES) -> list[float]:
    """Seconds from just before POST /tasks until the worker has the lease, one task at a time."""
    (worker,) = await register_workers(testbed, 1)
    supervisor = await connect(testbed.port, testbed.key)
    latencies = [await _measure_one(worker, supervisor) for _ in range(_WARM_UP + samples)]
    await retire_workers(testbed, [worker])
    supervisor.close()
    return latencies[_WARM_UP:]


async def _measure_one(worker: Worker, supervisor: Connection) -> float:
    arrival = asyncio.create_task(_arrival(worker))
    # Until the worker waits, and not in step with anything that happens at regular intervals.
    await asyncio.sleep(random.uniform(0.015, 0.025))
    start_time = time.perf_counter()
    (await supervisor.post("/tasks", _TASK)).json()
    return await arrival - start_time


async def _arrival(worker: Worker) -> float:
    lease = await worker.lease(wait_seconds=30)
    end_time = time.perf_counter()
    if lease is None:
        raise RuntimeError("a waiting worker was not given the task")
    await worker.complete(lease, and_next=False)
    return end_time
