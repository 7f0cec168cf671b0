"""Letting tasks into the queue: far from full by an estimate, near full one submit at a time and exactly.

A submit that goes by an estimate holds the gate together with others until it commits; one that counts holds it
alone, so it sees every task that was let in before.
"""

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import database
from app.kernel.lanes import Priority
from app.queue.errors import QueueFull
from app.queue.rules.admission import CapacityPolicy, find_overflow, has_room, retry_after
from app.queue.store import counters, dead_letters, throughput
from app.settings import Settings

_FRESH_DEPTH_SECONDS = 1.0
# How much of the queue may be let in between two looks at it: what another process lets in meanwhile is not seen.
_UNSEEN_SHARE = 0.1
# Below this share of every bound an estimate, however old, is good enough for one more submit.
_SAFE_SHARE = 0.5


def policy_of(settings: Settings) -> CapacityPolicy:
    """How much work may wait, as the settings have it."""
    return CapacityPolicy(
        max_queue_size=settings.max_queue_size,
        quotas=dict(zip(sorted(Priority), settings.queue_quotas, strict=True)),
        displaces=settings.queue_displaces,
    )


@dataclass(slots=True, eq=False, kw_only=True)
class Ticket:
    """A submit on its way in: what it wants to bring, and whether it counts, alone, or goes by the estimate."""

    tasks: Counter[Priority]
    counts: bool = False
    is_settled: bool = False
    ended_at: float | None = None

    def end(self) -> None:
        """Its transaction is over."""
        self.ended_at = time.monotonic()


class Admission:
    """One per process."""

    def __init__(self, policy: CapacityPolicy) -> None:
        self.policy = policy
        self._depth: Counter[Priority] = Counter()
        self._read_at = -1.0
        self._epoch = 0
        self._tickets: list[Ticket] = []

    async def enter(self, connection: AsyncConnection, priorities: Iterable[Priority], *, all_new: bool) -> Ticket:
        """Before the tasks are written. `all_new` says that none of them can exist already.

        Raises QueueFull, with the depth and when to come again.
        """
        ticket = Ticket(tasks=Counter(priorities))
        database.when_ended(connection, ticket.end)
        if not await self._goes_by_estimate(connection, ticket):
            ticket.counts = True
            self._tickets.append(ticket)
            await counters.enter_alone(connection)
            if all_new:
                await self._fit(connection, ticket.tasks, written=Counter())
                ticket.is_settled = True
        return ticket

    async def settle(self, connection: AsyncConnection, ticket: Ticket, priorities: Iterable[Priority]) -> None:
        """After the tasks were written: those of these priorities were new. Raises QueueFull."""
        if ticket.counts and not ticket.is_settled:
            entered = Counter(priorities)
            await self._fit(connection, entered, written=entered)

    async def _goes_by_estimate(self, connection: AsyncConnection, ticket: Ticket) -> bool:
        """Join those on the way in, if the estimate will do.

        Who holds the gate together with others cannot wait for having it alone: two of them would wait for each
        other. Giving it back takes a savepoint, which only who is not certain of the outcome pays for.
        """
        if self._books(ticket, within=_SAFE_SHARE):
            if await self._join(connection):
                await self._refuse_overflow(connection, self._estimate() - ticket.tasks, ticket.tasks)
            return True
        async with connection.begin_nested() as savepoint:
            await self._join(connection)
            booked = self._books(ticket, within=self.policy.warning)
            if not booked:
                await savepoint.rollback()
        return booked

    def _books(self, ticket: Ticket, *, within: float) -> bool:
        """Take the place, if the queue stays so far from full and not too much is on its way in unseen by others."""
        under_way = sum(t.tasks.total() for t in self._tickets if t.ended_at is None) + ticket.tasks.total()
        if under_way > _UNSEEN_SHARE * self.policy.max_queue_size or self._read_at < 0:
            return False
        if not has_room(self.policy, self._estimate(), ticket.tasks, within=within):
            return False
        self._tickets.append(ticket)
        return True

    async def _join(self, connection: AsyncConnection) -> bool:
        """Enter together with others; whether the estimate had to be made anew."""
        epoch = await counters.enter_together(connection)
        if epoch == self._epoch and not self._is_stale():
            return False
        await self._look(connection, epoch)
        return True

    def _is_stale(self) -> bool:
        unseen = sum(ticket.tasks.total() for ticket in self._tickets)
        too_many = unseen > _UNSEEN_SHARE * self.policy.max_queue_size
        return too_many or time.monotonic() - self._read_at > _FRESH_DEPTH_SECONDS

    def _estimate(self) -> Counter[Priority]:
        return sum((ticket.tasks for ticket in self._tickets), start=self._depth)

    async def _look(self, connection: AsyncConnection, epoch: int) -> None:
        """Read the depth; it includes whatever ended before. Of two looks at once the one that began later counts."""
        began = time.monotonic()
        depth = Counter(counters.queued(await counters.read(connection)))
        if began >= self._read_at:
            self._depth, self._read_at, self._epoch = depth, began, epoch
            self._tickets = [ticket for ticket in self._tickets if ticket.ended_at is None or ticket.ended_at >= began]

    async def _fit(
        self, connection: AsyncConnection, incoming: Counter[Priority], *, written: Counter[Priority]
    ) -> None:
        depth = Counter(counters.queued(await counters.read(connection)))
        depth.subtract(written)
        await self._refuse_overflow(connection, depth, incoming)

    async def _refuse_overflow(
        self, connection: AsyncConnection, depth: Counter[Priority], incoming: Counter[Priority]
    ) -> None:
        found = find_overflow(self.policy, depth, incoming)
        if found is None:
            return
        if self.policy.displaces and found.priority is None:
            below = min(incoming)
            if await dead_letters.displace(connection, below=below, count=found.excess) >= found.excess:
                return
        raise QueueFull(
            found.reason,
            facts={"depth": found.depth, "limit": found.limit},
            retry_after_seconds=retry_after(found.excess, await throughput.finished_per_second(connection)),
        )
