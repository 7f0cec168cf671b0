"""Latency of cycles that come at a fixed pace, without coordinated omission: each is timed from the moment at which it
was due, whether a worker was free then or not."""

import asyncio
import time

from benchmarks.cycles import Ledger
from benchmarks.testbed import Testbed
from benchmarks.workers import Lease, Worker, register_workers, retire_workers

_WORKERS = 128
_WARM_UP_SECONDS = 1.0


async def latencies(testbed: Testbed, per_second: float, seconds: float, ledger: Ledger) -> list[float]:
    """Seconds from when each cycle was due until its answer. Needs a backlog; no lease is held afterwards."""
    workers = await register_workers(testbed, _WORKERS)
    holders: asyncio.Queue[tuple[Worker, Lease]] = asyncio.Queue()
    for worker in workers:
        holders.put_nowait((worker, _some(await worker.lease())))
    start_time = time.perf_counter()
    count = int(per_second * (_WARM_UP_SECONDS + seconds))
    results: list[float] = []
    running: set[asyncio.Task[None]] = set()

    async def cycle(due: float) -> None:
        worker, lease = await holders.get()
        following = _some(await worker.complete(lease, and_next=True))
        if due - start_time >= _WARM_UP_SECONDS:
            results.append(time.perf_counter() - due)
        ledger.add([lease.task_id.encode()], 1)
        holders.put_nowait((worker, following))

    for number in range(count):
        due = start_time + number / per_second
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        task = asyncio.create_task(cycle(due))
        running.add(task)
        task.add_done_callback(running.discard)
    await asyncio.gather(*running)
    while not holders.empty():
        worker, lease = holders.get_nowait()
        await worker.complete(lease, and_next=False)
        ledger.add([lease.task_id.encode()], 1)
    await retire_workers(testbed, workers)
    return results


def _some(lease: Lease | None) -> Lease:
    if lease is None:
        raise RuntimeError("the backlog is used up: give more --tasks")
    return lease
