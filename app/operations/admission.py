"""Letting tasks into the queue: far from full by an estimate, near full one submit at a time and exactly."""

import time
from collections import Counter
from collections.abc import Iterable

from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain.capacity import CapacityPolicy, has_room, overflow, retry_after
from app.domain.errors import QueueFull
from app.domain.tasks import Priority
from app.store import counts, displacement, minutes

_FRESH_SECONDS = 1.0


class Admission:
    """One per process; what it admitted since it last looked counts as waiting."""

    def __init__(self, policy: CapacityPolicy) -> None:
        self.policy = policy
        self._depth: Counter[Priority] = Counter()
        self._read_at = float("-inf")

    async def admit(self, connection: AsyncConnection, priorities: Iterable[Priority], *, inserted: bool) -> None:
        """Let tasks of these priorities in; `inserted` says that the transaction has written them already.

        Raises QueueFull, with the depth and when to come again.
        """
        incoming = Counter(priorities)
        if not incoming:
            return
        if time.monotonic() - self._read_at > _FRESH_SECONDS:
            await self._look(connection, incoming if inserted else Counter())
        if not has_room(self.policy, self._depth, incoming):
            await counts.queue_up(connection)
            await self._look(connection, incoming if inserted else Counter())
            await self._fit(connection, incoming)
        self._depth += incoming

    async def _look(self, connection: AsyncConnection, ours: Counter[Priority]) -> None:
        self._depth = Counter(counts.queued(await counts.read(connection)))
        self._depth.subtract(ours)
        self._read_at = time.monotonic()

    async def _fit(self, connection: AsyncConnection, incoming: Counter[Priority]) -> None:
        found = overflow(self.policy, self._depth, incoming)
        if found is None:
            return
        if self.policy.displaces and found.priority is None:
            below = min(incoming)
            if await displacement.displace(connection, below=below, count=found.excess) >= found.excess:
                return
        per_second = await minutes.finished_per_second(connection)
        raise QueueFull(
            found.reason,
            facts={"depth": found.depth, "limit": found.limit},
            retry_after_seconds=retry_after(found.excess, per_second),
        )
