"""What share each agent gets: from what its results are worth, in small steps, and nobody to nothing.

Source of the target: multiplicative weights (Freund, Schapire 1997) around the configured weights, so that equal agents
have just these and the same evidence always has the same target. Source of the bound: Wilson's interval (1927).
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

    floor: float = WEIGHT_FLOOR
    largest_step: float = 0.5
    least_results: int = 10
    least_seconds: float = 60.0
    # 1.413, by the specification's example 2: effectiveness 0.95 among others at 0.5 takes a weight of 0.15 to 0.25.
    eta: float = math.log((0.25 / 0.75) / (0.15 / 0.85)) / 0.45
    tie_within: float = 0.01
    tie_bonus: float = 0.1
    daily_decay: float = 0.9
    half_life_results: float = 50.0
    # One-sided 95 %.
    confidence: float = 1.64
    # A smaller change is noise, and not worth a line in the history.
    least_change: float = 0.001


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Decayed results of one agent: how many they still count for, and the sum of success times quality (0 to 1)."""

    results: float = 0.0
    quality: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How good an agent is (0 to 1; None: too few results to say), and how many tasks a second one worker does."""

    effectiveness: float | None
    tasks_per_second: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightSnapshot:
    """`configured` is what people set, `current` what is in force: shares that sum to 1, none under the floor."""

    configured: Weights
    current: Weights
    standings: Mapping[AgentType, Standing]
    new_results: int
    seconds_since_last: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Adjustment:
    """One agent's change, and where it is headed."""

    previous_weight: float
    new_weight: float
    target: float
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightPlan:
    """The weights to use from now on; without adjustments they are the old ones, and the reason says why."""

    weights: Weights
    adjustments: Mapping[AgentType, Adjustment]
    reason: str


def with_result(before: Evidence, quality: float, seconds_since_last: float, policy: WeightPolicy) -> Evidence:
    """The evidence after one more result; a failure has quality 0. It fades by time or results, whichever is faster."""
    kept = min(0.5 ** (1 / policy.half_life_results), policy.daily_decay ** (seconds_since_last / 86_400))
    return Evidence(results=before.results * kept + 1, quality=before.quality * kept + min(1.0, max(0.0, quality)))


def faded(evidence: Evidence, seconds_since_last: float, policy: WeightPolicy) -> float | None:
    """How many results the evidence still counts for by now; None when these are too few to say anything."""
    n = evidence.results * math.pow(policy.daily_decay, seconds_since_last / 86_400)
    # Ten results in a row have faded a little by the tenth.
    return n if n >= 0.9 * policy.least_results else None


def effectiveness(
    evidence: Evidence, seconds_since_last: float, policy: WeightPolicy, at_most: float = math.inf
) -> float | None:
    """The lower end of Wilson's interval for the mean quality; None with too few results.

    A mean of values between 0 and 1 varies at most as much as a share of successes does, so the bound holds for it too.
    Where agents are compared, each counts with `at_most` the results of the least known one: who is faster has more
    results, and must not look better for that.
    """
    n = faded(evidence, seconds_since_last, policy)
    if n is None:
        return None
    n = min(n, at_most)
    mean, z = min(1.0, evidence.quality / evidence.results), policy.confidence
    spread = z * math.sqrt(mean * (1 - mean) / n + z * z / (4 * n * n))
    return max(0.0, (mean + z * z / (2 * n) - spread) / (1 + z * z / n))


def adjust(snapshot: WeightSnapshot, policy: WeightPolicy) -> WeightPlan:
    """One step towards what the agents have earned, once there is enough that is new."""
    if snapshot.new_results < policy.least_results:
        return _unchanged(snapshot.current, f"{snapshot.new_results} new results; a step takes {policy.least_results}")
    since = snapshot.seconds_since_last
    if since is not None and since < policy.least_seconds:
        return _unchanged(snapshot.current, f"the last step was {since:.0f} s ago; {policy.least_seconds:.0f} s apart")
    return towards(target(snapshot.configured, snapshot.standings, policy), snapshot, policy)


