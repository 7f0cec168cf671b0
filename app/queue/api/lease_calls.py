"""Calls of workers on leases as the service and the broker take them, and the text of their answers."""

import hashlib
from datetime import datetime
from uuid import UUID

from app.http.fields import Usage, priority_name
from app.http.guard import worker_of
from app.http.json import check_size, join
from app.http.services import PayloadLimit, Services
from app.kernel.access import Principal
from app.kernel.ids import TaskId
from app.kernel.states import TaskState
from app.queue.api.lease_schemas import CompleteIn, LeaseIn, LeaseStartIn, NextIn, ProgressIn
from app.queue.broker.broker import LeaseCall
from app.queue.store.claims import Lease
from app.queue.store.completions import Completion, Renewal


def lease_call(call: LeaseIn | NextIn, principal: Principal) -> LeaseCall:
    """The call for a task, limited to agent types that the worker registered for. Raises Forbidden."""
    can_run = principal.capabilities
    return LeaseCall(
        worker_id=worker_of(principal),
        request_id=call.request_id,
        agent_types=can_run if call.agent_types is None else can_run.intersection(call.agent_types),
        acknowledge=call.acknowledge,
    )


def completion(task_id: UUID, call: CompleteIn, principal: Principal, services: Services) -> Completion:
    """The result that is handed in. Raises PayloadTooLarge, Forbidden."""
    check_size(call.result, services[PayloadLimit].max_bytes, "result")
    return Completion(
        task_id=TaskId(task_id),
        token=call.token,
        worker_id=worker_of(principal),
        result=call.result,
        result_hash=_outcome_hash(call),
        usage=usage_text(call.usage),
        quality=call.quality,
    )


def renewal(task_id: UUID, call: LeaseStartIn | ProgressIn, principal: Principal, services: Services) -> Renewal:
    """The acknowledgement, or the report of progress. Raises PayloadTooLarge, Forbidden."""
    progress, checkpoint = None, None
    if isinstance(call, ProgressIn):
        progress, checkpoint = call.model_dump_json(include={"percent", "message"}), call.checkpoint
        check_size(checkpoint, services[PayloadLimit].max_bytes, "checkpoint")
    return Renewal(
        task_id=TaskId(task_id),
        token=call.token,
        worker_id=worker_of(principal),
        progress=progress,
        checkpoint=checkpoint,
    )


def usage_text(usage: Usage | None) -> str | None:
    """The usage as JSON text."""
    return usage.model_dump_json() if usage else None


def lease_text(lease: Lease, advice: str | None) -> str:
    """The answer to a call that got a task, as JSON text like the advice of these moments."""
    plain = {
        "task_id": lease.task_id,
        "token": lease.token,
        "attempt": lease.attempt,
        "agent_type": lease.agent_type,
        "goal_id": lease.goal_id,
        "priority": priority_name(lease.priority),
        "created_at": lease.created_at,
        "timeout_seconds": lease.timeout_seconds,
        "leased_at": lease.leased_at,
        "expires_at": lease.expires_at,
        "deadline_at": lease.deadline_at,
        "trace_context": lease.trace_context,
    }
    # JSON values pass through as text: parsing and writing them again would cost more than everything else here.
    texts = {"payload": lease.payload, "labels": lease.labels, "checkpoint": lease.checkpoint, "degradation": advice}
    return join(plain, texts)


def completed_text(task_id: UUID, following: Lease | None, advice: str | None) -> str:
    """The answer to an accepted result, with the next task if there is one."""
    fields = {"task_id": task_id, "state": TaskState.COMPLETED.value}
    return join(fields, {"lease": lease_text(following, advice) if following else None})


def held_text(call: Renewal, expires_at: datetime) -> str:
    """The answer to a renewal."""
    identity = {"task_id": call.task_id, "token": call.token}
    return join({**identity, "state": TaskState.EXECUTING.value, "expires_at": expires_at}, {})


def _outcome_hash(call: CompleteIn) -> bytes:
    """Hash by which a repeated call is recognized; it leaves out the usage, which may be measured anew. 16 bytes."""
    outcome = call.result if call.quality is None else f"{call.result}{call.quality!r}"
    return hashlib.sha256(outcome.encode()).digest()[:16]
