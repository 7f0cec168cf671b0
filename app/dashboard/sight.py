"""The look of the first page at the service, part by part, each as often as it changes; and the last hour."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Hashable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from app.dashboard.access import Viewer
from app.dashboard.api_calls import Api, Refused
from app.dashboard.feed import Budget, News, Stopwatch
from app.db import hot_path, notify
from app.db.database import Database
from app.http.fields import priority_name
from app.kernel.access import Scope
from app.kernel.agents import AgentType
from app.kernel.errors import DatabaseUnavailable
from app.kernel.lanes import Lane, Priority
from app.queue.rules.status import PHASES, QUEUED_PHASES
from app.queue.service import status
from app.queue.store.waits import OldestTask

_MINUTES = 60
_MINUTE = timedelta(minutes=1)
_DECISIONS = 200
# As many as the API gives at once: what is wrong may be with the last of them.
_MOST = 500
# Parts rest no longer than this, whatever they cost.
_MAX_REST_SECONDS = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Hour:
    """The last 60 minutes, oldest first; None where nothing was measured. Not complete where the API refused some."""

    finished: Sequence[float | None] = ()
    finished_by_agent: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    busy: Sequence[float | None] = ()
    processors: Sequence[float | None] = ()
    target: Sequence[float | None] = ()
    depth_by_agent: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    is_complete: bool = True


@dataclass(slots=True, kw_only=True)
class LastHour:
    """The last hour as it was read last, as that is dear and changes once a minute; `read_at` as time.monotonic()."""

    hour: Hour = field(default_factory=Hour)
    read_at: float = float("-inf")


class LastHours:
    """The last hour for each set of rights, for pages and streams alike."""

    def __init__(self) -> None:
        self._hours: dict[Hashable, LastHour] = {}

    def of(self, rights: Hashable) -> LastHour:
        """The one that those who have these rights share."""
        if rights not in self._hours:
            least = time.monotonic() - _PARTS["hour"].idle_seconds
            # Namespaces come and go, and each may be part of the rights of a key.
            self._hours = {key: hour for key, hour in self._hours.items() if hour.read_at > least}
        return self._hours.setdefault(rights, LastHour())


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
    last_letter: Mapping[str, Any] | None = None
    oldest: Mapping[AgentType, OldestTask] = field(default_factory=dict)
    hour: Hour = field(default_factory=Hour)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A part of what is looked at: the topics after which it is read again, and seconds between two readings.

    `least_seconds` after a topic, `idle_seconds` without any of these, `quiet_seconds` while nothing is announced at
    all.
    """

    topics: frozenset[str] = frozenset()
    least_seconds: float = 0.0
    idle_seconds: float
    quiet_seconds: float = 60.0


# The numbers of waiting and running tasks are read at every look, the rest of the queue seldom.
_PARTS: Mapping[str, Part] = {
    "queues": Part(
        topics=frozenset({notify.EVENTS, notify.STATUS}), least_seconds=5.0, idle_seconds=15.0, quiet_seconds=30.0
    ),
    "fleet": Part(topics=frozenset({notify.FLEET, notify.LAUNCHES, notify.CONFIG}), idle_seconds=15.0),
    "report": Part(
        topics=frozenset({notify.STATUS, notify.FLEET}), least_seconds=1.0, idle_seconds=15.0, quiet_seconds=30.0
    ),
    "alerts": Part(topics=frozenset({notify.STATUS}), idle_seconds=15.0),
    "models": Part(topics=frozenset({notify.STATUS}), idle_seconds=30.0),
    "decision": Part(topics=frozenset({notify.FLEET, notify.LAUNCHES}), least_seconds=1.0, idle_seconds=30.0),
    "agents": Part(topics=frozenset({notify.WEIGHTS, notify.CONFIG}), idle_seconds=30.0),
    "last_letter": Part(topics=frozenset({notify.EVENTS}), least_seconds=5.0, idle_seconds=30.0),
    "oldest": Part(topics=frozenset({notify.EVENTS}), least_seconds=5.0, idle_seconds=15.0),
    "hour": Part(idle_seconds=60.0),
}
TOPICS = frozenset().union(*(part.topics for part in _PARTS.values()))
# A look without a part that is due reads the numbers of tasks alone.
IDLE_SECONDS = 5.0


