"""Who works on what: seats for the agent types by weight and backlog, and as few moves as possible to fill them.

Source of the apportionment: Sainte-Laguë (Webster), the divisor method that favours neither large nor small. Like every
one it is house-monotone: one more worker takes a seat from nobody. Balinski, Young, "Fair Representation" (1982).
"""

import math
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from heapq import heapify, heapreplace
from operator import attrgetter
from typing import NamedTuple

from app.kernel.agents import AgentType
from app.kernel.ids import WorkerId


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What a type has to do: seconds of work that wait or run, and the age of the oldest that waits."""

    work_seconds: float
    oldest_age_seconds: float = 0.0


class Seat(NamedTuple):
    """A worker, what it can run, and what it is assigned today. A tuple, since there may be many."""

    worker_id: WorkerId
    capabilities: frozenset[AgentType]
    assigned: AgentType | None
    busy: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """Everybody's agent, who moved, and why. A worker that can run nothing is left out."""

    agents: Mapping[WorkerId, AgentType]
    moved: frozenset[WorkerId]
    seats: Mapping[AgentType, int]
    bottleneck: AgentType | None
    reason: str


def allocate(
    workers: Sequence[Seat], loads: Mapping[AgentType, Load], weights: Mapping[AgentType, float]
) -> Allocation:
    """Seats for the types that have work (for all types when none has), filled from today's assignment."""
    seats = apportion(len(workers), shares(loads, weights))
    agents = _filled(workers, seats)
    today = {worker.worker_id: worker.assigned for worker in workers}
    moved = frozenset(worker_id for worker_id, agent in agents.items() if today[worker_id] is not agent)
    narrow = bottleneck(loads, Counter(agent for agent in today.values() if agent is not None))
    reason = f"most work per worker: {narrow.value}" if narrow else "no work: workers are shared by weight"
    return Allocation(agents=agents, moved=moved, seats=seats, bottleneck=narrow, reason=reason)


def shares(loads: Mapping[AgentType, Load], weights: Mapping[AgentType, float]) -> dict[AgentType, float]:
    """`w_a * sqrt(W_a / mean W)` for the types with work; the weights alone when none has any.

    The root lets four times the backlog have twice the workers: weights keep their say.
    """
    working = {agent: load.work_seconds for agent, load in loads.items() if load.work_seconds > 0}
    if not working:
        return dict(weights)
    mean = sum(working.values()) / len(working)
    return {agent: weights[agent] * math.sqrt(work / mean) for agent, work in working.items()}


def apportion(workers: int, shares: Mapping[AgentType, float]) -> dict[AgentType, int]:
    """Seats by Sainte-Laguë: the next goes to the largest `share / (2 k + 1)`, k being the seats so far.

    Everybody's first seat comes before anybody's second: the only way to have one each as soon as there are enough, and
    still to take none away when a worker is added.
    """
    ordered = sorted(shares)
    seats = dict.fromkeys(ordered, 0)
    # The smallest comes first: without a seat, then the largest quotient, then the first name.
    queue = [(False, -shares[agent], place) for place, agent in enumerate(ordered)]
    heapify(queue)
    for _ in range(workers if queue else 0):
        agent = ordered[place := queue[0][2]]
        seats[agent] += 1
        heapreplace(queue, (True, -shares[agent] / (2 * seats[agent] + 1), place))
    return seats


def bottleneck(loads: Mapping[AgentType, Load], workers: Mapping[AgentType, int]) -> AgentType | None:
    """The type with the most work per assigned worker, ties to the one with the oldest task; None without work."""
    working = [agent for agent in sorted(loads) if loads[agent].work_seconds > 0]

    def pressure(agent: AgentType) -> tuple[float, float]:
        assigned = workers.get(agent, 0)
        per_worker = loads[agent].work_seconds / assigned if assigned else math.inf
        return per_worker, loads[agent].oldest_age_seconds

    return max(working, key=pressure, default=None)


def _filled(workers: Sequence[Seat], seats: Mapping[AgentType, int]) -> dict[WorkerId, AgentType]:
    """Everybody keeps a seat that is still there; the others take what is free, those with the least choice first."""
    ordered = sorted(workers, key=attrgetter("worker_id"))
    # Who works stays sooner than who idles: a move in the middle of a task comes late anyway.
    ordered = [worker for worker in ordered if worker.busy] + [worker for worker in ordered if not worker.busy]
    filling = _Filling(seats)
    movers = filling.keep(ordered)
    movers.sort(key=lambda worker: len(worker.capabilities))
    left = [worker for worker in movers if not filling.seat(worker)]
    for worker in left:
        filling.squeeze(worker)
    return {worker.worker_id: agent for agent, seated in filling.seated.items() for worker in seated}


class _Filling:
    """Workers by seat while an assignment is made."""

    def __init__(self, seats: Mapping[AgentType, int]) -> None:
        self.seated: dict[AgentType, list[Seat]] = {agent: [] for agent in AgentType}
        self._seats = seats

    def keep(self, workers: Iterable[Seat]) -> list[Seat]:
        """Leave these where they are, as long as there are seats for them; returns those that have to move."""
        movers = []
        room = dict(self._seats)
        for worker in workers:
            agent = worker.assigned
            if agent is not None and agent in worker.capabilities and room.get(agent, 0) > 0:
                room[agent] -= 1
                self.seated[agent].append(worker)
            else:
                movers.append(worker)
        return movers

    def seat(self, worker: Seat) -> bool:
        """Find a free seat that the worker can take, moving others on if need be: a shortest augmenting path."""
        able = sorted(worker.capabilities)
        for agent in able:
            if self._has_room(agent):
                return self._sit(worker, agent)
        came_from: dict[AgentType, AgentType | None] = dict.fromkeys(able)
        pending = deque(came_from)
        while pending:
            agent = pending.popleft()
            if self._has_room(agent):
                return self._shift(worker, agent, came_from)
            for other in self._reachable(agent):
                if other not in came_from:
                    came_from[other] = agent
                    pending.append(other)
        return False

    def squeeze(self, worker: Seat) -> None:
        """No seat is free that the worker can take: it stays what it is, or helps where the fewest are per seat."""
        if worker.assigned in worker.capabilities and worker.assigned is not None:
            self._sit(worker, worker.assigned)
        elif worker.capabilities:
            able = sorted(worker.capabilities)
            self._sit(worker, min(able, key=lambda agent: len(self.seated[agent]) / max(1, self._seats.get(agent, 0))))

    def _has_room(self, agent: AgentType) -> bool:
        return len(self.seated[agent]) < self._seats.get(agent, 0)

    def _sit(self, worker: Seat, agent: AgentType) -> bool:
        self.seated[agent].append(worker)
        return True

    def _reachable(self, agent: AgentType) -> Iterable[AgentType]:
        # Many workers can run the same: a set of their sets is small.
        able = frozenset[AgentType]().union(*{seated.capabilities for seated in self.seated[agent]})
        return sorted(able - {agent})

    def _shift(self, worker: Seat, free: AgentType, came_from: Mapping[AgentType, AgentType | None]) -> bool:
        agent: AgentType = free
        while (before := came_from[agent]) is not None:
            # The one that sat down last has the least claim.
            mover = next(seated for seated in reversed(self.seated[before]) if agent in seated.capabilities)
            self.seated[before].remove(mover)
            self._sit(mover, agent)
            agent = before
        return self._sit(worker, agent)
