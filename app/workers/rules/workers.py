"""What a worker may become, and when its silence means that it is lost."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from app.kernel.ids import WorkerId
from app.kernel.states import LIVE_STATES, WorkerState

OVER = frozenset(WorkerState) - LIVE_STATES

# Every legal change of a worker's state.
MOVES: Mapping[WorkerState, frozenset[WorkerState]] = {
    WorkerState.STARTING: frozenset(WorkerState) - {WorkerState.STARTING},
    WorkerState.READY: frozenset({WorkerState.DRAINING, WorkerState.STOPPED, WorkerState.LOST}),
    WorkerState.DRAINING: frozenset({WorkerState.STOPPED, WorkerState.LOST}),
    WorkerState.STOPPED: frozenset(),
    WorkerState.LOST: frozenset(),
    WorkerState.FAILED: frozenset(),
}


def origins(target: WorkerState) -> frozenset[WorkerState]:
    """The states from which a worker may become `target`."""
    return frozenset(state for state, targets in MOVES.items() if target in targets)


class Directive(StrEnum):
    """What a heartbeat's answer may tell a worker to do."""

    DRAIN = "drain"
    STOP = "stop"
    RESTART = "restart"
    CANCEL_TASK = "cancel_task"


# What ends a worker, the weakest first. A stronger one takes the place of a weaker, never the other way around: who is
# to stop within a grace period must not be left to drain for as long as its task takes.
ENDINGS = (Directive.DRAIN, Directive.RESTART, Directive.STOP)


def weaker(directive: Directive) -> frozenset[Directive]:
    """The directives that this one takes the place of."""
    return frozenset(ENDINGS[: ENDINGS.index(directive)])


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthPolicy:
    """Seconds between heartbeats, of silence until a worker is lost, and that a start may take."""

    heartbeat_interval_seconds: float = 5.0
    lost_after_seconds: float = 15.0
    start_within_seconds: float = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighting:
    """What is known of one live worker."""

    worker_id: WorkerId
    state: WorkerState
    since: datetime
    last_seen_at: datetime | None


def overdue(sighting: Sighting, policy: HealthPolicy, now: datetime) -> tuple[WorkerState, str] | None:
    """The state that a silent worker falls into and why, or None while it is well."""
    if sighting.state is WorkerState.STARTING:
        if now - sighting.since > timedelta(seconds=policy.start_within_seconds):
            return WorkerState.FAILED, f"no first heartbeat within {policy.start_within_seconds:.0f} s"
        return None
    seen = sighting.last_seen_at or sighting.since
    silence = (now - seen).total_seconds()
    if sighting.state in LIVE_STATES and silence > policy.lost_after_seconds:
        return WorkerState.LOST, f"silent for {silence:.0f} s"
    return None


def hold_back(
    overdue_count: int,
    live_count: int,
    policy: HealthPolicy,
    *,
    seconds_since_last_sweep: float,
    held_back_seconds: float | None,
) -> bool:
    """Whether to wait: over half silent at once, or we were away, is likelier our own fault than the workers'.

    Once for an interval between heartbeats, in which everybody who lives is heard of; `held_back_seconds` is for how
    long it has been already, None when it has not.
    """
    if overdue_count == 0:
        return False
    if held_back_seconds is not None:
        return held_back_seconds <= policy.heartbeat_interval_seconds
    return seconds_since_last_sweep > 10 or (overdue_count >= 2 and overdue_count * 2 > live_count)
