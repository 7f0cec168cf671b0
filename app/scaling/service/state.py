"""What the scaling loop keeps between decisions, in writing: its experience, and what its last decision was."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from app.db.database import now
from app.kernel.agents import AgentType
from app.kernel.lanes import Lane, Priority
from app.scaling.rules.demand import Arrivals
from app.scaling.rules.estimates import Ended, Experience, Service
from app.scaling.rules.idle import Spare
from app.scaling.store import decisions

_RECENT = timedelta(minutes=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """After a decision: what was learned until then, when the next is due, and what it said in short.

    `weights` are those that it used; `moved_at` is when workers last changed their agent.
    """

    experience: Experience
    again_after_seconds: float
    weights: Mapping[AgentType, float]
    moved_at: datetime | None = None
    brief: Mapping[str, Any] = field(default_factory=dict)


async def recall(connection: AsyncConnection) -> Memory | None:
    """What was kept after the last decision; None before the first."""
    return (await recall_and_now(connection))[0]


async def recall_and_now(connection: AsyncConnection) -> tuple[Memory | None, datetime]:
    """What was kept after the last decision, and the time of this transaction by the database's clock."""
    moment, kept = await decisions.memory(connection)
    return _memory(kept) if kept else None, moment


async def keep(connection: AsyncConnection, memory: Memory, *, may_be_lost: bool = False) -> None:
    """Keep it for the next decision; see `decisions.remember`."""
    await decisions.remember(connection, memory.experience.at, json.dumps(_plain(memory)), may_be_lost=may_be_lost)


def _plain(memory: Memory) -> dict[str, Any]:
    known = memory.experience
    return {
        "pending": _lanes(known.pending),
        "leased": _lanes(known.leased),
        "ended": {agent: [ended.tasks, ended.seconds] for agent, ended in known.ended.items()},
        "arrivals": [[came.seconds, _lanes(came.tasks)] for came in known.arrivals],
        "service": {agent: [service.mean_seconds, service.tasks] for agent, service in known.service.items()},
        "starts": list(known.starts),
        "spare": [[spare.seconds, spare.idle] for spare in known.spare],
        "workers": known.workers,
        "again_after_seconds": memory.again_after_seconds,
        "weights": dict(memory.weights),
        "moved_at": memory.moved_at.isoformat() if memory.moved_at else None,
        "brief": dict(memory.brief),
    }


def _memory(kept: Mapping[str, Any]) -> Memory:
    experience = Experience(
        at=kept["decided_at"],
        pending=_lanes_of(kept["pending"]),
        leased=_lanes_of(kept["leased"]),
        ended={AgentType(agent): Ended(tasks=n, seconds=seconds) for agent, (n, seconds) in kept["ended"].items()},
        arrivals=[Arrivals(seconds=seconds, tasks=_lanes_of(tasks)) for seconds, tasks in kept["arrivals"]],
        service={AgentType(agent): Service(mean_seconds=mean, tasks=n) for agent, (mean, n) in kept["service"].items()},
        starts=kept["starts"],
        spare=[Spare(seconds=seconds, idle=idle) for seconds, idle in kept["spare"]],
        workers=kept["workers"],
    )
    return Memory(
        experience=experience,
        again_after_seconds=kept["again_after_seconds"],
        weights={AgentType(agent): weight for agent, weight in kept["weights"].items()},
        moved_at=datetime.fromisoformat(kept["moved_at"]) if kept["moved_at"] else None,
        brief=kept["brief"],
    )


def _lanes(tasks: Mapping[Lane, int]) -> list[Sequence[Any]]:
    return [[lane.agent_type, lane.priority, count] for lane, count in tasks.items()]


def _lanes_of(kept: Sequence[Sequence[Any]]) -> dict[Lane, int]:
    return {Lane(agent_type=AgentType(agent), priority=Priority(p)): count for agent, p, count in kept}


async def bottleneck(connection: AsyncConnection) -> str | None:
    """The agent with the most outstanding work for each of its workers by the last decision; "" when there is none.

    None without a decision of the last minute: an older one says nothing of now.
    """
    last = await recall(connection)
    if last is None or last.experience.at < await now(connection) - _RECENT:
        return None
    return last.brief.get("bottleneck_agent") or ""
