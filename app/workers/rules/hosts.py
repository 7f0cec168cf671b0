"""Hosts of workers: the number of workers that each has room for, and the host that takes the next one."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from app.workers.rules.classes import WorkerClass

PERMITS = "LLM permits"


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberWait:
    """Number of members that do not come for one reason; `is_failure`: they will not by themselves."""

    reason: str
    members: int
    is_failure: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """A machine with a provisioner, which keeps `size` workers running; or a pool whose members an engine starts.

    `usual_size` is its setting, `extra` the number that operators have started beyond it. Memory is in GB; `cpu_share`
    is the share of all its cores in use, None where not measured. Its `workers` use `workers_gb` of the memory.
    The pool of an engine has a `max_size` instead of figures of a machine, members that come and go in blocks of
    `block_size`, and `member_waits` where some do not come. One with `serves` is a class of workers, sized apart.
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
    max_size: int | None = None
    block_size: int = 1
    member_waits: tuple[MemberWait, ...] = ()
    serves: WorkerClass | None = None

    @property
    def is_scaled(self) -> bool:
        """Whether an engine starts its workers, which register by themselves."""
        return self.max_size is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class HostPolicy:
    """Limits on how full a host may be: a share of its memory, workers for each core, memory of a worker."""

    # The rest is for the kernel and its caches.
    memory_share: float = 0.9
    # A guess at the number beyond which more never help: workers mostly wait for a language model, so they share cores,
    # and how busy these are is no limit by itself (the specification's example 1 doubles at 85 %).
    workers_per_core: int = 32
    worker_gb: float = 1.0


def max_workers_by_memory(host: Host, policy: HostPolicy) -> int:
    """Workers that fit into the memory that other programs leave; at least those that run already.

    Each counts with all the memory it may use, whether it uses that yet or not.
    """
    if host.max_size is not None:
        return max(host.workers, host.max_size)
    return max(host.workers, math.floor(_workers_gb(host, policy) / policy.worker_gb))


def max_workers_by_cpu(host: Host, policy: HostPolicy) -> int:
    """Workers that the cores of a host can serve; at least those that run already."""
    if host.max_size is not None:
        return max(host.workers, host.max_size)
    return max(host.workers, math.floor(policy.workers_per_core * host.cpu_cores))


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLimit:
    """Number of workers that a resource suffices for; `resource` is its name in words."""

    resource: str
    workers: int


def host_limits(hosts: Sequence[Host], elsewhere: int, policy: HostPolicy) -> list[WorkerLimit]:
    """Limits on the size of the pool by memory and CPU of all hosts, on top of `elsewhere` workers that others run."""
    if not hosts:
        return []
    memory = sum(max_workers_by_memory(host, policy) for host in hosts)
    cores = sum(max_workers_by_cpu(host, policy) for host in hosts)
    if all(host.is_scaled for host in hosts):
        return [WorkerLimit(resource="size of the pool (CONVENER_POOL_LIMIT)", workers=elsewhere + memory)]
    where = "the host" if len(hosts) == 1 else "the hosts"
    limits = [
        WorkerLimit(resource=f"memory of {where}", workers=elsewhere + memory),
        WorkerLimit(resource=f"CPU of {where}", workers=elsewhere + cores),
    ]
    # Memory of one host is of no use to the cores of another.
    both = sum(_max_workers(host, policy) for host in hosts)
    if both < min(memory, cores):
        limits.append(WorkerLimit(resource="memory and CPU of each host", workers=elsewhere + both))
    return limits


def room(hosts: Sequence[Host], policy: HostPolicy) -> int:
    """Number of further workers that all hosts together have room for."""
    return sum(_max_workers(host, policy) - host.workers for host in hosts)


def spread(hosts: Sequence[Host], new: int, policy: HostPolicy) -> Mapping[Host, int]:
    """Number of the new workers that each host takes; the next one goes to the host with the most room left."""
    room_left = {host: _max_workers(host, policy) - host.workers for host in hosts}
    counts = dict.fromkeys(hosts, 0)
    for _ in range(new if hosts else 0):
        # Ties go by name, so that the same hosts get the same workers again.
        roomiest = max(hosts, key=lambda host: (room_left[host] - counts[host], host.host))
        counts[roomiest] += 1
    return counts


def _workers_gb(host: Host, policy: HostPolicy) -> float:
    other_programs_gb = max(0.0, host.memory_used_gb - host.workers_gb)
    return max(0.0, policy.memory_share * host.memory_gb - other_programs_gb)


def _max_workers(host: Host, policy: HostPolicy) -> int:
    return min(max_workers_by_memory(host, policy), max_workers_by_cpu(host, policy))


def memory_for_each(hosts: Sequence[Host], new: int, policy: HostPolicy) -> float:
    """Memory in GB that every worker may use at once on the fullest host, with `new` ones spread; inf without workers.

    What other programs use on a host is not theirs.
    """
    started_counts = spread(hosts, new, policy)
    # What the members of an engine may use is theirs alone, and known when they register.
    counts = {host: host.workers + started for host, started in started_counts.items() if not host.is_scaled}
    return min((_workers_gb(host, policy) / count for host, count in counts.items() if count), default=math.inf)


def permit_limit(limit: int, held_share: float) -> WorkerLimit | None:
    """Number of workers that the permits for language models suffice for: ceil(1.2 * limit / held_share).

    `held_share` is the mean share of a task's time for which it holds a permit; None is returned where that is 0. The
    factor of 1.2 was measured: waits are those without a limit, at less than half the cost in overload.
    """
    if held_share <= 0:
        return None
    return WorkerLimit(resource=PERMITS, workers=math.ceil(1.2 * limit / held_share))
