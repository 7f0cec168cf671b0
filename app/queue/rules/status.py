"""A snapshot of the queue, the figures derived from it, and warnings for people."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import accumulate

from app.kernel.agents import AgentType
from app.kernel.events import TaskEvent
from app.kernel.histograms import Durations, total
from app.kernel.lanes import Lane, Priority
from app.kernel.sessions import session_end
from app.kernel.text import plural
from app.queue.rules.admission import CapacityPolicy, cumulative, name_with_lower

# The state of a live task, where a pending one counts as `delayed` when its time has not come, and as `held` when its
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
# Of all tasks since ever, for whoever submits them.
TOTALS: Mapping[str, str] = {
    "submitted": TaskEvent.SUBMITTED.value,
    "completed": TaskEvent.COMPLETED.value,
    "failed": TaskEvent.FAILED.value,
    "cancelled": TaskEvent.CANCELLED.value,
    "displaced": TaskEvent.DISPLACED.value,
    "retried": TaskEvent.RETRYING.value,
    "rescued": TaskEvent.EXPIRED.value,
    "requeued": TaskEvent.REQUEUED.value,
}
# Keys of EVENTS_BY_OUTCOME with which a task finishes.
FINAL_OUTCOMES = ("completed", "failed", "cancelled")
# Waits and service times are those of the last five minutes.
RECENT = timedelta(minutes=5)
DEAD_LETTER_SPAN = timedelta(hours=1)
_LONG_WAIT = timedelta(minutes=10)
_STALE = timedelta(seconds=30)
# Tasks are dated from the beginning of the transaction that makes them ready: few last longer than the first, none
# longer than the second.
_USUAL_TRANSACTION, _LONGEST_TRANSACTION = timedelta(seconds=1), timedelta(minutes=2)
# So often a look goes back by the second; more rarely where that takes over 1 % of the time, as it passes over what was
# leased meanwhile for as long as somebody keeps an old snapshot.
_LOOK_BACK_EVERY, _LOOK_BACK_AT_LEAST_EVERY = timedelta(minutes=1), timedelta(minutes=10)
_LOOK_BACK_SHARE = 0.01
_BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)
_MINUTE = timedelta(minutes=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    """An order not to lease tasks of this type until it is resumed; `paused_by` is the id of an API key."""

    agent_type: AgentType
    reason: str
    paused_by: str
    paused_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class MinuteCount:
    """Events of one kind about tasks of a lane in the minute that begins at `start`.

    Durations are the waits of the tasks (`task.assigned`) or their service times (`task.completed`, `task.failed`).
    """

    start: datetime
    lane: Lane
    kind: str
    durations: Durations


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenWriter:
    """A transaction that writes events and has been open for `seconds`: later events and results wait for its end.

    `pid` is its process in PostgreSQL; a prepared transaction has none, but the name `gid`. `awaits_standby`: it
    commits, and waits for a synchronous standby.
    """

    pid: int | None
    gid: str | None
    database: str
    application: str | None
    seconds: float
    awaits_standby: bool = False

    @property
    def sentence(self) -> str:
        """The transaction by name, its age, and how to end it."""
        name = f"process {self.pid}" if self.gid is None else f"the prepared transaction {self.gid}"
        if self.pid is not None and self.awaits_standby:
            end = session_end(self.pid, awaits_standby=True)
        else:
            way = f"SELECT pg_terminate_backend({self.pid})" if self.gid is None else f"ROLLBACK PREPARED '{self.gid}'"
            end = f"this ends it: {way}"
        application = f", application {self.application}" if self.application else ""
        return (
            f"events and results have waited for {self.seconds:.0f} s for an open transaction of {name} "
            f"(database {self.database}{application}); {end}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueSnapshot:
    """The queue at one moment.

    `recent` reaches back a little over five minutes and is `count_age` old, None when the loops have never counted.
    `oldest` is the time at which the longest-waiting task that may run became ready; `served_agents` are the types that
    some live worker can run; `count_error` is the number of tasks by which the counters were off at the last check;
    `open_writers` are the transactions for which readers of events wait, the oldest first; `submitted` are the numbers
    of queued tasks by their priority at submit, where that is not the present one of all.
    """

    at: datetime
    tasks: Mapping[Lane, Mapping[str, int]]
    recent: Sequence[MinuteCount] = ()
    oldest: Mapping[Priority, datetime] = field(default_factory=dict)
    pauses: Sequence[Pause] = ()
    served_agents: frozenset[AgentType] = frozenset(AgentType)
    dead_letters: int = 0
    count_age: timedelta | None = timedelta(0)
    count_error: int = 0
    open_writers: Sequence[OpenWriter] = ()
    submitted: Mapping[Priority, int] | None = None

    def count(self, *, agent: AgentType | None = None, priority: Priority | None = None, phase: str = "") -> int:
        """Number of tasks of an agent type, a priority and a phase; by default of all that are queued."""
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
        """Numbers of queued tasks by their priority at submit, by which limits count."""
        return (
            self.submitted
            if self.submitted is not None
            else {priority: self.count(priority=priority) for priority in Priority}
        )

    def per_second(self, outcome: str, length: timedelta) -> float:
        """Rate of tasks `submitted`, `leased`, `completed`, `failed` or `cancelled` within `length` before now."""
        return events_within(self.recent, EVENTS_BY_OUTCOME[outcome], self.at, length) / length.total_seconds()

    def wait_times(self, priority: Priority) -> Durations:
        """Times that recently leased tasks had waited."""
        leases = (m for m in self.recent if m.kind == TaskEvent.ASSIGNED and m.lane.priority is priority)
        return total(m.durations for m in leases)

    def service_times(self, agent: AgentType) -> Durations:
        """Times that recently completed tasks had been with their workers."""
        completions = (m for m in self.recent if m.kind == TaskEvent.COMPLETED and m.lane.agent_type is agent)
        return total(m.durations for m in completions)

    def oldest_wait(self, priority: Priority) -> timedelta | None:
        """Age of the longest-waiting task that may run; None without any."""
        since = self.oldest.get(priority)
        return max(timedelta(0), self.at - since) if since else None


def is_look_back_due(looked_back_at: datetime | None, moment: datetime, took: timedelta = timedelta(0)) -> bool:
    """Whether the next look is to find also what has brought an age along meanwhile; the last one `took` so long."""
    every = min(_LOOK_BACK_AT_LEAST_EVERY, max(_LOOK_BACK_EVERY, took / _LOOK_BACK_SHARE))
    return looked_back_at is None or moment - looked_back_at >= every


def oldest_wait_floors(
    oldest: Mapping[Priority, datetime], looked_at: datetime | None, *, looks_back: bool = False
) -> Mapping[Priority, datetime]:
    """Times before which no task of each priority became ready, given the oldest ones at the last look.

    The next look starts there instead of walking over dead index entries, of which there may be as many as tasks of the
    priority were leased since then. What that look did not see is dated from the beginning of a transaction that was
    under way at most. One that looks back also finds what rose from a lower priority and brought its age along, and
    what a long transaction has made ready.
    """
    if looked_at is None:
        return dict.fromkeys(Priority, _BEGINNING)
    unseen_since = looked_at - (_LONGEST_TRANSACTION if looks_back else _USUAL_TRANSACTION)
    floors = {priority: min(oldest.get(priority, unseen_since), unseen_since) for priority in sorted(Priority)}
    return dict(zip(floors, accumulate(floors.values(), min), strict=True)) if looks_back else floors


def warnings(queue: QueueSnapshot, policy: CapacityPolicy) -> list[str]:
    """Sentences about what needs attention; empty when all is well."""
    return [*_fullness(queue, policy), *_standstills(queue), *_old_tasks(queue), *_data_quality(queue)]


def _fullness(queue: QueueSnapshot, policy: CapacityPolicy) -> Iterator[str]:
    total_depth, limit = sum(queue.depth.values()), policy.max_queue_size
    if total_depth >= policy.warning * limit:
        yield f"the queue is {_severity(policy, total_depth / limit)}: {total_depth:,} tasks wait and {limit:,} may"
    for priority, depth in cumulative(queue.depth).items():
        quota = policy.quota(priority)
        # A quota of the whole queue repeats the warning above, and one without tasks of its own that of those below.
        if quota < limit and quota and depth >= policy.warning * quota and queue.depth.get(priority):
            severity = _severity(policy, depth / quota)
            name = name_with_lower(priority)
            yield f"the quota of priority {name} is {severity}: {depth:,} tasks of it wait and {quota:,} may"


def _severity(policy: CapacityPolicy, fullness: float) -> str:
    if fullness >= 1:
        return "full"
    return "nearly full" if fullness >= policy.critical else "filling up"


def _standstills(queue: QueueSnapshot) -> Iterator[str]:
    pauses = {pause.agent_type: pause for pause in queue.pauses}
    # Only ready tasks count: delayed, held and blocked ones would wait anyway.
    for agent in AgentType:
        waiting = queue.count(agent=agent, phase="pending")
        tasks = plural(waiting, "task")
        if waiting and agent in pauses:
            yield f"{agent} is paused and {tasks} of it {_wait(waiting)}: {pauses[agent].reason}"
        elif waiting and agent not in queue.served_agents:
            yield f"nobody serves {agent}: {tasks} of it {_wait(waiting)}, and no live worker can run it"


def _old_tasks(queue: QueueSnapshot) -> Iterator[str]:
    for priority in sorted(Priority, reverse=True):
        waiting = queue.oldest_wait(priority)
        if waiting is not None and waiting > _LONG_WAIT:
            minutes = waiting // timedelta(minutes=1)
            yield f"a task of priority {priority.name.lower()} has been waiting for {minutes:,} min"


def _data_quality(queue: QueueSnapshot) -> Iterator[str]:
    yield from (writer.sentence for writer in queue.open_writers)
    if queue.count_age is None:
        yield "the background loops have never run: waits and throughput are unknown (`convener loops` runs them)"
    elif queue.count_age > _STALE:
        seconds = queue.count_age // timedelta(seconds=1)
        yield f"the background loops have not counted for {seconds:,} s: waits and throughput are out of date"
    if queue.count_error:
        tasks = plural(queue.count_error, "task")
        yield f"the counters were off by {tasks} when last checked, and were put right; see the log"


def _wait(count: int) -> str:
    return "waits" if count == 1 else "wait"


def events_within(minutes: Iterable[MinuteCount], kinds: Collection[str], now: datetime, length: timedelta) -> float:
    """Approximate number of events of these kinds within `length` before now.

    A minute that the window cuts counts by the part of it that lies inside: a sliding window counter.
    """
    window_start = now - length
    return sum(_share_within(m.start, window_start) * m.durations.count for m in minutes if m.kind in kinds)


def _share_within(start: datetime, window_start: datetime) -> float:
    return max(0.0, min(1.0, (start + _MINUTE - window_start) / _MINUTE))
