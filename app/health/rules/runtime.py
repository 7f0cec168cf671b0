"""The specification's runtime metrics: the pool by state, completion times, arrivals, and the bottleneck."""

from collections.abc import Mapping
from dataclasses import dataclass

from app.health.rules.finding import Finding, not_measured
from app.kernel.agents import AgentType
from app.kernel.histograms import Durations, total
from app.queue.rules.status import EVENTS_BY_OUTCOME, RECENT, QueueSnapshot, events_within
from app.scaling.rules.allocation import Load, bottleneck
from app.scaling.rules.estimates import ServiceTimePolicy

# Nobody knows how much of a leased task is done, so it counts in full, like one that waits.
_OUTSTANDING = ("pending", "assigned", "executing")


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolCounts:
    """Live workers by state, each counted once, and those that ended badly of late.

    `idle` are ready without a task, `busy` ready with one, `draining` about to leave; `silent` are those of any state
    that have missed three heartbeats. Of the starting ones `not_ready` say why they cannot work, for example as
    `not_ready_example`. `failed` were lost, or never came up, within the last five minutes.
    `assigned_workers` says how many are to prefer an agent type, `able_workers` how many can run it.
    """

    starting: int = 0
    idle: int = 0
    busy: int = 0
    draining: int = 0
    silent: int = 0
    not_ready: int = 0
    not_ready_example: str | None = None
    failed: int = 0
    assigned_workers: Mapping[AgentType, int]
    able_workers: Mapping[AgentType, int]

    @property
    def total(self) -> int:
        """All live workers."""
        return self.starting + self.idle + self.busy + self.draining

    @property
    def healthy(self) -> int:
        """Workers that have passed their first health report and still send heartbeats."""
        return self.idle + self.busy + self.draining - self.silent

    @property
    def busy_share(self) -> float | None:
        """Share of the ready workers that hold a task; None without any ready worker."""
        leasable = self.idle + self.busy
        return self.busy / leasable if leasable else None


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageModel:
    """Calls of the last five minutes: their mean latency, and the share of the permits in use (0 to 1)."""

    latency_ms: float | None = None
    usage: float | None = None


def completion_seconds(queue: QueueSnapshot) -> float | None:
    """Mean seconds from lease to completion over the last five minutes; None without any."""
    return total(queue.service_times(agent) for agent in AgentType).mean


def arrivals_per_second(queue: QueueSnapshot, agent: AgentType) -> float:
    """Tasks of an agent type submitted per second, over the last five minutes."""
    of_agent = (minute for minute in queue.recent if minute.lane.agent_type is agent)
    return events_within(of_agent, EVENTS_BY_OUTCOME["submitted"], queue.at, RECENT) / RECENT.total_seconds()


def unmeasured_metrics(queue: QueueSnapshot, model: LanguageModel) -> list[Finding]:
    """Notes on the runtime metrics that are 0 because nothing was measured."""
    notes = []
    if completion_seconds(queue) is None:
        reason = "no task was completed in the last five minutes"
        notes.append(not_measured("avg_task_completion_time_ms", reason))
    if queue.count_age is None:
        notes.append(not_measured("tasks_per_second", "the background loops have never counted"))
    if model.latency_ms is None:
        notes.append(not_measured("llm_call_latency_ms", "no call of a language model was measured lately"))
    return notes


def bottleneck_agent(queue: QueueSnapshot, pool: PoolCounts, policy: ServiceTimePolicy) -> AgentType | None:
    """The agent type with the most outstanding work per worker; None while no task that may run waits.

    Workers count for the type that they are assigned; while none is assigned, for each type that they can run.
    """
    waiting = [agent for agent in AgentType if queue.count(agent=agent, phase="pending")]
    # Compared by time, not by number: a few long tasks hold up more than many short ones.
    loads = {agent: Load(work_seconds=_work(queue, agent, policy)) for agent in waiting}
    return bottleneck(loads, pool.assigned_workers if any(pool.assigned_workers.values()) else pool.able_workers)


def _work(queue: QueueSnapshot, agent: AgentType, policy: ServiceTimePolicy) -> float:
    tasks = sum(queue.count(agent=agent, phase=phase) for phase in _OUTSTANDING)
    return tasks * max(policy.floor_seconds, _mean(queue.service_times(agent), policy))


def _mean(durations: Durations, policy: ServiceTimePolicy) -> float:
    return policy.prior_seconds if durations.mean is None else durations.mean
