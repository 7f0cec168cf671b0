"""Classes of workers: pools beside the usual one, each sized by the tasks that belong to it."""

import json
from dataclasses import dataclass

from app.kernel import resources
from app.kernel.agents import AgentType
from app.kernel.resources import NOTHING, Resources


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerClass:
    """Service of the workers of a pool: these agent types, all of them for None, and what each offers to its task."""

    agents: frozenset[AgentType] | None = None
    offer: Resources = NOTHING

    def serves(self, agent: AgentType, request: Resources) -> bool:
        """Whether its workers can run such a task."""
        return (self.agents is None or agent in self.agents) and self.offer.covers(request)

    def text(self) -> str:
        """Canonical JSON text."""
        agents = None if self.agents is None else sorted(self.agents)
        return json.dumps({"agents": agents, "offer": json.loads(self.offer.text())}, sort_keys=True)


def read(content: dict[str, object]) -> WorkerClass:
    """A class from the object of its JSON text."""
    agents, offer = content["agents"], content["offer"]
    assert isinstance(offer, dict)
    return WorkerClass(
        agents=frozenset(map(AgentType, agents)) if isinstance(agents, list) else None, offer=resources.read(offer)
    )
