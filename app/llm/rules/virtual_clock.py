"""Virtual times of the agent types, by which permits are shared while they are scarce."""

from collections.abc import Collection

from app.kernel.agents import AgentType
from app.llm.rules.permits import PermitPolicy, PermitRequest, PermitSnapshot, VirtualTimes


class VirtualClock:
    """Virtual times while permits are dealt out, counted twice.

    `_finish` orders the queue: it counts held permits as well, or all of them would be held for one agent type. What is
    stored is `_granted_finish`, for granted permits alone: a caller who never comes back has used nothing.
    """

    def __init__(self, snapshot: PermitSnapshot, requests: Collection[PermitRequest], policy: PermitPolicy) -> None:
        self._weights = snapshot.weights
        self._policy = policy
        self._virtual = snapshot.virtual_times.virtual
        self._granted_finish = dict.fromkeys(AgentType, 0.0) | dict(snapshot.virtual_times.finish)
        # An agent type that did not wait starts level with the others: idle time earns no credit.
        arriving = {request.agent_type for request in requests}
        for agent in arriving - {place.request.agent_type for place in snapshot.reservations}:
            self._granted_finish[agent] = max(self._granted_finish[agent], self._virtual)
        self._finish = dict(self._granted_finish)

    def finish(self, agent: AgentType) -> float:
        """Virtual time at which the share of an agent type is used up; the least is furthest behind."""
        return self._finish[agent]

    def reserve(self, request: PermitRequest) -> None:
        """Count a permit that is held, or waited for."""
        self._finish[request.agent_type] += self._cost(request)

    def grant(self, request: PermitRequest) -> None:
        """Count a permit that is granted."""
        self.reserve(request)
        # Virtual time is the start tag of the last permit granted, as in start-time fair queueing.
        self._virtual = max(self._virtual, self._granted_finish[request.agent_type])
        self._granted_finish[request.agent_type] += self._cost(request)

    def times(self) -> VirtualTimes:
        """The virtual times to store."""
        return VirtualTimes(finish=self._granted_finish, virtual=self._virtual)

    def _cost(self, request: PermitRequest) -> float:
        tokens = min(request.tokens or self._policy.default_tokens, self._policy.max_cost_tokens)
        return tokens / self._policy.default_tokens / max(self._weights[request.agent_type], 1e-9)
