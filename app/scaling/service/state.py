"""State of the scaling loop between two decisions, stored as one row: its estimates, and its last decision in short."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from app.kernel.agents import AgentType
from app.kernel.lanes import Lane, Priority
from app.scaling.rules.demand import Arrivals
from app.scaling.rules.estimates import ClassHistory, Estimates, ServiceTime, TaskTotals
from app.scaling.rules.idle import IdleSample
from app.scaling.store import decisions

_RECENT = timedelta(minutes=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingState:
    """State after a decision: the estimates, the seconds until the next one is due, and the decision in short.

    `weights` are those that it used; `moved_at` is when workers last changed their agent type.
    """

    estimates: Estimates
    again_after_seconds: float
    weights: Mapping[AgentType, float]
    moved_at: datetime | None = None
    brief: Mapping[str, Any] = field(default_factory=dict)


async def read(connection: AsyncConnection) -> ScalingState | None:
    """The state after the last decision; None before the first."""
    return (await read_with_time(connection))[0]


async def read_with_time(connection: AsyncConnection) -> tuple[ScalingState | None, datetime]:
    """The state after the last decision, and the time of this transaction by the database's clock."""
    moment, document = await decisions.read_state(connection)
    return _state(document) if document else None, moment


async def write(connection: AsyncConnection, state: ScalingState, *, may_be_lost: bool = False) -> None:
    """Store the state for the next decision; see `decisions.write_state`."""
    await decisions.write_state(connection, state.estimates.at, json.dumps(_document(state)), may_be_lost=may_be_lost)


def _document(state: ScalingState) -> dict[str, Any]:
    # The stored keys stay whatever becomes of the names of the fields.
    current = state.estimates
    return {
        "pending": _lanes(current.pending),
        "leased": _lanes(current.leases),
        "ended": {agent: [total.tasks, total.seconds] for agent, total in current.totals.items()},
        "arrivals": [[arrivals.seconds, _lanes(arrivals.tasks)] for arrivals in current.arrivals],
        "service": {agent: [mean.mean_seconds, mean.tasks] for agent, mean in current.service_times.items()},
        "starts": list(current.starts),
        "spare": [[sample.seconds, sample.idle] for sample in current.idle_history],
        "workers": current.workers,
        "classes": {
            name: [history.workers, [[sample.seconds, sample.idle] for sample in history.idle_history]]
            for name, history in current.classes.items()
        },
        # Apart from the classes, whose columns the version before this one counts.
        "class_starts": {name: list(history.starts) for name, history in current.classes.items()},
        "again_after_seconds": state.again_after_seconds,
        "weights": dict(state.weights),
        "moved_at": state.moved_at.isoformat() if state.moved_at else None,
        "brief": dict(state.brief),
    }


def _state(document: Mapping[str, Any]) -> ScalingState:
    estimates = Estimates(
        at=document["decided_at"],
        pending=_lanes_of(document["pending"]),
        leases=_lanes_of(document["leased"]),
        totals={
            AgentType(agent): TaskTotals(tasks=count, seconds=seconds)
            for agent, (count, seconds) in document["ended"].items()
        },
        arrivals=[Arrivals(seconds=seconds, tasks=_lanes_of(tasks)) for seconds, tasks in document["arrivals"]],
        service_times={
            AgentType(agent): ServiceTime(mean_seconds=mean, tasks=count)
            for agent, (mean, count) in document["service"].items()
        },
        starts=document["starts"],
        idle_history=[IdleSample(seconds=seconds, idle=idle) for seconds, idle in document["spare"]],
        workers=document["workers"],
        classes={
            name: ClassHistory(
                workers=workers,
                idle_history=[IdleSample(seconds=seconds, idle=idle) for seconds, idle in samples],
                starts=document.get("class_starts", {}).get(name, ()),
            )
            for name, (workers, samples) in document.get("classes", {}).items()
        },
    )
    return ScalingState(
        estimates=estimates,
        again_after_seconds=document["again_after_seconds"],
        weights={AgentType(agent): weight for agent, weight in document["weights"].items()},
        moved_at=datetime.fromisoformat(document["moved_at"]) if document["moved_at"] else None,
        brief=document["brief"],
    )


def _lanes(tasks: Mapping[Lane, int]) -> list[Sequence[Any]]:
    return [[lane.agent_type, lane.priority, count] for lane, count in tasks.items()]


def _lanes_of(rows: Sequence[Sequence[Any]]) -> dict[Lane, int]:
    return {Lane(agent_type=AgentType(agent), priority=Priority(p)): count for agent, p, count in rows}


async def bottleneck(connection: AsyncConnection) -> str | None:
    """Agent type with the most outstanding work per worker by the last decision; "" when there is no work.

    None without a decision within the last minute, as an older one says nothing about the present.
    """
    return await decisions.bottleneck(connection, within_seconds=_RECENT.total_seconds())
