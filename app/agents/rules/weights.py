"""Weights of the agent types: shares of the leases, moved in small steps towards what the agents' results earn.

Sources: multiplicative weights for the target (Freund and Schapire, "A decision-theoretic generalization of on-line
learning", 1997), around the base weights, so that equal agents have just these and the same evidence always has the
same target; the score interval of Wilson (1927) for the effectiveness.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from app.admin.rules.config import WEIGHT_FLOOR
from app.kernel.agents import AgentType
from app.kernel.shares import Weights, fit, raise_to_floor
from app.queue.rules.degradation import DegradationStep, suspended_agents

_EARNED, _ORDERED = "the agents have earned", "was ordered"


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightPolicy:
    """Shares of 1, counts of results, and seconds."""

    # Exploration: an agent without leases would bring no results, and so never earn its way back.
    floor: float = WEIGHT_FLOOR
    largest_step: float = 0.5
    least_results: int = 10
    least_seconds: float = 60.0
    # 1.413, by the specification's example 2: effectiveness 0.95 among others at 0.5 takes a weight of 0.15 to 0.25.
    eta: float = math.log((0.25 / 0.75) / (0.15 / 0.85)) / 0.45
    # Effectiveness within this is equal, and between equals speed counts for at most this share of the deviation.
    tie_tolerance: float = 0.01
    tie_bonus: float = 0.1
    # Agents change, so the past counts less: by the day where results are few, by the result where they are many.
    daily_decay: float = 0.9
    half_life_results: float = 50.0
    # Standard deviations: one-sided 95 %.
    confidence: float = 1.64
    # A target no further off is noise, and not worth a line in the history: at 0.001 weights changed 60 times an
    # hour with nothing different.
    least_change: float = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Decayed results of one agent: how many they still count for, and the sum of success times quality (0 to 1)."""

    results: float = 0.0
    quality: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentScore:
    """Effectiveness of an agent (0 to 1; None: too few results), and tasks that one worker does in a second."""

    effectiveness: float | None
    tasks_per_second: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightSnapshot:
    """The base around which results move the weights, and those in force: each sums to 1, none under the floor."""

    base: Weights
    current: Weights
    scores: Mapping[AgentType, AgentScore]
    new_results: int
    seconds_since_last: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Adjustment:
    """The change of one agent's weight, and its target."""

    previous_weight: float
    new_weight: float
    target: float
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightPlan:
    """The weights from now on; without adjustments they are the old ones, and the reason says why."""

    weights: Weights
    adjustments: Mapping[AgentType, Adjustment]
    reason: str


def add_result(evidence: Evidence, quality: float, seconds_since_last: float, policy: WeightPolicy) -> Evidence:
    """The evidence after one more result (0: a failure), decayed by time or by results, whichever is faster."""
    decay = min(0.5 ** (1 / policy.half_life_results), policy.daily_decay ** (seconds_since_last / 86_400))
    return Evidence(
        results=evidence.results * decay + 1, quality=evidence.quality * decay + min(1.0, max(0.0, quality))
    )


def decayed_results(evidence: Evidence, seconds_since_last: float, policy: WeightPolicy) -> float | None:
    """Results that the evidence counts for by now; None when they are too few to judge an agent by."""
    n = evidence.results * math.pow(policy.daily_decay, seconds_since_last / 86_400)
    # Ten results in a row have decayed a little by the tenth.
    return n if n >= 0.9 * policy.least_results else None


def effectiveness(
    evidence: Evidence, seconds_since_last: float, policy: WeightPolicy, at_most: float = math.inf
) -> float | None:
    """Lower end of Wilson's score interval for the mean quality, from at most `at_most` results; None: too few.

    The variance of values between 0 and 1 is at most that of a share of successes with the same mean, so the bound
    holds for qualities too. Where agents are compared, each counts with the results of the least known one, or a faster
    agent would look better just for having more.
    """
    n = decayed_results(evidence, seconds_since_last, policy)
    if n is None:
        return None
    n = min(n, at_most)
    mean, z = min(1.0, evidence.quality / evidence.results), policy.confidence
    spread = z * math.sqrt(mean * (1 - mean) / n + z * z / (4 * n * n))
    return max(0.0, (mean + z * z / (2 * n) - spread) / (1 + z * z / n))


def adjust(snapshot: WeightSnapshot, policy: WeightPolicy) -> WeightPlan:
    """Take one step towards the earned target, given enough new results and enough time since the last."""
    if snapshot.new_results < policy.least_results:
        return _keep_current(
            snapshot.current, f"{snapshot.new_results} new results; a step takes {policy.least_results}"
        )
    since = snapshot.seconds_since_last
    if since is not None and since < policy.least_seconds:
        return _keep_current(snapshot.current, pause_reason(since, policy))
    return step_towards(earned_target(snapshot.base, snapshot.scores, policy), snapshot, policy)


