"""Calls of workers on leases as the service and the broker take them, and the text of their answers."""

import hashlib
from datetime import UTC, datetime
from functools import lru_cache
from uuid import UUID

from pydantic_core import to_json

from app.http.fields import Usage, priority_name
from app.http.guard import worker_of
from app.http.json import check_size
from app.http.services import PayloadLimit, Services
from app.kernel.access import Principal
from app.kernel.ids import TaskId
from app.kernel.states import TaskState
from app.queue.api.lease_schemas import CompleteIn, LeaseIn, LeaseStartIn, NextIn, ProgressIn
from app.queue.broker.calls import LeaseCall, PrecedingResult
from app.queue.store.claims import Lease
from app.queue.store.completions import Completion, Renewal


def lease_call(call: LeaseIn | NextIn, principal: Principal, result: PrecedingResult | None = None) -> LeaseCall:
    """The call for a task, limited to agent types that the worker registered for. Raises Forbidden."""
    can_run = principal.capabilities
    return LeaseCall(
        worker_id=worker_of(principal),
        request_id=call.request_id,
        agent_types=can_run if call.agent_types is None else can_run.intersection(call.agent_types),
        acknowledge=call.acknowledge,
        ends_at=principal.ends_at,
        offer=principal.offer,
        follows=result.completion.task_id if result else None,
        result=result,
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
    # Written field by field, since to name the fields for a serializer costs as much as all else that a call does. JSON
    # values pass through as text: parsing and writing them again would cost more than that.
    return (
        f'{{"task_id":"{lease.task_id}","token":{lease.token},"attempt":{lease.attempt},'
        f'"agent_type":"{lease.agent_type}","goal_id":{_text(lease.goal_id)},'
        f'"priority":"{priority_name(lease.priority)}","created_at":{_moment(lease.created_at)},'
        f'"timeout_seconds":{lease.timeout_seconds!r},"leased_at":{_moment(lease.leased_at)},'
        f'"expires_at":{_moment(lease.expires_at)},"deadline_at":{_moment(lease.deadline_at)},'
        f'"trace_context":{_text(lease.trace_context)},"payload":{lease.payload},"labels":{lease.labels},'
        f'"checkpoint":{lease.checkpoint or "null"},"resources":{lease.resources or "null"},'
        f'"degradation":{advice or "null"}}}'
    )


def completed_text(task_id: UUID, following: Lease | None, advice: str | None) -> str:
    """The answer to an accepted result, with the next task if there is one."""
    lease = lease_text(following, advice) if following else "null"
    return f'{{"task_id":"{task_id}","state":"{TaskState.COMPLETED.value}","lease":{lease}}}'


def held_text(call: Renewal, expires_at: datetime) -> str:
    """The answer to a renewal."""
    return (
        f'{{"task_id":"{call.task_id}","token":{call.token},"state":"{TaskState.EXECUTING.value}",'
        f'"expires_at":{_moment(expires_at.timestamp())}}}'
    )


# The tasks of one claim have most of these times in common, and often their goal.
@lru_cache(maxsize=256)
def _moment(seconds: float) -> str:
    return to_json(datetime.fromtimestamp(seconds, UTC)).decode()


@lru_cache(maxsize=256)
def _text(text: str | None) -> str:
    return to_json(text).decode()


def _outcome_hash(call: CompleteIn) -> bytes:
    """Hash by which a repeated call is recognized; it leaves out the usage, which may be measured anew. 16 bytes."""
    outcome = call.result if call.quality is None else f"{call.result}{call.quality!r}"
    return hashlib.sha256(outcome.encode()).digest()[:16]
