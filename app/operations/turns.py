"""Whose turn it is: which lane each waiting worker asks, and what its answer says of the lanes and of the worker."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from app.domain.agents import AgentType
from app.domain.degradation import held_back
from app.domain.fairness import FairQueue
from app.domain.lanes import Lane
from app.domain.workers import WorkerId, WorkerState
from app.operations.backlog import Backlog
from app.operations.degradation import CurrentStep
from app.operations.preferences import Preferences
from app.store.claims import Ask, Claim
from app.store.lanes import Lanes


class Turns:
    """Brings together what may wait (the backlog), who is next (fairness), who prefers what, and where lanes stand."""

    def __init__(self, backlog: Backlog, fairness: FairQueue, lanes: Lanes, preferences: Preferences) -> None:
        self.degradation = CurrentStep()
        self._backlog = backlog
        self._fairness = fairness
        self._lanes = lanes
        self._preferences = preferences

    def choose(self, worker_id: WorkerId, can_run: Iterable[AgentType], asked: Counter[Lane]) -> Lane | None:
        """The lane to ask for a worker; a crowd (`asked` so far) need not ask where one task is known of."""
        open_to = {
            agent
            for agent in can_run
            if (lane := self._backlog.lane(agent)) is not None and asked[lane] < self._backlog.asks(lane)
        }
        candidates = self._not_held_back(open_to, can_run)
        if not candidates:
            return None
        preferred = self._preferences.of(worker_id)
        agent = self._fairness.next(open_to, self._backlog.most_urgent(candidates), preferred)
        return self._backlog.lane(agent) if agent is not None else None

    def _not_held_back(self, open_to: set[AgentType], can_run: Iterable[AgentType]) -> set[AgentType]:
        """Those to choose from: what is held back waits while there is anything else that the worker can run.

        It stays among those that the rule against starvation chooses from.
        """
        held = held_back(self.degradation.step)
        if not held:
            return open_to
        others = {agent for agent in can_run if (lane := self._backlog.lane(agent)) is not None and lane not in held}
        return open_to & others if others else open_to

    def learn(self, asks: Sequence[Ask], found: Sequence[Claim]) -> None:
        """Where the lanes stand now, and which agent types have run dry."""
        tags: dict[Lane, list[float]] = defaultdict(list)
        dry: set[Lane] = set()
        for ask, claim in zip(asks, found, strict=True):
            self._preferences.learn(ask.worker_id, claim.assigned_agent)
            if ask.lane is None:
                continue
            if claim.lease is not None:
                tags[ask.lane].append(claim.lease.tag)
            elif claim.worker_state == WorkerState.READY and not claim.holds_another:
                dry.add(ask.lane)
        for lane in dry | tags.keys():
            self._backlog.found(lane, tags[lane], dry=lane in dry)
            if tags[lane]:
                self._lanes.passed(lane, max(tags[lane]))
        for agent in {lane.agent_type for lane in dry} - self._backlog.agents():
            self._fairness.fell_idle(agent)
