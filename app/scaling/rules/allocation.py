"""Allocation of workers to agent types: seats by weight and backlog, filled with as few moves as possible.

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
    """Work of one agent type: seconds of work that wait or run, and the age of the oldest task that waits.

    `waiting_seconds` are those that wait; None where they were not kept apart.
    """

    work_seconds: float
    oldest_age_seconds: float = 0.0
    waiting_seconds: float | None = None


class Candidate(NamedTuple):
    """A worker to be allocated: the types that it can run, and the one it is assigned today. A tuple, since many."""

    worker_id: WorkerId
    capabilities: frozenset[AgentType]
    assigned_agent: AgentType | None
    busy: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """The agent type of every worker, the workers that change theirs, and why.

    A worker that can run nothing is left out.
    """

    agents: Mapping[WorkerId, AgentType]
    moved_workers: frozenset[WorkerId]
    seats: Mapping[AgentType, int]
    bottleneck: AgentType | None
    reason: str


def allocate(
    workers: Sequence[Candidate], loads: Mapping[AgentType, Load], weights: Mapping[AgentType, float]
) -> Allocation:
    """Allocate workers to the types that have work (to all types when none has), starting from today's assignments."""
    seats = apportion(len(workers), shares(loads, weights))
    agents = _fill(workers, seats)
    today = {worker.worker_id: worker.assigned_agent for worker in workers}
    moved_workers = frozenset(worker_id for worker_id, agent in agents.items() if today[worker_id] is not agent)
    # By today's assignments: the bottleneck is what the moves are to relieve.
    narrowest_agent = bottleneck(loads, Counter(agent for agent in today.values() if agent is not None))
    reason = (
        f"most work per worker: {narrowest_agent.value}" if narrowest_agent else "no work: workers are shared by weight"
    )
    return Allocation(
        agents=agents, moved_workers=moved_workers, seats=seats, bottleneck=narrowest_agent, reason=reason
    )


def shares(loads: Mapping[AgentType, Load], weights: Mapping[AgentType, float]) -> dict[AgentType, float]:
    """Share of each type with work W: weight * sqrt(W / mean W); the weights alone when no type has work.

    The root lets four times the backlog have twice the workers, so that weights still matter.
    """
    work_by_agent = {agent: load.work_seconds for agent, load in loads.items() if load.work_seconds > 0}
    if not work_by_agent:
        return dict(weights)
    mean = sum(work_by_agent.values()) / len(work_by_agent)
    return {agent: weights[agent] * math.sqrt(work / mean) for agent, work in work_by_agent.items()}


def apportion(workers: int, shares: Mapping[AgentType, float]) -> dict[AgentType, int]:
    """Seats by Sainte-Laguë: the next goes to the type with the largest share / (2 k + 1), k being its seats so far.

    The first seat of every type comes before the second of any: the only way to have one each as soon as there are
    enough, and still to take none away when a worker is added.
    """
    agents = sorted(shares)
    seats = dict.fromkeys(agents, 0)
    # The smallest comes first: without a seat, then the largest quotient, then the first name.
    queue = [(False, -shares[agent], place) for place, agent in enumerate(agents)]
    heapify(queue)
    for _ in range(workers if queue else 0):
        agent = agents[place := queue[0][2]]
        seats[agent] += 1
        heapreplace(queue, (True, -shares[agent] / (2 * seats[agent] + 1), place))
    return seats


def bottleneck(loads: Mapping[AgentType, Load], workers: Mapping[AgentType, int]) -> AgentType | None:
    """The type with the most work per assigned worker, ties to the one with the oldest task; None without work."""
    agents = [agent for agent in sorted(loads) if loads[agent].work_seconds > 0]

    def pressure(agent: AgentType) -> tuple[float, float]:
        count = workers.get(agent, 0)
        per_worker = loads[agent].work_seconds / count if count else math.inf
        return per_worker, loads[agent].oldest_age_seconds

    return max(agents, key=pressure, default=None)


