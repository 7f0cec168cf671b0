"""The wire's shapes: what the control plane answers, read into frozen values, and what the worker reports."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, cast

AGENT_TYPES = ("generation", "reflection", "ranking", "evolution", "proximity", "meta_review")

JsonObject: TypeAlias = dict[str, Any]
WorkerState: TypeAlias = Literal["ready", "busy", "draining"]
GoneReason: TypeAlias = Literal["lost", "stopped", "superseded"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """The identity that the control plane gave to this worker; `key` is secret and stays out of every repr and log."""

    worker_id: str
    name: str
    incarnation: int
    key: str = field(repr=False)
    heartbeat_interval_seconds: float
    lease_seconds: float


@dataclass(frozen=True, slots=True)
class LeaseRef:
    """What every call about a lease is fenced by."""

    task_id: str
    token: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """One task, ours until it expires or is reported."""

    task_id: str
    token: int
    agent_type: str
    attempt: int = 1
    goal_id: str | None = None
    priority: str = "medium"
    payload: JsonObject = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    timeout_seconds: float = 600.0
    checkpoint: JsonObject | None = None
    trace_context: str | None = None
    degradation: JsonObject | None = None

    @property
    def ref(self) -> LeaseRef:
        return LeaseRef(self.task_id, self.token)


@dataclass(frozen=True, slots=True, kw_only=True)
class Directive:
    """An order that came with the answer to a heartbeat."""

    kind: str
    reason: str = ""
    task_id: str | None = None
    token: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """What this worker is assigned to, and how much its next tasks may use; `version` names just these values.

    The agent and the compute seconds are for people: the control plane chooses the tasks and gives each its time.
    """

    version: str
    agent: str | None
    memory_gb: float
    cpu_cores: float
    compute_seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What one run cost: seconds of wall and of processor time, and the peak of its memory in MiB."""

    wall_seconds: float
    cpu_seconds: float
    max_memory_mb: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskError:
    """Why a task failed, as reported."""

    code: str
    message: str
    retryable: bool
    detail: JsonObject = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Postponement:
    """A handler could not do its work now, through nobody's fault; seconds until it is worth another try."""

    seconds: float
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a task is, 0 to 100 percent."""

    percent: float
    message: str | None = None
    checkpoint: JsonObject | None = None


def read_registration(answer: Mapping[str, Any]) -> Registration:
    """Raises KeyError, TypeError or ValueError when the answer is not a registration."""
    return Registration(
        worker_id=str(answer["worker_id"]),
        name=str(answer["name"]),
        incarnation=int(answer["incarnation"]),
        key=str(answer["key"]),
        heartbeat_interval_seconds=float(answer["heartbeat_interval_seconds"]),
        lease_seconds=float(answer["lease_seconds"]),
    )


def read_lease(answer: Mapping[str, Any]) -> Lease:
    """Raises KeyError, TypeError or ValueError when the answer is not a lease; members we do not use are left out."""
    return Lease(
        task_id=str(answer["task_id"]),
        token=int(answer["token"]),
        agent_type=str(answer["agent_type"]),
        attempt=int(answer.get("attempt", 1)),
        goal_id=answer.get("goal_id"),
        priority=str(answer.get("priority", "medium")),
        payload=dict(answer.get("payload") or {}),
        labels=dict(answer.get("labels") or {}),
        timeout_seconds=float(answer.get("timeout_seconds", 600.0)),
        checkpoint=answer.get("checkpoint"),
        trace_context=answer.get("trace_context"),
        degradation=answer.get("degradation"),
    )


def read_directives(answer: Mapping[str, Any]) -> tuple[Directive, ...]:
    """Raises KeyError, TypeError or ValueError when the answer is not one to a heartbeat."""
    return tuple(
        Directive(
            kind=str(directive["kind"]),
            reason=str(directive.get("reason") or ""),
            task_id=directive.get("task_id"),
            token=None if directive.get("token") is None else int(directive["token"]),
        )
        for directive in answer.get("directives") or ()
    )


def read_assignment(answer: Mapping[str, Any]) -> Assignment | None:
    """None where the answer to a heartbeat brings nothing new, or its control plane is too old to know of postings.

    Raises KeyError, TypeError or ValueError when it is not one.
    """
    limits = answer.get("assignment")
    if limits is None:
        return None
    memory_gb, cpu_cores, seconds = (
        float(limits["memory_gb"]),
        float(limits["cpu_cores"]),
        limits.get("compute_seconds"),
    )
    if not (memory_gb > 0 and cpu_cores > 0):
        raise ValueError("limits must be positive")
    return Assignment(
        version=str(limits["version"]),
        agent=limits.get("agent"),
        memory_gb=memory_gb,
        cpu_cores=cpu_cores,
        compute_seconds=None if seconds is None else float(seconds),
    )


def read_gone_reason(reason: str | None) -> GoneReason:
    """A worker that is gone without a reason we know registers again."""
    return cast("GoneReason", reason) if reason in ("stopped", "superseded") else "lost"
