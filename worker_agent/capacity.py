"""Memory and processor cores of this machine, or of the container around the worker."""

import os
from pathlib import Path

import psutil

_CGROUP = Path("/sys/fs/cgroup")


def memory_gb(cgroup: Path = _CGROUP) -> float:
    """GiB of this machine, or the limit of the container (cgroup v2) where that is less."""
    total = psutil.virtual_memory().total
    limit = _read_numbers(cgroup / "memory.max")
    return round(min([total, *map(int, limit)]) / 2**30, 2)


def cpu_cores(cgroup: Path = _CGROUP) -> float:
    """Cores that this process may run on, or the quota of the container (cgroup v2) where that is less."""
    cores = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    quota = _read_numbers(cgroup / "cpu.max")
    return round(min(cores, int(quota[0]) / int(quota[1])), 2) if len(quota) == 2 else cores


def _read_numbers(path: Path) -> list[str]:
    """Numbers in the file; none when there is no such file or no limit."""
    try:
        words = path.read_text().split()
    except OSError:
        return []
    return words if all(word.isdecimal() for word in words) else []
