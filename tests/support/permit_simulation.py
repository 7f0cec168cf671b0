"""Callers, the rule that grants permits, and a clock, without a database."""

import heapq
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import count
from random import Random
from uuid import UUID

from app.kernel.agents import AgentType
from app.kernel.lanes import Priority
from app.llm.rules.concurrency import ConcurrencyPolicy, ConcurrencyState
from app.llm.rules.grant import PermitPlan, plan_permits
from app.llm.rules.models import Model, ModelLimits
from app.llm.rules.permits import (
    Denial,
    Grant,
    PermitCounts,
    PermitPolicy,
    PermitRequest,
    PermitSnapshot,
    RequestId,
    Reservation,
    VirtualTimes,
)
from app.queue.rules.fair_queueing import EQUAL_WEIGHTS

START = datetime(2026, 1, 1, tzinfo=UTC)
POLICY = PermitPolicy()
_NUMBERS = count(1)


def permit_request(
    agent: AgentType = AgentType.RANKING, *, model: str = "m", caller: str = "k", tokens: int = 0
) -> PermitRequest:
    """A request for a call of a model."""
    return PermitRequest(
        id=RequestId(caller, UUID(int=next(_NUMBERS))),
        model=model,
        agent_type=agent,
        priority=Priority.MEDIUM,
        tokens=tokens,
    )


def model(limit: float = 4.0, *, name: str = "m", limits: ModelLimits | None = None, latency: float = 1.0) -> Model:
    """A model whose service bears so much."""
    return Model(
        name=name,
        limits=limits or ModelLimits(),
        concurrency=ConcurrencyState(limit=limit, ramping=False, latency_seconds=latency),
    )


def snapshot(*models: Model, total_limit: int = 100, in_use: Mapping[str, int] | None = None) -> PermitSnapshot:
    """Nobody waits; so many permits are in use."""
    counts = {name: PermitCounts(permits=permits) for name, permits in (in_use or {}).items()}
    return PermitSnapshot(
        now=START,
        total_limit=total_limit,
        in_use=sum((in_use or {}).values()),
        models={model.name: model for model in models},
        permit_counts=counts,
        held={},
        reservations=[],
        virtual_times=VirtualTimes(),
        weights=EQUAL_WEIGHTS,
    )


def decide(current: PermitSnapshot, *requests: PermitRequest) -> PermitPlan:
    """The plan for these requests by the usual policies."""
    return plan_permits(current, requests, POLICY, ConcurrencyPolicy())


@dataclass(kw_only=True)
class Caller:
    """Calls again and again, for itself or by a key of several. One that `gives_up` asks once, and never again."""

    name: str
    key: str | None = None
    agent: AgentType
    hold_seconds: float = 1.0
    priority: Priority = Priority.MEDIUM
    gives_up: bool = False
    uses_new_ids: bool = False


@dataclass(kw_only=True)
class PermitSimulation:
    """One model, and a clock that goes from event to event; answers come `late_seconds` late."""

    callers: Sequence[Caller]
    limit: float
    late_seconds: float = 0.0
    weights: Mapping[AgentType, float] = field(default_factory=lambda: EQUAL_WEIGHTS)
    policy: PermitPolicy = field(default_factory=PermitPolicy)
    seed: int = 1
    served: Counter[str] = field(default_factory=Counter)
    busy_seconds: float = 0.0
    longest_wait: dict[str, float] = field(default_factory=dict)

    def run(self, seconds: float) -> None:
        """Let so much time pass."""
        draw, held = Random(self.seed), 0
        reservations, virtual_times = dict[RequestId, Reservation](), VirtualTimes()
        events: list[tuple[float, int, str, Caller, PermitRequest | None, float]] = []
        order = count()
        for caller in self.callers:
            heapq.heappush(events, (draw.random(), next(order), "ask", caller, None, -1.0))
        while events and events[0][0] < seconds:
            at, _, kind, caller, previous, since = heapq.heappop(events)
            if kind == "end":
                held -= 1
                heapq.heappush(events, (at, next(order), "ask", caller, None, -1.0))
                continue
            now = START + timedelta(seconds=at)
            request = replace(
                permit_request(caller.agent, caller=caller.key or caller.name)
                if previous is None or caller.uses_new_ids
                else previous,
                priority=caller.priority,
            )
            current = replace(
                snapshot(model(self.limit, latency=self.callers[0].hold_seconds), total_limit=1000, in_use={"m": held}),
                now=now,
                reservations=[place for place in reservations.values() if place.lapses > now],
                virtual_times=virtual_times,
                weights=self.weights,
            )
            plan = plan_permits(current, [request], self.policy, ConcurrencyPolicy())
            virtual_times = plan.virtual_times
            for resumed_id in plan.resumed_ids:
                reservations.pop(resumed_id, None)
            began = at if since < 0 else since
            match plan.answers[0]:
                case Grant():
                    held += 1
                    assert held <= self.limit
                    self.served[caller.name] += 1
                    self.busy_seconds += min(caller.hold_seconds, seconds - at)
                    self.longest_wait[caller.name] = max(self.longest_wait.get(caller.name, 0.0), at - began)
                    heapq.heappush(events, (at + caller.hold_seconds, next(order), "end", caller, None, -1.0))
                case Denial() as denial:
                    reservation = denial.reservation(now, self.policy)
                    assert reservation is not None
                    reservations[request.id] = reservation
                    pause = self.late_seconds + denial.retry_after.total_seconds() * (1 + 0.1 * draw.random())
                    if caller.gives_up:
                        pause, request, began = pause * 20, None, -1.0  # type: ignore[assignment]
                    heapq.heappush(events, (at + pause, next(order), "ask", caller, request, began))

    def share(self, agent: AgentType) -> float:
        """Of all permits, those of this agent type."""
        names = {caller.name for caller in self.callers if caller.agent is agent}
        return sum(self.served[name] for name in names) / max(1, sum(self.served.values()))
