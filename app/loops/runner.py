"""Runs the schedule: every duty and errand in a loop of its own, and no error ends a loop."""

import asyncio
import logging
import random
from collections.abc import Collection, Sequence

from app.db import duties
from app.kernel.errors import DatabaseUnavailable
from app.loops.schedule import Context, Duty, Errand

log = logging.getLogger(__name__)


class Runner:
    """`run` until cancelled."""

    def __init__(self, context: Context, schedule: Sequence[Duty | Errand]) -> None:
        self._context = context
        self._schedule = schedule
        self._rings = {item.name: asyncio.Event() for item in schedule}
        context.database.announcer.subscribe(self._hear)

    async def run(self) -> None:
        """Do everything on the schedule, each at its own pace."""
        async with asyncio.TaskGroup() as group:
            for item in self._schedule:
                group.create_task(self._repeat(item), name=item.name)

    def _hear(self, topics: Collection[str]) -> None:
        for item in self._schedule:
            if item.wakes_on in topics:
                self._rings[item.name].set()

    async def _repeat(self, item: Duty | Errand) -> None:
        ring = self._rings[item.name]
        while True:
            woken = ring.is_set()
            ring.clear()
            await self._once(item, woken=woken)
            try:
                # A little jitter keeps replicas from trying in step.
                pause = item.seconds * random.uniform(0.9, 1.0)  # noqa: S311
                await asyncio.wait_for(ring.wait(), pause)
            except TimeoutError:
                continue

    async def _once(self, item: Duty | Errand, *, woken: bool) -> None:
        try:
            if isinstance(item, Errand):
                await item.run(self._context)
            else:
                await self._turn(item, woken=woken)
        except DatabaseUnavailable:
            log.warning("%s: the database is away, trying again", item.name)
        except Exception:
            log.exception("%s failed, trying again", item.name)

    async def _turn(self, duty: Duty, *, woken: bool) -> None:
        async with self._context.database.transaction() as connection:
            await duties.ensure(connection, duty.name)
            turn = await duties.claim(connection, duty.name, 0.0 if woken else duty.seconds * 0.85)
            if turn is None:
                return
            result = await duty.run(self._context, connection, turn)
            pace = None if duty.of_one_host else duty.seconds
            held_back = bool(result.get("held_back"))
            await duties.done(connection, duty.name, result, held_back=held_back, every_seconds=pace)
        if any(result.values()):
            log.debug("%s: %s", duty.name, result)
