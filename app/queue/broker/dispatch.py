"""Whose turn it is: which lane each waiting worker asks, and what its answer says of the lanes and of the worker."""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field

from app.db import hot_path
from app.db.database import Database
from app.db.hot_path import HotConnection
from app.kernel.agents import AgentType
from app.kernel.ids import WorkerId
from app.kernel.lanes import Lane
from app.kernel.states import WorkerState
from app.queue.broker.lane_view import Backlog
from app.queue.rules.degradation import deferred_lanes
from app.queue.rules.fair_queueing import FairQueue
from app.queue.service.degradation import CurrentStep
from app.queue.store.claims import ClaimOutcome, ClaimRequest
from app.queue.store.lanes import TagIssuer

_REMEMBERED_WORKERS = 20_000


@dataclass(slots=True)
class Preferences:
    """Of the workers that were heard of last."""

    _agents: dict[WorkerId, AgentType] = field(default_factory=dict)

    def learn(self, worker_id: WorkerId, agent: AgentType | None) -> None:
        """The worker is assigned to this agent now."""
        self._agents.pop(worker_id, None)
        if agent is not None:
            self._agents[worker_id] = agent
        while len(self._agents) > _REMEMBERED_WORKERS:
            del self._agents[next(iter(self._agents))]

    def of(self, worker_id: WorkerId) -> AgentType | None:
        """What the worker prefers; None when it prefers nothing, or nobody has told us."""
        return self._agents.get(worker_id)


class Turns:
    """Brings together what may wait (the backlog), who is next (fairness), who prefers what, and where lanes stand."""

    def __init__(self, backlog: Backlog, fairness: FairQueue, tag_issuer: TagIssuer, preferences: Preferences) -> None:
        self.degradation = CurrentStep()
        self._backlog = backlog
        self._fairness = fairness
        self._tag_issuer = tag_issuer
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
        agent = self._fairness.next_agent(open_to, self._backlog.most_urgent(candidates), preferred)
        return self._backlog.lane(agent) if agent is not None else None

    def _not_held_back(self, open_to: set[AgentType], can_run: Iterable[AgentType]) -> set[AgentType]:
        """Those to choose from: what is held back waits while there is anything else that the worker can run.

        It stays among those that the rule against starvation chooses from.
        """
        held = deferred_lanes(self.degradation.step)
        if not held:
            return open_to
        others = {agent for agent in can_run if (lane := self._backlog.lane(agent)) is not None and lane not in held}
        return open_to & others if others else open_to

    def learn(self, asks: Sequence[ClaimRequest], found: Sequence[ClaimOutcome]) -> None:
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
                self._tag_issuer.advance(lane, max(tags[lane]))
        for agent in {lane.agent_type for lane in dry} - self._backlog.agents():
            self._fairness.mark_idle(agent)


# Told of workers that get the first lease that this process knows of, on a connection of the hot path.
OnFirstLeases = Callable[[HotConnection, Sequence[WorkerId]], Awaitable[None]]


class Served:
    """What a process remembers of the workers that it has given leases; of too many it forgets the oldest."""

    def __init__(self, database: Database, on_first: OnFirstLeases | None = None) -> None:
        self._database = database
        self._on_first = on_first
        self._at: dict[WorkerId, float] = {}

    def at(self, worker_id: WorkerId) -> float:
        """When the worker got its last lease, by the clock of the event loop; 0.0 when it is not known to have any."""
        return self._at.get(worker_id, 0.0)

    async def note(self, worker_ids: Collection[WorkerId]) -> None:
        """They get a lease now; who gets the first that is known of is told to `on_first`."""
        fresh = [worker_id for worker_id in worker_ids if worker_id not in self._at]
        self._at.update(dict.fromkeys(worker_ids, asyncio.get_running_loop().time()))
        while len(self._at) > _REMEMBERED_WORKERS:
            del self._at[next(iter(self._at))]
        if fresh and (on_first := self._on_first) is not None:
            await hot_path.run(self._database, lambda connection: on_first(connection, fresh))
