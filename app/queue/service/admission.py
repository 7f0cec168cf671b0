"""Admission of tasks to the queue: by an estimate far from full, and exactly, one submit at a time, near full.

A submit that is admitted by the estimate shares the gate, an advisory lock, until it commits; one that counts exactly
has it alone, so it sees every task that was admitted before.
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
# The share of the queue that this process may admit between two reads of its depth: what others admit meanwhile is not
# seen, so this bounds the error of the estimate.
_UNSEEN_SHARE = 0.1
# Below this share of every limit an estimate, however old, is good enough for one more submit.
_SAFE_SHARE = 0.5


def capacity_policy(settings: Settings) -> CapacityPolicy:
    """The capacity policy of the settings."""
    return CapacityPolicy(
        max_queue_size=settings.max_queue_size,
        quotas=dict(zip(sorted(Priority), settings.queue_quotas, strict=True)),
        displaces=settings.queue_displaces,
    )


@dataclass(slots=True, eq=False, kw_only=True)
class Ticket:
    """The place of a submit until its transaction ends: its tasks, and whether it counts exactly or by the estimate."""

    tasks: Counter[Priority]
    is_exact: bool = False
    is_settled: bool = False
    ended_at: float | None = None

    def end(self) -> None:
        """Note that the transaction of the submit has ended."""
        self.ended_at = time.monotonic()


class Admission:
    """Admission of the submits of one process."""

    def __init__(self, policy: CapacityPolicy) -> None:
        self.policy = policy
        self._depth: Counter[Priority] = Counter()
        self._read_at = -1.0
        self._epoch = 0
        self._tickets: list[Ticket] = []

    async def enter(self, connection: AsyncConnection, priorities: Iterable[Priority], *, all_new: bool) -> Ticket:
        """Admit a submit before its tasks are written; `all_new` says that none of them can exist already.

        Raises QueueFull with the depth and the time to wait.
        """
        ticket = Ticket(tasks=Counter(priorities))
        database.when_ended(connection, ticket.end)
        if not await self._admit_by_estimate(connection, ticket):
            ticket.is_exact = True
            self._tickets.append(ticket)
            await counters.enter_alone(connection)
            if all_new:
                await self._check_exactly(connection, ticket.tasks, written_tasks=Counter())
                ticket.is_settled = True
        return ticket

    async def settle(self, connection: AsyncConnection, ticket: Ticket, priorities: Iterable[Priority]) -> None:
        """Check the limits after the tasks were written; `priorities` are those of the new ones. Raises QueueFull."""
        if ticket.is_exact and not ticket.is_settled:
            new_tasks = Counter(priorities)
            await self._check_exactly(connection, new_tasks, written_tasks=new_tasks)

    async def _admit_by_estimate(self, connection: AsyncConnection, ticket: Ticket) -> bool:
        """Admit the submit by the estimate if that is good enough, and return whether it was.

        Two transactions that share the gate and both wait for having it alone would wait for each other, so it is given
        back first. That takes a savepoint, which only a submit with an uncertain outcome pays for.
        """
        if self._reserve(ticket, within=_SAFE_SHARE):
            if await self._share_gate(connection):
                await self._refuse_overflow(connection, self._estimate() - ticket.tasks, ticket.tasks)
            return True
        async with connection.begin_nested() as savepoint:
            await self._share_gate(connection)
            is_reserved = self._reserve(ticket, within=self.policy.warning)
            if not is_reserved:
                await savepoint.rollback()
        return is_reserved

    def _reserve(self, ticket: Ticket, *, within: float) -> bool:
        """Reserve room, if the queue stays within this share of its limits and not too many tasks are uncommitted."""
        uncommitted_tasks = sum(t.tasks.total() for t in self._tickets if t.ended_at is None) + ticket.tasks.total()
        if uncommitted_tasks > _UNSEEN_SHARE * self.policy.max_queue_size or self._read_at < 0:
            return False
        if not has_room(self.policy, self._estimate(), ticket.tasks, within=within):
            return False
        self._tickets.append(ticket)
        return True

    async def _share_gate(self, connection: AsyncConnection) -> bool:
        """Enter the gate together with others, and return whether the depth had to be read again."""
        # Another epoch: a submit has had the gate alone, and may have filled the queue.
        epoch = await counters.enter_shared(connection)
        if epoch == self._epoch and not self._is_stale():
            return False
        await self._read_depth(connection, epoch)
        return True

    def _is_stale(self) -> bool:
        unseen = sum(ticket.tasks.total() for ticket in self._tickets)
        too_many = unseen > _UNSEEN_SHARE * self.policy.max_queue_size
        return too_many or time.monotonic() - self._read_at > _FRESH_DEPTH_SECONDS

    def _estimate(self) -> Counter[Priority]:
        return sum((ticket.tasks for ticket in self._tickets), start=self._depth)

    async def _read_depth(self, connection: AsyncConnection, epoch: int) -> None:
        """Read the depth, which includes all submits that have ended. Of concurrent reads the one begun last counts."""
        began_at = time.monotonic()
        depth = Counter(counters.queue_depths(await counters.read(connection)))
        if began_at >= self._read_at:
            self._depth, self._read_at, self._epoch = depth, began_at, epoch
            self._tickets = [
                ticket for ticket in self._tickets if ticket.ended_at is None or ticket.ended_at >= began_at
            ]

    async def _check_exactly(
        self, connection: AsyncConnection, incoming: Counter[Priority], *, written_tasks: Counter[Priority]
    ) -> None:
        """Check the limits against the counters, which contain `written_tasks` already."""
        depth = Counter(counters.queue_depths(await counters.read(connection)))
        depth.subtract(written_tasks)
        await self._refuse_overflow(connection, depth, incoming)

    async def _refuse_overflow(
        self, connection: AsyncConnection, depth: Counter[Priority], incoming: Counter[Priority]
    ) -> None:
        overflow = find_overflow(self.policy, depth, incoming)
        if overflow is None:
            return
        # Displacement makes room in the whole queue only: a full quota means that this priority has its share.
        if self.policy.displaces and overflow.priority is None:
            below = min(incoming)
            if await dead_letters.displace(connection, below=below, count=overflow.excess) >= overflow.excess:
                return
        raise QueueFull(
            overflow.reason,
            facts={"depth": overflow.depth, "limit": overflow.limit},
            retry_after_seconds=retry_after(overflow.excess, await throughput.finished_per_second(connection)),
        )
