"""Decides how a task ended, from the exit code and the messages of its handler's process."""

import json
import logging
import signal
from dataclasses import dataclass, replace

from worker_agent import events as ev
from worker_agent.child import MAX_RESULT_BYTES
from worker_agent.handler_messages import HandlerMessages, NotAnObject, read_json_object, read_quality
from worker_agent.storable_text import unstorable_reason
from worker_agent.wire import JsonObject, TaskError, Usage

log = logging.getLogger(__name__)
_SHOWN_BYTES = 200
EX_TEMPFAIL = 75  # sysexits.h: "the user is invited to retry"


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Facts about an ended handler; `exit_code` is minus a signal's number, only a program has `output`."""

    exit_code: int
    usage: Usage
    messages: HandlerMessages
    output: bytes | None = None
    console: str = ""
    is_too_large: bool = False
    is_killed: bool = False
    memory_excess: str | None = None
    timed_out_after: float | None = None


def handler_end(evidence: Evidence) -> ev.HandlerEnd:
    """Event for the end of a handler; a kill or a timeout after the result was sent does not spoil it."""
    if evidence.messages.result is None and (end := _end_from_outside(evidence)):
        return end
    if evidence.messages.shortage is not None:
        return ev.HandlerNotStarted(evidence.messages.shortage, evidence.usage)
    if evidence.is_too_large:
        return _failure(evidence, "result_too_large", "the handler wrote more than a result may have", True)
    if evidence.messages.postponement is not None:
        return ev.HandlerPostponed(evidence.messages.postponement, evidence.usage)
    if evidence.messages.error is not None:
        return ev.HandlerFailed(_with_console(evidence.messages.error, evidence.console), evidence.usage)
    if evidence.output is not None and evidence.exit_code == 0:
        return _end_from_output(evidence, evidence.output)
    if evidence.output is None and evidence.messages.result is not None:
        return _finished_end(evidence, evidence.messages.result)
    return _crash(evidence)


def _end_from_outside(evidence: Evidence) -> ev.HandlerEnd | None:
    if evidence.is_killed and evidence.exit_code < 0:
        return ev.HandlerKilled(evidence.usage)
    if evidence.timed_out_after is not None:
        return ev.HandlerTimedOut(evidence.timed_out_after, evidence.usage)
    if evidence.memory_excess is not None:
        return _failure(evidence, "memory_limit", evidence.memory_excess, True)
    return None


def _end_from_output(evidence: Evidence, output: bytes) -> ev.HandlerEnd:
    try:
        return _finished_end(evidence, read_json_object(output))
    except NotAnObject as error:
        # Most often it begins with a line that belongs to stderr.
        detail = {"stdout": output[:_SHOWN_BYTES].decode("utf-8", "replace")}
        failure = TaskError(code="invalid_result", message=f"stdout is {error}", retryable=True, detail=detail)
        return ev.HandlerFailed(_with_console(failure, evidence.console), evidence.usage)


def _finished_end(evidence: Evidence, result: JsonObject) -> ev.HandlerEnd:
    if why := unstorable_reason(result):
        return _failure(evidence, "invalid_result", f"the result {why}", True)
    if len(json.dumps(result)) > MAX_RESULT_BYTES:
        return _failure(evidence, "result_too_large", f"the result has more than {MAX_RESULT_BYTES} bytes", True)
    quality = evidence.messages.quality
    return ev.HandlerFinished(result, evidence.usage, _quality_of(result) if quality is None else quality)


def _quality_of(result: JsonObject) -> float | None:
    """Quality that a result names; a wrong one is the handler's to mend, and no reason to lose the work."""
    try:
        return read_quality(result)
    except ValueError as error:
        log.warning("the quality of a result is left out", extra={"fields": {"why": str(error)}})
        return None


def _crash(evidence: Evidence) -> ev.HandlerFailed:
    code = evidence.exit_code
    if code == -signal.SIGXCPU:
        return _failure(evidence, "cpu_limit", "the handler used up the processor time allowed to it", True)
    if code < 0:
        return _failure(evidence, "handler_crashed", f"the handler was ended by {_signal_name(-code)}", True)
    # A program says by its exit code whether to try again; a python handler that exits says nothing.
    if evidence.output is not None and code != EX_TEMPFAIL:
        return _failure(evidence, "handler_error", f"the program ended with exit code {code}", False)
    kind = "temporary_failure" if evidence.output is not None else "handler_exited"
    return _failure(evidence, kind, f"the handler ended with exit code {code}", True)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _failure(evidence: Evidence, code: str, message: str, retryable: bool) -> ev.HandlerFailed:
    error = TaskError(code=code, message=message, retryable=retryable)
    return ev.HandlerFailed(_with_console(error, evidence.console), evidence.usage)


def _with_console(error: TaskError, console: str) -> TaskError:
    return replace(error, detail=error.detail | {"output": console}) if console else error
