"""How long a task of each agent type takes: a decayed mean, quick to learn and slow to forget."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from app.domain.agents import AgentType


@dataclass(frozen=True, slots=True, kw_only=True)
class ServicePolicy:
    """Seconds assumed before anything is known, and the least that a task is ever taken to cost."""

    prior_seconds: float = 20.0
    floor_seconds: float = 1.0
    # The mean of about the last twenty tasks: it follows a new model or prompt within minutes.
    least_alpha: float = 0.05


def next_mean(mean: float, tasks: int, seconds: float, policy: ServicePolicy) -> float:
    """The mean of `tasks` tasks after one more: weight `1 / (k + 1)` for the k-th, so the prior counts as one task."""
    return mean + max(policy.least_alpha, 1 / (tasks + 2)) * (seconds - mean)


# So many tasks later a mean has forgotten 99.9 % of what it was; more of them change nothing.
_ENOUGH = 135


def mean_after(mean: float, tasks: int, ended: int, seconds: float, policy: ServicePolicy) -> float:
    """The mean of `tasks` tasks after `ended` more, which took `seconds` in all and are taken to be alike."""
    for place in range(min(ended, _ENOUGH)):
        mean = next_mean(mean, tasks + place, seconds / ended, policy)
    return mean


@dataclass(slots=True)
class ServiceTimes:
    """The means of all agent types, for whoever watches tasks end. Plain state without IO."""

    policy: ServicePolicy = field(default_factory=ServicePolicy)
    # What is known of an agent beforehand; the policy's prior for those that are not named.
    priors: Mapping[AgentType, float] = field(default_factory=dict)
    _means: dict[AgentType, float] = field(default_factory=dict)
    _tasks: dict[AgentType, int] = field(default_factory=dict)

    def observe(self, agent: AgentType, seconds: float) -> None:
        """A task of this type ran for so long."""
        tasks = self._tasks.get(agent, 0)
        self._means[agent] = next_mean(self._mean(agent), tasks, seconds, self.policy)
        self._tasks[agent] = tasks + 1

    def estimate(self, agent: AgentType) -> float:
        """Seconds that the next task of this type will take, never under the floor."""
        return max(self.policy.floor_seconds, self._mean(agent))

    def _mean(self, agent: AgentType) -> float:
        known = self._means.get(agent)
        return self.priors.get(agent, self.policy.prior_seconds) if known is None else known
