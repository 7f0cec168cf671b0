"""Which pool a waiting task is a need of: the usual one, a class of workers, or none where nobody offers enough."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from app.kernel.agents import AgentType
from app.kernel.resources import NOTHING, Resources
from app.workers.rules.classes import WorkerClass

# The usual pool; classes have names, and what nobody offers belongs to nobody.
USUAL = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pools:
    """The classes by name, and what the workers of the usual pool offer to each agent type they serve.

    None as `usual` is not known: whatever no class serves may be for them.
    """

    usual: Mapping[AgentType, Sequence[Resources]] | None
    classes: Mapping[str, WorkerClass] = field(default_factory=dict)


def destination(agent: AgentType, request: Resources, pools: Pools) -> str | None:
    """The pool whose workers offer least of what can run such a task, so that scarce ones are kept for others.

    GPUs and named resources count first, then whether a class is for certain agent types, then memory and cores. None:
    nobody offers it. Tasks of agent types that nobody serves stay with the usual pool.
    """
    candidates = [
        (_rank(worker_class.offer, is_special=worker_class.agents is not None), name)
        for name, worker_class in sorted(pools.classes.items())
        if worker_class.serves(agent, request)
    ]
    if pools.usual is None:
        offers = [NOTHING] if request == NOTHING or not candidates else []
    elif agent in pools.usual:
        offers = [offer for offer in pools.usual[agent] if offer.covers(request)]
    else:
        is_served = any(each.agents is None or agent in each.agents for each in pools.classes.values())
        offers = [] if is_served else [NOTHING]
    candidates += [(_rank(offer, is_special=False), USUAL) for offer in offers]
    return min(candidates)[1] if candidates else None


def _rank(offer: Resources, *, is_special: bool) -> tuple[float, float, bool, float, float]:
    gpus, named, memory, cores = offer.rank
    return gpus, named, not is_special, memory, cores
