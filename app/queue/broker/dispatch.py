"""Dispatch of lanes to waiting workers, and the records of workers that it goes by."""

from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from app.db import hot_path
from app.db.database import Database
from app.db.hot_path import HotConnection
from app.kernel.agents import AgentType
from app.kernel.ids import WorkerId
from app.kernel.lanes import Lane
from app.kernel.resources import Resources
from app.kernel.states import WorkerState
from app.queue.broker.calls import LeaseCall
from app.queue.broker.claim_limits import ClaimLimit, ClaimLimits
from app.queue.broker.class_view import ClassView
from app.queue.broker.lane_view import LaneView
from app.queue.broker.retries import Retries
from app.queue.rules.degradation import deferred_lanes
from app.queue.rules.fair_queueing import FairQueue
from app.queue.service.degradation import CurrentStep
from app.queue.store.claims import BOTTOM, ClaimOutcome, ClaimRequest, Lease
from app.queue.store.lanes import TagIssuer
from app.queue.store.lease_ledger import GivenLeases

# Of more workers the oldest records are forgotten, which costs no more than a little fairness among them.
_MAX_WORKERS = 20_000
_LONGEST_BREAK_SECONDS = 5.0
# Workers served by one claim: as many as an exchange brings, or fewer where tasks were large lately, as all of a claim
# are in memory at once. With more of them each would wait for a longer statement.
_MOST_WORKERS, _WORKERS_OF_LARGE, _LARGE_CHARACTERS = 512, 128, 16 << 10

# Called with workers that get the first lease that this process knows of, on a connection of the hot path.
OnFirstLeases = Callable[[HotConnection, Sequence[WorkerId]], Awaitable[None]]


@dataclass(slots=True)
class WorkerPreferences:
    """The agent type that each worker is assigned to, as last reported."""

    _agents: dict[WorkerId, AgentType] = field(default_factory=dict)

    def record(self, worker_id: WorkerId, agent: AgentType | None) -> None:
        """Note the current assignment of a worker."""
        # Taken out first, so that the dictionary stays in the order of the reports.
        self._agents.pop(worker_id, None)
        if agent is not None:
            self._agents[worker_id] = agent
        while len(self._agents) > _MAX_WORKERS:
            del self._agents[next(iter(self._agents))]

    def of(self, worker_id: WorkerId) -> AgentType | None:
        """The preferred agent type; None when there is none, or none is known."""
        return self._agents.get(worker_id)


# The agent types that a worker can run, the resource classes that it can serve, and the lanes that are unfit for it.
Able = frozenset[AgentType] | tuple[frozenset[AgentType], tuple[int, ...], frozenset[Lane]]
_Candidates = tuple[set[AgentType], set[AgentType], Mapping[AgentType, Lane]]


@dataclass(slots=True)
class BatchLanes:
    """Workers that one claim sends to each lane; and for what workers are able to, what is open and most urgent."""

    counts: Counter[Lane] = field(default_factory=Counter)
    candidates: dict[Able, "_Candidates"] = field(default_factory=dict)


