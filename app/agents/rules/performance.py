"""Performance of the agents, from their last results, of which the newer count for more.

A success counts by its quality, a failure as 0. Speed is measured beside it and is no part of it.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from uuid import UUID

from app.agents.rules.weights import AgentScore, Evidence, WeightPolicy, add_result, decayed_results, effectiveness
from app.kernel.agents import AgentType

# With a half-life of 50 results, what is older counts for less than a hundredth: 50 * log2(100) = 332.
MAX_RESULTS = 332


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A completed or failed task of an agent (without a task: a rating of the agent); quality 0 to 1, None: unrated.

    The quality is the agent's own word unless it `is_judged` by somebody else.
    """

    at: datetime
    task_id: UUID | None = None
    seconds: float | None = None
    is_success: bool = True
    quality: float | None = None
    is_judged: bool = False


RecentResults = Mapping[AgentType, Sequence[Result]]


@dataclass(frozen=True, slots=True, kw_only=True)
class PerformanceSummary:
    """Summary of an agent's last results: `evidence` and `effectiveness` are decayed, counts and means are not."""

    effectiveness: float | None
    evidence: Evidence
    results: int
    successes: int
    rated_results: int
    quality: float | None
    seconds: float | None

    @property
    def score(self) -> AgentScore:
        """The score that the rule of the weights takes; its speed is that of one worker."""
        # Earlier versions kept negative times after the clock of the database was set back.
        speed = 1 / self.seconds if self.seconds is not None and self.seconds > 0 else None
        return AgentScore(effectiveness=self.effectiveness, tasks_per_second=speed)


@dataclass(frozen=True, slots=True, kw_only=True)
class GainPolicy:
    """Conditions for stating a quality gain."""

    # Fewer points give a line through anything.
    least_results: int = 20
    # Doublings: where all results took about as long as each other, nothing is seen of what more time would bring.
    least_spread: float = 0.5
    # One-sided 95 %, as for the effectiveness.
    confidence: float = 1.64
    # Shorter ones are mostly overhead.
    least_seconds: float = 0.1


def append_results(results: Sequence[Result], new: Iterable[Result]) -> list[Result]:
    """The last results after new ones, cut to MAX_RESULTS."""
    return [*results, *new][-MAX_RESULTS:]


def apply_ratings(results: Sequence[Result], qualities: Mapping[UUID, float]) -> list[Result]:
    """The results with these qualities of tasks, instead of earlier ones; a failure stays one."""
    rated_results = []
    for result in results:
        quality = qualities.get(result.task_id) if result.is_success and result.task_id is not None else None
        rated_results.append(result if quality is None else replace(result, quality=quality, is_judged=True))
    return rated_results


def believable_results(results: Sequence[Result]) -> Sequence[Result]:
    """The results without an agent's own word on its quality, once somebody else has judged any of them.

    Or an agent that praises all that nobody looks at would be the best.
    """
    if not any(result.is_judged for result in results):
        return results
    return [result if result.is_judged else replace(result, quality=None) for result in results]


def summarize(recent: RecentResults, now: datetime, policy: WeightPolicy) -> dict[AgentType, PerformanceSummary]:
    """Summary for each agent with results, comparable with each other."""
    recent = {agent: believable_results(results) for agent, results in recent.items()}
    common = _mean([quality for results in recent.values() for quality in _qualities(results)])
    evidence = {agent: _evidence(results, common, policy) for agent, results in recent.items() if results}
    # Evidence decays while an agent is idle too, until too little is left to judge it by.
    idle_seconds = {agent: max(0.0, (now - recent[agent][-1].at).total_seconds()) for agent in evidence}
    counts = [decayed_results(evidence[agent], idle_seconds[agent], policy) for agent in evidence]
    # An agent with hardly any results is left out here, or it would make all others uncertain too.
    fewest = min((count for count in counts if count is not None), default=0.0)
    return {
        agent: _summary(
            recent[agent], evidence[agent], effectiveness(evidence[agent], idle_seconds[agent], policy, fewest)
        )
        for agent in evidence
    }


def quality_gain(results: Sequence[Result], policy: GainPolicy = GainPolicy()) -> float | None:
    """Quality gained by each doubling of a task's time, 0 at least; None: too few or too similar results.

    The lower end of the one-sided confidence interval of the slope of a least-squares line through the qualities over
    the binary logarithms of the seconds: slope - z * sqrt(RSS / (n - 2) / Sxx).
    """
    points = [
        (math.log2(max(policy.least_seconds, result.seconds)), result.quality)
        for result in believable_results(results)
        if result.is_success and result.quality is not None and result.seconds is not None
    ]
    if len(points) < policy.least_results:
        return None
    count = len(points)
    mean_x, mean_y = sum(x for x, _ in points) / count, sum(y for _, y in points) / count
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    if math.sqrt(spread / count) < policy.least_spread:
        return None
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / spread
    residuals = sum((y - mean_y - slope * (x - mean_x)) ** 2 for x, y in points)
    return max(0.0, slope - policy.confidence * math.sqrt(residuals / (count - 2) / spread))


def _summary(results: Sequence[Result], evidence: Evidence, effective: float | None) -> PerformanceSummary:
    qualities = _qualities(results)
    times = [r.seconds for r in results if r.is_success and r.seconds is not None]
    return PerformanceSummary(
        effectiveness=effective,
        evidence=evidence,
        results=len(results),
        successes=sum(r.is_success for r in results),
        rated_results=len(qualities),
        quality=_mean(qualities),
        seconds=_mean(times),
    )


def _qualities(results: Sequence[Result]) -> list[float]:
    return [r.quality for r in results if r.is_success and r.quality is not None]


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _presumed_quality(qualities: Sequence[float], common: float | None, policy: WeightPolicy) -> float:
    """Quality that a success without a rating is presumed to have.

    A missing number is neither a zero nor praise: it is presumed to be like the rated results of this agent, and the
    fewer these are, like those of all agents. Where nothing is rated at all, every success counts in full, so that
    agents differ by their failures alone.
    """
    if common is None:
        return 1.0
    return (sum(qualities) + policy.least_results * common) / (len(qualities) + policy.least_results)


def _evidence(results: Sequence[Result], common: float | None, policy: WeightPolicy) -> Evidence:
    # Folded anew from the results each time, not kept: a late rating changes a result in the middle, and with it the
    # presumed quality of all that are not rated.
    presumed_quality = _presumed_quality(_qualities(results), common, policy)
    evidence, last = Evidence(), results[0].at
    for result in results:
        quality = (presumed_quality if result.quality is None else result.quality) if result.is_success else 0.0
        evidence = add_result(evidence, quality, max(0.0, (result.at - last).total_seconds()), policy)
        # Transactions commit out of order, so a result may be a little older than the one before it.
        last = max(last, result.at)
    return evidence
