"""Messages of the worker protocol as frozen values, and readers for the control plane's answers."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias, cast

AGENT_TYPES = ("generation", "reflection", "ranking", "evolution", "proximity", "meta_review")

JsonObject: TypeAlias = dict[str, Any]
WorkerState: TypeAlias = Literal["ready", "busy", "draining"]
LogStream: TypeAlias = Literal["stdout", "stderr"]
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
    """Task and fencing token that every call about a lease must carry."""

    task_id: str
    token: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """One task, leased to this worker until it expires or is reported."""

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
    # What the task asked for, of what this worker offers.
    resources: JsonObject | None = None

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
    """Limits for the next tasks of this worker under their version; agent and compute seconds are for people only."""

    version: str
    agent: str | None
    memory_gb: float
    cpu_cores: float
    compute_seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Cost of one run: seconds of wall and of processor time, and peak memory in MiB."""

    wall_seconds: float
    cpu_seconds: float
    max_memory_mb: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskError:
    """Error of a failed task, as reported."""

    code: str
    message: str
    retryable: bool
    detail: JsonObject = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Postponement:
    """Request of a handler to be tried again after `seconds`, through nobody's fault."""

    seconds: float
    reason: str
    # The language model that it waits for.
    model: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Progress of a task, 0 to 100 percent."""

    percent: float
    message: str | None = None
    checkpoint: JsonObject | None = None

    def replacing(self, unsent: "Progress | None") -> "Progress":
        """This newer progress instead of unsent progress, whose checkpoint must not be lost with it."""
        return self if unsent is None or self.checkpoint is not None else replace(self, checkpoint=unsent.checkpoint)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogPiece:
    """Text that a handler wrote to a stream, from this byte of the stream on."""

    stream: LogStream
    start: int
    text: str


def read_registration(answer: Mapping[str, Any]) -> Registration:
    """Read a registration; raises KeyError, TypeError or ValueError when the answer is none."""
    return Registration(
        worker_id=str(answer["worker_id"]),
        name=str(answer["name"]),
        incarnation=int(answer["incarnation"]),
        key=str(answer["key"]),
        heartbeat_interval_seconds=float(answer["heartbeat_interval_seconds"]),
        lease_seconds=float(answer["lease_seconds"]),
    )


def read_lease(answer: Mapping[str, Any]) -> Lease:
    """Read a lease and ignore unknown members; raises KeyError, TypeError or ValueError when it is none."""
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
        resources=answer.get("resources"),
    )


def read_directives(answer: Mapping[str, Any]) -> tuple[Directive, ...]:
    """Read the directives of a heartbeat's answer; raises KeyError, TypeError or ValueError when it is none."""
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
    """Read an assignment; None from an older control plane. Raises KeyError, TypeError, ValueError if malformed."""
    limits = answer.get("assignment")
    if limits is None:
        return None
    memory_gb, cpu_cores = float(limits["memory_gb"]), float(limits["cpu_cores"])
    seconds = limits.get("compute_seconds")
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
    """Read the reason; an unknown one counts as lost, so that the worker registers again."""
    return cast("GoneReason", reason) if reason in ("stopped", "superseded") else "lost"
