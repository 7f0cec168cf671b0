"""Probes of life and readiness, and an overview of the system."""

from collections import Counter, defaultdict
from datetime import timedelta
from typing import Any

from pydantic import BaseModel, Field
from starlette.responses import JSONResponse, Response

from app.db import schema
from app.db.database import takes_writes
from app.db.schema import ExpectedSchema
from app.health.rules.finding import Level, Overall
from app.health.service.snapshot_cache import SnapshotCache
from app.health.store import alerts
from app.http import problems
from app.http.guard import requires
from app.http.routing import Router
from app.http.services import ServicesDep
from app.kernel.access import Scope
from app.kernel.errors import DatabaseUnavailable, ShuttingDown
from app.queue.broker.broker import Broker
from app.queue.rules.status import (
    EVENTS_BY_OUTCOME,
    FINAL_OUTCOMES,
    QueueSnapshot,
    events_within,
    warnings,
)
from app.queue.service import status as status_service
from app.queue.service.admission import Admission
from app.workers.store import workers as worker_store

router = Router(tags=["health"])
_MINUTE = timedelta(minutes=1)
_PUBLIC = [requires(Scope.PUBLIC)]
_PENDING = ("pending", "delayed", "held")


class Alive(BaseModel):
    """The process answers."""

    status: str


class StatusOut(BaseModel):
    """What is going on. `GET /queues` tells more of the queue."""

    tasks: dict[str, dict[str, int]]
    workers: dict[str, int]
    finished_last_minute: dict[str, int] = Field(description="about; counted by the background loops")
    tasks_per_second: float = Field(description="finished in the last minute, however they ended")
    waiting_leases: int = Field(description="calls for a task that wait at this process of the API")
    alerts: dict[str, int] = Field(description="those that are not resolved, by severity; `GET /alerts` tells more")
    warnings: list[str] = Field(description="what somebody should know, in plain words")
    overall_health: Overall
    health_reasons: list[str] = Field(description="why it is not healthy; `GET /health/report` tells more")


class Catalogue(BaseModel):
    """Every problem this service answers with."""

    problems: list[dict[str, Any]]


@router.get("/livez", operation_id="check_liveness", summary="Is the process alive?", dependencies=_PUBLIC)
async def livez() -> Alive:
    """Needs no database: restarting this process would not bring a database back."""
    return Alive(status="alive")


@router.get(
    "/readyz",
    operation_id="check_readiness",
    summary="Can it serve?",
    dependencies=_PUBLIC,
    response_model=Alive,
    responses=problems.responses_for(DatabaseUnavailable),
)
async def readyz(services: ServicesDep) -> Response:
    """Ready means: the database answers, takes writes and is no former primary, its schema is the expected one or a
    newer one that serves this version, and no shutdown has begun."""
    # Not ready before the end, so that a load balancer sends no more requests while those under way finish.
    if services.stopping or services.is_draining:
        raise ShuttingDown
    async with services.database.transaction() as connection:
        if not await takes_writes(connection):
            raise DatabaseUnavailable("the database takes no writes: it is a standby, or its role may only read")
        if await services.database.is_former_primary(connection):
            raise DatabaseUnavailable("the database is a former primary: another server was promoted in its place")
        revision, expected_revision = await connection.run_sync(schema.revision_of), services[ExpectedSchema].revision
        if revision != expected_revision and not await schema.serves(connection, revision):
            raise DatabaseUnavailable(
                f"the schema is at {revision}, this version needs {expected_revision}: {schema.remedy(revision)}"
            )
    return JSONResponse({"status": "ready"})


@router.get("/status", operation_id="get_status", summary="What is going on?", dependencies=[requires(Scope.MONITOR)])
async def overview(services: ServicesDep) -> StatusOut:
    """Tasks by agent and state, workers by state, what was finished in the last minute, and warnings."""
    # First, since it has connections of its own and may take its time: none of ours is held meanwhile.
    report, _ = await services[SnapshotCache].report()
    async with services.database.reading() as connection:
        queue, workers = await status_service.read_snapshot(connection), await worker_store.workers_by_state(connection)
        unresolved_alerts = await alerts.unresolved_alerts(connection)
    finished_counts = {
        end: round(events_within(queue.recent, EVENTS_BY_OUTCOME[end], queue.at, _MINUTE)) for end in FINAL_OUTCOMES
    }
    return StatusOut(
        tasks=_tasks(queue),
        workers=workers,
        finished_last_minute={end: count for end, count in finished_counts.items() if count},
        tasks_per_second=round(sum(queue.per_second(end, _MINUTE) for end in FINAL_OUTCOMES), 2),
        waiting_leases=services[Broker].waiting_count,
        alerts=Counter(alert.severity.name.lower() for alert in unresolved_alerts),
        warnings=warnings(queue, services[Admission].policy),
        overall_health=report.overall,
        health_reasons=[reason.message for reason in report.reasons if reason.level is not Level.NOTE],
    )


@router.get(
    "/problems",
    operation_id="list_problems",
    summary="The problems that this service answers with",
    dependencies=_PUBLIC,
)
async def catalogue() -> Catalogue:
    """Code, status and meaning of each; `type` of a problem points here."""
    return Catalogue(problems=problems.catalogue())


def _tasks(queue: QueueSnapshot) -> dict[str, dict[str, int]]:
    """Live tasks: agent type -> state -> how many. A task that waits for its time or its goal is a pending one."""
    tasks: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for lane, phases in queue.tasks.items():
        for phase, count in phases.items():
            tasks[lane.agent_type]["pending" if phase in _PENDING else phase] += count
    return tasks
