"""What the pool does right now, in the terms of the specification's runtime metrics."""

from collections.abc import Mapping
from dataclasses import dataclass

from app.health.rules.finding import Finding, not_measured
from app.kernel.agents import AgentType
from app.kernel.histograms import Durations, total
from app.queue.rules.status import EVENTS_BY_OUTCOME, RECENT, QueueSnapshot, events_within
from app.scaling.rules.allocation import Load, bottleneck
from app.scaling.rules.estimates import ServicePolicy

# A task that a worker has is as much work still to be done as one that waits; which of it is done nobody knows.
_OUTSTANDING = ("pending", "assigned", "executing")


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolCounts:
    """Live workers, each counted once, and what became of others lately.

    `idle` may be leased to, `busy` hold a task, `draining` leave, `silent` are live workers of any of these kinds that
    have missed three heartbeats. `failed` were lost, or never came up, within the last five minutes. `assigned` says
    how many workers are to prefer an agent type, `able` how many can run it.
    """

    starting: int = 0
    idle: int = 0
    busy: int = 0
    draining: int = 0
    silent: int = 0
    failed: int = 0
    assigned: Mapping[AgentType, int]
    able: Mapping[AgentType, int]

    @property
    def total(self) -> int:
        """All that are live."""
        return self.starting + self.idle + self.busy + self.draining

    @property
    def healthy(self) -> int:
        """Those that have passed their first health report, and report still."""
        return self.idle + self.busy + self.draining - self.silent

    @property
    def busy_share(self) -> float | None:
        """Of the workers that may be leased to, how many hold a task; None without any."""
        leasable = self.idle + self.busy
        return self.busy / leasable if leasable else None


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageModel:
    """Calls of the last minutes: their mean latency, and the share of the permits that are in use (0 to 1)."""

    latency_ms: float | None = None
    usage: float | None = None


def completion_seconds(queue: QueueSnapshot) -> float | None:
    """How long the tasks completed lately were with their workers, on the mean; None without any."""
    return total(queue.service_times(agent) for agent in AgentType).mean


def arrivals_per_second(queue: QueueSnapshot, agent: AgentType) -> float:
    """Tasks of a type submitted a second, over the last five minutes."""
    of_agent = (minute for minute in queue.recent if minute.lane.agent_type is agent)
    return events_within(of_agent, EVENTS_BY_OUTCOME["submitted"], queue.at, RECENT) / RECENT.total_seconds()


def unmeasured_metrics(queue: QueueSnapshot, model: LanguageModel) -> list[Finding]:
    """Which runtime metrics are 0 because nothing was measured."""
    found = []
    if completion_seconds(queue) is None:
        why = "no task was completed in the last five minutes"
        found.append(not_measured("avg_task_completion_time_ms", why))
    if queue.count_age is None:
        found.append(not_measured("tasks_per_second", "the background loops have never counted"))
    if model.latency_ms is None:
        found.append(not_measured("llm_call_latency_ms", "no call of a language model was measured lately"))
    return found


def bottleneck_agent(queue: QueueSnapshot, pool: PoolCounts, policy: ServicePolicy) -> AgentType | None:
    """The agent type with the most outstanding work per worker; None while no task that may run waits.

    Workers count for the type that they are assigned; as long as nobody is assigned any, for all they can run.
    """
    waiting = [agent for agent in AgentType if queue.count(agent=agent, phase="pending")]
    loads = {agent: Load(work_seconds=_work(queue, agent, policy)) for agent in waiting}
    return bottleneck(loads, pool.assigned if any(pool.assigned.values()) else pool.able)


def _work(queue: QueueSnapshot, agent: AgentType, policy: ServicePolicy) -> float:
    tasks = sum(queue.count(agent=agent, phase=phase) for phase in _OUTSTANDING)
    return tasks * max(policy.floor_seconds, _mean(queue.service_times(agent), policy))


def _mean(known: Durations, policy: ServicePolicy) -> float:
    return policy.prior_seconds if known.mean is None else known.mean
