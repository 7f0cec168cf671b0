"""Memory and CPU time of the processes that are measured."""

from dataclasses import dataclass
from typing import Self

import psutil

from benchmarks.surroundings import Surroundings

_MEBIBYTE = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuSeconds:
    """User and system time together."""

    api: float
    postgres: float
    loops: float = 0.0

    @classmethod
    def spent(cls, where: Surroundings) -> Self:
        """Since the processes were started."""
        loops = _own(where.loops) if where.loops else 0.0
        return cls(api=_own(where.api), postgres=_family(where.postmaster), loops=loops)

    def since(self, earlier: "CpuSeconds") -> "CpuSeconds":
        """What has been spent between two readings."""
        return CpuSeconds(
            api=self.api - earlier.api, postgres=self.postgres - earlier.postgres, loops=self.loops - earlier.loops
        )


def rss_mb(process: psutil.Process) -> float:
    """Resident memory in MiB."""
    return float(process.memory_info().rss) / _MEBIBYTE


def _own(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _family(postmaster: psutil.Process) -> float:
    """With the living backends, and those that have ended, whose time the postmaster inherits."""
    times = postmaster.cpu_times()
    total = float(times.user + times.system + times.children_user + times.children_system)
    for child in postmaster.children(recursive=True):
        try:
            total += _own(child)
        except psutil.NoSuchProcess:
            continue
    return total
