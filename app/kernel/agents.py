"""The six kinds of agent and every name by which the outside world calls them."""

from enum import StrEnum
from functools import lru_cache


class AgentType(StrEnum):
    """A kind of agent; the value is the canonical name."""

    GENERATION = "generation"
    REFLECTION = "reflection"
    RANKING = "ranking"
    EVOLUTION = "evolution"
    PROXIMITY = "proximity"
    META_REVIEW = "meta_review"


# The Supervisor and the task queue of the wider system name the same agents differently; input accepts all of them.
_TASK_TYPES = {
    "generate_hypothesis": AgentType.GENERATION,
    "reflect_on_hypothesis": AgentType.REFLECTION,
    "rank_hypotheses": AgentType.RANKING,
    "evolve_hypothesis": AgentType.EVOLUTION,
    "find_similar_hypotheses": AgentType.PROXIMITY,
}


# Called for every submitted task. Bounded, because names come from callers; unknown ones raise and are not cached.
@lru_cache(maxsize=256)
def agent_type(name: str) -> AgentType:
    """Return the agent type that `name` or one of its aliases means.

    Accepts `generation`, `generation_agent`, `Generation`, `meta-review`, `MetaReview` and the task types.
    Raises ValueError that lists the canonical names.
    """
    plain = _snake(name)
    if plain in _TASK_TYPES:
        return _TASK_TYPES[plain]
    try:
        return AgentType(plain.removesuffix("_agent"))
    except ValueError:
        names = ", ".join(AgentType)
        raise ValueError(f"unknown agent type {name[:60]!r}; known are {names}") from None


def _snake(name: str) -> str:
    snake_case = "".join(f"_{c}" if c.isupper() and i and name[i - 1].islower() else c for i, c in enumerate(name))
    return snake_case.replace("-", "_").lower()
