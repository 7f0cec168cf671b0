"""What is looked at to find out whether all is well: one look at queue, workers, resources and database."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from app.kernel.agents import AgentType
from app.queue.rules.degradation import DegradationStep
from app.queue.rules.status import QueueSnapshot
from app.workers.rules.recovery import Recovery

MINUTE = timedelta(minutes=1)
# Growth is told from depths that lie a minute apart, or a little more.
GROWTH_SPAN = MINUTE
# A worker that has taken no task for so long is idle: the contract's bound on starvation.
IDLE_AFTER = timedelta(seconds=30)


@dataclass(frozen=True, slots=True, kw_only=True)
class Depth:
    """How many tasks were queued at a moment."""

    at: datetime
    tasks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """Tasks of an agent type that workers execute: seconds of the longest, and how many are past their deadline."""

    tasks: int
    longest_seconds: float
    overdue: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerCounts:
    """Live workers by what they do; `idle` have taken nothing for a while, `idle_for` is what they could run.

    `minimum` is the configured one; None when nobody has configured anything yet.
    """

    alive: int
    idle: int = 0
    idle_for: frozenset[AgentType] = frozenset()
    minimum: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseCondition:
    """`snapshot_seconds` is the age of the oldest snapshot that somebody holds, which keeps dead rows from being
    cleaned up, and `snapshot_transactions` how many transactions ago that was; `connections` is a share of 1."""

    snapshot_seconds: float
    snapshot_transactions: int
    dead_rows: Mapping[str, int]
    connections: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Observations:
    """One look at everything that alerts watch. None or a missing key: not measured, which is not zero.

    `resources` are shares of 1 by name; `breakers` is true for each model whose breaker is open.
    """

    queue: QueueSnapshot
    depths: Sequence[Depth] = ()
    running: Mapping[AgentType, Running] | None = None
    pool: WorkerCounts | None = None
    resources: Mapping[str, float | None] | None = None
    breakers: Mapping[str, bool] | None = None
    recovery: Recovery | None = None
    database: DatabaseCondition | None = None
    step: DegradationStep | None = None


def with_depth(depths: Sequence[Depth], at: datetime, tasks: int) -> list[Depth]:
    """The depths after one more, back to the last that is a minute old; none when the last one is too old to tell.

    A depth that is far more than a minute old would tell of another time.
    """
    latest = Depth(at=at, tasks=tasks)
    recent = [depth for depth in depths if at - depth.at < 2 * GROWTH_SPAN]
    old = [depth for depth in recent if at - depth.at >= GROWTH_SPAN]
    return [*old[-1:], *(depth for depth in recent if at - depth.at < GROWTH_SPAN), latest]
