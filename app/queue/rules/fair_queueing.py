"""Start-time fair queueing of agent types by weight, with a rule against starvation, and tags for goals within a lane.

Source: Goyal, Vin, Cheng, "Start-time fair queuing" (SIGCOMM 1996), with measured service times as costs.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from app.kernel.agents import AgentType

EQUAL_WEIGHTS: Mapping[AgentType, float] = {agent: 1 / len(AgentType) for agent in AgentType}


@dataclass(frozen=True, slots=True, kw_only=True)
class FairnessPolicy:
    """Service times in seconds, and the rhythm of leases that go to the longest-unserved type."""

    prior_service_seconds: float = 20.0
    # A type whose tasks fail at once must not get ever more of them.
    floor_service_seconds: float = 1.0
    # 5 % of the leases keep types with a tiny weight from starving; aging does it for less urgent work.
    rescue_every: int = 20


class Charge(NamedTuple):
    """The count of one lease of a type: its cost and number, and the number of the type's lease before it."""

    agent: AgentType
    cost: float
    number: int
    served_before: int


@dataclass(slots=True)
class FairQueue:
    """Finish tags and measured costs of the agent types. Plain state without IO, so shares hold per process."""

    policy: FairnessPolicy = field(default_factory=FairnessPolicy)
    weights: Mapping[AgentType, float] = field(default_factory=lambda: EQUAL_WEIGHTS)
    _finish: dict[AgentType, float] = field(default_factory=lambda: dict.fromkeys(AgentType, 0.0))
    _served_at: dict[AgentType, int] = field(default_factory=lambda: dict.fromkeys(AgentType, 0))
    _service_seconds: dict[AgentType, float] = field(default_factory=dict)
    _observation_counts: dict[AgentType, int] = field(default_factory=dict)
    _idle: set[AgentType] = field(default_factory=lambda: set(AgentType))
    _leases: int = 0
    _virtual_time: float = 0.0

    def next_agent(
        self,
        ready_agents: Collection[AgentType],
        most_urgent: Collection[AgentType] | None = None,
        preference: AgentType | None = None,
    ) -> AgentType | None:
        """The type to serve next among `ready_agents`, those with work that the worker can run; None without any.

        Types in `most_urgent` share the leases; every `rescue_every`-th goes to the one of them that was not served for
        longest. The worker's preferred type is served out of turn unless it is ahead of its share.
        """
        if not ready_agents:
            return None
        candidates = ready_agents if most_urgent is None else most_urgent
        # Types with less urgent work do not compete, so they must not earn credit meanwhile: they count as idle.
        if len(candidates) < len(ready_agents):
            self._idle.update(agent for agent in ready_agents if agent not in candidates)
        self._catch_up(candidates)
        if (self._leases + 1) % self.policy.rescue_every == 0:
            return min(candidates, key=lambda agent: (self._served_at[agent], agent))
        furthest_behind = min(candidates, key=lambda agent: (self._finish[agent], agent))
        # The finish tag of a type is the start tag of its next task.
        self._virtual_time = max(self._virtual_time, self._finish[furthest_behind])
        if preference is not None and preference in candidates and not self._is_ahead(preference, furthest_behind):
            return preference
        return furthest_behind

    def _is_ahead(self, agent: AgentType, furthest_behind: AgentType) -> bool:
        """Whether the type furthest behind would, even after one more lease, still be behind `agent`.

        So no type falls back by more than one of its own tasks for preferences. A comparison with the mean would not
        do: one type that specialists have brought far ahead would raise it, and every other type would seem behind.
        """
        return self._finish[agent] > self._finish[furthest_behind] + self._cost(furthest_behind)

    def charge(self, agent: AgentType) -> Charge:
        """Count a lease that is about to be claimed; return the charge, to be refunded if the claim brings no task."""
        self._leases += 1
        charge = Charge(agent, self._cost(agent), self._leases, self._served_at[agent])
        self._served_at[agent] = self._leases
        self._finish[agent] += charge.cost
        return charge

    def refund(self, charge: Charge) -> None:
        """Take back a charge whose claim brought no task: it was no turn of the rule against starvation either."""
        self._finish[charge.agent] -= charge.cost
        self._leases -= 1
        if self._served_at[charge.agent] == charge.number:
            self._served_at[charge.agent] = charge.served_before

    def mark_idle(self, agent: AgentType) -> None:
        """Note that the type has no work; when it has some again, it starts level with the others, without credit."""
        self._idle.add(agent)

    def observe(self, agent: AgentType, seconds: float) -> None:
        """Add a service time to the mean of its type, which decays: observation k weighs 1 / (k + 1), at least 0.05."""
        count = self._observation_counts.get(agent, 0) + 1
        self._observation_counts[agent] = count
        alpha = max(0.05, 1 / (count + 1))
        mean = self._service_seconds.get(agent, self.policy.prior_service_seconds)
        self._service_seconds[agent] = mean + alpha * (seconds - mean)

    def _catch_up(self, candidates: Collection[AgentType]) -> None:
        if self._idle.isdisjoint(candidates):
            return
        # The virtual time is the start tag in service; when a busy period is over, the greatest finish tag.
        all_idle = len(self._idle) == len(AgentType)
        level = max(self._finish.values()) if all_idle else self._virtual_time
        for agent in candidates:
            if agent in self._idle:
                self._finish[agent] = max(self._finish[agent], level)
                self._idle.discard(agent)

    def _cost(self, agent: AgentType) -> float:
        seconds = self._service_seconds.get(agent, self.policy.prior_service_seconds)
        # A weight of 0 stays possible: such a type is served by the rule against starvation alone.
        return max(seconds, self.policy.floor_service_seconds) / max(self.weights[agent], 1e-9)


@dataclass(frozen=True, slots=True, kw_only=True)
class TagRun:
    """Tags of tasks that a goal submits together: `first`, then one `step` further each."""

    first: float
    step: float
    count: int

    def __getitem__(self, index: int) -> float:
        return self.first + index * self.step

    @property
    def last(self) -> float:
        """The tag of the last task, from which the goal's next tags follow."""
        return self[self.count - 1]


def assign_tags(*, virtual_time: float, last_tag: float, count: int, weight: float = 1.0) -> TagRun:
    """Tags for `count` tasks of a goal: `max(virtual time, last tag of the goal) + 1 / weight` for the first."""
    step = 1 / weight
    return TagRun(first=max(virtual_time, last_tag) + step, step=step, count=count)
