"""Permits for language-model calls: requests, policy, the state that a decision reads, and its results.

A request is granted or refused at once. A refused one leaves a reservation, which keeps its place in the queue until it
is repeated. The queue goes by priority (which grows while a request waits), then by the agent type that is furthest
behind its share, then by waiting time. Shares are those of start-time fair queueing (Goyal, Vin and Cheng, 1996) with
tokens as costs, as in Sheng et al., "Fairness in serving large language models" (OSDI 2024).
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import NamedTuple
from uuid import UUID

from app.kernel.agents import AgentType
from app.kernel.lanes import Priority
from app.llm.rules.conditions import Condition
from app.llm.rules.models import Model
from app.llm.rules.spending import NOTHING, Amount, Budget, BudgetOwner, BudgetScope


class Refused(StrEnum):
    """Why there is no permit."""

    CONCURRENCY = "concurrency"
    SHARE = "share"
    REQUESTS = "requests"
    TOKENS = "tokens"
    BUDGET = "budget"
    COOLDOWN = "cooldown"
    BREAKER_OPEN = "breaker_open"
    KEY_EXPIRED = Condition.KEY_EXPIRED.value
    QUOTA_EXHAUSTED = Condition.QUOTA_EXHAUSTED.value
    MAINTENANCE = Condition.MAINTENANCE.value
    LOADING = Condition.LOADING.value


class Ending(StrEnum):
    """The end of a permit; `lost`: its worker ended before it."""

    SETTLED = "settled"
    RELEASED = "released"
    EXPIRED = "expired"
    LOST = "lost"


# Here one request is served after another, so places matter. A cool-down or a breaker ends for all at one moment.
QUEUED_REASONS = frozenset({Refused.CONCURRENCY, Refused.REQUESTS, Refused.TOKENS})


@dataclass(frozen=True, slots=True, kw_only=True)
class PermitPolicy:
    """Numbers of permits, reservations and waits, found by simulation (`tests/llm/rules/test_permits.py`).

    With them agent types get their shares, and permits are in use for nine tenths of the time or more.
    """

    # A permit lives so long unless it is renewed.
    ttl_seconds: float = 120.0
    # A free permit is held for a refused request around the moment when it is due to come back: from so long before,
    # but at most this share of a call's mean latency, until so long after. So a caller who stays away costs little.
    hold_before_seconds: float = 0.25
    hold_before_latency_share: float = 0.1
    hold_after_seconds: float = 0.15
    # A reservation lapses so long after it was due, or after this share of the wait where that is longer: those who
    # were told to wait long come back less punctually. A busy system answers late, and whoever loses a place for that
    # waits anew, so that the urgent alone get permits: as long as a worker waits for an answer at most.
    lapse_seconds: float = 10.0
    lapse_wait_share: float = 0.2
    # No place is kept for longer: each makes others wait, and may be that of somebody who never comes back. Whoever is
    # told to wait for longer has none.
    max_place_seconds: float = 60.0
    # Places of a key that is no worker's; beyond them its requests are refused like any other, and keep none. Each one
    # costs every decision some 70 us.
    max_places_per_key: int = 64
    # Each time a request has waited so long, its priority rises by one; it is the wait that the pool aims at.
    aging_seconds: float = 30.0
    # Without a free permit a request is due after this share of the time in which all before it get one: twice as soon
    # as on average, so as to be there when one is freed. The wait stays between the two bounds.
    retry_share: float = 0.5
    min_retry_seconds: float = 0.1
    max_retry_seconds: float = 5.0
    # The wait while calls under way have reserved what is left of a budget, and when nothing is left of it. Workers
    # sit out half a second (`_SHORT_WAIT_SECONDS`), and hand their tasks back for longer.
    budget_retry_seconds: float = 0.5
    budget_over_seconds: float = 30.0
    # The wait while a probe of a half-open breaker is under way.
    probe_retry_seconds: float = 1.0
    # A key of somebody who is no worker, whom no lease bounds, holds a permit for so long however often it is renewed.
    max_held_seconds: float = 900.0
    # For so long a probe keeps others from trying; one that takes longer goes on beside the next.
    probe_seconds: float = 30.0
    # The most calls of one worker at once, also while nobody else wants any.
    max_per_worker: int = 8
    # What a worker may have at least while others wait, however many they are: two calls of one task are usual.
    min_share: int = 2
    # The cost of a call whose tokens nobody has estimated.
    default_tokens: int = 1000
    # An estimate above it costs no more: it would keep the agent type from its turn for long.
    max_cost_tokens: int = 100_000

    def lapse_wait(self, retry_after: timedelta) -> timedelta:
        """The time for which a request that is told to wait so long keeps a place."""
        return retry_after + max(timedelta(seconds=self.lapse_seconds), self.lapse_wait_share * retry_after)


class RequestId(NamedTuple):
    """Identity of a permit request: its id, unique for the API key of its caller."""

    key_id: str
    request_id: UUID


def holder_of(key_id: str, worker_id: UUID | None) -> str:
    """The name of a worker, or of the key of somebody who is none."""
    return key_id if worker_id is None else str(worker_id)


def answer_key(model: str, question: bytes, *, goal_id: str | None, holder: str) -> bytes:
    """The key of a model's cached answer to a question (its digest), within a goal or else of one holder.

    Who leases a task of a goal can spoil the results of that goal anyway, so its answers serve there and nowhere else.
    """
    scope = ["holder", holder] if goal_id is None else ["goal", goal_id]
    return hashlib.sha256(json.dumps([model, *scope, question.hex()]).encode()).digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class PermitRequest:
    """A request for one call of a model; 0 tokens: not estimated."""

    id: RequestId
    model: str
    agent_type: AgentType
    priority: Priority
    tokens: int
    goal_id: str | None = None
    task_id: UUID | None = None
    worker_id: UUID | None = None
    cache_key: bytes | None = None
    # Who vouches for the caller; empty: its key.
    principal: str = ""

    @property
    def holder(self) -> str:
        """The worker, or the key of somebody who is none, whose call it is."""
        return holder_of(self.id.key_id, self.worker_id)

    @property
    def paying_key(self) -> str:
        """The key whose budget the call uses; for a worker's that by which the worker registered."""
        return self.id.key_id if self.worker_id is None else self.principal

    @property
    def budget_owners(self) -> tuple[BudgetOwner, ...]:
        """Those whose budgets the call uses, where they have any."""
        owners = BudgetOwner(BudgetScope.AGENT, self.agent_type), BudgetOwner(BudgetScope.KEY, self.paying_key)
        return owners if self.goal_id is None else (BudgetOwner(BudgetScope.GOAL, self.goal_id), *owners)

    def answer_key(self, question: bytes) -> bytes:
        """The key of the cached answer to a question, which is a digest."""
        return answer_key(self.model, question, goal_id=self.goal_id, holder=self.holder)

    @property
    def caller(self) -> tuple[object, ...]:
        """The features that stay the same when a caller repeats a request under a new id."""
        # A key may name any task: were it one of the features, each request would be another caller.
        task_id = None if self.worker_id is None else self.task_id
        return (self.id.key_id, self.model, self.agent_type, self.priority, task_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """The place of a refused request: waiting since `since`, to be repeated at `due`, given up at `lapses`."""

    request: PermitRequest
    since: datetime
    due: datetime
    lapses: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class VirtualTimes:
    """Virtual time, and the virtual finish time of each agent type: where its share is used up."""

    finish: Mapping[AgentType, float] = field(default_factory=dict)
    virtual: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PermitCounts:
    """Live permits of a model, the probes among them, and the principals of their holders, where they were counted."""

    permits: int = 0
    probes: int = 0
    principals: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class PermitSnapshot:
    """The state that a decision reads; `in_use` and `total_limit` count permits of all models together.

    `held` are the live permits of each holder, by holder and model.
    """

    now: datetime
    total_limit: int
    in_use: int
    models: Mapping[str, Model]
    permit_counts: Mapping[str, PermitCounts]
    held: Mapping[tuple[str, str], int]
    reservations: Sequence[Reservation]
    virtual_times: VirtualTimes
    weights: Mapping[AgentType, float]
    # Of the goals, agent types and keys of the requests, where they have any.
    budgets: Mapping[BudgetOwner, Budget] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """A permit for this request; `limit` and `in_use` are calls of the model, with this one."""

    request: PermitRequest
    is_probe: bool
    limit: int
    in_use: int
    reserved: Amount = NOTHING


@dataclass(frozen=True, slots=True, kw_only=True)
class Denial:
    """No permit now; the request is to be repeated after `retry_after`, and has waited since `since`.

    `budget_owner` is whose budget has no room, where that is the reason; without `has_place` no place is kept for it.
    """

    request: PermitRequest
    reason: Refused
    retry_after: timedelta
    since: datetime
    budget_owner: BudgetOwner | None = None
    has_place: bool = False

    def reservation(self, now: datetime, policy: PermitPolicy) -> Reservation | None:
        """The place that the request keeps; None where it keeps none."""
        if not self.has_place:
            return None
        due, lapses = now + self.retry_after, now + policy.lapse_wait(self.retry_after)
        return Reservation(request=self.request, since=self.since, due=due, lapses=lapses)