class Dispatcher:
    """Chooses a lane for each waiting worker by open lanes, degradation, fair shares and preferences."""

    def __init__(
        self,
        lanes: LaneView,
        fairness: FairQueue,
        preferences: WorkerPreferences,
        database: Database,
    ) -> None:
        self.degradation = CurrentStep()
        self.classes = ClassView()
        self.workers_of_claim = _WORKERS_OF_LARGE
        self._limits = ClaimLimits()
        self._lanes = lanes
        self._fairness = fairness
        self._preferences = preferences
        self._tag_issuer = database.shared(TagIssuer)
        self._given_leases = database.shared(GivenLeases)
        database.announcer.on_connection.append(self._given_leases.clear)

    def next_limit(self, waiting: int) -> ClaimLimit:
        """The limit of the next claim, while so many workers wait."""
        return self._limits.next_claim(waiting, self.workers_of_claim)

    def choose_lane(
        self,
        worker_id: WorkerId,
        can_run: frozenset[AgentType],
        batch: BatchLanes,
        offer: Resources | None = None,
        unfit_lanes: frozenset[Lane] = frozenset(),
    ) -> Lane | None:
        """The lane from which a worker is served by this claim, none of those that are unfit for it; or None."""
        able: Able = (can_run, (), unfit_lanes) if unfit_lanes else can_run
        if self._lanes.open_classes and (served := self.classes.served_by(offer, self._lanes.open_classes)):
            # What it can serve and few others can goes first.
            able = can_run, ((0, *reversed(served)) if self.classes.takes_least() else served), unfit_lanes
        # Most workers are able to the same, and what is open to them changes only when a lane is full.
        candidates = batch.candidates.get(able)
        if candidates is None:
            candidates = batch.candidates[able] = self._candidates(able, batch.counts)
        open_agents, urgent_agents, best_lanes = candidates
        if not urgent_agents:
            return None
        agent = self._fairness.next_agent(open_agents, urgent_agents, self._preferences.of(worker_id))
        lane = best_lanes.get(agent) if agent is not None else None
        if lane is not None:
            batch.counts[lane] += 1
            if batch.counts[lane] >= self._lanes.width(lane):
                batch.candidates.clear()
        return lane

    def is_open_to(self, can_run: frozenset[AgentType], offer: Resources | None, unfit_lanes: frozenset[Lane]) -> bool:
        """Whether a worker could be served from any lane, also where that has enough workers in this claim."""
        open_classes = self._lanes.open_classes
        served = self.classes.served_by(offer, open_classes) if open_classes else ()
        return not can_run.isdisjoint(self._lanes.best_lanes(served, unfit_lanes))

    def request(self, call: LeaseCall, lane: Lane | None) -> ClaimRequest:
        """The request to claim a task from this lane for a call."""
        return ClaimRequest(
            worker_id=call.worker_id,
            request_id=call.request_id,
            lane=lane,
            acknowledge=call.acknowledge,
            floor=self._lanes.floor(lane) if lane else BOTTOM,
            ends_at=call.ends_at,
            resources=self.classes.texts[lane.resource_class] if lane and lane.resource_class else None,
            last_number=self._given_leases.take(call.worker_id, call.follows) if call.follows else None,
            completion=call.completion,
        )

    def _candidates(self, able: Able, counts: Mapping[Lane, int]) -> _Candidates:
        """The agents with lanes that are not full yet, the most urgent of them without deferred ones, and the lanes."""
        can_run, classes, unfit_lanes = able if isinstance(able, tuple) else (able, (), frozenset[Lane]())
        best_lanes = self._lanes.best_lanes(classes, unfit_lanes)
        open_agents = {
            agent
            for agent in can_run
            if (lane := best_lanes.get(agent)) is not None and counts[lane] < self._lanes.width(lane)
        }
        undeferred = self._without_deferred(open_agents, can_run, best_lanes)
        return open_agents, self._lanes.most_urgent(undeferred, best_lanes), best_lanes

    def _without_deferred(
        self, open_agents: set[AgentType], can_run: Iterable[AgentType], best_lanes: Mapping[AgentType, Lane]
    ) -> set[AgentType]:
        """The agents without those of deferred lanes, as long as there is any other work that the worker can run."""
        held_lanes = deferred_lanes(self.degradation.step)
        if not held_lanes:
            return open_agents
        other_agents = {
            agent for agent in can_run if (lane := best_lanes.get(agent)) is not None and lane not in held_lanes
        }
        return open_agents & other_agents if other_agents else open_agents

    def record_claims(
        self,
        requests: Sequence[ClaimRequest],
        outcomes: Sequence[ClaimOutcome],
        ready_from: Mapping[Lane, float] | None = None,
    ) -> None:
        """Take in the outcomes of a claim: preferences, positions of the lanes, and agent types without work.

        `ready_from` are the lowest tags of lanes where the claim may have passed over tasks.
        """
        self._note_sizes([outcome.lease for outcome in outcomes if outcome.lease is not None])
        tags: dict[Lane, list[float]] = defaultdict(list)
        exhausted_lanes: set[Lane] = set()
        passed = ready_from or {}
        for request, outcome in zip(requests, outcomes, strict=True):
            self._preferences.record(request.worker_id, outcome.assigned_agent)
            if request.lane is None:
                continue
            if outcome.lease is not None:
                tags[request.lane].append(outcome.lease.tag)
                self._given_leases.note(request.worker_id, outcome.lease.task_id, outcome.lease_number or 0)
            elif request.lane not in passed and _could_be_served(request, outcome):
                exhausted_lanes.add(request.lane)
        for lane in exhausted_lanes | tags.keys():
            self._lanes.record_claim(
                lane, tags[lane], is_exhausted=lane in exhausted_lanes, ready_from=passed.get(lane)
            )
            if tags[lane]:
                self._tag_issuer.advance(lane, max(tags[lane]))
        for agent in {lane.agent_type for lane in exhausted_lanes} - self._lanes.agents():
            self._fairness.mark_idle(agent)

    def _note_sizes(self, leases: Sequence[Lease]) -> None:
        """Let the next claim be for fewer workers where one of these tasks was large."""
        sizes = [len(lease.payload) + len(lease.checkpoint or "") for lease in leases]
        if sizes:
            self.workers_of_claim = _WORKERS_OF_LARGE if max(sizes) > _LARGE_CHARACTERS else _MOST_WORKERS


