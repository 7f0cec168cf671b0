"""Machines that start workers: how many each has room for, and which of them takes the next."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """A machine with a provisioner.

    `size` is how many workers it keeps running, `usual_size` its setting, and `extra` what people have started beyond
    that. Memory in GB, the processor in cores and as
    the share of all cores that is in use; None: not measured. `workers` live there, and use `workers_gb` of the memory.
    """

    provisioner: str
    host: str
    size: int
    usual_size: int
    extra: int = 0
    memory_gb: float
    memory_used_gb: float
    cpu_cores: float
    cpu_share: float | None = None
    workers: int = 0
    workers_gb: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HostPolicy:
    """How full a machine may be."""

    # What the kernel and its caches want to themselves.
    memory_share: float = 0.9
    # A guess at what never helps: workers mostly wait for a language model, so they share cores, and how busy these are
    # is no limit by itself (the specification's example 1 doubles at 85 %).
    workers_per_core: int = 32
    worker_gb: float = 1.0


def memory_suffices_for(host: Host, policy: HostPolicy) -> int:
    """Workers that fit into what others leave, each with all that it is promised, whether it uses that already or not.

    Those that are there stay.
    """
    others = max(0.0, host.memory_used_gb - host.workers_gb)
    free = policy.memory_share * host.memory_gb - others
    return max(host.workers, math.floor(free / policy.worker_gb))


def cpu_suffices_for(host: Host, policy: HostPolicy) -> int:
    """Workers that the cores can keep going."""
    return max(host.workers, math.floor(policy.workers_per_core * host.cpu_cores))


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLimit:
    """How many workers a resource suffices for, by the resource's name in words."""

    resource: str
    workers: int


def caps(hosts: Sequence[Host], elsewhere: int, policy: HostPolicy) -> list[WorkerLimit]:
    """What the machines together suffice for, beside the workers that somebody else runs elsewhere."""
    if not hosts:
        return []
    memory = sum(memory_suffices_for(host, policy) for host in hosts)
    cores = sum(cpu_suffices_for(host, policy) for host in hosts)
    where = "the host" if len(hosts) == 1 else "the hosts"
    return [
        WorkerLimit(resource=f"memory of {where}", workers=elsewhere + memory),
        WorkerLimit(resource=f"CPU of {where}", workers=elsewhere + cores),
    ]


def room_for(hosts: Sequence[Host], policy: HostPolicy) -> int:
    """How many workers more the machines together have room for."""
    return sum(_suffices_for(host, policy) - host.workers for host in hosts)


def spread(hosts: Sequence[Host], new: int, policy: HostPolicy) -> Mapping[Host, int]:
    """How many of the new workers each machine takes: the next goes where most room is left."""
    room = {host: _suffices_for(host, policy) - host.workers for host in hosts}
    taken = dict.fromkeys(hosts, 0)
    for _ in range(new if hosts else 0):
        chosen = max(hosts, key=lambda host: (room[host] - taken[host], host.host))
        taken[chosen] += 1
    return taken


def _suffices_for(host: Host, policy: HostPolicy) -> int:
    return min(memory_suffices_for(host, policy), cpu_suffices_for(host, policy))


def permit_limit(limit: int, held_share: float) -> WorkerLimit | None:
    """How many workers the language model's permits suffice for; None when tasks hold none.

    `held_share` is the mean share of a task's time for which it holds a permit. A fifth more workers than that keeps
    every permit in use: measured, waits are those without a cap, at less than half the cost in overload.
    """
    if held_share <= 0:
        return None
    return WorkerLimit(resource="LLM permits", workers=math.ceil(1.2 * limit / held_share))
