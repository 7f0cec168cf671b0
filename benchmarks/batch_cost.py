"""Processor time of PostgreSQL for a cycle, where one connection leases and completes batch after batch."""

import itertools
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from uuid import UUID, uuid4

from app.db import hot_path
from app.db.database import Database
from app.db.hot_path import HotConnection
from app.kernel.agents import AgentType
from app.kernel.ids import WorkerId
from app.kernel.lanes import Lane, Priority
from app.queue.rules.tasks import LeasePolicy
from app.queue.store import claims, completions
from app.queue.store.claims import BOTTOM, ClaimOutcome, ClaimRequest
from app.queue.store.completions import Completion
from benchmarks.processes import CpuSeconds
from benchmarks.testbed import Testbed
from benchmarks.workers import RESULT, Worker

SIZES, AIMED_AT = (8, 64, 512), 64
# The first five times a statement is planned anew.
_WARM_UP_CYCLES = 10
_LANES = [Lane(agent_type=agent, priority=Priority.MEDIUM) for agent in AgentType]


@dataclass(slots=True, kw_only=True)
class _Batches:
    """Cycles of these workers, one task each at a time, as the broker asks for them."""

    database: Database
    worker_ids: Sequence[WorkerId]
    backlog: int
    lanes: Iterator[Lane] = field(default_factory=lambda: itertools.cycle(_LANES))
    floors: dict[Lane, float] = field(default_factory=lambda: dict.fromkeys(_LANES, BOTTOM))
    numbers: dict[WorkerId, int | None] = field(default_factory=dict)

    async def run(self, seconds: float) -> int:
        """Lease and complete for so long, or until the backlog is over; return the number of cycles."""
        count, end = 0, time.monotonic() + seconds
        while time.monotonic() < end and self.backlog >= len(self.worker_ids):
            count += await self.cycle()
        return count

    async def cycle(self) -> int:
        """Lease a task to each worker and complete all; return their number."""
        requests = [
            ClaimRequest(worker_id, uuid4(), lane, True, self.floors[lane], last_number=self.numbers.get(worker_id))
            for worker_id, lane in zip(self.worker_ids, self.lanes, strict=False)
        ]
        outcomes = await hot_path.run(self.database, partial(_claim, requests))
        results: list[Completion] = []
        for request, outcome in zip(requests, outcomes, strict=True):
            lease = outcome.lease
            assert lease is not None, "a lane has fewer tasks than the others"
            assert request.lane is not None
            self.numbers[request.worker_id] = outcome.lease_number
            self.floors[request.lane] = max(self.floors[request.lane], lease.tag)
            results.append(
                Completion(lease.task_id, lease.token, request.worker_id, json.dumps(RESULT), bytes(16), None)
            )
        accepted = await hot_path.run(self.database, lambda connection: completions.complete(connection, results))
        assert len(accepted) == len(results), "a result was not accepted"
        self.backlog -= len(accepted)
        return len(accepted)


async def _claim(requests: Sequence[ClaimRequest], connection: HotConnection) -> list[ClaimOutcome]:
    return await claims.claim(connection, requests, LeasePolicy())


async def cpu_ms(testbed: Testbed, workers: Sequence[Worker], seconds: float, backlog: int) -> float:
    """Milliseconds a cycle, of the server with all its processes; of each agent type as many tasks must wait."""
    database = Database(testbed.database_url)
    try:
        ids = [WorkerId(UUID(worker.worker_id)) for worker in workers]
        batches = _Batches(database=database, worker_ids=ids, backlog=backlog)
        for _ in range(_WARM_UP_CYCLES):
            await batches.cycle()
        before = CpuSeconds.read(testbed)
        count = await batches.run(seconds)
        return CpuSeconds.read(testbed).since(before).postgres / count * 1000
    finally:
        await database.close()
