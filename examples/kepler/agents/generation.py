"""Generation: propose random formulas, none of them derived from the data."""

from random import Random

from examples.kepler.expressions import size, variables
from examples.kepler.sampling import grow
from examples.kepler.simplify import without_coefficient
from examples.supervising.task import Json, Task, batch

MAX_SIZE = 15
DEEPEST = 4


def generate(task: Task) -> Json:
    """`count` formulas from `seed`; `guidance` of meta-review shifts the odds of operators, variables and exponents."""
    rng, count = Random(task.payload["seed"]), batch(task)
    formulas: list[Json] = []
    while len(formulas) < count:
        grown = grow(rng, rng.randint(2, DEEPEST), task.payload["guidance"])
        tree, _ = without_coefficient(grown)
        if variables(tree) and size(tree) <= MAX_SIZE:
            formulas.append({"tree": tree, "origin": "grown"})
    return {"formulas": formulas}
