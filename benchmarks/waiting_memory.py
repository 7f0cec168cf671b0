"""How much memory the API needs while many workers wait for a task."""

import asyncio

from benchmarks.processes import rss_mb
from benchmarks.surroundings import Surroundings
from benchmarks.workers import Worker, all_waiting, hire, let_go

WORKERS = 500
_LONGER_THAN_THE_MEASUREMENT = 30


async def api_rss_mb(where: Surroundings, count: int = WORKERS) -> float:
    """MiB with `count` registered workers in long polls."""
    workers = await hire(where, count)
    waits = [asyncio.create_task(_wait(worker)) for worker in workers]
    await all_waiting(where, count)
    memory = rss_mb(where.api)
    let_go(workers)
    await asyncio.gather(*waits)
    await all_waiting(where, 0)
    return memory


async def _wait(worker: Worker) -> None:
    try:
        await worker.lease(wait_seconds=_LONGER_THAN_THE_MEASUREMENT)
    except ConnectionError:
        return
