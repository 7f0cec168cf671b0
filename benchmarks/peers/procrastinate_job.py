"""Procrastinate: one worker with 30 jobs at once, which its documentation advises for asynchronous tasks."""

import asyncio
import sys

from procrastinate import App, PsycopgConnector
from timing import Countdown, enqueue_rate, report


async def main(url, count):
    app = App(connector=PsycopgConnector(conninfo=url, max_size=30))
    countdown = Countdown(count)

    @app.task(name="noop", queue="bench")
    async def noop(n):
        countdown.tick()

    async with app.open_async():
        await app.schema_manager.apply_schema_async()

        async def submit(size):
            await noop.batch_defer_async(*({"n": n} for n in range(size)))

        enqueue = await enqueue_rate(count, submit)
        await app.run_worker_async(queues=["bench"], concurrency=30, wait=False, install_signal_handlers=False)
        report(enqueue, countdown.rate)


asyncio.run(main(sys.argv[1], int(sys.argv[2])))
