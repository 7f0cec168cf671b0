"""How much of the next iteration goes into new ideas (generation), how much into better old ones (evolution).

Discounted Thompson sampling on new bests per compute second: draw for either the rate that its past makes plausible,
and give each the share of the draws that it wins, with a floor for both.
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
    """An iteration counts 0.95 of the one after it, so that about the last 20 decide; neither falls under 20 %.

    20 draws give shares in steps of 5 %, and few enough numbers to keep.
    """

    discount: float = 0.95
    floor: float = 0.2
    draws: int = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What one iteration spent on each, in seconds, and which of them brought a new best."""

    exploration_seconds: float
    exploitation_seconds: float
    new_best: Arm | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """The share of exploration, why, and the rates that were drawn: (exploration, exploitation) a pair."""

    share: float
    reason: str
    draws: Sequence[tuple[float, float]]


def split(trials: Sequence[Trial], policy: ExplorationPolicy, *, goal_id: str, iteration: int) -> Split:
    """Decide for the iteration after `iteration`. The same goal and number draw the same, always."""
    explored = _evidence(trials, Arm.EXPLORATION, policy.discount)
    exploited = _evidence(trials, Arm.EXPLOITATION, policy.discount)
    found, seconds = explored[0] + exploited[0], explored[1] + exploited[1]
    if seconds <= 0:
        return Split(share=0.5, reason="nothing has been spent on either yet, so each gets half", draws=())
    # One find at the rate of both together: what nothing is known of is as good as the other, and may be better.
    prior = (1.0, seconds / (found + 1.0))
    chance = random.Random(f"{goal_id}/{iteration}")  # noqa: S311 - to be repeated, not to be secret
    draws = [(_draw(explored, prior, chance), _draw(exploited, prior, chance)) for _ in range(policy.draws)]
    won = sum(first > second for first, second in draws)
    share = min(1.0 - policy.floor, max(policy.floor, won / policy.draws))
    reason = (
        f"exploration won {won} of {policy.draws} draws: {_said(explored)}, exploitation {_said(exploited)}; "
        f"neither gets less than {100 * policy.floor:.0f} %"
    )
    return Split(share=share, reason=reason, draws=draws)


def _evidence(trials: Sequence[Trial], arm: Arm, discount: float) -> tuple[float, float]:
    """New bests and seconds, the older the less."""
    found = seconds = 0.0
    for trial in trials:
        spent = trial.exploration_seconds if arm is Arm.EXPLORATION else trial.exploitation_seconds
        found = found * discount + (trial.new_best is arm)
        seconds = seconds * discount + max(0.0, spent)
    return found, seconds


def _draw(evidence: tuple[float, float], prior: tuple[float, float], chance: random.Random) -> float:
    """A rate of a Poisson process, from its gamma posterior."""
    return chance.gammavariate(prior[0] + evidence[0], 1.0 / (prior[1] + evidence[1]))


def _said(evidence: tuple[float, float]) -> str:
    return f"{evidence[0]:.2f} new bests in {evidence[1]:.1f} s"
