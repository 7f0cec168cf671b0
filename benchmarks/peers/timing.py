"""What the peers in Python share: batches of 500 from four producers at once, and the report."""

import asyncio
import json
import time

BATCH = 500
_PRODUCERS = 4


async def enqueue_rate(count, submit):
    """Jobs a second; `submit` adds so many at once."""
    rest = [BATCH] * (count // BATCH) + ([count % BATCH] if count % BATCH else [])

    async def produce():
        while rest:
            await submit(rest.pop())

    start_time = time.perf_counter()
    await asyncio.gather(*(produce() for _ in range(_PRODUCERS)))
    return count / (time.perf_counter() - start_time)


class Countdown:
    """Jobs that are still to run; timed from the first to the last."""

    def __init__(self, count):
        self._count = self._rest = count
        self._start_time = self._end_time = 0.0
        self.over = asyncio.Event()

    def tick(self):
        """Note that a job has run."""
        self._start_time = self._start_time or time.perf_counter()
        self._rest -= 1
        if not self._rest:
            self._end_time = time.perf_counter()
            self.over.set()

    @property
    def rate(self):
        """Jobs a second."""
        return self._count / (self._end_time - self._start_time)


def report(enqueue, process):
    """Tell the rates to the benchmark."""
    print(json.dumps({"enqueue": enqueue, "process": process}))
