"""The worker's calls to the control plane, each with its body and time limit."""

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from worker_agent.storable_text import storable, storable_code, storable_message
from worker_agent.transport import ApiUnavailable, Problem, Transport
from worker_agent.wire import (
    Assignment,
    Directive,
    JsonObject,
    Lease,
    LeaseRef,
    LogPiece,
    Progress,
    Registration,
    TaskError,
    Usage,
    WorkerState,
    read_assignment,
    read_directives,
    read_lease,
    read_registration,
)

CALL_SECONDS = 10.0
GOODBYE_SECONDS = 3.0
LONG_POLL_SECONDS = 20
_UNPROCESSABLE, _REPEATED_BY = 422, "request_id"


def register(transport: Transport, profile: JsonObject, pool_key: str) -> Registration:
    """Register the worker; raises ApiUnavailable or Problem, as every call here does."""
    try:
        answer = transport.post("/workers", profile, key=pool_key, timeout=CALL_SECONDS)
    except Problem as problem:
        # A control plane too old to know this member takes a registration without it, which it cannot repeat.
        if problem.status != _UNPROCESSABLE or _REPEATED_BY not in str(problem):
            raise
        profile = {name: value for name, value in profile.items() if name != _REPEATED_BY}
        answer = transport.post("/workers", profile, key=pool_key, timeout=CALL_SECONDS)
    try:
        return read_registration(answer or {})
    except (KeyError, TypeError, ValueError) as error:
        raise ApiUnavailable(f"no registration in the answer: {error!r}") from error


class Client:
    """Calls of one registered worker."""

    def __init__(self, transport: Transport, registration: Registration) -> None:
        self._transport = transport
        self._registration = registration

    def heartbeat(
        self,
        *,
        state: WorkerState,
        lease: LeaseRef | None,
        cpu_percent: float,
        memory_mb: float,
        errors: Sequence[JsonObject],
        not_ready_reason: str | None,
        assignment: str | None,
        timeout: float,
    ) -> tuple[tuple[Directive, ...], Assignment | None]:
        """Report health and renew the lease; return the directives, and the assignment unless `assignment` names it."""
        body: JsonObject = {
            "state": state,
            "lease": None if lease is None else asdict(lease),
            "cpu_percent": cpu_percent,
            "memory_mb": memory_mb,
            "errors": list(errors),
        }
        # A control plane that never sent an assignment may be too old to accept this member.
        if assignment is not None:
            body["assignment"] = assignment
        if not_ready_reason is not None:
            body["not_ready_reason"] = not_ready_reason
        answer = self._post(f"/workers/{self._registration.worker_id}/heartbeat", body, timeout)
        try:
            return read_directives(answer or {}), read_assignment(answer or {})
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ApiUnavailable(f"unreadable answer to a heartbeat: {error!r}") from error

    def goodbye(self, reason: str) -> None:
        body = {"reason": storable_message(reason)}
        self._post(f"/workers/{self._registration.worker_id}/goodbye", body, GOODBYE_SECONDS)

    def lease(self, request_id: str, *, wait_seconds: int = LONG_POLL_SECONDS) -> tuple[Lease | None, float]:
        """Lease and acknowledge a task; return it and the seconds the call took. Repeat with the same request id."""
        body = {"request_id": request_id, "wait_seconds": wait_seconds, "agent_types": None, "acknowledge": True}
        started_at = time.monotonic()
        answer = self._post("/lease", body, wait_seconds + CALL_SECONDS)
        return _read_lease(answer), time.monotonic() - started_at

    def progress(self, ref: LeaseRef, progress: Progress) -> None:
        body: JsonObject = {"token": ref.token, "percent": progress.percent}
        if progress.message is not None:
            body["message"] = storable_message(progress.message)
        if progress.checkpoint is not None:
            body["checkpoint"] = progress.checkpoint
        self._post(f"/leases/{ref.task_id}/progress", body)

    def logs(self, ref: LeaseRef, pieces: Sequence[LogPiece]) -> None:
        """Hand over output of an attempt; pieces that repeat are ignored."""
        body = {"token": ref.token, "pieces": [asdict(piece) for piece in pieces]}
        self._post(f"/leases/{ref.task_id}/logs", body, GOODBYE_SECONDS)

    def complete(
        self,
        ref: LeaseRef,
        result: JsonObject,
        *,
        usage: Usage | None = None,
        quality: float | None = None,
        next_request_id: str | None = None,
    ) -> Lease | None:
        """Report the result; return the next task when one was requested and there is one."""
        body: JsonObject = {"token": ref.token, "result": result} | _usage_member(usage)
        if quality is not None:
            body["quality"] = quality
        if next_request_id is not None:
            body["next"] = {"request_id": next_request_id, "agent_types": None, "acknowledge": True}
        answer = self._post(f"/leases/{ref.task_id}/complete", body)
        return _read_lease((answer or {}).get("lease"))

    def fail(self, ref: LeaseRef, error: TaskError, *, usage: Usage | None = None) -> None:
        fields = {
            "code": storable_code(error.code),
            "message": storable_message(error.message),
            "retryable": error.retryable,
        }
        body = {"token": ref.token, "error": fields | {"detail": storable(error.detail)}} | _usage_member(usage)
        self._post(f"/leases/{ref.task_id}/fail", body)

    def release(
        self, ref: LeaseRef, reason: str, *, delay_seconds: float = 0.0, waits_for_model: str | None = None
    ) -> None:
        body: JsonObject = {"token": ref.token, "reason": storable_message(reason)}
        if delay_seconds:
            body["delay_seconds"] = round(delay_seconds, 3)
        if waits_for_model is not None:
            body["waits_for_model"] = waits_for_model
        self._post(f"/leases/{ref.task_id}/release", body, GOODBYE_SECONDS)

    def _post(self, path: str, body: JsonObject, timeout: float = CALL_SECONDS) -> JsonObject | None:
        return self._transport.post(path, body, key=self._registration.key, timeout=timeout)


def _usage_member(usage: Usage | None) -> JsonObject:
    return {} if usage is None else {"usage": asdict(usage)}


def _read_lease(answer: Any) -> Lease | None:
    if answer is None:
        return None
    try:
        return read_lease(answer)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ApiUnavailable(f"unreadable lease: {error!r}") from error
