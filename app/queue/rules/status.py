"""How the queue stands, and what of it somebody should know."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from app.kernel.agents import AgentType
from app.kernel.histograms import Durations, total
from app.kernel.lanes import Lane, Priority
from app.queue.rules.admission import CapacityPolicy
from app.queue.rules.events import TaskEvent

# What a live task counts as: its state, or for a pending one `delayed` when its time has not come, and `held` when its
# goal is paused or out of budget.
PHASES = ("pending", "delayed", "held", "blocked", "assigned", "executing")
# Tasks in these phases make up the queue; the others are with a worker.
QUEUED_PHASES = frozenset({"pending", "delayed", "held", "blocked"})

EVENTS_BY_OUTCOME: Mapping[str, frozenset[str]] = {
    "submitted": frozenset({TaskEvent.SUBMITTED.value}),
    "leased": frozenset({TaskEvent.ASSIGNED.value}),
    "completed": frozenset({TaskEvent.COMPLETED.value}),
    "failed": frozenset({TaskEvent.FAILED.value, TaskEvent.DISPLACED.value}),
    "cancelled": frozenset({TaskEvent.CANCELLED.value}),
}
# How a task that finished is called, by the names above.
FINAL_OUTCOMES = ("completed", "failed", "cancelled")
# Waits and service times are those of the last five minutes.
RECENT = timedelta(minutes=5)
DEAD_LETTER_SPAN = timedelta(hours=1)
_PATIENCE = timedelta(minutes=10)
_STALE = timedelta(seconds=30)
# A transaction may take this long at most, and what it lets wait is dated from its beginning.
_LONGEST_TRANSACTION = timedelta(minutes=2)
_BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)


_MINUTE = timedelta(minutes=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    """Tasks of this type are not leased until somebody resumes it; `paused_by` is the id of a key."""

    agent_type: AgentType
    reason: str
    paused_by: str
    paused_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class MinuteCount:
    """The moves of one kind that tasks of a lane made in the minute that begins at `start`.

    The durations are how long the tasks had waited (`task.assigned`) or run (`task.completed`, `task.failed`).
    """

    start: datetime
    lane: Lane
    kind: str
    durations: Durations


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueSnapshot:
    """The queue at one moment.

    `recent` reaches back a little over five minutes; `oldest` is when the longest-waiting task that may run became
    ready; `served` are the types that some live worker can run. `counted_ago` says how old `recent` is, None when
    nobody has ever counted; `miscounted` how many tasks the counters were off by when they were last checked.
    """

    at: datetime
    tasks: Mapping[Lane, Mapping[str, int]]
    recent: Sequence[MinuteCount] = ()
    oldest: Mapping[Priority, datetime] = field(default_factory=dict)
    pauses: Sequence[Pause] = ()
    served: frozenset[AgentType] = frozenset(AgentType)
    dead_letters: int = 0
    counted_ago: timedelta | None = timedelta(0)
    miscounted: int = 0

    def count(self, *, agent: AgentType | None = None, priority: Priority | None = None, phase: str = "") -> int:
        """Tasks of an agent type, a priority and a phase; by default all that are queued."""
        return sum(
            tasks
            for lane, phases in self.tasks.items()
            for name, tasks in phases.items()
            if agent in (None, lane.agent_type)
            and priority in (None, lane.priority)
            and (name == phase if phase else name in QUEUED_PHASES)
        )

    @property
    def depth(self) -> Mapping[Priority, int]:
        """Tasks that are queued, by priority."""
        return {priority: self.count(priority=priority) for priority in Priority}

    def per_second(self, what: str, length: timedelta) -> float:
        """How many tasks a second were `submitted`, `leased`, `completed`, `failed` or `cancelled`."""
        return events_within(self.recent, EVENTS_BY_OUTCOME[what], self.at, length) / length.total_seconds()

    def waits(self, priority: Priority) -> Durations:
        """How long the tasks leased lately had waited."""
        leased = (m for m in self.recent if m.kind == TaskEvent.ASSIGNED and m.lane.priority is priority)
        return total(m.durations for m in leased)

    def service(self, agent: AgentType) -> Durations:
        """How long the tasks completed lately were with their workers."""
        done = (m for m in self.recent if m.kind == TaskEvent.COMPLETED and m.lane.agent_type is agent)
        return total(m.durations for m in done)

    def waiting(self, priority: Priority) -> timedelta | None:
        """For how long the oldest task that may run has been waiting."""
        since = self.oldest.get(priority)
        return max(timedelta(0), self.at - since) if since else None


def oldest_wait_floors(oldest: Mapping[Priority, datetime], looked_at: datetime | None) -> Mapping[Priority, datetime]:
    """Per priority, before when no task that may run has begun to wait, by what a look has found.

    A task begins to wait now, or comes with its age from a lower priority.
    """
    if looked_at is None:
        return dict.fromkeys(Priority, _BEGINNING)
    found, floor = {}, looked_at
    for priority in sorted(Priority):
        floor = min(floor, oldest.get(priority, looked_at))
        found[priority] = floor - _LONGEST_TRANSACTION
    return found


def warnings(queue: QueueSnapshot, policy: CapacityPolicy) -> list[str]:
    """What somebody should know, in plain words; empty when all is well."""
    return [*_fullness(queue, policy), *_standstills(queue), *_old_tasks(queue), *_doubts(queue)]


def _fullness(queue: QueueSnapshot, policy: CapacityPolicy) -> Iterator[str]:
    total_depth, most = sum(queue.depth.values()), policy.max_queue_size
    if total_depth >= policy.warning * most:
        yield f"the queue is {_severity(policy, total_depth / most)}: {total_depth:,} tasks wait and {most:,} may"
    for priority, depth in queue.depth.items():
        quota = policy.quota(priority)
        if quota < most and quota and depth >= policy.warning * quota:
            severity = _severity(policy, depth / quota)
            name = priority.name.lower()
            yield f"the quota of priority {name} is {severity}: {depth:,} of its tasks wait and {quota:,} may"


def _severity(policy: CapacityPolicy, fullness: float) -> str:
    if fullness >= 1:
        return "full"
    return "nearly full" if fullness >= policy.critical else "filling up"


def _standstills(queue: QueueSnapshot) -> Iterator[str]:
    paused = {pause.agent_type: pause for pause in queue.pauses}
    for agent in AgentType:
        waiting = queue.count(agent=agent, phase="pending")
        if waiting and agent in paused:
            yield f"{agent} is paused and {_tasks(waiting)} of it {_wait(waiting)}: {paused[agent].reason}"
        elif waiting and agent not in queue.served:
            yield f"nobody serves {agent}: {_tasks(waiting)} of it {_wait(waiting)}, and no live worker can run it"


def _old_tasks(queue: QueueSnapshot) -> Iterator[str]:
    for priority in sorted(Priority, reverse=True):
        waiting = queue.waiting(priority)
        if waiting is not None and waiting > _PATIENCE:
            minutes = waiting // timedelta(minutes=1)
            yield f"a task of priority {priority.name.lower()} has been waiting for {minutes:,} min"


def _doubts(queue: QueueSnapshot) -> Iterator[str]:
    if queue.counted_ago is None:
        yield "the background loops have never run: waits and throughput are unknown (`convener loops` runs them)"
    elif queue.counted_ago > _STALE:
        seconds = queue.counted_ago // timedelta(seconds=1)
        yield f"the background loops have not counted for {seconds:,} s: waits and throughput are out of date"
    if queue.miscounted:
        yield f"the counters were off by {_tasks(queue.miscounted)} when last checked, and were put right; see the log"


def _tasks(count: int) -> str:
    return "1 task" if count == 1 else f"{count:,} tasks"


def _wait(count: int) -> str:
    return "waits" if count == 1 else "wait"


def events_within(minutes: Iterable[MinuteCount], kinds: Collection[str], now: datetime, length: timedelta) -> float:
    """About how many moves of these kinds were made within `length` before now.

    A minute that the window cuts counts by the part of it that lies inside: a sliding window counter.
    """
    opens = now - length
    return sum(_share(part.start, opens) * part.durations.count for part in minutes if part.kind in kinds)


def _share(start: datetime, opens: datetime) -> float:
    return max(0.0, min(1.0, (start + _MINUTE - opens) / _MINUTE))
