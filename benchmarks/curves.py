"""Curves of quality over iterations, published and synthetic, for trying stopping rules."""

import csv
import math
import random
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files

from app.goals.rules.stopping import Quality, QualityReading, StoppingPolicy, judge

# The ten buckets of the published curve are stretched to this many iterations.
LENGTH = 30
_FILE = "paper_fig4_elo_digitised.csv"
Curve = Sequence[float]

# Each gains 250 Elo, in shapes that the published curve does not have.
SYNTHETIC: Mapping[str, Callable[[float], float]] = {
    "saturating": lambda t: 1300 + 250 * (1 - math.exp(-4 * t)) / (1 - math.exp(-4)),
    "late bloom": lambda t: 1300 + 250 / (1 + math.exp(-14 * (t - 0.55))),
    "straight": lambda t: 1300 + 250 * t,
    "three steps": lambda t: 1300 + 250 * math.floor(3 * t + 1e-9) / 3,
}


def published(column: str = "best_elo", length: int = LENGTH) -> Curve:
    """Elo over compute time, read off the figures of "Towards an AI co-scientist": `best_elo` or `top10_elo`."""
    text = files("app.scaling.simulation.data").joinpath(_FILE).read_text(encoding="utf-8")
    rows = list(csv.DictReader(line for line in text.splitlines() if not line.startswith("#")))
    return [float(rows[place * len(rows) // length][column]) for place in range(length)]


def flat(length: int = 100) -> Curve:
    """A curve on which nothing improves."""
    return [1300.0] * length


def synthetic(name: str, length: int = LENGTH) -> Curve:
    """The curve of SYNTHETIC with this name, as `length` values."""
    return [SYNTHETIC[name](place / (length - 1)) for place in range(length)]


def with_noise(curve: Curve, deviation: float, seed: int) -> Curve:
    """Readings of the curve under normal noise of this standard deviation."""
    generator = random.Random(seed)
    return [value + generator.gauss(0, deviation) for value in curve]


def with_glitch(readings: Curve) -> Curve:
    """The same readings, but the fifth is far too high."""
    return [*readings[:4], readings[4] + 300.0, *readings[5:]]


def stop_iteration(readings: Curve, policy: StoppingPolicy) -> int:
    """The iteration after which the rule stops; the last one where it never does."""
    history = []
    for number, value in enumerate(readings, 1):
        history.append(QualityReading(number=number, quality=Quality(best=value)))
        if judge(history, policy).stop:
            return number
    return len(readings)


def gain_share(curve: Curve, iteration: int) -> float:
    """The share of the whole gain of the noise-free curve that is reached by `iteration`."""
    return (max(curve[:iteration]) - curve[0]) / (max(curve) - curve[0])
