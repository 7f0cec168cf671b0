"""The pending tasks of a measurement of cycles, in the same number and condition each time."""

from dataclasses import dataclass, field

import asyncpg

from benchmarks import submit
from benchmarks.testbed import Testbed


@dataclass(slots=True, kw_only=True)
class Backlog:
    """Filled over HTTP, so that filling is a measurement as well; `rates` are tasks per second."""

    testbed: Testbed
    tasks: int
    rates: list[float] = field(default_factory=list)

    async def fill(self) -> None:
        """Fill up to the number of tasks, with fresh statistics and nothing dead at the head of the queue."""
        connection = await asyncpg.connect(self.testbed.database_url)
        try:
            count = self.tasks - await connection.fetchval("SELECT count(*) FROM tasks")
            if count > 0:
                self.rates.append(await submit.tasks_per_second(self.testbed, count))
            await connection.execute("VACUUM ANALYZE tasks")
            await connection.execute("CHECKPOINT")
        finally:
            await connection.close()
