"""The pending tasks that cycles are measured with, the same number and in the same condition each time."""

from dataclasses import dataclass, field

import asyncpg

from benchmarks import submit
from benchmarks.surroundings import Surroundings


@dataclass(slots=True, kw_only=True)
class Backlog:
    """Filled over HTTP, so that filling is a measurement as well; `rates` are tasks per second."""

    where: Surroundings
    tasks: int
    rates: list[float] = field(default_factory=list)

    async def fill(self) -> None:
        """Up to the wanted number, with fresh statistics and nothing dead at the head of the queue."""
        connection = await asyncpg.connect(self.where.database_url)
        try:
            missing = self.tasks - await connection.fetchval("SELECT count(*) FROM tasks")
            if missing > 0:
                self.rates.append(await submit.tasks_per_second(self.where, missing))
            await connection.execute("VACUUM ANALYZE tasks")
            await connection.execute("CHECKPOINT")
        finally:
            await connection.close()
