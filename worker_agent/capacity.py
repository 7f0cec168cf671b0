"""Memory and processor cores of this machine, or of the tightest control group around the worker.

That is a container's, a job's of a batch scheduler or a unit's of systemd: what goes beyond is killed, or held up.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import psutil

_CGROUP = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")


def memory_gb(cgroup: Path = _CGROUP, membership: Path = _MEMBERSHIP) -> float:
    """GiB of this machine, or the limit of a group (version 1 or 2) where that is less."""
    limits = [psutil.virtual_memory().total]
    for controller, name in (("", "memory.max"), ("memory", "memory.limit_in_bytes")):
        for group in _groups(cgroup, membership, controller):
            limits += map(int, _read_numbers(group / name))
    return round(min(limits) / 2**30, 2)


def cpu_cores(cgroup: Path = _CGROUP, membership: Path = _MEMBERSHIP) -> float:
    """Cores that this process may run on, or the quota of a group (version 2) where that is less."""
    cores = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    quotas = [_read_numbers(group / "cpu.max") for group in _groups(cgroup, membership, "")]
    return round(min([cores, *(int(quota[0]) / int(quota[1]) for quota in quotas if len(quota) == 2)]), 2)


def _groups(cgroup: Path, membership: Path, controller: str) -> Iterator[Path]:
    """The group of this process for a controller of version 1, or that of version 2 (""), and all above it."""
    root = cgroup / controller
    group = root
    with contextlib.suppress(OSError):
        for line in membership.read_text().splitlines():
            _, names, path = line.split(":", 2)
            if controller in names.split(","):
                group = root / path.lstrip("/")
    while group != root and group.is_relative_to(root):
        yield group
        group = group.parent
    # In a container it is that of the container, whatever the path says.
    yield root


def _read_numbers(path: Path) -> list[str]:
    """Numbers in the file; none when there is no such file or no limit."""
    try:
        words = path.read_text().split()
    except OSError:
        return []
    return words if all(word.isdecimal() for word in words) else []