def pause_reason(since: float, policy: WeightPolicy) -> str:
    """The reason for no step, as the last one was so many seconds ago."""
    return f"the last step was {since:.0f} s ago; {policy.least_seconds:.0f} s apart"


def step_towards(
    target: Weights, snapshot: WeightSnapshot, policy: WeightPolicy, order_reason: str | None = None
) -> WeightPlan:
    """Take one step to a target; `order_reason` is given where the target was ordered, not earned."""
    new = step(snapshot.current, target, policy)
    origin = _ORDERED if order_reason else _EARNED
    # By the way that is left: the first step of a weight at the floor is as small as noise, and would never be made.
    if max(abs(target[agent] - weight) for agent, weight in snapshot.current.items()) < policy.least_change:
        return _keep_current(snapshot.current, f"the weights are what {origin}")
    adjustments = {
        agent: Adjustment(
            previous_weight=weight,
            new_weight=new[agent],
            target=target[agent],
            reason=f"{order_reason or _score_reason(snapshot.scores.get(agent))}; "
            + _movement(weight, new[agent], target[agent], policy),
        )
        for agent, weight in snapshot.current.items()
        if new[agent] != weight
    }
    return WeightPlan(weights=new, adjustments=adjustments, reason=f"one step towards what {origin}")


def earned_target(
    base: Weights, scores: Mapping[AgentType, AgentScore], policy: WeightPolicy
) -> dict[AgentType, float]:
    """`w_a * exp(eta * (e_a - mean e))`, normalized, none under the floor, of base weights w and effectiveness e."""
    deviations = _deviations(scores, policy)
    # Agents with too few results count as average.
    raw = {agent: weight * math.exp(policy.eta * deviations.get(agent, 0.0)) for agent, weight in base.items()}
    return raise_to_floor(raw, policy.floor)


def step(current: Weights, target: Weights, policy: WeightPolicy) -> dict[AgentType, float]:
    """`clip(c t_a, max(floor, 0.5 w_a), 1.5 w_a)` for target t and weights w, with the c that makes the sum 1."""
    # There is such a c: the lower bounds sum to 1 at most and the upper ones to 1 at least, as `current` sums to 1 with
    # none under the floor. Cutting each weight by itself and normalizing would break the bounds again.
    lower = {agent: max(policy.floor, (1 - policy.largest_step) * weight) for agent, weight in current.items()}
    upper = {agent: (1 + policy.largest_step) * weight for agent, weight in current.items()}
    return fit(target, lower, upper)


def _deviations(scores: Mapping[AgentType, AgentScore], policy: WeightPolicy) -> dict[AgentType, float]:
    """Deviation of each judged agent's effectiveness from their mean; speed changes it by a tenth at most.

    Speed counts between agents of equal effectiveness only, and as a share of the deviation: where all are equal, the
    fast ones gain nothing, so that quality alone decides whether a weight moves.
    """
    values = {agent: score.effectiveness for agent, score in scores.items() if score.effectiveness is not None}
    if not values:
        return {}
    mean = sum(values.values()) / len(values)
    deviations = {}
    for agent, value in values.items():
        peers = [scores[peer] for peer in values if abs(values[peer] - value) <= policy.tie_tolerance]
        speed = _relative_speed(scores[agent], peers)
        deviations[agent] = value - mean + policy.tie_bonus * speed * abs(value - mean)
    return deviations


def _relative_speed(score: AgentScore, peers: list[AgentScore]) -> float:
    """Between -1 and 1: the logarithm of the speed over the mean of the peers, e-fold being the most that counts."""
    logs = [math.log(peer.tasks_per_second) for peer in peers if peer.tasks_per_second]
    if not score.tasks_per_second or not logs:
        return 0.0
    return max(-1.0, min(1.0, math.log(score.tasks_per_second) - sum(logs) / len(logs)))


def _score_reason(score: AgentScore | None) -> str:
    value = score.effectiveness if score else None
    return "too few results to judge" if value is None else f"effectiveness {value:.2f}"


def _movement(old: float, new: float, target: float, policy: WeightPolicy) -> str:
    limit = abs(new - old) >= policy.largest_step * old - 1e-9
    return f"target {target:.3g}" + (f", at most {policy.largest_step:.0%} in one step" if limit else "")


def _keep_current(current: Weights, reason: str) -> WeightPlan:
    return WeightPlan(weights=current, adjustments={}, reason=reason)


def under_degradation(weights: Weights, step: DegradationStep) -> dict[AgentType, float]:
    """The weights while agents are suspended: these get the floor, the others share the rest in their proportions."""
    suspended_types = suspended_agents(step)
    if not suspended_types:
        return dict(weights)
    floor = WeightPolicy().floor
    remainder = 1 - floor * len(suspended_types)
    active_sum = sum(weight for agent, weight in weights.items() if agent not in suspended_types)
    return {
        agent: floor if agent in suspended_types else weight / active_sum * remainder
        for agent, weight in weights.items()
    }
