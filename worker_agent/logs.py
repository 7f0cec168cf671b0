"""Structured log lines: key=value by default, one JSON object a line on request; and those for events and actions."""

import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from worker_agent import actions as act
from worker_agent import events as ev
from worker_agent.wire import Assignment, Directive, Lease, TaskError, Usage

log = logging.getLogger("worker_agent")


class _StructuredFormatter(logging.Formatter):
    """Formatter for records with `extra={"fields": {...}}`."""

    def __init__(self, *, as_json: bool) -> None:
        super().__init__()
        self._as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {"at": at, "level": record.levelname.lower(), "event": record.getMessage()}
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        if self._as_json:
            # Of all that could steer a terminal JSON leaves only U+007F as it is.
            return json.dumps(line, default=str).replace("\x7f", "\\u007f")
        return " ".join(f"{key}={_quote(value)}" for key, value in line.items())


def _quote(value: object) -> str:
    text = str(value)
    is_plain = text and text.isprintable() and not set(text) & set(' "=')
    return text if is_plain else printable(json.dumps(text, ensure_ascii=False))


def printable(text: str) -> str:
    """The text with line ends, control characters and marks of direction written as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def set_up_logging(level: str, *, as_json: bool) -> None:
    """Log to stderr, without the HTTP library's own lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_StructuredFormatter(as_json=as_json))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for name in ("httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.WARNING)


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
