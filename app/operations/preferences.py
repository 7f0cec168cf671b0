"""Which agent each worker is assigned to, as far as this process has heard; a lease costs no query for it.

Every heartbeat and every claim brings the assignment of its worker. One that is a few seconds old costs nothing: it is
a preference, and the shares hold whoever prefers what.
"""

from dataclasses import dataclass, field

from app.domain.agents import AgentType
from app.domain.workers import WorkerId

_MOST_WORKERS = 20_000


@dataclass(slots=True)
class Preferences:
    """Of the workers that were heard of last."""

    _agents: dict[WorkerId, AgentType] = field(default_factory=dict)

    def learn(self, worker_id: WorkerId, agent: AgentType | None) -> None:
        """The worker is assigned to this agent now."""
        self._agents.pop(worker_id, None)
        if agent is not None:
            self._agents[worker_id] = agent
        while len(self._agents) > _MOST_WORKERS:
            del self._agents[next(iter(self._agents))]

    def of(self, worker_id: WorkerId) -> AgentType | None:
        """What the worker prefers; None when it prefers nothing, or nobody has told us."""
        return self._agents.get(worker_id)
