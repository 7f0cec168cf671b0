"""Curves of quality over iterations, published and made up, on which stopping rules are tried."""

import csv
import math
import random
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files

from app.goals.rules.stopping import Iteration, Quality, StoppingPolicy, judge

# As many as the ten buckets of the published curve are stretched to in the contract.
LENGTH = 30
_FILE = "paper_fig4_elo_digitised.csv"
Curve = Sequence[float]


def published(column: str = "best_elo", length: int = LENGTH) -> Curve:
    """Elo over compute time, read off the figures of "Towards an AI co-scientist": `best_elo` or `top10_elo`."""
    text = files("app.scaling.simulation.data").joinpath(_FILE).read_text(encoding="utf-8")
    rows = list(csv.DictReader(line for line in text.splitlines() if not line.startswith("#")))
    return [float(rows[place * len(rows) // length][column]) for place in range(length)]


def flat(length: int = 100) -> Curve:
    """Nothing improves."""
    return [1300.0] * length


# All gain 250 Elo, in ways that the published curve does not know.
MADE_UP: Mapping[str, Callable[[float], float]] = {
    "saturating": lambda t: 1300 + 250 * (1 - math.exp(-4 * t)) / (1 - math.exp(-4)),
    "late bloom": lambda t: 1300 + 250 / (1 + math.exp(-14 * (t - 0.55))),
    "straight": lambda t: 1300 + 250 * t,
    "three steps": lambda t: 1300 + 250 * math.floor(3 * t + 1e-9) / 3,
}


def made_up(name: str, length: int = LENGTH) -> Curve:
    """One of these curves."""
    return [MADE_UP[name](place / (length - 1)) for place in range(length)]


def noisy(curve: Curve, noise: float, seed: int) -> Curve:
    """What would be read of the curve under normal noise of this standard deviation."""
    chance = random.Random(seed)
    return [value + chance.gauss(0, noise) for value in curve]


def glitched(readings: Curve) -> Curve:
    """The same with one reading, the fifth, that is far too high."""
    return [*readings[:4], readings[4] + 300.0, *readings[5:]]


def stopped_at(readings: Curve, policy: StoppingPolicy) -> int:
    """The iteration after which the rule stops; the last one where it does not."""
    history = []
    for number, value in enumerate(readings, 1):
        history.append(Iteration(number=number, quality=Quality(best=value)))
        if judge(history, policy).stop:
            return number
    return len(readings)


def kept(curve: Curve, iteration: int) -> float:
    """The share of the gain of the whole curve, without its noise, that there was when it stopped."""
    return (max(curve[:iteration]) - curve[0]) / (max(curve) - curve[0])
