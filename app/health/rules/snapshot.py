"""All that the checks of health look at, and the thresholds by which they judge."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import IntEnum

from app.health.rules.alerts import UnresolvedAlert
from app.health.rules.runtime import LanguageModel, PoolCounts
from app.health.rules.series import CurrentValue
from app.health.rules.utilisation import Span, UtilisationPolicy
from app.kernel.access import RefusalReason
from app.kernel.agents import AgentType
from app.kernel.refused_writes import RefusedWrite
from app.llm.rules.conditions import ServiceState
from app.queue.rules.degradation import DegradationStep
from app.queue.rules.status import QueueSnapshot
from app.scaling.rules.estimates import ServiceTimePolicy
from app.workers.rules.recovery import Recovery

MINUTE = timedelta(minutes=1)
# Growth is computed from two depths that lie a minute apart, or a little more.
GROWTH_SPAN = MINUTE
# A worker that has taken no task for so long is idle: the contract's bound on starvation.
IDLE_AFTER = timedelta(seconds=30)


class Grade(IntEnum):
    """Grade of a figure; a fading one is below its threshold and still near it."""

    WELL = 0
    FADING = 1
    DEGRADED = 2
    CRITICAL = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Thresholds of a figure, in its own unit; without the second it is never critical."""

    degraded: float
    critical: float = math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckPolicy:
    """Thresholds of all checks; seconds, tasks a minute, shares of 1, numbers of rows.

    80 %, 100 a minute and 30 s are the contract's. A low task is raised after 10 minutes and again after 20: one that
    waits for half an hour all the same is failed by the system. A thousand tasks a second leave a million dead rows in
    about five minutes, which is also how long a snapshot may be held.
    """

    # The contract raises alerts above 80 %; the report calls a figure short that has reached its threshold.
    is_wrong_at_threshold: bool = False
    # From this share of its threshold on a figure is near it.
    fading: float = 0.9
    oldest_task: Bounds = field(default_factory=lambda: Bounds(degraded=600.0, critical=1800.0))
    # The sweep ends what is past its deadline within a second or two.
    overdue_grace_seconds: float = 30.0
    stuck_seconds: float = 900.0
    # Times the longest of those that have completed within a day.
    stuck_factor: float = 4.0
    pressure: Bounds = field(default_factory=lambda: Bounds(degraded=0.80, critical=0.95))
    growth_per_minute: float = 100.0
    # Between two tasks a worker is idle for a moment; of very many workers some always are.
    starving_share: float = 0.05
    # Of the pool. One of three lost is worth a look; half of it at once is the specification's mass failure.
    workers_lost: Bounds = field(default_factory=lambda: Bounds(degraded=0.10, critical=0.50))
    snapshot_seconds: Bounds = field(default_factory=lambda: Bounds(degraded=300.0, critical=1800.0))
    snapshot_transactions: int = 1_000_000
    # No transaction of ours holds locks for so long.
    lock_seconds: Bounds = field(default_factory=lambda: Bounds(degraded=10.0, critical=120.0))
    dead_rows: int = 1_000_000
    # Of the money or the tokens of a research goal; at the second its tasks are held, and its calls refused.
    goal_budget: Bounds = field(default_factory=lambda: Bounds(degraded=0.80, critical=1.0))
    # Before the key of a language model expires.
    key_days: float = 2.0
    key_hours: float = 6.0
    # In five minutes: a forgotten key that somebody still uses stays well below.
    refusals: Bounds = field(default_factory=lambda: Bounds(degraded=100.0))
    # Days that the API's certificate is still valid: renewed ones are taken over without a restart, but somebody must.
    certificate_days: float = 14.0
    certificate_short_days: float = 3.0
    # The fastest duties run every second, so 30 s without any means that no loop runs.
    loops_silent_seconds: float = 30.0
    # A duty may miss turns, to a long transaction for one; three in a row, and half a minute, it may not.
    missed_turns: float = 3.0
    # A minute of samples: what comes and goes within one is ordinary.
    least_samples: int = 12
    utilisation: UtilisationPolicy = field(default_factory=UtilisationPolicy)
    service: ServiceTimePolicy = field(default_factory=ServiceTimePolicy)

    def grade(self, figure: float, bounds: Bounds) -> Grade:
        """Grade of a figure that should stay below its bounds."""
        if self._exceeds(figure, bounds.critical):
            return Grade.CRITICAL
        if self._exceeds(figure, bounds.degraded):
            return Grade.DEGRADED
        return Grade.FADING if self._exceeds(figure, bounds.degraded * self.fading) else Grade.WELL

    def _exceeds(self, figure: float, threshold: float) -> bool:
        return figure >= threshold if self.is_wrong_at_threshold else figure > threshold


