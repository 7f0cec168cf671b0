"""What the agents have achieved lately: their last results, of which the newer count for more.

A result is worth its quality, a failure nothing. Speed is measured beside it and is no part of it.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from uuid import UUID

from app.agents.rules.weights import Evidence, Standing, WeightPolicy, effectiveness, faded, with_result
from app.kernel.agents import AgentType

# With a half-life of 50 results, what is older counts for less than a hundredth: 50 * log2(100) = 332.
REMEMBERED = 332


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One task that an agent has finished, or failed at; the quality is 0 to 1, None while nobody has judged it.

    Without a task it is a judgement of the agent as such.
    """

    at: datetime
    task_id: UUID | None = None
    seconds: float | None = None
    succeeded: bool = True
    quality: float | None = None


Recent = Mapping[AgentType, Sequence[Result]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Achievement:
    """What an agent's last results come to; `evidence` and `effectiveness` are decayed, the counts are not."""

    effectiveness: float | None
    evidence: Evidence
    results: int
    succeeded: int
    judged: int
    quality: float | None
    seconds: float | None

    @property
    def standing(self) -> Standing:
        """As the rule of the weights takes it; the speed is that of one worker."""
        speed = 1 / self.seconds if self.seconds else None
        return Standing(effectiveness=self.effectiveness, tasks_per_second=speed)


def remembered(known: Sequence[Result], new: Iterable[Result]) -> list[Result]:
    """The last results, when these have followed."""
    return [*known, *new][-REMEMBERED:]


def judged(known: Sequence[Result], task_id: UUID, quality: float) -> list[Result]:
    """The results after this judgement of one of them, which takes the place of a former one."""
    return [replace(r, quality=quality) if r.task_id == task_id and r.succeeded else r for r in known]


def achievements(recent: Recent, now: datetime, policy: WeightPolicy) -> dict[AgentType, Achievement]:
    """What each agent's last results come to, so that they can be compared."""
    common = _common_quality(recent.values())
    found = {agent: _evidence(results, common, policy) for agent, results in recent.items() if results}
    idle = {agent: max(0.0, (now - recent[agent][-1].at).total_seconds()) for agent in found}
    numbers = [faded(evidence, idle[agent], policy) for agent, evidence in found.items()]
    least = min((number for number in numbers if number is not None), default=0.0)
    return {
        agent: _achievement(recent[agent], evidence, effectiveness(evidence, idle[agent], policy, least))
        for agent, evidence in found.items()
    }


def _common_quality(all_results: Iterable[Sequence[Result]]) -> float | None:
    """The mean quality of all that was judged, whoever did it."""
    found = [quality for results in all_results for quality in _qualities(results)]
    return sum(found) / len(found) if found else None


def _achievement(results: Sequence[Result], evidence: Evidence, effective: float | None) -> Achievement:
    qualities = _qualities(results)
    times = [r.seconds for r in results if r.succeeded and r.seconds is not None]
    return Achievement(
        effectiveness=effective,
        evidence=evidence,
        results=len(results),
        succeeded=sum(r.succeeded for r in results),
        judged=len(qualities),
        quality=sum(qualities) / len(qualities) if qualities else None,
        seconds=sum(times) / len(times) if times else None,
    )


def _qualities(results: Sequence[Result]) -> list[float]:
    return [r.quality for r in results if r.succeeded and r.quality is not None]


def _presumed(qualities: Sequence[float], common: float | None, policy: WeightPolicy) -> float:
    """What a success counts for that nobody has judged.

    A missing number is neither a zero nor praise: it is presumed to be like what was judged of this agent, and the less
    that is, like what was judged of all. Where nothing was judged at all, every success counts the same, in full, so
    that agents differ by their failures alone.
    """
    if common is None:
        return 1.0
    return (sum(qualities) + policy.least_results * common) / (len(qualities) + policy.least_results)


def _evidence(results: Sequence[Result], common: float | None, policy: WeightPolicy) -> Evidence:
    presumed = _presumed(_qualities(results), common, policy)
    evidence, last = Evidence(), results[0].at
    for result in results:
        worth = (presumed if result.quality is None else result.quality) if result.succeeded else 0.0
        evidence = with_result(evidence, worth, max(0.0, (result.at - last).total_seconds()), policy)
        last = max(last, result.at)
    return evidence


@dataclass(frozen=True, slots=True, kw_only=True)
class GainPolicy:
    """What it takes to say anything."""

    # Fewer points give a line through anything.
    least_results: int = 20
    # Doublings: where all results took about as long as each other, nothing is seen of what more time would bring.
    least_spread: float = 0.5
    # One-sided 95 %, as for the effectiveness.
    confidence: float = 1.64
    # Shorter ones are mostly overhead.
    least_seconds: float = 0.1


def quality_gain(results: Sequence[Result], policy: GainPolicy = GainPolicy()) -> float | None:
    """Quality gained by each doubling of the time of a task; 0 when none is shown, None when nothing is known."""
    points = [
        (math.log2(max(policy.least_seconds, result.seconds)), result.quality)
        for result in results
        if result.succeeded and result.quality is not None and result.seconds is not None
    ]
    if len(points) < policy.least_results:
        return None
    count = len(points)
    mean_x, mean_y = sum(x for x, _ in points) / count, sum(y for _, y in points) / count
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    if math.sqrt(spread / count) < policy.least_spread:
        return None
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / spread
    rest = sum((y - mean_y - slope * (x - mean_x)) ** 2 for x, y in points)
    return max(0.0, slope - policy.confidence * math.sqrt(rest / (count - 2) / spread))
