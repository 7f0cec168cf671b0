"""Which agent type the next lease goes to: start-time fair queueing with a rule against starvation.

Source: Goyal, Vin, Cheng, "Start-time fair queuing" (SIGCOMM 1996), with measured service times as costs.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from app.kernel.agents import AgentType

EQUAL_WEIGHTS: Mapping[AgentType, float] = {agent: 1 / len(AgentType) for agent in AgentType}


@dataclass(frozen=True, slots=True, kw_only=True)
class FairnessPolicy:
    """Seconds, and every how many leases the longest-unserved type is served regardless of its share."""

    prior_service_seconds: float = 20.0
    floor_service_seconds: float = 1.0
    rescue_every: int = 20


@dataclass(slots=True)
class FairQueue:
    """Virtual time of each agent type. Plain state without IO: one per process, so shares hold per replica."""

    policy: FairnessPolicy = field(default_factory=FairnessPolicy)
    weights: Mapping[AgentType, float] = field(default_factory=lambda: EQUAL_WEIGHTS)
    _finish: dict[AgentType, float] = field(default_factory=lambda: dict.fromkeys(AgentType, 0.0))
    _served_at: dict[AgentType, int] = field(default_factory=lambda: dict.fromkeys(AgentType, 0))
    _service: dict[AgentType, float] = field(default_factory=dict)
    _observed: dict[AgentType, int] = field(default_factory=dict)
    _idle: set[AgentType] = field(default_factory=lambda: set(AgentType))
    _leases: int = 0
    _virtual: float = 0.0

    def next(
        self,
        backlogged: Collection[AgentType],
        most_urgent: Collection[AgentType] | None = None,
        preferred: AgentType | None = None,
    ) -> AgentType | None:
        """The type to serve among those with work that the worker can run; None when there is none.

        Where some have more urgent work than others, only these share the leases; every so many go to the type that
        was not served for longest, whatever its work. The type that the worker prefers is served out of turn while it
        is not ahead of its share.
        """
        if not backlogged:
            return None
        if (self._leases + 1) % self.policy.rescue_every == 0:
            self._catch_up(backlogged)
            return min(backlogged, key=lambda agent: (self._served_at[agent], agent))
        candidates = backlogged if most_urgent is None else most_urgent
        self._idle.update(agent for agent in backlogged if agent not in candidates)
        self._catch_up(candidates)
        behind = min(candidates, key=lambda agent: (self._finish[agent], agent))
        self._virtual = max(self._virtual, self._finish[behind])
        if preferred is not None and preferred in candidates and not self._is_ahead(preferred, behind):
            return preferred
        return behind

    def _is_ahead(self, agent: AgentType, behind: AgentType) -> bool:
        """Whether the type that is furthest behind would still be behind this one after one more lease.

        So nobody falls back by more than one task of its own for the preferences of others. A mean of all types would
        not do: one that specialists have brought far ahead would let every other pass as behind.
        """
        return self._finish[agent] > self._finish[behind] + self._cost(behind)

    def charge(self, agent: AgentType) -> float:
        """A lease of this type is about to be asked for; returns the charge, to be refunded if none comes about."""
        charge = self._cost(agent)
        self._leases += 1
        self._served_at[agent] = self._leases
        self._finish[agent] += charge
        return charge

    def refund(self, agent: AgentType, charge: float) -> None:
        """The lease did not come about: the type had no work after all."""
        self._finish[agent] -= charge

    def fell_idle(self, agent: AgentType) -> None:
        """The type has no work; when it has some again it starts level with the others, without saved-up credit."""
        self._idle.add(agent)

    def observe(self, agent: AgentType, seconds: float) -> None:
        """A task of this type took this long: a decayed mean, quick at first (weight 1 / (k + 1), at least 0.05)."""
        count = self._observed.get(agent, 0) + 1
        self._observed[agent] = count
        alpha = max(0.05, 1 / (count + 1))
        before = self._service.get(agent, self.policy.prior_service_seconds)
        self._service[agent] = before + alpha * (seconds - before)

    def _catch_up(self, candidates: Collection[AgentType]) -> None:
        # The virtual time is the start tag in service; when a busy period is over, the greatest finish tag.
        all_idle = len(self._idle) == len(AgentType)
        level = max(self._finish.values()) if all_idle else self._virtual
        for agent in candidates:
            if agent in self._idle:
                self._finish[agent] = max(self._finish[agent], level)
                self._idle.discard(agent)

    def _cost(self, agent: AgentType) -> float:
        seconds = self._service.get(agent, self.policy.prior_service_seconds)
        return max(seconds, self.policy.floor_service_seconds) / max(self.weights[agent], 1e-9)


@dataclass(frozen=True, slots=True, kw_only=True)
class TagRun:
    """The tags of a run of tasks that a goal submits together: `first`, then one `step` further each."""

    first: float
    step: float
    count: int

    def __getitem__(self, place: int) -> float:
        return self.first + place * self.step

    @property
    def last(self) -> float:
        """The tag of the last task, after which the goal goes on."""
        return self[self.count - 1]


def assign_tags(*, virtual_time: float, last_tag: float, count: int, weight: float = 1.0, cost: float = 1.0) -> TagRun:
    """Tags for `count` tasks of a goal: `max(virtual time, last tag of the goal) + cost / weight` for the first."""
    step = cost / weight
    return TagRun(first=max(virtual_time, last_tag) + step, step=step, count=count)
