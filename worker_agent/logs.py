"""Log lines of a worker for events and actions, with what they are about in fields."""

import logging
from collections.abc import Sequence
from dataclasses import asdict

from worker_agent import actions as act
from worker_agent import events as ev
from worker_agent.wire import Assignment, Directive, Lease, TaskError, Usage

log = logging.getLogger("worker_agent")


def log_event(event: ev.Event) -> None:
    match event:
        case ev.Registered(to):
            _log("registered", {"worker": to.worker_id, "name": to.name, "incarnation": to.incarnation})
        case ev.HeartbeatAnswered(directives=directives, assignment=assignment):
            _log_orders(directives, assignment)
        case ev.WorkerGone(reason=reason) | ev.CallerGone(reason):
            _log("written off by the control plane", {"reason": reason}, logging.WARNING)
        case ev.LeaseLost(code=code) | ev.ReportFenced(code):
            _log("lease lost", {"code": code}, logging.WARNING)
        case ev.StopSignal():
            _log("stop signal", {})
        case ev.GraceExpired():
            _log("grace is over", {}, logging.WARNING)
        case _:
            log.debug("%s", type(event).__name__)


def _log_orders(directives: Sequence[Directive], assignment: Assignment | None) -> None:
    for directive in directives:
        _log("directive", {"kind": directive.kind, "reason": directive.reason, "task": directive.task_id})
    if assignment is not None:
        _log("assigned", asdict(assignment))


def log_action(action: act.Action) -> None:
    match action:
        case act.RunHandler(lease):
            _log("task started", _lease_fields(lease) | {"attempt": lease.attempt, "goal": lease.goal_id})
        case act.ReportComplete(lease=lease, usage=usage, attempt=0):
            _log("task completed", _lease_fields(lease) | _usage_fields(usage))
        case act.ReportFail(lease=lease, error=error, usage=usage, attempt=0):
            _log("task failed", _lease_fields(lease) | _error_fields(error) | _usage_fields(usage), logging.WARNING)
        case act.Release(lease=lease, reason=reason, attempt=0):
            _log("task released", _lease_fields(lease) | {"reason": reason})
        case act.Exit(code, restart, message):
            _log("exit", {"code": int(code), "meaning": code.name.lower(), "restart": restart, "why": message})
        case _:
            log.debug("%s", type(action).__name__)


def _lease_fields(lease: Lease) -> dict[str, object]:
    return {"task": lease.task_id, "token": lease.token, "agent_type": lease.agent_type}


def _error_fields(error: TaskError) -> dict[str, object]:
    return {"code": error.code, "why": error.message, "retryable": error.retryable}


def _usage_fields(usage: Usage | None) -> dict[str, object]:
    if usage is None:
        return {}
    return {"wall_seconds": usage.wall_seconds, "cpu_seconds": usage.cpu_seconds, "memory_mb": usage.max_memory_mb}


def _log(text: str, fields: dict[str, object], level: int = logging.INFO) -> None:
    log.log(level, text, extra={"fields": fields})
