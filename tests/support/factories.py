"""Plain functions that make what tests need."""

import hashlib
import json
from typing import Any
from uuid import UUID, uuid4

from app.db import hot_path
from app.db.database import Database
from app.db.duties import Turn
from app.goals.rules.goals import Constraints
from app.goals.store.goals import GoalRequest
from app.kernel.agents import AgentType
from app.kernel.ids import WorkerId
from app.kernel.lanes import Lane, Priority
from app.queue.rules.tasks import LeasePolicy, RetryPolicy
from app.queue.service import leases, tasks
from app.queue.service.leases import EndedLease, Failure, Fence
from app.queue.service.tasks import Submission
from app.queue.store import claims
from app.queue.store.claims import ClaimRequest, Lease
from app.queue.store.completions import Completion, Renewal
from app.workers.rules.workers import Directive
from app.workers.service import workers
from app.workers.service.directives import Order
from app.workers.store import workers as worker_store
from app.workers.store.hosts import Report
from app.workers.store.workers import Heartbeat, Registration

FAILURE = Failure(code="boom", message="it went wrong", retryable=True, detail='{"line":7}', usage='{"cpu_seconds":1}')
GENERATION = Lane(agent_type=AgentType.GENERATION, priority=Priority.MEDIUM)


def submission(**changes: Any) -> Submission:
    """A task to submit; any field may be given."""
    usual: dict[str, Any] = {
        "id": None,
        "agent_type": AgentType.GENERATION,
        "goal_id": "goal",
        "priority": Priority.MEDIUM,
        "payload": json.dumps({"n": 1}),
        "labels": "{}",
        "timeout_seconds": 60.0,
        "deadline": None,
        "run_at": None,
        "retry": RetryPolicy(delays_seconds=(0.0,)),
        "trace_context": None,
    }
    return Submission(**(usual | changes))


def goal_request(goal_id: str = "goal", weight: float | None = None, **constraints: Any) -> GoalRequest:
    """A research goal to create, with these constraints."""
    own = Constraints(**constraints)
    return GoalRequest(id=goal_id, objective="to know", constraints=own, weight=weight, created_by="me")


def registration(name: str | None = None, **changes: Any) -> Registration:
    """What a worker says of itself."""
    usual: dict[str, Any] = {
        "name": name or f"worker-{uuid4().hex[:8]}",
        "host": "test",
        "pid": 1,
        "capabilities": list(AgentType),
        "labels": "{}",
        "version": "0",
        "memory_gb": 1.0,
        "cpu_cores": 1.0,
    }
    return Registration(**(usual | changes))


def report(size: int = 1, **changes: Any) -> Report:
    """What a host says of itself: there is room on it."""
    usual: dict[str, Any] = {
        "provisioner": "local",
        "host": "here",
        "usual_size": size,
        "memory_gb": 1000.0,
        "memory_used_gb": 10.0,
        "cpu_cores": 100.0,
        "cpu_share": None,
    }
    return Report(**(usual | changes))


def beat(worker_id: UUID, **changes: Any) -> Heartbeat:
    """A heartbeat of an idle worker."""
    usual: dict[str, Any] = {
        "worker_id": WorkerId(worker_id),
        "draining": False,
        "task_id": None,
        "token": None,
        "cpu_percent": 0.0,
        "memory_mb": 1.0,
        "errors": None,
    }
    return Heartbeat(**(usual | changes))


def order(directive: Directive, reason: str = "enough") -> Order:
    """What somebody tells workers."""
    return Order(directive=directive, by="test", reason=reason)


async def submitted(database: Database, count: int = 1, **changes: Any) -> list[UUID]:
    """Ids of tasks that were just submitted and committed."""
    async with database.transaction() as connection:
        done = await tasks.submit(connection, [submission(**changes) for _ in range(count)])
    return [task.id for task in done]


async def ready_worker(database: Database, name: str | None = None, **changes: Any) -> WorkerId:
    """A worker that has registered and passed its first health report."""
    async with database.transaction() as connection:
        registered = await workers.register(connection, registration(name, **changes), None)
    await hot_path.run(database, lambda c: worker_store.record_heartbeats(c, [beat(registered.worker_id)], 15.0))
    return registered.worker_id


async def leased(
    database: Database,
    worker_id: WorkerId,
    *,
    acknowledge: bool = True,
    agent_type: AgentType = AgentType.GENERATION,
    priority: Priority = Priority.MEDIUM,
    resources: str | None = None,
    policy: LeasePolicy = LeasePolicy(avoid_seconds=0),  # noqa: B008 - frozen
) -> Lease:
    """The lease that a worker has just received, straight from the store; `resources` are those of the first class."""
    lane = Lane(agent_type=agent_type, priority=priority, resource_class=int(resources is not None))
    ask = ClaimRequest(
        worker_id=worker_id,
        request_id=uuid4(),
        lane=lane,
        acknowledge=acknowledge,
        floor=lane.bottom,
        resources=resources,
    )
    claim = (await hot_path.run(database, lambda c: claims.claim(c, [ask], policy)))[0]
    assert claim.lease is not None
    return claim.lease


async def holding(database: Database, **changes: Any) -> tuple[WorkerId, Lease]:
    """A worker and the lease on a new task that it holds."""
    worker_id = await ready_worker(database)
    await submitted(database, **changes)
    return worker_id, await leased(database, worker_id)


def completion(
    worker_id: WorkerId, lease: Lease, result: str = '{"ok":true}', *, quality: float | None = None
) -> Completion:
    """The result of a lease."""
    return Completion(
        task_id=lease.task_id,
        token=lease.token,
        worker_id=worker_id,
        result=result,
        result_hash=hashlib.sha256(result.encode()).digest(),
        usage=None,
        quality=quality,
    )


def fence(worker_id: WorkerId, lease: Lease) -> Fence:
    """What a call on a lease shows."""
    return Fence(task_id=lease.task_id, token=lease.token, worker_id=worker_id)


def renewal(worker_id: WorkerId, lease: Lease, **changes: Any) -> Renewal:
    """A renewal of a lease."""
    return Renewal(task_id=lease.task_id, token=lease.token, worker_id=worker_id, **changes)


async def failed(database: Database, worker_id: WorkerId, lease: Lease, failure: Failure = FAILURE) -> EndedLease:
    """Report the failure of a lease's task."""
    async with database.transaction() as connection:
        return await leases.fail(connection, fence(worker_id, lease), failure)


def turn(duty: str = "test", *, seconds_since_last: float = 1.0, held_back: bool = False) -> Turn:
    """A turn of a background duty; what held back did so for long."""
    held_back_seconds = 600.0 if held_back else None
    return Turn(
        duty=duty, seconds_since_last=seconds_since_last, held_back=held_back, held_back_seconds=held_back_seconds
    )


async def everything(database: Database, task_id: UUID) -> dict[str, Any]:
    """All that is known of a task."""
    async with database.transaction() as connection:
        return await tasks.read(connection, task_id)
