"""PgQueuer: batches of 100 instead of 10, drained."""

import asyncio
import sys

import asyncpg
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver, AsyncpgPoolDriver
from pgqueuer.queries import Queries
from pgqueuer.types import QueueExecutionMode
from timing import Countdown, enqueue_rate, report


async def main(url, count):
    async with asyncpg.create_pool(url, min_size=4, max_size=8) as pool:
        queries = Queries(AsyncpgPoolDriver(pool))
        await queries.install()

        async def submit(size):
            await queries.enqueue(["noop"] * size, [b"{}"] * size, [0] * size)

        enqueue = await enqueue_rate(count, submit)
        connection = await asyncpg.connect(url)
        manager, countdown = PgQueuer(AsyncpgDriver(connection)), Countdown(count)

        @manager.entrypoint("noop")
        async def noop(job):
            countdown.tick()

        await manager.run(batch_size=100, mode=QueueExecutionMode.drain)
        await countdown.over.wait()
        report(enqueue, countdown.rate)
        await connection.close()


asyncio.run(main(sys.argv[1], int(sys.argv[2])))
