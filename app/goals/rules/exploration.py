"""Share of the next iteration for new ideas (generation); the rest is for better old ones (evolution).

Discounted Thompson sampling (Raj and Kalyani, "Taming Non-stationary Bandits", 2017) on new bests per compute second:
draw for either arm a rate that its past makes plausible, and give it the share of the draws that it wins, with a floor.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Arm(StrEnum):
    """What compute can be spent on."""

    EXPLORATION = "exploration"
    EXPLOITATION = "exploitation"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplorationPolicy:
    """An iteration counts 0.95 of the one after it, so that about the last 20 decide; neither arm falls under 20 %.

    20 draws give shares in steps of 5 %, and few enough numbers to store.
    """

    discount: float = 0.95
    floor: float = 0.2
    draws: int = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """Seconds that one iteration spent on each arm, and the arm that brought a new best, if any."""

    exploration_seconds: float
    exploitation_seconds: float
    new_best: Arm | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """The share of exploration, its reason, and the rates that were drawn as pairs (exploration, exploitation)."""

    share: float
    reason: str
    draws: Sequence[tuple[float, float]]


def split(trials: Sequence[Trial], policy: ExplorationPolicy, *, goal_id: str, iteration: int) -> Split:
    """Decide for the iteration after `iteration`; the same goal and number always draw the same rates."""
    exploration = _evidence(trials, Arm.EXPLORATION, policy.discount)
    exploitation = _evidence(trials, Arm.EXPLOITATION, policy.discount)
    new_bests, seconds = exploration[0] + exploitation[0], exploration[1] + exploitation[1]
    if seconds <= 0:
        return Split(share=0.5, reason="nothing has been spent on either yet, so each gets half", draws=())
    # One new best at the rate of both arms together: an arm without evidence is as good as the other.
    prior = (1.0, seconds / (new_bests + 1.0))
    # Seeded by goal and iteration, so that a replay draws the same.
    generator = random.Random(f"{goal_id}/{iteration}")  # noqa: S311 - to be repeated, not to be secret
    draws = [
        (_draw_rate(exploration, prior, generator), _draw_rate(exploitation, prior, generator))
        for _ in range(policy.draws)
    ]
    wins = sum(first > second for first, second in draws)
    share = min(1.0 - policy.floor, max(policy.floor, wins / policy.draws))
    reason = (
        f"exploration won {wins} of {policy.draws} draws: {_describe(exploration)}, exploitation "
        f"{_describe(exploitation)}; neither gets less than {100 * policy.floor:.0f} %"
    )
    return Split(share=share, reason=reason, draws=draws)


def _evidence(trials: Sequence[Trial], arm: Arm, discount: float) -> tuple[float, float]:
    """New bests and seconds of an arm, discounted by age; trials come oldest first."""
    new_bests = seconds = 0.0
    for trial in trials:
        trial_seconds = trial.exploration_seconds if arm is Arm.EXPLORATION else trial.exploitation_seconds
        new_bests = new_bests * discount + (trial.new_best is arm)
        seconds = seconds * discount + max(0.0, trial_seconds)
    return new_bests, seconds


def _draw_rate(evidence: tuple[float, float], prior: tuple[float, float], generator: random.Random) -> float:
    """Draw a rate of a Poisson process from its gamma posterior, which is the conjugate one."""
    return generator.gammavariate(prior[0] + evidence[0], 1.0 / (prior[1] + evidence[1]))


def _describe(evidence: tuple[float, float]) -> str:
    return f"{evidence[0]:.2f} new bests in {evidence[1]:.1f} s"
