"""Memory and CPU time of the processes of a testbed."""

from dataclasses import dataclass
from typing import Self

import psutil

from benchmarks.testbed import Testbed

_MEBIBYTE = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuSeconds:
    """User and system time of the processes, in seconds; `between` is that of a relay."""

    api: float
    postgres: float
    loops: float = 0.0
    between: float = 0.0

    @classmethod
    def read(cls, testbed: Testbed) -> Self:
        """Read the time since the processes were started."""
        return cls(
            api=_own(testbed.api),
            postgres=_family(testbed.postmaster),
            loops=_own(testbed.loops) if testbed.loops else 0.0,
            between=sum(map(_own, testbed.between)),
        )

    def since(self, previous: "CpuSeconds") -> "CpuSeconds":
        """The time between two readings."""
        return CpuSeconds(
            api=self.api - previous.api,
            postgres=self.postgres - previous.postgres,
            loops=self.loops - previous.loops,
            between=self.between - previous.between,
        )


def rss_mb(process: psutil.Process) -> float:
    """Resident memory in MiB."""
    return float(process.memory_info().rss) / _MEBIBYTE


def _own(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _family(postmaster: psutil.Process) -> float:
    """Time of the postmaster with its backends; it inherits the time of those that have ended."""
    times = postmaster.cpu_times()
    total = float(times.user + times.system + times.children_user + times.children_system)
    for child in postmaster.children(recursive=True):
        try:
            total += _own(child)
        except psutil.NoSuchProcess:
            continue
    return total