class Looker:
    """Looks, and remembers each part until it is due again.

    With a database it reads there what the API answers only together with much else, or not at all: the numbers of
    tasks, the oldest of each agent type, and how many have waited.

    The parts have a budget of their own, where looks have one: otherwise looks that come seldom, since each reads many
    parts, would go on coming seldom because they do.
    """

    def __init__(
        self, database: Database | None = None, budget: Budget | None = None, last_hour: LastHour | None = None
    ) -> None:
        """`budget` is that of the looks; `last_hour` is shared with others."""
        self._database, self._budget, self._last_hour = database, budget, last_hour or LastHour()
        self._parts_budget = Budget(share=1 / 300, at_once_seconds=0.15, longest_seconds=_MAX_REST_SECONDS)
        self._rests_until = 0.0
        self._values: dict[str, Any] = {}
        self._read_at: dict[str, float] = {}
        self._heard: set[str] = set()
        self._urgent_parts: set[str] = set()
        # Parts since whose reading anything was announced.
        self._outdated_parts: set[str] = set()
        self._sight: Sight | None = None

    async def look(self, viewer: Viewer, news: News = None) -> Sight:
        """Everything as it is, and the last hour as it was a minute ago; the same object while nothing changes.

        Raises Refused.
        """
        moment = time.monotonic()
        watch = Stopwatch()
        # Made anew after a look that ends in an error.
        old_sight, self._sight = self._sight, None
        old_values = dict(self._values)
        if news is None:
            self._read_at.clear()
            self._rests_until = 0.0
        if self._last_hour.read_at > self._read_at.get("hour", float("-inf")):
            self._values["hour"], self._read_at["hour"] = self._last_hour.hour, self._last_hour.read_at
        due = self._due_parts(news or (), moment)
        if self._database is None or "queues" in due:
            self._values["queues"] = await viewer.api.get("/queues")
        else:
            self._values["queues"] = await _updated(self._database, viewer, self._values["queues"])
            if self._values["queues"] != old_values["queues"]:
                # Announcements get lost with the connection that brings them.
                self._outdated_parts = set(_PARTS)
            watch = Stopwatch()  # the numbers are no part, and count for the look
        reads = [name for name in due if name in _READS]
        values = await asyncio.gather(*(_READS[name](viewer, self._values["queues"]) for name in reads))
        self._values |= dict(zip(reads, values, strict=True))
        if self._database is not None:
            await self._look_into(self._database, due)
        self._read_at |= dict.fromkeys(due, moment)
        if "hour" in due and self._values["hour"].is_complete:
            self._last_hour.hour, self._last_hour.read_at = self._values["hour"], moment
        self._heard.difference_update(due)
        self._urgent_parts.difference_update(due)
        self._outdated_parts.difference_update(due)
        if due and self._budget is not None:
            cost, now = watch.cost, time.monotonic()
            self._budget.exempt(cost)
            self._rests_until = now + self._parts_budget.pause(cost, now)
        self._sight = old_sight if old_sight and self._values == old_values else Sight(**self._values)
        return self._sight

    def _due_parts(self, news: Collection[str], moment: float) -> list[str]:
        """Take note of the news, and return the parts to be read at this look."""
        self._heard |= {name for name, part in _PARTS.items() if not part.topics.isdisjoint(news)}
        # What people have ordered, and alerts, wait for no rest.
        if notify.STATUS in news:
            self._urgent_parts |= {name for name, part in _PARTS.items() if notify.STATUS in part.topics}
        rests = moment < self._rests_until
        due = [
            name
            for name, part in _PARTS.items()
            if self._is_due(name, part, moment, bool(news)) and (not rests or name in self._urgent_parts)
        ]
        if news:
            # Whatever may have changed with it is read at the next look: this one shows what was announced.
            self._outdated_parts = set(_PARTS)
        return due

    def _is_due(self, name: str, part: Part, moment: float, has_news: bool) -> bool:
        age = moment - self._read_at.get(name, float("-inf"))
        idle_seconds = part.idle_seconds if name in self._outdated_parts else part.quiet_seconds
        if has_news:
            # What was announced waits for this look, so it leaves the rest to the next ones, for a minute at most.
            idle_seconds = min(2 * idle_seconds, _MINUTE.total_seconds())
        return age >= idle_seconds or (name in self._heard and age >= part.least_seconds)

    async def _look_into(self, database: Database, due: Collection[str]) -> None:
        if "oldest" in due:
            async with _reading(database) as connection:
                self._values["oldest"] = await status.oldest_of_types(connection)
        if "hour" in due:
            queues = self._values["queues"]
            depths = {AgentType(agent): tasks for agent, tasks in queues["depth"]["by_agent"].items()}
            async with _reading(database) as connection:
                history = await status.depth_history(connection, _minutes(queues), depths)
            self._values["hour"] = replace(self._values["hour"], depth_by_agent=history)


async def _updated(database: Database, viewer: Viewer, queues: Mapping[str, Any]) -> Mapping[str, Any]:
    """The queue with the numbers of tasks as they are now; all of it anew where a pause has begun or ended."""
    with _refusing():
        tasks, paused = await hot_path.run(database, status.read_depths)
    is_same = paused == {pause["agent_type"] for pause in queues["paused"]}
    updated: Mapping[str, Any] = _with_depths(queues, tasks) if is_same else await viewer.api.get("/queues")
    return updated


