"""What a worker is told to do and how much its tasks may use, within what it has and what the configuration allows."""

import hashlib
from dataclasses import astuple, dataclass

from app.domain.agents import AgentType
from app.domain.config import ResourceLimits


@dataclass(frozen=True, slots=True, kw_only=True)
class Posting:
    """The agent to prefer; what each task may use, in GB, cores and, for tasks of that agent, seconds of a usual one.

    None: nobody has decided.
    """

    agent: AgentType | None = None
    memory_gb: float | None = None
    cpu_cores: float | None = None
    compute_seconds: float | None = None


def bounded(decided: Posting, limits: ResourceLimits, *, memory_gb: float | None, cpu_cores: float | None) -> Posting:
    """The posting of a worker that has so much: never more than that, nor than the configuration allows."""
    return Posting(
        agent=decided.agent,
        memory_gb=_least(decided.memory_gb, memory_gb, limits.max_memory_per_worker_gb),
        cpu_cores=_least(decided.cpu_cores, cpu_cores, limits.max_cpu_per_worker),
        compute_seconds=decided.compute_seconds,
    )


def version(posting: Posting) -> str:
    """A name of these very values: who knows it knows them, whatever was said in between."""
    return hashlib.sha256(repr(astuple(posting)).encode()).hexdigest()[:16]


def _least(*amounts: float | None) -> float:
    return min(amount for amount in amounts if amount is not None)
