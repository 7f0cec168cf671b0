"""Facts about one task and what surrounds it, as they were read at one moment."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from app.kernel.agents import AgentType
from app.kernel.lanes import Lane, Priority
from app.kernel.resources import Resources
from app.kernel.states import TaskState
from app.llm.rules.spending import BudgetOwner
from app.queue.rules.degradation import DegradationStep
from app.queue.rules.holds import Hold
from app.workers.rules.hosts import MemberWait


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFacts:
    """The task itself, live or finished; `goal_id` is the stored name.

    `run_at` is None once it may run; `is_held` while it is set aside with its goal, and `run_at` is then what it was
    before. `open_dependencies` tell how many tasks it still depends on, `blocker` is the first of them. `request` is
    what it asks its worker for, `timeout_seconds` its own timeout; None: that of the configuration.
    """

    id: UUID
    state: TaskState
    agent_type: AgentType
    goal_id: str | None
    priority: Priority
    token: int = 0
    failures: int = 0
    max_attempts: int = 1
    worker_id: UUID | None = None
    worker_name: str | None = None
    leased_at: datetime | None = None
    finished_at: datetime | None = None
    waiting_since: datetime | None = None
    run_at: datetime | None = None
    is_held: bool = False
    avoid_worker_id: UUID | None = None
    progress: Mapping[str, Any] | None = None
    error: Mapping[str, Any] | None = None
    open_dependencies: int = 0
    blocker: UUID | None = None
    request: Resources | None = None
    timeout_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """End of the last attempt that did not complete the task; `attempt` counts from 1."""

    attempt: int
    token: int
    outcome: str
    code: str | None = None
    message: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GoalHold:
    """The hold on the goal of the task; a closed one lets none of its tasks through, a metered one a few.

    `goal_reason` is why the goal is in its state, in words.
    """

    reason: Hold
    is_closed: bool
    is_metered: bool
    since: datetime
    goal_reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    """The pause of the agent type."""

    reason: str
    since: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Awaited:
    """The language model or budget that a parked task waits for.

    `condition` is the word for its state, None where nothing keeps it back any more; `until` its end where known.
    `owner` is whose budget it is.
    """

    name: str
    condition: str | None
    owner: BudgetOwner | None = None
    until: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LostWorker:
    """The last worker that ran the agent type, when and why it ended; a silent one missed its heartbeats."""

    name: str
    host: str | None
    ended_at: datetime
    reason: str
    is_silent: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Workers:
    """Live workers that can run the agent type and offer what the task asks for, by what they do.

    `idle` and `busy` ones take tasks, now or after the present one; `idle_other` are the idle ones whose attempt at the
    task has not just failed, and `skills` the agent types that idle and busy ones can run, a set for each kind of
    worker. `silent` have missed heartbeats, `starting` may still turn out to run it, `not_ready` have failed their
    health report, as in `not_ready_example`. `lost` is the last that ended, read where there are none. `start_ages` are
    the seconds since those that are starting were asked for. `offers` are those of the live workers that can run the
    agent type, each once, read where none of them covers what the task asks for.
    `short` are those that would be idle or busy, but end before an attempt may. Of the one that misses least it needs
    `needed_seconds`, and has `remaining_seconds`; with `fits_at_start` one of them had enough when it registered.
    `member_waits` say why members of the pool of an engine do not come, read where nobody is idle, and `classes` are
    the names of the classes of workers that can run it.
    """

    idle: int = 0
    idle_other: int = 0
    busy: int = 0
    silent: int = 0
    starting: int = 0
    not_ready: int = 0
    draining: int = 0
    short: int = 0
    needed_seconds: float | None = None
    remaining_seconds: float | None = None
    fits_at_start: bool = False
    not_ready_example: str | None = None
    skills: Sequence[frozenset[AgentType]] = ()
    start_ages: Sequence[float] = ()
    member_waits: Sequence[MemberWait] = ()
    lost: LostWorker | None = None
    offers: Sequence[Resources] = ()
    classes: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Number of tasks of the same agent type that are leased earlier: of higher priority, and in the same lane.

    Beyond some thousands the second is estimated, and `is_exact` is False.
    """

    higher: int = 0
    same: int = 0
    is_exact: bool = True

    @property
    def ahead(self) -> int:
        """All of them."""
        return self.higher + self.same


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocking:
    """A session of the database that has held locks on tasks for a while in one transaction; None: not to be told."""

    pid: int | None
    application: str
    since: datetime
    awaits_standby: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """All facts at the moment `at`.

    `waiting` counts the tasks that may run now by lane, without those of paused agent types. `loops_seen_at` is the
    last turn of the duty that makes delayed tasks ready.
    """

    at: datetime
    task: TaskFacts
    last: Ended | None = None
    hold: GoalHold | None = None
    pause: Pause | None = None
    awaited: Awaited | None = None
    workers: Workers = field(default_factory=Workers)
    place: Place = field(default_factory=Place)
    step: DegradationStep = DegradationStep.NONE
    waiting: Mapping[Lane, int] = field(default_factory=dict)
    avoid_seconds: float = 0.0
    loops_seen_at: datetime | None = None
    blocking: Blocking | None = None
