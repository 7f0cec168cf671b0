"""Tells the log what happens to the worker and what it does about it."""

import logging
from collections.abc import Sequence
from dataclasses import asdict

from worker_agent import actions as act
from worker_agent import events as ev
from worker_agent.wire import Directive, Lease, Posting, TaskError, Usage

log = logging.getLogger("worker_agent")


def tell_event(event: ev.Event) -> None:
    match event:
        case ev.Registered(to):
            _tell("registered", {"worker": to.worker_id, "name": to.name, "incarnation": to.incarnation})
        case ev.BeatAnswered(directives=directives, posting=posting):
            _tell_orders(directives, posting)
        case ev.Gone(reason=reason) | ev.CallerGone(reason):
            _tell("written off by the control plane", {"reason": reason}, logging.WARNING)
        case ev.LeaseLost(code=code) | ev.Fenced(code):
            _tell("lease lost", {"code": code}, logging.WARNING)
        case ev.StopSignal():
            _tell("stop signal", {})
        case ev.GraceOver():
            _tell("grace is over", {}, logging.WARNING)
        case _:
            log.debug("%s", type(event).__name__)


def _tell_orders(directives: Sequence[Directive], posting: Posting | None) -> None:
    for each in directives:
        _tell("directive", {"kind": each.kind, "reason": each.reason, "task": each.task_id})
    if posting is not None:
        _tell("assigned", asdict(posting))


def tell_action(action: act.Action) -> None:
    match action:
        case act.RunHandler(lease):
            _tell("task started", _of(lease) | {"attempt": lease.attempt, "goal": lease.goal_id})
        case act.ReportComplete(lease=lease, usage=usage, attempt=0):
            _tell("task completed", _of(lease) | _cost(usage))
        case act.ReportFail(lease=lease, error=error, usage=usage, attempt=0):
            _tell("task failed", _of(lease) | _why(error) | _cost(usage), logging.WARNING)
        case act.Release(lease=lease, reason=reason, attempt=0):
            _tell("task released", _of(lease) | {"reason": reason})
        case act.Exit(code, restart, message):
            _tell("exit", {"code": int(code), "meaning": code.name.lower(), "restart": restart, "why": message})
        case _:
            log.debug("%s", type(action).__name__)


def _of(lease: Lease) -> dict[str, object]:
    return {"task": lease.task_id, "token": lease.token, "agent_type": lease.agent_type}


def _why(error: TaskError) -> dict[str, object]:
    return {"code": error.code, "why": error.message, "retryable": error.retryable}


def _cost(usage: Usage | None) -> dict[str, object]:
    if usage is None:
        return {}
    return {"wall_seconds": usage.wall_seconds, "cpu_seconds": usage.cpu_seconds, "memory_mb": usage.max_memory_mb}


def _tell(what: str, fields: dict[str, object], level: int = logging.INFO) -> None:
    log.log(level, what, extra={"fields": fields})
