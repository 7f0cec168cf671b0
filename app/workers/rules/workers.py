"""States of workers with their transitions, directives by strength, and the rule by which silence means a loss."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from app.admin.rules.config import Conduct, RecoveryConfig
from app.kernel.ids import WorkerId
from app.kernel.presence import PresencePolicy
from app.kernel.states import LIVE_STATES, WorkerState

ENDED_STATES = frozenset(WorkerState) - LIVE_STATES

# Every legal change of a worker's state.
TRANSITIONS: Mapping[WorkerState, frozenset[WorkerState]] = {
    WorkerState.STARTING: frozenset(WorkerState) - {WorkerState.STARTING},
    WorkerState.READY: frozenset({WorkerState.DRAINING, WorkerState.STOPPED, WorkerState.LOST}),
    WorkerState.DRAINING: frozenset({WorkerState.STOPPED, WorkerState.LOST}),
    WorkerState.STOPPED: frozenset(),
    WorkerState.LOST: frozenset(),
    WorkerState.FAILED: frozenset(),
}


def origins(target: WorkerState) -> frozenset[WorkerState]:
    """The states from which a worker may become `target`."""
    return frozenset(state for state, targets in TRANSITIONS.items() if target in targets)


class Directive(StrEnum):
    """What a heartbeat's answer may tell a worker to do."""

    DRAIN = "drain"
    STOP = "stop"
    RESTART = "restart"
    CANCEL_TASK = "cancel_task"


# Directives that end a worker, the weakest first. A stronger one replaces a weaker, never the reverse: a worker that is
# to stop within a grace period must not be left to drain for as long as its task takes.
ENDINGS = (Directive.DRAIN, Directive.RESTART, Directive.STOP)


def weaker(directive: Directive) -> frozenset[Directive]:
    """The directives that this one replaces."""
    return frozenset(ENDINGS[: ENDINGS.index(directive)])


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthPolicy:
    """Seconds between heartbeats, of silence until a worker is lost, and that a start may take."""

    heartbeat_interval_seconds: float = 5.0
    lost_after_seconds: float = 15.0
    start_within_seconds: float = 30.0

    @property
    def presence(self) -> PresencePolicy:
        """By which absences of the API workers may be silent that are well."""
        spare_seconds = (self.lost_after_seconds - self.heartbeat_interval_seconds) / 2
        return PresencePolicy(
            # A short absence costs nobody more than its length; leases last 15 s, whatever the silence may.
            away_after_seconds=min(5.0, max(1.5, spare_seconds)),
            interval_seconds=self.heartbeat_interval_seconds,
            give_up_after_seconds=max(60.0, 2 * self.lost_after_seconds),
        )


def health_policy(
    config: RecoveryConfig,
    conduct: Conduct,
    *,
    heartbeat_interval_seconds: float | None,
    lost_after_seconds: float | None,
) -> HealthPolicy:
    """The policy of the configuration; what that leaves open is as the settings of the process, else the mode, say."""
    interval = config.heartbeat_interval_seconds or heartbeat_interval_seconds or conduct.heartbeat_interval_seconds
    lost_after = config.lost_after_seconds or lost_after_seconds or conduct.lost_after_seconds
    return HealthPolicy(heartbeat_interval_seconds=interval, lost_after_seconds=lost_after)


@dataclass(frozen=True, slots=True, kw_only=True)
class Liveness:
    """State of a live worker: `since` its launch or request, the time of its last heartbeat, and what it was told.

    `lost_after_seconds` are those of its registration; None: of an earlier version, or not registered.
    `not_ready_reason` says why the last report of a starting one has not passed.
    """

    worker_id: WorkerId
    state: WorkerState
    since: datetime
    last_seen_at: datetime | None
    lost_after_seconds: float | None = None
    not_ready_reason: str | None = None


def well_until(worker: Liveness, policy: HealthPolicy) -> datetime:
    """Until when a live worker is well, should nothing be heard of it any more."""
    if worker.state is WorkerState.STARTING:
        return worker.since + timedelta(seconds=policy.start_within_seconds)
    # Nobody is held to less than what it was told when it registered.
    silence = max(policy.lost_after_seconds, worker.lost_after_seconds or 0.0)
    return (worker.last_seen_at or worker.since) + timedelta(seconds=silence)


def overdue(worker: Liveness, policy: HealthPolicy, now: datetime) -> tuple[WorkerState, str] | None:
    """The final state of a silent worker and the reason; None while it is well."""
    if worker.state not in LIVE_STATES or now <= well_until(worker, policy):
        return None
    if worker.state is WorkerState.STARTING:
        within = f"within {policy.start_within_seconds:.0f} s"
        reason = worker.not_ready_reason
        return WorkerState.FAILED, f"not ready {within}: {reason}" if reason else f"no first heartbeat {within}"
    return WorkerState.LOST, f"silent for {(now - (worker.last_seen_at or worker.since)).total_seconds():.0f} s"


@dataclass(frozen=True, slots=True, kw_only=True)
class NameHolder:
    """A live worker as the bearer of its name: by which key it was registered, and for how long it has been silent."""

    id: WorkerId
    name: str
    incarnation: int
    is_provisioned: bool
    registered_by: str | None
    silent_seconds: float


def may_supersede(holder: NameHolder, key_id: str | None, policy: HealthPolicy) -> bool:
    """Whether a worker that registers with this key may take the name of a live one.

    It may where the same key registered the former, which is how a worker of another host restarts at once, and where
    that has missed two heartbeats. A worker that a provisioner started is left to the provisioner.
    """
    if holder.silent_seconds > 2 * policy.heartbeat_interval_seconds:
        return True
    return not holder.is_provisioned and holder.registered_by in (key_id, None)


def should_hold_back(
    overdue_count: int,
    live_count: int,
    policy: HealthPolicy,
    *,
    seconds_since_last_sweep: float,
    held_back_seconds: float | None,
) -> bool:
    """Whether to wait before workers are declared lost, as the fault is likelier our own than theirs.

    So it is when over half are silent at once, or the sweep itself was away. The wait lasts one interval between
    heartbeats, in which every live worker reports; `held_back_seconds` is its length so far, None before it.
    """
    if overdue_count == 0:
        return False
    if held_back_seconds is not None:
        return held_back_seconds <= policy.heartbeat_interval_seconds
    # A sweep that was away for so long slept or stalled with everything around it, heartbeats included.
    away_seconds = policy.lost_after_seconds - policy.heartbeat_interval_seconds
    return seconds_since_last_sweep > away_seconds or (overdue_count >= 2 and overdue_count * 2 > live_count)