@dataclass(slots=True)
class IdleTimes:
    """Since when each worker has been asking for a task without getting one, by a monotonic clock.

    Only who is idle asks, so the first call after a lease tells when its task was over. Calls that follow each other
    closely continue one wait; after a longer break the worker may have had a task from another process meanwhile.
    """

    _spans: dict[WorkerId, tuple[float, float]] = field(default_factory=dict)

    def begin_call(self, worker_id: WorkerId, now: float) -> float:
        """Note that the worker asks; return since when it has been idle."""
        began_at, asked_at = self._spans.pop(worker_id, (now, now))
        since = began_at if now - asked_at <= _LONGEST_BREAK_SECONDS else now
        self._spans[worker_id] = since, now
        while len(self._spans) > _MAX_WORKERS:
            del self._spans[next(iter(self._spans))]
        return since

    def end_call(self, worker_id: WorkerId, now: float) -> None:
        """Note that the call of the worker is over; no more is known of it where that has brought it a task."""
        if worker_id in self._spans:
            self._spans[worker_id] = self._spans[worker_id][0], now

    def end_idling(self, worker_ids: Iterable[WorkerId]) -> None:
        """Note that these workers have a task now."""
        for worker_id in worker_ids:
            self._spans.pop(worker_id, None)


class LeaseHistory:
    """Workers that have had leases of this process, to tell first ones."""

    def __init__(self, database: Database, retries: Retries, on_first: OnFirstLeases | None = None) -> None:
        self._database = database
        self._retries = retries
        self._on_first = on_first
        self._served: dict[WorkerId, None] = {}

    def record(self, worker_ids: Collection[WorkerId]) -> None:
        """Note that these workers get a lease now, and call `on_first` with those for whom no earlier one is known."""
        first_timers = [worker_id for worker_id in worker_ids if worker_id not in self._served]
        self._served.update(dict.fromkeys(worker_ids))
        while len(self._served) > _MAX_WORKERS:
            del self._served[next(iter(self._served))]
        if first_timers and self._on_first is not None:
            attempt = partial(self._call_on_first, self._on_first, first_timers)
            self._retries.start(attempt, "record the first leases", first_timers)

    async def _call_on_first(self, on_first: OnFirstLeases, worker_ids: Sequence[WorkerId]) -> bool:
        await hot_path.run(self._database, lambda connection: on_first(connection, worker_ids))
        return True


def _could_be_served(request: ClaimRequest, outcome: ClaimOutcome) -> bool:
    """Whether nothing but its lane has kept a task from a worker."""
    is_free = request.completion is None or outcome.service is not None
    return is_free and outcome.worker_state == WorkerState.READY and not outcome.holds_another
