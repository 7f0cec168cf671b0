"""Routes of the queue as a whole: its figures, and pausing and resuming agent types."""

from collections.abc import Collection, Iterable, Mapping
from datetime import timedelta
from typing import Literal

from pydantic import BaseModel, Field

from app.http.fields import AgentName, Moment, PriorityName, ReasonIn, priority_name
from app.http.guard import Caller, requires
from app.http.routing import Router
from app.http.services import ServicesDep
from app.http.transactions import Reading, Writing
from app.kernel.access import Scope
from app.kernel.agents import AgentType
from app.kernel.histograms import Durations
from app.kernel.lanes import Lane, Priority
from app.queue.api import advice
from app.queue.api.advice import AdviceOut
from app.queue.rules import status
from app.queue.rules.admission import CapacityPolicy, capacity_level, cumulative
from app.queue.rules.status import PHASES, RECENT, OpenWriter, QueueSnapshot
from app.queue.service import status as service
from app.queue.service.admission import Admission
from app.queue.store import throughput

router = Router(prefix="/queues", tags=["queues"])
_MANAGER = [requires(Scope.MANAGE)]
_DESCENDING = sorted(Priority, reverse=True)


class DepthOut(BaseModel):
    """Tasks that are queued: pending, delayed, held or blocked."""

    total: int
    by_priority: dict[PriorityName, int]
    by_agent: dict[AgentType, int]


class PhasesOut(BaseModel):
    """Live tasks of an agent type at a priority."""

    pending: int = Field(description="may run now")
    delayed: int = Field(description="wait for their time, or for a retry")
    held: int = Field(description="wait for their goal, which is paused or out of budget")
    blocked: int = Field(description="wait for other tasks")
    assigned: int
    executing: int


class QuotaOut(BaseModel):
    """How much of its room a priority takes up, together with the priorities below it, by priorities at submit."""

    limit: int
    depth: int
    fullness: float


class CapacityOut(BaseModel):
    """How much may wait, and how full that is, from 0 to 1. `level` goes by the fullest of the queue and its quotas."""

    max_queue_size: int
    fullness: float
    level: Literal["normal", "warning", "critical"]
    quotas: dict[PriorityName, QuotaOut]


class RatesOut(BaseModel):
    """Tasks a second."""

    submitted: float
    leased: float
    completed: float
    failed: float


class ThroughputOut(BaseModel):
    """What has gone through."""

    last_minute: RatesOut
    last_5_minutes: RatesOut


class TotalsOut(BaseModel):
    """Tasks since ever; one that failed and was requeued counts as both, and one that failed twice counts twice."""

    submitted: int
    completed: int
    failed: int
    cancelled: int
    displaced: int = Field(description="moved to the dead letters to make room")
    retried: int = Field(description="attempts that failed and were followed by another one")
    rescued: int = Field(description="leases that ended without a word from the worker")
    requeued: int


class DurationsOut(BaseModel):
    """Seconds, over the last five minutes; null where nothing happened. Percentiles are right within a factor of 2."""

    tasks: int
    p50: float | None
    p95: float | None
    p99: float | None
    longest: float | None


class WaitsOut(DurationsOut):
    """From being ready to run to being leased."""

    oldest_waiting: float | None = Field(description="seconds for which the oldest task that may run has waited by now")


class PauseOut(BaseModel):
    """Tasks of this type are not leased; those that run go on."""

    agent_type: AgentType
    reason: str
    paused_by: str = Field(description="id of the key that paused it")
    paused_at: Moment


class OpenWriterOut(BaseModel):
    """A transaction that writes events and stays open: events, results and counts wait for its end."""

    pid: int | None = Field(description="its process in PostgreSQL; null for a prepared transaction")
    gid: str | None = Field(description="name of a prepared transaction")
    database: str
    application: str | None
    seconds: float = Field(description="its age; where only `pg_read_all_stats` shows that, for how long events wait")


class QueueOut(BaseModel):
    """What a supervisor wants to know before it submits more."""

    at: Moment
    depth: DepthOut
    queues: dict[AgentType, dict[PriorityName, PhasesOut]]
    capacity: CapacityOut
    totals: TotalsOut
    throughput: ThroughputOut
    waits: dict[PriorityName, WaitsOut]
    service_times: dict[AgentType, DurationsOut] = Field(description="from being leased to being completed")
    paused: list[PauseOut]
    degradation: AdviceOut | None = Field(description="what is asked of whoever submits; null: as usual")
    dead_letters_last_hour: int
    counted_seconds_ago: float | None = Field(description="age of waits and throughput; null when never counted")
    open_writers: list[OpenWriterOut] = Field(description="for whom readers of events and results wait, oldest first")
    warnings: list[str] = Field(description="what somebody should know, in plain words")


class PausesOut(BaseModel):
    """All agent types that are paused now."""

    paused: list[PauseOut]


@router.get("", operation_id="get_queues", summary="Read how the queue stands", dependencies=[requires(Scope.MONITOR)])
async def read(services: ServicesDep, connection: Reading) -> QueueOut:
    """Depth, capacity, throughput, waits and service times, and warnings in plain words.

    Costs the same however many tasks there are. Depths are exact, and totals while the loops run; waits and throughput
    are counted by the background loops every 2 s, the oldest waiting task is looked for every 5 s.
    """
    queue, totals = await service.read_snapshot(connection), await throughput.totals(connection)
    return _queue_out(queue, totals, services[Admission].policy, advice.model(services))


