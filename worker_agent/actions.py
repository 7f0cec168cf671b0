"""Actions that the state machine asks its shell to perform."""

from dataclasses import dataclass
from enum import IntEnum
from typing import TypeAlias

from worker_agent.wire import JsonObject, Lease, Progress, TaskError, Usage


class ExitCode(IntEnum):
    """Exit status of the daemon process, as its `--help` documents."""

    STOPPED = 0
    CRASHED = 1
    USAGE = 2
    KEY_REFUSED = 3
    SUPERSEDED = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    """Call to the control plane, one at a time; `attempt` counts from 0 and sets the backoff before the call."""

    attempt: int = 0
    wait_seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Register(_Call):
    request_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestLease(_Call):
    request_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportComplete(_Call):
    """Report a result; with `next_request_id` the same call leases the next task."""

    lease: Lease
    result: JsonObject
    usage: Usage
    next_request_id: str | None
    quality: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportFail(_Call):
    lease: Lease
    error: TaskError
    usage: Usage | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Release(_Call):
    """Hand the task back; it costs no attempt, and is not leased again before the delay is over."""

    lease: Lease
    reason: str
    delay_seconds: float = 0.0
    waits_for_model: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Goodbye(_Call):
    reason: str


@dataclass(frozen=True, slots=True)
class AbortCall:
    """Stop waiting for the answer to the call under way."""


@dataclass(frozen=True, slots=True)
class RunHandler:
    lease: Lease


@dataclass(frozen=True, slots=True)
class KillHandler:
    """Kill the handler's whole process group now."""


@dataclass(frozen=True, slots=True)
class ReportProgress:
    lease: Lease
    progress: Progress


@dataclass(frozen=True, slots=True)
class SendHeartbeat:
    """Send a heartbeat now instead of at the next interval."""


@dataclass(frozen=True, slots=True)
class SetAlarm:
    """Post GraceExpired after `seconds`."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Exit:
    code: ExitCode
    restart: bool = False
    message: str = ""


Report: TypeAlias = ReportComplete | ReportFail | Release
Call: TypeAlias = Register | RequestLease | Report | Goodbye
LocalAction: TypeAlias = AbortCall | RunHandler | KillHandler | ReportProgress | SendHeartbeat | SetAlarm | Exit
Action: TypeAlias = Call | LocalAction
