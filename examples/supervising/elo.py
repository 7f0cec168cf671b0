"""Elo ratings (Elo, The Rating of Chessplayers, 1978)."""

import math

START = 1200.0
K = 32.0


def expected(rating: float, other: float) -> float:
    """The share of points that a player of `rating` takes from `other`: 1 / (1 + 10^((other - rating) / 400))."""
    return 1.0 / (1.0 + math.pow(10.0, (other - rating) / 400.0))


def after(rating: float, other: float, points: float) -> tuple[float, float]:
    """Both ratings after one match in which the first took `points`: 1, 0.5 or 0. Their sum does not change."""
    gain = K * (points - expected(rating, other))
    return rating + gain, other - gain
