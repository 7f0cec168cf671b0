"""Admission of tasks to the queue: by an estimate far from full, and exactly, one submit at a time, near full.

A submit that is admitted by the estimate shares the gate, an advisory lock, until it commits; one that counts exactly
has it alone, so it sees every task that was admitted before.
"""

import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from sqlalchemy.ext.asyncio import AsyncConnection

from app.admin.store import namespaces
from app.admin.store.namespaces import Namespaces
from app.db import database
from app.kernel.lanes import Priority
from app.kernel.namespaces import DEFAULT
from app.queue.errors import QueueFull
from app.queue.rules.admission import (
    CapacityPolicy,
    Overflow,
    find_namespace_overflow,
    find_overflow,
    has_room,
    retry_after,
)
from app.queue.service.counters import oldest_since
from app.queue.store import counters, dead_letters, throughput
from app.settings import Settings

_FRESH_DEPTH_SECONDS = 1.0
# The share of the queue that this process may admit between two reads of its depth: what others admit meanwhile is not
# seen, so this bounds the error of the estimate.
_UNSEEN_SHARE = 0.1
# Below this share of every limit an estimate, however old, is good enough for one more submit.
_SAFE_SHARE = 0.5


def settings_policy(settings: Settings) -> CapacityPolicy:
    """The capacity policy of the settings, over which the configuration wins."""
    return CapacityPolicy(
        max_queue_size=settings.max_queue_size,
        quotas=dict(zip(sorted(Priority), settings.queue_quotas, strict=True)),
        displaces=settings.queue_displaces,
    )


@dataclass(slots=True, eq=False, kw_only=True)
class Ticket:
    """The place of a submit until its transaction ends: its tasks, and whether it counts exactly or by the estimate."""

    namespace: str = DEFAULT
    tasks: Counter[Priority]
    is_exact: bool = False
    is_settled: bool = False
    # Where the gate has to have this epoch; void if it had another, and no task was written.
    epoch: int | None = None
    is_void: bool = False
    ended_at: float | None = None


