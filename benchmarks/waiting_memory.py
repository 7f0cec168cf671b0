"""Memory of the API while many workers wait for a task."""

import asyncio

from benchmarks.processes import rss_mb
from benchmarks.testbed import Testbed
from benchmarks.workers import Worker, all_waiting, close_workers, register_workers, retire_workers

WORKERS = 1_000
_LONGER_THAN_THE_MEASUREMENT = 30


async def api_rss_mb(testbed: Testbed, count: int = WORKERS) -> float:
    """MiB with `count` registered workers in long polls."""
    workers = await register_workers(testbed, count)
    waits = [asyncio.create_task(_wait(worker)) for worker in workers]
    await all_waiting(testbed, count)
    memory = rss_mb(testbed.api)
    close_workers(workers)
    await asyncio.gather(*waits)
    await all_waiting(testbed, 0)
    await retire_workers(testbed, workers)
    return memory


async def _wait(worker: Worker) -> None:
    try:
        await worker.lease(wait_seconds=_LONGER_THAN_THE_MEASUREMENT)
    except ConnectionError:
        return