@router.post("/pause", operation_id="pause_queues", summary="Pause all agent types", dependencies=_MANAGER)
async def pause_all(pause: ReasonIn, caller: Caller, connection: Writing) -> PausesOut:
    """No task is leased until they are resumed; tasks that run go on. Types that are paused already stay so."""
    return await _pause(connection, tuple(AgentType), pause.reason, caller.key_id)


@router.post("/resume", operation_id="resume_queues", summary="Resume all agent types", dependencies=_MANAGER)
async def resume_all(caller: Caller, connection: Writing, why: ReasonIn | None = None) -> PausesOut:
    """Workers that wait get what has piled up at once."""
    return await _resume(connection, tuple(AgentType), why, caller.key_id)


@router.post("/{agent_type}/pause", operation_id="pause_queue", summary="Pause an agent type", dependencies=_MANAGER)
async def pause_one(agent_type: AgentName, pause: ReasonIn, caller: Caller, connection: Writing) -> PausesOut:
    """None of its tasks is leased until it is resumed; tasks that run go on, and submitting goes on. Safe to repeat:
    a type that is paused already stays as it is, with the reason that was given first."""
    return await _pause(connection, (agent_type,), pause.reason, caller.key_id)


@router.post("/{agent_type}/resume", operation_id="resume_queue", summary="Resume an agent type", dependencies=_MANAGER)
async def resume_one(
    agent_type: AgentName, caller: Caller, connection: Writing, why: ReasonIn | None = None
) -> PausesOut:
    """Workers that wait get what has piled up at once. Resuming what is not paused changes nothing."""
    return await _resume(connection, (agent_type,), why, caller.key_id)


async def _pause(connection: Writing, agents: Collection[AgentType], reason: str, by: str) -> PausesOut:
    pauses = await service.pause(connection, agents, reason, by)
    return PausesOut.model_validate({"paused": pauses}, from_attributes=True)


async def _resume(connection: Writing, agents: Collection[AgentType], why: ReasonIn | None, by: str) -> PausesOut:
    pauses = await service.resume(connection, agents, why.reason if why else "", by)
    return PausesOut.model_validate({"paused": pauses}, from_attributes=True)


def _queue_out(
    queue: QueueSnapshot, totals: Mapping[str, int], policy: CapacityPolicy, degradation: AdviceOut | None
) -> QueueOut:
    return QueueOut(
        at=queue.at,
        depth=DepthOut(
            total=queue.count(),
            by_priority={priority_name(priority): queue.count(priority=priority) for priority in _DESCENDING},
            by_agent={agent: queue.count(agent=agent) for agent in AgentType},
        ),
        queues={agent: _lanes(queue, agent) for agent in AgentType},
        capacity=_capacity(queue.depth, policy),
        totals=TotalsOut(**{name: totals.get(kind, 0) for name, kind in status.TOTALS.items()}),
        throughput=ThroughputOut(last_minute=_rates(queue, timedelta(minutes=1)), last_5_minutes=_rates(queue, RECENT)),
        waits={priority_name(priority): _waits(queue, priority) for priority in _DESCENDING},
        service_times={agent: DurationsOut(**_durations(queue.service_times(agent))) for agent in AgentType},
        paused=[PauseOut.model_validate(pause, from_attributes=True) for pause in queue.pauses],
        degradation=degradation,
        dead_letters_last_hour=queue.dead_letters,
        counted_seconds_ago=_seconds(queue.count_age),
        open_writers=open_writers_out(queue.open_writers),
        warnings=status.warnings(queue, policy),
    )


def open_writers_out(writers: Iterable[OpenWriter]) -> list[OpenWriterOut]:
    """The transactions as the API shows them."""
    return [OpenWriterOut.model_validate(writer, from_attributes=True) for writer in writers]


def _lanes(queue: QueueSnapshot, agent: AgentType) -> dict[PriorityName, PhasesOut]:
    lanes = {priority: queue.tasks.get(Lane(agent_type=agent, priority=priority), {}) for priority in _DESCENDING}
    return {
        priority_name(priority): PhasesOut(**{phase: tasks.get(phase, 0) for phase in PHASES})
        for priority, tasks in lanes.items()
    }


def _capacity(depth: Mapping[Priority, int], policy: CapacityPolicy) -> CapacityOut:
    limits = {priority: policy.quota(priority) for priority in _DESCENDING}
    waiting = cumulative(depth)
    # A quota of 0 is full without any task.
    quotas = {
        priority_name(priority): QuotaOut(
            limit=limit, depth=waiting[priority], fullness=round(waiting[priority] / limit, 4) if limit else 1.0
        )
        for priority, limit in limits.items()
    }
    return CapacityOut.model_validate(
        {
            "max_queue_size": policy.max_queue_size,
            "fullness": round(sum(depth.values()) / policy.max_queue_size, 4),
            "level": capacity_level(policy, depth),
            "quotas": quotas,
        }
    )


def _rates(queue: QueueSnapshot, length: timedelta) -> RatesOut:
    return RatesOut(**{outcome: round(queue.per_second(outcome, length), 3) for outcome in RatesOut.model_fields})


def _waits(queue: QueueSnapshot, priority: Priority) -> WaitsOut:
    return WaitsOut(**_durations(queue.wait_times(priority)), oldest_waiting=_seconds(queue.oldest_wait(priority)))


def _durations(durations: Durations) -> dict[str, float | None]:
    shares = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
    percentiles = {name: durations.percentile(share) for name, share in shares.items()}
    seconds = {**percentiles, "longest": durations.longest if durations.count else None}
    return {"tasks": durations.count, **{name: s if s is None else round(s, 3) for name, s in seconds.items()}}


def _seconds(length: timedelta | None) -> float | None:
    return None if length is None else round(length.total_seconds(), 3)