def towards(goal: Weights, snapshot: WeightSnapshot, policy: WeightPolicy, ordered: str | None = None) -> WeightPlan:
    """One step to given weights: sum 1, none under the floor, none changed by more than half.

    `ordered` says why, where it is not for what the agents have earned.
    """
    new = step(snapshot.current, goal, policy)
    if max(abs(new[agent] - weight) for agent, weight in snapshot.current.items()) < policy.least_change:
        return _unchanged(snapshot.current, f"the weights are what {_ORDERED if ordered else _EARNED}")
    adjustments = {
        agent: Adjustment(
            previous_weight=weight,
            new_weight=new[agent],
            target=goal[agent],
            reason=f"{ordered or _judged(snapshot.standings.get(agent))}; "
            + _movement(weight, new[agent], goal[agent], policy),
        )
        for agent, weight in snapshot.current.items()
        if new[agent] != weight
    }
    reason = f"one step towards what {_ORDERED if ordered else _EARNED}"
    return WeightPlan(weights=new, adjustments=adjustments, reason=reason)


def target(
    configured: Weights, standings: Mapping[AgentType, Standing], policy: WeightPolicy
) -> dict[AgentType, float]:
    """`w_a * exp(eta * (e_a - mean e))`, normalised, none under the floor; w_a are the configured weights.

    Agents that are not known well enough count as average.
    """
    deviations = _deviations(standings, policy)
    raw = {agent: weight * math.exp(policy.eta * deviations.get(agent, 0.0)) for agent, weight in configured.items()}
    return raise_to_floor(raw, policy.floor)


def step(current: Weights, goal: Weights, policy: WeightPolicy) -> dict[AgentType, float]:
    """`clip(c t_a, max(floor, 0.5 w_a), 1.5 w_a)` with the c that makes the sum 1.

    There is one whenever the current weights sum to 1 and none is under the floor.
    """
    least = {agent: max(policy.floor, (1 - policy.largest_step) * weight) for agent, weight in current.items()}
    most = {agent: (1 + policy.largest_step) * weight for agent, weight in current.items()}
    return fit(goal, least, most)


def _deviations(standings: Mapping[AgentType, Standing], policy: WeightPolicy) -> dict[AgentType, float]:
    """How far each known agent is from their mean; speed changes that by a tenth at most, and only between equals.

    Quality alone decides whether a weight moves: where all are equal, the fast ones gain nothing.
    """
    known = {agent: s.effectiveness for agent, s in standings.items() if s.effectiveness is not None}
    if not known:
        return {}
    mean = sum(known.values()) / len(known)
    found = {}
    for agent, value in known.items():
        peers = [standings[other] for other in known if abs(known[other] - value) <= policy.tie_within]
        speed = _relative_speed(standings[agent], peers)
        found[agent] = value - mean + policy.tie_bonus * speed * abs(value - mean)
    return found


def _relative_speed(own: Standing, peers: list[Standing]) -> float:
    """Between -1 and 1: the logarithm of the speed over the mean of the peers, e-fold being the most that counts."""
    logs = [math.log(peer.tasks_per_second) for peer in peers if peer.tasks_per_second]
    if not own.tasks_per_second or not logs:
        return 0.0
    return max(-1.0, min(1.0, math.log(own.tasks_per_second) - sum(logs) / len(logs)))


def _judged(standing: Standing | None) -> str:
    known = standing.effectiveness if standing else None
    return "too few results to judge" if known is None else f"effectiveness {known:.2f}"


def _movement(old: float, new: float, goal: float, policy: WeightPolicy) -> str:
    limit = abs(new - old) >= policy.largest_step * old - 1e-9
    return f"target {goal:.3g}" + (f", at most {policy.largest_step:.0%} in one step" if limit else "")


def _unchanged(current: Weights, reason: str) -> WeightPlan:
    return WeightPlan(weights=current, adjustments={}, reason=reason)


def under_degradation(
    weights: Weights, step: DegradationStep, policy: WeightPolicy = WeightPolicy()
) -> dict[AgentType, float]:
    """The weights with those of suspended agents at the floor; the others share the rest in their proportions.

    The weights themselves stay what they are: a suspension is temporary, and no judgement of an agent.
    """
    resting = suspended_agents(step)
    if not resting:
        return dict(weights)
    room = 1 - policy.floor * len(resting)
    others = sum(weight for agent, weight in weights.items() if agent not in resting)
    return {agent: policy.floor if agent in resting else weight / others * room for agent, weight in weights.items()}
