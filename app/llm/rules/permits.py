"""Who may call a language model now: permits are granted or refused at once, fairly while they are scarce.

Those who are refused leave a claim behind and come back. The order is: priority (which grows while one waits), then
the agent type that is behind its share, then who has waited longest. Shares are those of start-time fair queueing,
with tokens as costs, as in Sheng et al., "Fairness in serving large language models" (OSDI 2024).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import NamedTuple
from uuid import UUID

from app.kernel.agents import AgentType
from app.kernel.lanes import Priority
from app.llm.rules.models import Model


class Refused(StrEnum):
    """Why there is no permit."""

    CONCURRENCY = "concurrency"
    REQUESTS = "requests"
    TOKENS = "tokens"
    COOLDOWN = "cooldown"
    BREAKER_OPEN = "breaker_open"


class Ending(StrEnum):
    """How a permit ended; `lost`: its worker ended before it."""

    SETTLED = "settled"
    RELEASED = "released"
    EXPIRED = "expired"
    LOST = "lost"


# Reasons that end by somebody's turn coming; the others end for all at one moment, so nobody has to queue up.
QUEUED = frozenset({Refused.CONCURRENCY, Refused.REQUESTS, Refused.TOKENS})


@dataclass(frozen=True, slots=True, kw_only=True)
class PermitPolicy:
    """Seconds, unless said otherwise.

    A permit is kept free for a claim from `ahead` before its holder was told to come back (but at most from a share
    `ahead_share` of the time that a call takes) until `grace` after. So one who stays away costs little, and nothing is
    lost where calls are short. The claim itself, and with it the place in the queue, lapses `patience` after, or a
    share `jitter` of the wait where that is longer: a busy system answers late. A call that nobody has estimated
    counts as `usual_tokens`. Waiting for `ageing`, the wait that the pool aims at, is worth a priority.

    A refusal for want of a free permit says to come back, between `soonest` and `latest`, after a share `eager` of the
    time in which all before it have had one: twice as soon as on average, so as to be there when it happens. While
    somebody tries a model that failed, it says after `probing`. The shares were found by simulation (`tests/domain`):
    with them agent types get theirs, and permits are in use for nine tenths of the time or more.
    """

    ttl: float = 120.0
    ahead: float = 0.25
    ahead_share: float = 0.1
    grace: float = 0.15
    patience: float = 2.0
    jitter: float = 0.2
    ageing: float = 30.0
    eager: float = 0.5
    soonest: float = 0.1
    latest: float = 5.0
    probing: float = 1.0
    usual_tokens: int = 1000


class AskId(NamedTuple):
    """By which a caller recognises its own request."""

    key_id: str
    request_id: UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class PermitRequest:
    """Somebody wants to call a model."""

    id: AskId
    model: str
    agent_type: AgentType
    priority: Priority
    tokens: int
    goal_id: str | None = None
    task_id: UUID | None = None
    worker_id: UUID | None = None

    @property
    def caller(self) -> tuple[object, ...]:
        """Who waits, whatever the request is called."""
        return (self.id.key_id, self.model, self.agent_type, self.priority, self.task_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """An ask that was refused: it waits since `since`, was told to come back at `due`, and has given up at `lapses`."""

    ask: PermitRequest
    since: datetime
    due: datetime
    lapses: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Turns:
    """Virtual times: of each agent type, when its share is used up; and of the last permit granted."""

    finish: Mapping[AgentType, float] = field(default_factory=dict)
    virtual: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Live permits of a model, and how many of them try out whether it works again."""

    permits: int = 0
    probes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PermitSnapshot:
    """All that a decision needs; `most` is how many permits there may be for all models together."""

    now: datetime
    most: int
    in_use: int
    models: Mapping[str, Model]
    usage: Mapping[str, Usage]
    claims: Sequence[Reservation]
    turns: Turns
    weights: Mapping[AgentType, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Granted:
    """A permit; `limit` and `in_use` are those of the model, with this one."""

    ask: PermitRequest
    is_probe: bool
    limit: int
    in_use: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Denied:
    """No permit now; come back after so long."""

    ask: PermitRequest
    reason: Refused
    retry_after: timedelta
    since: datetime

    def claim(self, now: datetime, policy: PermitPolicy) -> Reservation | None:
        """What it leaves behind, where it is about turns."""
        if self.reason not in QUEUED:
            return None
        due = now + self.retry_after
        patience = max(timedelta(seconds=policy.patience), policy.jitter * self.retry_after)
        return Reservation(ask=self.ask, since=self.since, due=due, lapses=due + patience)