def _fill(workers: Sequence[Candidate], seats: Mapping[AgentType, int]) -> dict[WorkerId, AgentType]:
    """Seat every worker: where it is if that seat remains, then the movers, those with the fewest choices first."""
    by_id = sorted(workers, key=attrgetter("worker_id"))
    # Busy workers keep their seats before idle ones, as a move in the middle of a task comes late anyway.
    queue = [worker for worker in by_id if worker.busy] + [worker for worker in by_id if not worker.busy]
    seating = _Seating(seats)
    movers = seating.keep(queue)
    movers.sort(key=lambda worker: len(worker.capabilities))
    unseated_workers = [worker for worker in movers if not seating.seat(worker)]
    for worker in unseated_workers:
        seating.squeeze(worker)
    return {worker.worker_id: agent for agent, occupants in seating.occupants.items() for worker in occupants}


class _Seating:
    """Workers by agent type while an allocation is made."""

    def __init__(self, seats: Mapping[AgentType, int]) -> None:
        self.occupants: dict[AgentType, list[Candidate]] = {agent: [] for agent in AgentType}
        self._seats = seats

    def keep(self, workers: Iterable[Candidate]) -> list[Candidate]:
        """Leave workers where they are as long as there are seats for them; return those that have to move."""
        movers = []
        room = dict(self._seats)
        for worker in workers:
            agent = worker.assigned_agent
            if agent is not None and agent in worker.capabilities and room.get(agent, 0) > 0:
                room[agent] -= 1
                self.occupants[agent].append(worker)
            else:
                movers.append(worker)
        return movers

    def seat(self, worker: Candidate) -> bool:
        """Find a seat for the worker, if need be by moving others along a shortest augmenting path."""
        able = sorted(worker.capabilities)
        # A free seat that it can take itself, before any other worker has to move.
        for agent in able:
            if self._has_room(agent):
                return self._sit(worker, agent)
        came_from: dict[AgentType, AgentType | None] = dict.fromkeys(able)
        # Breadth first over agent types: an edge leads from one to another that one of its occupants can run.
        pending = deque(came_from)
        while pending:
            agent = pending.popleft()
            if self._has_room(agent):
                return self._shift(worker, agent, came_from)
            for neighbor in self._reachable(agent):
                if neighbor not in came_from:
                    came_from[neighbor] = agent
                    pending.append(neighbor)
        return False

    def squeeze(self, worker: Candidate) -> None:
        """Place a worker for which no seat is free: where it is, or at the type with the fewest workers per seat."""
        if worker.assigned_agent in worker.capabilities and worker.assigned_agent is not None:
            self._sit(worker, worker.assigned_agent)
        elif worker.capabilities:
            able = sorted(worker.capabilities)
            self._sit(
                worker, min(able, key=lambda agent: len(self.occupants[agent]) / max(1, self._seats.get(agent, 0)))
            )

    def _has_room(self, agent: AgentType) -> bool:
        return len(self.occupants[agent]) < self._seats.get(agent, 0)

    def _sit(self, worker: Candidate, agent: AgentType) -> bool:
        self.occupants[agent].append(worker)
        return True

    def _reachable(self, agent: AgentType) -> Iterable[AgentType]:
        # Many workers can run the same: a set of their sets is small.
        able = frozenset[AgentType]().union(*{occupant.capabilities for occupant in self.occupants[agent]})
        return sorted(able - {agent})

    def _shift(self, worker: Candidate, free: AgentType, came_from: Mapping[AgentType, AgentType | None]) -> bool:
        agent: AgentType = free
        # Back along the path: each type passes one worker on, until the first has a seat for the new one.
        while (previous := came_from[agent]) is not None:
            # The one that sat down last has the least claim.
            mover = next(occupant for occupant in reversed(self.occupants[previous]) if agent in occupant.capabilities)
            self.occupants[previous].remove(mover)
            self._sit(mover, agent)
            agent = previous
        return self._sit(worker, agent)
