"""Who has been served: when each worker got its last lease, and whose lease is its first."""

import asyncio
from collections.abc import Collection

from app.domain.workers import WorkerId
from app.store import fleet, hot
from app.store.database import Database

_REMEMBERED_WORKERS = 20_000


class Served:
    """What a process remembers of the workers that it has given leases; of too many it forgets the oldest."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._at: dict[WorkerId, float] = {}

    def at(self, worker_id: WorkerId) -> float:
        """When the worker got its last lease, by the clock of the event loop; 0.0 when it is not known to have any."""
        return self._at.get(worker_id, 0.0)

    async def note(self, worker_ids: Collection[WorkerId]) -> None:
        """They get a lease now. Replacement records want to know when a new worker received its first."""
        fresh = [worker_id for worker_id in worker_ids if worker_id not in self._at]
        self._at.update(dict.fromkeys(worker_ids, asyncio.get_running_loop().time()))
        while len(self._at) > _REMEMBERED_WORKERS:
            del self._at[next(iter(self._at))]
        if fresh:
            await hot.run(self._database, lambda c: fleet.first_leases(c, fresh))
