"""Callers, the rule that deals out permits, and a clock, without a database."""

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
from app.llm.rules.concurrency import Pressure, PressurePolicy
from app.llm.rules.grant import decide
from app.llm.rules.models import Limits, Model
from app.llm.rules.permits import (
    AskId,
    Denied,
    Granted,
    PermitPolicy,
    PermitRequest,
    PermitSnapshot,
    Reservation,
    Turns,
    Usage,
)
from app.queue.rules.fair_queueing import EQUAL_WEIGHTS

START = datetime(2026, 1, 1, tzinfo=UTC)
_NUMBERS = count(1)


def ask(agent: AgentType = AgentType.RANKING, *, model: str = "m", caller: str = "k", tokens: int = 0) -> PermitRequest:
    """Somebody wants a permit."""
    return PermitRequest(
        id=AskId(caller, UUID(int=next(_NUMBERS))),
        model=model,
        agent_type=agent,
        priority=Priority.MEDIUM,
        tokens=tokens,
    )


def model(limit: float = 4.0, *, name: str = "m", limits: Limits | None = None, latency: float = 1.0) -> Model:
    """A model whose service bears so much."""
    return Model(
        name=name, limits=limits or Limits(), pressure=Pressure(limit=limit, ramping=False, latency_seconds=latency)
    )


def snapshot(*models: Model, most: int = 100, in_use: Mapping[str, int] | None = None) -> PermitSnapshot:
    """Nobody waits; so many permits are in use."""
    usage = {name: Usage(permits=permits) for name, permits in (in_use or {}).items()}
    return PermitSnapshot(
        now=START,
        most=most,
        in_use=sum((in_use or {}).values()),
        models={one.name: one for one in models},
        usage=usage,
        claims=[],
        turns=Turns(),
        weights=EQUAL_WEIGHTS,
    )


@dataclass(kw_only=True)
class Caller:
    """Calls again and again. One that is `fickle` asks once and never comes back after a refusal."""

    name: str
    agent: AgentType
    hold_seconds: float = 1.0
    priority: Priority = Priority.MEDIUM
    fickle: bool = False
    renames: bool = False


@dataclass(kw_only=True)
class World:
    """One model, and a clock that goes from event to event."""

    callers: Sequence[Caller]
    limit: float
    weights: Mapping[AgentType, float] = field(default_factory=lambda: EQUAL_WEIGHTS)
    policy: PermitPolicy = field(default_factory=PermitPolicy)
    seed: int = 1
    served: Counter[str] = field(default_factory=Counter)
    busy_seconds: float = 0.0
    longest_wait: dict[str, float] = field(default_factory=dict)

    def run(self, seconds: float) -> None:
        """Let so much time pass."""
        chance, held, claims, turns = Random(self.seed), 0, dict[AskId, Reservation](), Turns()
        events: list[tuple[float, int, str, Caller, PermitRequest | None, float]] = []
        order = count()
        for caller in self.callers:
            heapq.heappush(events, (chance.random(), next(order), "ask", caller, None, -1.0))
        while events and events[0][0] < seconds:
            at, _, kind, caller, known, since = heapq.heappop(events)
            if kind == "end":
                held -= 1
                heapq.heappush(events, (at, next(order), "ask", caller, None, -1.0))
                continue
            now = START + timedelta(seconds=at)
            wanted = replace(
                ask(caller.agent, caller=caller.name) if known is None or caller.renames else known,
                priority=caller.priority,
            )
            seen = replace(
                snapshot(model(self.limit, latency=self.callers[0].hold_seconds), most=1000, in_use={"m": held}),
                now=now,
                claims=[c for c in claims.values() if c.lapses > now],
                turns=turns,
                weights=self.weights,
            )
            plan = decide(seen, [wanted], self.policy, PressurePolicy())
            turns = plan.turns
            for gone in plan.taken_up:
                claims.pop(gone, None)
            began = at if since < 0 else since
            match plan.answers[0]:
                case Granted():
                    held += 1
                    assert held <= self.limit
                    self.served[caller.name] += 1
                    self.busy_seconds += min(caller.hold_seconds, seconds - at)
                    self.longest_wait[caller.name] = max(self.longest_wait.get(caller.name, 0.0), at - began)
                    heapq.heappush(events, (at + caller.hold_seconds, next(order), "end", caller, None, -1.0))
                case Denied() as denied:
                    claim = denied.claim(now, self.policy)
                    assert claim is not None
                    claims[wanted.id] = claim
                    back = denied.retry_after.total_seconds() * (1 + 0.1 * chance.random())
                    if caller.fickle:
                        back, wanted, began = back * 20, None, -1.0  # type: ignore[assignment]
                    heapq.heappush(events, (at + back, next(order), "ask", caller, wanted, began))

    def share(self, agent: AgentType) -> float:
        """Of all permits, those of this agent type."""
        names = {caller.name for caller in self.callers if caller.agent is agent}
        return sum(self.served[name] for name in names) / max(1, sum(self.served.values()))
