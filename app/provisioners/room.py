"""How much memory and processor this machine has, or the container around us, and how much of it is in use."""

import os
from dataclasses import dataclass
from pathlib import Path

import psutil

from app.provisioners.machine import Machine

_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """Memory in GiB, cores, and the share of all cores that was in use since the last look; None: not measured."""

    memory_gb: float
    memory_used_gb: float
    cpu_cores: float
    cpu_share: float | None


class Gauge:
    """Looks at the machine again and again; the processor is measured from one look to the next."""

    def __init__(self, machine: Machine | None = None, cgroup: Path = _CGROUP) -> None:
        self._machine = machine or Machine()
        self._cgroup = cgroup

    def read(self) -> Room:
        """How things are now; blocks for about a millisecond."""
        seen = self._machine.read()
        memory = min([psutil.virtual_memory().total, *self._numbers("memory.max")]) / 2**30
        return Room(
            memory_gb=memory,
            # What cannot be measured leaves no room: nothing is started on a guess.
            memory_used_gb=memory if seen.memory is None else memory * seen.memory / 100,
            cpu_cores=self._cores(),
            cpu_share=None if seen.cpu is None else seen.cpu / 100,
        )

    def _cores(self) -> float:
        cores = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
        quota = self._numbers("cpu.max")
        return min(cores, quota[0] / quota[1]) if len(quota) == 2 else cores

    def _numbers(self, name: str) -> list[int]:
        """The numbers in a file of the container (cgroup v2); none when there is no such file or no limit."""
        try:
            words = (self._cgroup / name).read_text().split()
        except OSError:
            return []
        return [int(word) for word in words] if all(word.isdecimal() for word in words) else []
