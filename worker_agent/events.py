"""Everything that can happen to the worker, as values."""

from dataclasses import dataclass
from typing import TypeAlias

from worker_agent.wire import (
    Assignment,
    Directive,
    GoneReason,
    JsonObject,
    Lease,
    LeaseRef,
    Postponement,
    Progress,
    Registration,
    TaskError,
    Usage,
)

# Answers: exactly one of these follows each call.


@dataclass(frozen=True, slots=True)
class Registered:
    registration: Registration


@dataclass(frozen=True, slots=True)
class RegistrationRefused:
    """The control plane refused this worker; `key_refused` tells a wrong key from a wrong request."""

    key_refused: bool
    message: str


@dataclass(frozen=True, slots=True)
class LeaseGranted:
    lease: Lease


@dataclass(frozen=True, slots=True)
class NoTask:
    """No task is waiting; `quick` says that the control plane did not hold the long poll."""

    quick: bool = False


@dataclass(frozen=True, slots=True)
class ReportAccepted:
    """The report was accepted; `lease` is the next task when one was requested and there is one."""

    lease: Lease | None = None


@dataclass(frozen=True, slots=True)
class ReportFenced:
    """The report was refused because the lease is no longer this worker's."""

    code: str


@dataclass(frozen=True, slots=True)
class CallRefused:
    """The call can never succeed as it is."""

    message: str


@dataclass(frozen=True, slots=True)
class GoodbyeAccepted:
    pass


@dataclass(frozen=True, slots=True)
class RetryLater:
    """No usable answer; the same call is to be made again, after `retry_after` seconds at least."""

    retry_after: float = 0.0


@dataclass(frozen=True, slots=True)
class CallAborted:
    """An AbortCall ended the wait; whether the call took effect is unknown."""


@dataclass(frozen=True, slots=True)
class CallerGone:
    """The call was refused because the control plane has written this worker off."""

    reason: GoneReason


# Ends of a handler: exactly one of these follows each RunHandler.


@dataclass(frozen=True, slots=True)
class HandlerNotStarted:
    """This machine had no process, pipe or file for the handler, which is no fault of the task."""

    reason: str
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class HandlerFinished:
    result: JsonObject
    usage: Usage
    quality: float | None = None


@dataclass(frozen=True, slots=True)
class HandlerFailed:
    error: TaskError
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class HandlerPostponed:
    """The handler hands its task back for later."""

    postponement: Postponement
    usage: Usage


@dataclass(frozen=True, slots=True)
class HandlerTimedOut:
    after_seconds: float
    usage: Usage


@dataclass(frozen=True, slots=True)
class HandlerKilled:
    """The handler's whole process group is dead by a KillHandler, or by the signal that stops this worker."""

    usage: Usage


# These may come at any time.


@dataclass(frozen=True, slots=True)
class Begin:
    pass


@dataclass(frozen=True, slots=True)
class HeartbeatAnswered:
    """A heartbeat sent at `sent_at` was accepted; `assignment` is set when its version is new."""

    registration_number: int
    sent_at: float
    directives: tuple[Directive, ...] = ()
    assignment: Assignment | None = None


@dataclass(frozen=True, slots=True)
class WorkerGone:
    """A heartbeat was refused: the control plane has written off the registration with that number."""

    registration_number: int
    reason: GoneReason


@dataclass(frozen=True, slots=True)
class LeaseLost:
    """Progress was refused because the lease is no longer this worker's."""

    ref: LeaseRef
    code: str


@dataclass(frozen=True, slots=True)
class ProgressMade:
    progress: Progress


@dataclass(frozen=True, slots=True)
class StopSignal:
    """SIGTERM or SIGINT; the second one halts at once."""


@dataclass(frozen=True, slots=True)
class GraceExpired:
    """The seconds that a SetAlarm granted have passed."""


Answer: TypeAlias = (
    Registered
    | RegistrationRefused
    | LeaseGranted
    | NoTask
    | ReportAccepted
    | ReportFenced
    | CallRefused
    | GoodbyeAccepted
    | RetryLater
    | CallAborted
    | CallerGone
)
HandlerEnd: TypeAlias = (
    HandlerNotStarted | HandlerFinished | HandlerFailed | HandlerPostponed | HandlerTimedOut | HandlerKilled
)
Event: TypeAlias = (
    Answer | HandlerEnd | Begin | HeartbeatAnswered | WorkerGone | LeaseLost | ProgressMade | StopSignal | GraceExpired
)
