"""Evolution: recombine and vary the formulas that rank best."""

from collections.abc import Callable
from random import Random

from examples.kepler.agents.generation import MAX_SIZE
from examples.kepler.expressions import (
    BINARY,
    UNARY,
    Tree,
    constants,
    operator,
    part,
    paths,
    replace_part,
    size,
    variables,
    with_constants,
)
from examples.kepler.sampling import grow, leaf, weighted
from examples.kepler.simplify import without_coefficient
from examples.supervising.task import Json, Task, batch

Variation = Callable[[Random, "list[Json]", Json], Tree]


def evolve(task: Task) -> Json:
    """`count` children of `parents`, which come best first; each child says how it came about."""
    rng, count = Random(task.payload["seed"]), batch(task)
    parents, guidance = task.payload["parents"], task.payload["guidance"]
    formulas: list[Json] = []
    while len(formulas) < count:
        name = weighted(rng, tuple(VARIATIONS), ODDS)
        tree, _ = without_coefficient(VARIATIONS[name](rng, parents, guidance))
        if variables(tree) and size(tree) <= MAX_SIZE:
            formulas.append({"tree": tree, "origin": name})
    return {"formulas": formulas}


def _parent(rng: Random, parents: list[Json]) -> Tree:
    """The better of two at random."""
    tree: Tree = parents[min(rng.randrange(len(parents)), rng.randrange(len(parents)))]["tree"]
    return tree


def crossover(rng: Random, parents: list[Json], _: Json) -> Tree:
    """A part of one parent takes the place of a part of another."""
    mother, father = _parent(rng, parents), _parent(rng, parents)
    return replace_part(mother, rng.choice(paths(mother)), part(father, rng.choice(paths(father))))


def combination(rng: Random, parents: list[Json], _: Json) -> Tree:
    """The product or quotient of two parents."""
    return [rng.choice("*/"), _parent(rng, parents), _parent(rng, parents)]


def mutation(rng: Random, parents: list[Json], guidance: Json) -> Tree:
    """A random part is grown anew."""
    tree = _parent(rng, parents)
    return replace_part(tree, rng.choice(paths(tree)), grow(rng, rng.randint(0, 2), guidance))


def exchange(rng: Random, parents: list[Json], guidance: Json) -> Tree:
    """One operator is exchanged for another of the same arity, or one leaf for another."""
    tree = _parent(rng, parents)
    path = rng.choice(paths(tree))
    node = part(tree, path)
    if not isinstance(node, list):
        return replace_part(tree, path, leaf(rng, guidance))
    alike = tuple(UNARY if operator(node) in UNARY else BINARY)
    return replace_part(tree, path, [weighted(rng, alike, guidance.get("operators", {})), *node[1:]])


def refinement(rng: Random, parents: list[Json], _: Json) -> Tree:
    """The same formula with every constant moved by about a tenth."""
    tree = _parent(rng, parents)
    return with_constants(tree, (value * rng.gauss(1.0, 0.1) for value in constants(tree)))


def reduction(rng: Random, parents: list[Json], _: Json) -> Tree:
    """A part stands for the whole, or for the part that holds it."""
    tree = _parent(rng, parents)
    path = rng.choice(paths(tree))
    return replace_part(tree, path[: rng.randint(0, len(path))], part(tree, path))


def extension(rng: Random, parents: list[Json], guidance: Json) -> Tree:
    """The whole becomes a part of something slightly larger."""
    tree = _parent(rng, parents)
    if rng.random() < 0.5:
        return [rng.choice(tuple(UNARY)), tree]
    return [rng.choice("+-*/"), tree, grow(rng, 1, guidance)]


VARIATIONS: dict[str, Variation] = {
    "crossover": crossover,
    "combination": combination,
    "mutation": mutation,
    "exchange": exchange,
    "refinement": refinement,
    "reduction": reduction,
    "extension": extension,
}
ODDS = {
    "crossover": 3.0,
    "combination": 1.0,
    "mutation": 2.0,
    "exchange": 2.0,
    "refinement": 3.0,
    "reduction": 2.0,
    "extension": 1.0,
}
