"""Which function serves which agent type."""

from collections.abc import Callable

from examples.kepler.agents.evolution import evolve
from examples.kepler.agents.generation import generate
from examples.kepler.agents.meta_review import review
from examples.kepler.agents.proximity import cluster
from examples.kepler.agents.ranking import rank
from examples.kepler.agents.reflection import reflect
from examples.supervising.task import Json, Task

HANDLERS: dict[str, Callable[[Task], Json]] = {
    "generation": generate,
    "reflection": reflect,
    "ranking": rank,
    "evolution": evolve,
    "proximity": cluster,
    "meta_review": review,
}
