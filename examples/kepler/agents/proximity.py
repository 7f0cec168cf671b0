"""Proximity: group formulas that predict the same, however they are written, and keep the best of each group."""

import math

from examples.kepler.behaviour import log_predictions
from examples.supervising.task import Json, Task

# Largest difference in ln T, anywhere on the grid, between two formulas that count as one.
SAME = 0.005


def cluster(task: Task) -> Json:
    """Groups {keep, drop} of the ids in `hypotheses`: the least error plus complexity stays, the older on a tie."""
    hypotheses = sorted(task.payload["hypotheses"], key=lambda entry: (entry["score"], entry["age"]))
    groups: list[Json] = []
    representatives: list[list[float]] = []
    for entry in hypotheses:
        predictions = log_predictions(entry["tree"], entry["scale"])
        group = next((i for i, other in enumerate(representatives) if alike(predictions, other)), None)
        if group is None:
            representatives.append(predictions)
            groups.append({"keep": entry["id"], "drop": []})
        else:
            groups[group]["drop"].append(entry["id"])
    return {"groups": [group for group in groups if group["drop"]]}


def alike(predictions: list[float], others: list[float]) -> bool:
    """Whether two formulas agree on the whole grid, also on where they are undefined."""
    return all(abs(x - y) < SAME or (math.isnan(x) and math.isnan(y)) for x, y in zip(predictions, others, strict=True))
