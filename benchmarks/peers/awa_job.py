"""awa: enqueued by COPY, as it advises for many, and worked off by 128 workers of one client."""

import asyncio
import sys
from dataclasses import dataclass

import awa
from timing import Countdown, enqueue_rate, report


@dataclass
class Noop:
    n: int


async def main(url, count):
    client, countdown = awa.AsyncClient(url), Countdown(count)
    await client.migrate()
    await client.install_queue_storage()

    @client.task(Noop, queue="bench")
    async def noop(job):
        countdown.tick()

    async def submit(size):
        await client.enqueue_many_copy([Noop(n) for n in range(size)], queue="bench")

    enqueue = await enqueue_rate(count, submit)
    await client.start([("bench", 128)])
    await countdown.over.wait()
    report(enqueue, countdown.rate)
    await client.shutdown()


asyncio.run(main(sys.argv[1], int(sys.argv[2])))
