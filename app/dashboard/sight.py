"""The look of the first page at the service: what changes all the time, what seldom does, and the last hour."""

import asyncio
import time
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from app.dashboard.access import Viewer
from app.dashboard.api_calls import Api, Refused
from app.kernel.access import Scope
from app.kernel.agents import AgentType

_FLEET_SECONDS, _SELDOM_SECONDS, _HOUR_SECONDS = 0.9, 3.0, 60.0
_MINUTES = 60
_MINUTE = timedelta(minutes=1)
_DECISIONS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Hour:
    """The last 60 minutes, oldest first; None where nothing was measured."""

    finished: Sequence[float | None] = ()
    finished_by_agent: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    busy: Sequence[float | None] = ()
    processors: Sequence[float | None] = ()
    target: Sequence[float | None] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """Answers of the API; empty or None what the viewer may not see."""

    report: Mapping[str, Any]
    queues: Mapping[str, Any]
    fleet: Mapping[str, Any]
    decision: Mapping[str, Any] | None = None
    agents: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    models: Sequence[Mapping[str, Any]] = ()
    alerts: Sequence[Mapping[str, Any]] = ()
    permits: Mapping[str, Any] | None = None
    hour: Hour = field(default_factory=Hour)


class Looker:
    """Looks, and remembers for a while what seldom changes or costs much."""

    def __init__(self) -> None:
        self._fleet: dict[str, Any] = {}
        self._fleet_at = float("-inf")
        self._seldom: dict[str, Any] = {}
        self._seldom_at = float("-inf")
        self._hour = Hour()
        self._hour_at = float("-inf")

    async def look(self, viewer: Viewer) -> Sight:
        """Everything as it is. Raises Refused."""
        api, moment = viewer.api, time.monotonic()
        if moment - self._seldom_at >= _SELDOM_SECONDS:
            self._seldom, self._seldom_at = await _look_seldom(viewer), moment
        queues = await api.get("/queues")
        if moment - self._fleet_at >= _FLEET_SECONDS:
            self._fleet, self._fleet_at = await api.get("/fleet"), moment
        if moment - self._hour_at >= _HOUR_SECONDS:
            self._hour, self._hour_at = await _look_back(viewer, queues["at"]), moment
        return Sight(queues=queues, fleet=self._fleet, hour=self._hour, **self._seldom)


async def read_report(api: Api) -> Any:
    """The health report, also where it comes with 503 because the database is away."""
    try:
        return await api.get("/health/report")
    except Refused as refusal:
        if "overall_health" not in refusal.problem:
            raise
        return refusal.problem


async def _look_seldom(viewer: Viewer) -> dict[str, Any]:
    api = viewer.api
    report, decisions = await asyncio.gather(read_report(api), api.get("/scaling/decisions", limit=1))
    sight = {"report": report, "decision": next(iter(decisions["items"]), None)}
    if not viewer.may(Scope.READ):
        return sight
    agents, models, alerts = await asyncio.gather(
        api.get("/agents"), api.get("/llm/models", limit=50), api.get("/alerts", limit=50)
    )
    by_name = {agent["agent_type"]: agent for agent in agents["items"]}
    return {**sight, "agents": by_name, "models": models["items"], "alerts": alerts["items"]}


async def _look_back(viewer: Viewer, at: str) -> Hour:
    """The last hour; what is refused, as too many ask at once, stays empty."""
    api = viewer.api
    end = datetime.fromisoformat(at)
    starts = [end.replace(second=0, microsecond=0) - minutes * _MINUTE for minutes in reversed(range(_MINUTES))]
    usage, decisions = await asyncio.gather(
        _tolerated(api.get("/metrics/utilisation")),
        _tolerated(api.get("/scaling/decisions", changes=True, limit=_DECISIONS)),
    )
    subjects = usage["subjects"] if usage else {}
    hosts = [name for name in subjects if name.startswith("host:")]
    by_agent = await _finished(viewer, starts) if viewer.may(Scope.READ) else {}
    return Hour(
        finished=[sum(values) for values in zip(*by_agent.values(), strict=True)],
        finished_by_agent=by_agent,
        busy=_means(subjects.get("pool", ()), "busy_percentage"),
        processors=_means(subjects[hosts[0]], "cpu_percentage") if hosts else (),
        target=_targets(decisions["items"] if decisions else (), starts),
    )


async def _finished(viewer: Viewer, starts: Sequence[datetime]) -> dict[str, list[float]]:
    """Results of each agent in each minute."""
    trends = await asyncio.gather(
        *(_tolerated(viewer.api.get(f"/agents/{agent}", per="minute", spans=_MINUTES)) for agent in AgentType)
    )
    return {
        agent: _by_minute(trend["trend"] if trend else (), starts)
        for agent, trend in zip(AgentType, trends, strict=True)
    }


def _by_minute(spans: Sequence[Mapping[str, Any]], starts: Sequence[datetime]) -> list[float]:
    results = {datetime.fromisoformat(span["start"]): float(span["results"]) for span in spans}
    return [results.get(start, 0.0) for start in starts]


def _means(steps: Sequence[Mapping[str, Any]], measure: str) -> list[float | None]:
    return [step[measure]["mean"] if step[measure] else None for step in steps]


def _targets(decisions: Sequence[Mapping[str, Any]], starts: Sequence[datetime]) -> list[float | None]:
    """The target at the end of each minute, by the decisions that changed something; newest first, as they come."""
    changes = [(datetime.fromisoformat(item["timestamp"]), item) for item in decisions]
    targets: list[float | None] = []
    for start in starts:
        # Before the first change that is known it was what that one changed.
        latest = next((item["target_workers"] for at, item in changes if at < start + _MINUTE), None)
        targets.append(latest if latest is not None or not changes else changes[-1][1]["current_workers"])
    return targets


async def _tolerated(call: Awaitable[Any]) -> Any:
    try:
        return await call
    except Refused:
        return None