@asynccontextmanager
async def _reading(database: Database) -> AsyncIterator[AsyncConnection]:
    """A connection that reads. Raises Refused."""
    with _refusing():
        async with database.reading() as connection:
            yield connection


@contextmanager
def _refusing() -> Iterator[None]:
    """Raise Refused where the database is away."""
    try:
        yield
    except DatabaseUnavailable as error:
        raise Refused(503, {"detail": error.detail, "code": error.code}) from error


def _with_depths(queues: Mapping[str, Any], tasks: Mapping[Lane, Mapping[str, int]]) -> dict[str, Any]:
    lanes = {
        agent: {
            priority_name(priority): {
                phase: tasks.get(Lane(agent_type=agent, priority=priority), {}).get(phase, 0) for phase in PHASES
            }
            for priority in Priority
        }
        for agent in AgentType
    }
    by_agent = {
        agent: sum(phases[phase] for phases in of_agent.values() for phase in QUEUED_PHASES)
        for agent, of_agent in lanes.items()
    }
    depth = {**queues["depth"], "total": sum(by_agent.values()), "by_agent": by_agent}
    return {**queues, "queues": lanes, "depth": depth}


async def read_report(api: Api) -> Any:
    """The health report, also where it comes with 503 because the database is away."""
    try:
        return await api.get("/health/report")
    except Refused as refusal:
        if "overall_health" not in refusal.problem:
            raise
        return refusal.problem


async def _report(viewer: Viewer, _: Any) -> Any:
    return await read_report(viewer.api)


async def _fleet(viewer: Viewer, _: Any) -> Any:
    return await viewer.api.get("/fleet")


async def _decision(viewer: Viewer, _: Any) -> Any:
    return next(iter((await viewer.api.get("/scaling/decisions", limit=1))["items"]), None)


async def _agents(viewer: Viewer, _: Any) -> Any:
    agents = (await viewer.api.get("/agents"))["items"] if viewer.may(Scope.READ) else ()
    return {agent["agent_type"]: agent for agent in agents}


async def _models(viewer: Viewer, _: Any) -> Any:
    return (await viewer.api.get("/llm/models", limit=_MOST))["items"] if viewer.may(Scope.READ) else ()


async def _alerts(viewer: Viewer, _: Any) -> Any:
    return (await viewer.api.get("/alerts", limit=_MOST))["items"] if viewer.may(Scope.READ) else ()


async def _last_letter(viewer: Viewer, queues: Any) -> Any:
    if not queues["dead_letters_last_hour"] or not viewer.may(Scope.READ, Scope.CONTENT):
        return None
    return next(iter((await viewer.api.get("/dead-letters", limit=1))["items"]), None)


async def _look_back(viewer: Viewer, queues: Any) -> Hour:
    """The last hour; what is refused, as too many ask at once, stays empty."""
    api = viewer.api
    starts = _minutes(queues)
    usage, decisions = await asyncio.gather(
        _tolerated(api.get("/metrics/utilisation")),
        _tolerated(api.get("/scaling/decisions", changes=True, limit=_DECISIONS)),
    )
    subjects = usage["subjects"] if usage else {}
    hosts = [name for name in subjects if name.startswith("host:")]
    trends = await _trends(viewer) if viewer.may(Scope.READ) else {}
    by_agent = {str(agent): _by_minute(trend["trend"] if trend else (), starts) for agent, trend in trends.items()}
    return Hour(
        finished=[sum(values) for values in zip(*by_agent.values(), strict=True)],
        finished_by_agent=by_agent,
        busy=_means(subjects.get("pool", ()), "busy_percentage"),
        processors=_means(subjects[hosts[0]], "cpu_percentage") if hosts else (),
        target=_targets(decisions["items"] if decisions else (), starts),
        is_complete=all(answer is not None for answer in (usage, decisions, *trends.values())),
    )


def _minutes(queues: Mapping[str, Any]) -> list[datetime]:
    """The beginnings of the last minutes, oldest first."""
    end = datetime.fromisoformat(queues["at"]).replace(second=0, microsecond=0)
    return [end - minutes * _MINUTE for minutes in reversed(range(_MINUTES))]


_READS: Mapping[str, Callable[[Viewer, Any], Awaitable[Any]]] = {
    "report": _report,
    "fleet": _fleet,
    "decision": _decision,
    "agents": _agents,
    "models": _models,
    "alerts": _alerts,
    "last_letter": _last_letter,
    "hour": _look_back,
}


async def _trends(viewer: Viewer) -> dict[AgentType, Any]:
    """Answers of the API about each agent by the minute; None where it refuses."""
    trends = await asyncio.gather(
        *(_tolerated(viewer.api.get(f"/agents/{agent}", per="minute", spans=_MINUTES)) for agent in AgentType)
    )
    return dict(zip(AgentType, trends, strict=True))


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