FOR_ALERTS = CheckPolicy()
FOR_REPORT = CheckPolicy(is_wrong_at_threshold=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Depth:
    """Number of queued tasks at a moment."""

    at: datetime
    tasks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Longest:
    """The longest of the tasks of an agent type that completed within about a day before `at`."""

    at: datetime
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """Tasks of an agent type that workers execute: seconds of the longest, and how many are past their deadline."""

    longest_seconds: float
    overdue: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerCounts:
    """Workers that are past their start; `idle` have taken nothing for a while, `idle_for` is what they could run.

    `minimum` is the configured one; None when nobody has configured anything yet. `runnable` is the number of tasks
    that some idle one can run, counted where tasks ask for resources; None: all of the agent types.
    """

    alive: int
    idle: int = 0
    idle_for: frozenset[AgentType] = frozenset()
    minimum: int | None = None
    runnable: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelTrouble:
    """The state of a language model's service, its end where that is known, and seconds for which its key is good.

    `key_caller` is the worker, or the key of somebody who is none, that has told of the end.
    """

    state: ServiceState = ServiceState.OK
    until: datetime | None = None
    key_seconds_left: float | None = None
    key_caller: str = ""

    @property
    def is_out_of_order(self) -> bool:
        """Whether nobody is answered."""
        return self.state not in (ServiceState.OK, ServiceState.LIMITED)


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockingSession:
    """A session for whose locks others wait, or that holds some on tasks; seconds of its open transaction.

    `awaits_standby`: it commits, and waits for a synchronous standby.
    """

    pid: int
    application: str
    seconds: float
    awaits_standby: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseCondition:
    """`snapshot_seconds` is the age of the oldest snapshot that somebody holds, which keeps dead rows from being
    cleaned up, and `snapshot_transactions` how many transactions ago that was; `connections` is a share of 1."""

    snapshot_seconds: float
    snapshot_transactions: int
    dead_rows: Mapping[str, int]
    connections: float
    blocking: BlockingSession | None = None
    refused: RefusedWrite | None = None


# The duty that watches for alerts, for which the API stands in where no loop does it.
WATCH = "watch for alerts"


@dataclass(frozen=True, slots=True, kw_only=True)
class DutyTurn:
    """A background duty: seconds since its last turn, and between two turns (None: it has no fixed pace)."""

    duty: str
    seconds_ago: float
    every_seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Observations:
    """All that alerts watch, read at one moment. None or a missing key: not measured, which is not zero.

    `resources` are shares of 1 by name; `models` are those of which there is something to tell; `refusals` are those
    of five minutes.
    """

    queue: QueueSnapshot
    depths: Sequence[Depth] = ()
    longest: Mapping[AgentType, Longest] = field(default_factory=dict)
    running: Mapping[AgentType, Running] | None = None
    workers: WorkerCounts | None = None
    resources: Mapping[str, float | None] | None = None
    models: Mapping[str, ModelTrouble] | None = None
    # Used shares of the money or tokens of live goals of which much is used, by their stored names.
    budgets: Mapping[str, float] | None = None
    # The same of agent types and keys, by "agent" or "key" and the name.
    llm_budgets: Mapping[str, float] | None = None
    recovery: Recovery | None = None
    database: DatabaseCondition | None = None
    step: DegradationStep | None = None
    refusals: Mapping[RefusalReason, int] | None = None
    duty_turns: Sequence[DutyTurn] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot(Observations):
    """All that the health report and the gauges show; of one moment, so it holds no `depths`.

    `target_workers` is that of the last scaling decision, None before the first.
    """

    at: datetime
    pool: PoolCounts
    min_workers: int
    target_workers: int | None = None
    spans: Sequence[Span] = ()
    database: DatabaseCondition
    duty_turns: Sequence[DutyTurn] = ()
    language_model: LanguageModel = field(default_factory=LanguageModel)
    pushed_values: Sequence[CurrentValue] = ()
    # Never None here, unlike in observations: a snapshot is read as a whole or not at all.
    running: Mapping[AgentType, Running] = field(default_factory=dict)
    workers: WorkerCounts = field(default_factory=lambda: WorkerCounts(alive=0))
    recovery: Recovery = field(default_factory=Recovery)
    models: Mapping[str, ModelTrouble] = field(default_factory=dict)
    step: DegradationStep = DegradationStep.NONE
    refusals: Mapping[RefusalReason, int] = field(default_factory=dict)
    alerts: Sequence[UnresolvedAlert] = ()
    # Of the API's own certificate; None: it has none.
    certificate_expires_at: datetime | None = None


def with_recent(longest: Mapping[AgentType, Longest], queue: QueueSnapshot) -> dict[AgentType, Longest]:
    """The longest tasks of a day after a look at those that completed lately: a long one is among these only rarely."""
    recent = {agent: Longest(at=queue.at, seconds=queue.service_times(agent).longest) for agent in AgentType}
    fresh = {agent: task for agent, task in longest.items() if abs(queue.at - task.at) < timedelta(days=1)}
    best = {agent: max((task, fresh.get(agent, task)), key=lambda each: each.seconds) for agent, task in recent.items()}
    return {agent: task for agent, task in best.items() if task.seconds > 0}


def with_depth(depths: Sequence[Depth], at: datetime, tasks: int) -> list[Depth]:
    """The depths after one more, back to the last that is a minute old.

    Depths far more than a minute old are dropped: after a pause of the duty they would mix two times.
    """
    latest = Depth(at=at, tasks=tasks)
    recent = [depth for depth in depths if at - depth.at < 2 * GROWTH_SPAN]
    old = [depth for depth in recent if at - depth.at >= GROWTH_SPAN]
    return [*old[-1:], *(depth for depth in recent if at - depth.at < GROWTH_SPAN), latest]
