"""Shares of agent types that sum to 1 within bounds."""

from collections.abc import Callable, Mapping

from app.kernel.agents import AgentType

Weights = Mapping[AgentType, float]


def raise_to_floor(weights: Weights, floor: float) -> dict[AgentType, float]:
    """Weights that sum to 1 with none under the floor; the others keep their proportions."""
    total = sum(weights.values())
    even = {agent: weight / total if total > 0 else 1 / len(weights) for agent, weight in weights.items()}
    return fit(even, dict.fromkeys(even, floor), dict.fromkeys(even, 1.0))


def fit(weights: Weights, lower: Weights, upper: Weights) -> dict[AgentType, float]:
    """`min(upper, max(lower, c w))` with the one factor c, found by bisection, that makes the sum 1."""

    def at(c: float) -> dict[AgentType, float]:
        return {agent: min(upper[agent], max(lower[agent], c * weight)) for agent, weight in weights.items()}

    # The sum grows with c, so one factor makes it 1.
    return at(_bisect(lambda c: sum(at(c).values()) < 1))


def _bisect(too_small: Callable[[float], bool]) -> float:
    low, high = 0.0, 1.0
    while too_small(high) and high < 1e12:  # upper bounds may sum to less than 1, which no factor reaches
        high *= 2
    # More halvings than a float has binary digits (53), so that the result no longer changes.
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if too_small(middle) else (low, middle)
    return high
