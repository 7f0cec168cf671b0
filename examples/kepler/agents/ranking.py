"""Ranking: matches between two formulas on the held-out bodies; who predicts more periods closer wins."""

import math

from examples.kepler.data import sample
from examples.kepler.fitting import log_errors, root_mean_square
from examples.supervising.task import Json, Task

# Published periods scatter by less than this around any law; a smaller lead on a body proves nothing.
CLOSE = 0.002


def rank(task: Task) -> Json:
    """Points of the first of every pair (1, 0.5 or 0) and each contestant's held-out error, null if undefined."""
    contestants, bodies = task.payload["contestants"], sample("held_out")
    errors = {key: log_errors(entry["tree"], entry["scale"], bodies) for key, entry in contestants.items()}
    sizes = {key: entry["size"] for key, entry in contestants.items()}
    return {
        "outcomes": [_match(first, second, errors, sizes) for first, second in task.payload["pairs"]],
        "held_out_errors": {key: _finite(root_mean_square(values)) for key, values in errors.items()},
    }


def _match(first: str, second: str, errors: dict[str, list[float]], sizes: dict[str, int]) -> Json:
    wins = sum(_closer(x, y) for x, y in zip(errors[first], errors[second], strict=True))
    losses = sum(_closer(y, x) for x, y in zip(errors[first], errors[second], strict=True))
    points = _points(wins - losses) if wins != losses else _points(sizes[second] - sizes[first])
    return {"first": first, "second": second, "points": points, "bodies": [wins, losses]}


def _closer(error: float, other_error: float) -> bool:
    return abs(error) < abs(other_error) - CLOSE


def _points(lead: int) -> float:
    return 0.5 if lead == 0 else float(lead > 0)


def _finite(error: float) -> float | None:
    return error if math.isfinite(error) else None
