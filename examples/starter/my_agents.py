"""The agents: functions from a task to a JSON object. `convener up --handlers my_agents` runs them."""

import random
from typing import Any


def propose(task: Any) -> dict[str, Any]:
    """Try some numbers near the best one; their square is to be 2."""
    best, width = float(task.payload["best"]), float(task.payload["width"])
    draw = random.Random(task.payload["seed"])  # the same task has the same answer, however often it is tried
    for n in range(20):
        candidate = best + draw.uniform(-width, width)
        if error_of(candidate) < error_of(best):
            best = candidate
        task.progress(5 * (n + 1))
    return {"number": best, "quality": 1 / (1 + error_of(best))}


def error_of(number: float) -> float:
    """How far the square of the number is from 2."""
    return abs(number * number - 2)


# Agent types are generation, reflection, ranking, evolution, proximity and meta_review.
HANDLERS = {"generation": propose}
