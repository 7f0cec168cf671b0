"""A system in which all is well, and what may be changed of it."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from app.health.rules import utilisation
from app.health.rules.runtime import LanguageModel, PoolCounts
from app.health.rules.snapshot import DatabaseCondition, DutyTurn, Snapshot
from app.health.rules.utilisation import Measure, Span
from app.kernel.agents import AgentType
from app.kernel.histograms import Durations
from app.kernel.lanes import Lane, Priority
from app.queue.rules.status import MinuteCount, OpenWriter, QueueSnapshot

OPEN_WRITER = OpenWriter(pid=4711, gid=None, database="lab", application="psql", seconds=12.3)
NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
HOST = utilisation.host_subject("lab")
Tasks = Mapping[AgentType, Mapping[str, int]]


def pool(**changes: Any) -> PoolCounts:
    """Ten workers that can run anything, half of them busy; nobody is assigned an agent."""
    usual: dict[str, Any] = {"idle": 5, "busy": 5, "assigned_workers": {}, "able_workers": dict.fromkeys(AgentType, 10)}
    return PoolCounts(**(usual | changes))


def condition(**changes: Any) -> DatabaseCondition:
    """A database that has little to do."""
    usual: dict[str, Any] = {"snapshot_seconds": 0.1, "snapshot_transactions": 3, "dead_rows": {}, "connections": 0.1}
    return DatabaseCondition(**(usual | changes))


def queue(tasks: Tasks | None = None, *, oldest: float | None = None, **changes: Any) -> QueueSnapshot:
    """A queue of medium priority: agent type -> phase -> tasks; the oldest has waited for so many seconds."""
    lanes = {Lane(agent_type=agent, priority=Priority.MEDIUM): phases for agent, phases in (tasks or {}).items()}
    waits = {} if oldest is None else {Priority.MEDIUM: NOON - timedelta(seconds=oldest)}
    return QueueSnapshot(at=NOON, tasks=lanes, oldest=waits, **changes)


def span(subject: str, measure: Measure, value: float, *, ago: float = 2, samples: int = 1, **changes: Any) -> Span:
    """A minute in which the value was the same all the time; the last sample was taken so many seconds ago."""
    at = NOON - timedelta(seconds=ago)
    same = {"low": value, "high": value, "last": value, "total": value * samples}
    usual: dict[str, Any] = {"start": at.replace(second=0, microsecond=0), "last_at": at, "samples": samples, **same}
    return Span(subject=subject, measure=measure, **(usual | changes))


def minute(agent: AgentType, kind: str, count: int, seconds: float = 0.0) -> MinuteCount:
    """So many moves of tasks of an agent type in the last minute, each of which took so long."""
    lane = Lane(agent_type=agent, priority=Priority.MEDIUM)
    durations = Durations(count=count, seconds=count * seconds, longest=seconds)
    return MinuteCount(start=NOON - timedelta(minutes=1), lane=lane, kind=kind, durations=durations)


def well(**changes: Any) -> Snapshot:
    """All is well, and everything has been measured."""
    usual = Snapshot(
        at=NOON,
        queue=queue(),
        pool=pool(),
        min_workers=10,
        spans=[span(HOST, Measure.CPU, 40.0), span(HOST, Measure.MEMORY, 30.0)],
        database=condition(),
        duty_turns=[DutyTurn(duty="sweep leases", seconds_ago=0.5, every_seconds=1.0)],
        language_model=LanguageModel(latency_ms=800.0, usage=0.25),
    )
    return replace(usual, **changes)