class Tickets:
    """The tickets that the last read of the depth may not have seen, and what their tasks add up to.

    The sums are kept: under load there are thousands of tickets, and every submit looks at all of them.
    """

    def __init__(self) -> None:
        self._tickets: dict[Ticket, None] = {}
        self.tasks: Counter[Priority] = Counter()
        self.by_namespace: Counter[str] = Counter()
        self.total = self.uncommitted = 0

    def __contains__(self, ticket: Ticket) -> bool:
        return ticket in self._tickets

    def __iter__(self) -> Iterator[Ticket]:
        return iter(self._tickets)

    def __len__(self) -> int:
        return len(self._tickets)

    def add(self, ticket: Ticket) -> None:
        """Add a ticket whose submit is under way."""
        self._tickets[ticket] = None
        self._sum_up(ticket, 1)

    def end(self, ticket: Ticket) -> None:
        """Note that the transaction of a submit has ended."""
        if ticket in self._tickets and ticket.ended_at is None:
            self.uncommitted -= ticket.tasks.total()
        ticket.ended_at = time.monotonic()

    def remove(self, ticket: Ticket) -> None:
        """Remove a ticket, unless that was done before."""
        if ticket in self._tickets:
            del self._tickets[ticket]
            self._sum_up(ticket, -1)

    def remove_seen(self, moment: float) -> None:
        """Remove the tickets of submits that had ended at this moment of the monotonic clock."""
        for ticket in [t for t in self._tickets if t.ended_at is not None and t.ended_at < moment]:
            self.remove(ticket)

    def _sum_up(self, ticket: Ticket, sign: int) -> None:
        for priority, tasks in ticket.tasks.items():
            self.tasks[priority] += sign * tasks
        change = sign * ticket.tasks.total()
        self.by_namespace[ticket.namespace] += change
        if not self.by_namespace[ticket.namespace]:
            del self.by_namespace[ticket.namespace]
        self.total += change
        if ticket.ended_at is None:
            self.uncommitted += change


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Tasks that wait, by priority and by namespace, and what namespaces there are."""

    depth: Counter[Priority] = field(default_factory=Counter)
    namespace_depth: Counter[str] = field(default_factory=Counter)
    namespaces: Namespaces = field(default_factory=Namespaces)


class Admission:
    """Admission of the submits of one process."""

    def __init__(self, policy: CapacityPolicy) -> None:
        self.policy = policy
        self._load = Load()
        self._read_at = -1.0
        self._epoch = 0
        self._tickets = Tickets()

    def namespace_limit(self, namespaces: Namespaces, namespace: str) -> int | None:
        """The number of tasks of a namespace that may wait; None without a limit but that of the queue."""
        if not namespaces.is_divided:
            return None
        return math.floor(namespaces.config(namespace).max_tasks_share * self.policy.max_queue_size)

    async def enter(
        self, connection: AsyncConnection, priorities: Iterable[Priority], *, namespace: str = DEFAULT, all_new: bool
    ) -> Ticket:
        """Admit a submit before its tasks are written; `all_new` says that none of them can exist already.

        Raises QueueFull with the depth and the time to wait.
        """
        ticket = Ticket(namespace=namespace, tasks=Counter(priorities))
        database.when_ended(connection, lambda: self._tickets.end(ticket))
        if not await self._admit_by_estimate(connection, ticket):
            ticket.is_exact = True
            self._tickets.add(ticket)
            await counters.enter_alone(connection)
            if all_new:
                await self._check_exactly(connection, ticket, ticket.tasks, written_tasks=Counter())
                ticket.is_settled = True
        return ticket

    @contextmanager
    def entering_unread(self, priorities: Iterable[Priority], *, namespace: str = DEFAULT) -> Iterator[Ticket | None]:
        """Admit a submit by the estimate as it is; the body may write its tasks if the gate has the ticket's epoch.

        None where the depth has to be read first, as `enter` does.
        """
        ticket = Ticket(namespace=namespace, tasks=Counter(priorities))
        if not self._reserve(ticket, within=_SAFE_SHARE):
            yield None
            return
        if self.is_stale:
            self._tickets.remove(ticket)
            yield None
            return
        ticket.epoch = self._epoch
        try:
            yield ticket
        finally:
            self._tickets.end(ticket)
            if ticket.is_void:
                self._tickets.remove(ticket)

    @property
    def is_stale(self) -> bool:
        """Whether the depth has to be read before the next submit is admitted by the estimate."""
        too_many = self._tickets.total > _UNSEEN_SHARE * self.policy.max_queue_size
        return too_many or time.monotonic() - self._read_at > _FRESH_DEPTH_SECONDS

    async def refresh(self, connection: AsyncConnection) -> None:
        """Read the depth if what is known of it is old."""
        await self._share_gate(connection)

    async def settle(self, connection: AsyncConnection, ticket: Ticket, priorities: Iterable[Priority]) -> None:
        """Check the limits after the tasks were written; `priorities` are those of the new ones. Raises QueueFull."""
        if ticket.is_exact and not ticket.is_settled:
            new_tasks = Counter(priorities)
            await self._check_exactly(connection, ticket, new_tasks, written_tasks=new_tasks)

    async def _admit_by_estimate(self, connection: AsyncConnection, ticket: Ticket) -> bool:
        """Admit the submit by the estimate if that is good enough, and return whether it was.

        Two transactions that share the gate and both wait for having it alone would wait for each other, so it is given
        back first. That takes a savepoint, which only a submit with an uncertain outcome pays for.
        """
        if self._reserve(ticket, within=_SAFE_SHARE):
            if await self._share_gate(connection):
                await self._refuse_overflow(connection, self._estimate(ticket), ticket.namespace, ticket.tasks)
            return True
        async with connection.begin_nested() as savepoint:
            await self._share_gate(connection)
            is_reserved = self._reserve(ticket, within=self.policy.warning)
            if not is_reserved:
                await savepoint.rollback()
        return is_reserved

    def _reserve(self, ticket: Ticket, *, within: float) -> bool:
        """Reserve room, if the queue stays within this share of its limits and not too many tasks are uncommitted."""
        uncommitted_tasks = self._tickets.uncommitted + ticket.tasks.total()
        if uncommitted_tasks > _UNSEEN_SHARE * self.policy.max_queue_size or self._read_at < 0:
            return False
        load = self._estimate()
        if not has_room(self.policy, load.depth, ticket.tasks, within=within):
            return False
        limit = self.namespace_limit(load.namespaces, ticket.namespace)
        if limit is not None and load.namespace_depth[ticket.namespace] + ticket.tasks.total() > within * limit:
            return False
        self._tickets.add(ticket)
        return True

    async def _share_gate(self, connection: AsyncConnection) -> bool:
        """Enter the gate together with others, and return whether the depth had to be read again."""
        # Another epoch: a submit has had the gate alone, and may have filled the queue.
        epoch = await counters.enter_shared(connection)
        if epoch == self._epoch and not self.is_stale:
            return False
        await self._read_depth(connection, epoch)
        return True

    def _estimate(self, without: Ticket | None = None) -> Load:
        """The load with all submits of this process since it was read, but for one."""
        load = Load(
            depth=self._load.depth + self._tickets.tasks,
            namespace_depth=self._load.namespace_depth + self._tickets.by_namespace,
            namespaces=self._load.namespaces,
        )
        if without is not None and without in self._tickets:
            load.depth.subtract(without.tasks)
            load.namespace_depth[without.namespace] -= without.tasks.total()
        return load

    async def _read_depth(self, connection: AsyncConnection, epoch: int) -> None:
        """Read the depth, which includes all submits that have ended. Of concurrent reads the one begun last counts."""
        began_at = time.monotonic()
        load = await _read_load(connection)
        if began_at >= self._read_at:
            self._load, self._read_at, self._epoch = load, began_at, epoch
            self._tickets.remove_seen(began_at)

    async def _check_exactly(
        self,
        connection: AsyncConnection,
        ticket: Ticket,
        incoming: Counter[Priority],
        *,
        written_tasks: Counter[Priority],
    ) -> None:
        """Check the limits against the counters, which contain `written_tasks` already."""
        load = await _read_load(connection)
        load.depth.subtract(written_tasks)
        load.namespace_depth.subtract({ticket.namespace: written_tasks.total()})
        await self._refuse_overflow(connection, load, ticket.namespace, incoming)

    def _find_overflow(self, load: Load, namespace: str, incoming: Counter[Priority]) -> Overflow | None:
        limit = self.namespace_limit(load.namespaces, namespace)
        if limit is not None:
            overflow = find_namespace_overflow(namespace, limit, load.namespace_depth[namespace], incoming.total())
            if overflow is not None:
                return overflow
        return find_overflow(self.policy, load.depth, incoming)

    async def _refuse_overflow(
        self, connection: AsyncConnection, load: Load, namespace: str, incoming: Counter[Priority]
    ) -> None:
        overflow = self._find_overflow(load, namespace, incoming) if incoming.total() else None
        if overflow is None:
            return
        is_divided = load.namespaces.is_divided
        while self.policy.displaces and overflow is not None:
            # Nobody displaces what belongs to another namespace.
            own = namespace if is_divided else None
            displaced = await dead_letters.displace(
                connection,
                below=min(priority for priority, tasks in incoming.items() if tasks),
                count=overflow.excess,
                since=await oldest_since(connection),
                namespace=own,
            )
            if displaced.total() < overflow.excess:
                break
            load.depth.subtract(displaced)
            load.namespace_depth.subtract({namespace: displaced.total()})
            # Room at one quota may be too little for the next, or for the whole queue.
            overflow = self._find_overflow(load, namespace, incoming)
        if overflow is None:
            return
        # How much others have waiting is not for a supervisor of one namespace.
        is_foreign = is_divided and overflow.namespace is None
        raise QueueFull(
            f"the queue is full; {overflow.excess:,} of yours do not fit" if is_foreign else overflow.reason,
            facts={} if is_foreign else {"depth": overflow.depth, "limit": overflow.limit},
            retry_after_seconds=retry_after(overflow.excess, await throughput.finished_per_second(connection)),
        )


async def _read_load(connection: AsyncConnection) -> Load:
    by_namespace = await counters.read_by_namespace(connection)
    depths = {name: counters.queue_depths(counts) for name, counts in by_namespace.items()}
    return Load(
        depth=sum((Counter(depth) for depth in depths.values()), start=Counter()),
        namespace_depth=Counter({name: sum(depth.values()) for name, depth in depths.items()}),
        namespaces=await namespaces.read(connection),
    )
