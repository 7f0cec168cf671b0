"""Limits of a handler's process, set before foreign code runs in it, and its peak memory."""

from __future__ import annotations

import contextlib
import resource
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Json = dict[str, Any]

_CPU_GRACE_SECONDS = 5
_OPEN_FILES = 4096


def set_limits(limits: Json) -> None:
    """Lower every limit of this process; its own children inherit them. Sizes are in bytes."""
    _prefer_for_oom_kill()
    _lower_limit(resource.RLIMIT_CORE, 0)
    # At the soft limit SIGXCPU tells the reason; the hard one ends handlers that ignore it.
    _lower_limit(resource.RLIMIT_CPU, limits["cpu_seconds"], limits["cpu_seconds"] + _CPU_GRACE_SECONDS)
    # RLIMIT_DATA counts writable private memory. RLIMIT_AS would count address space too, of which the runtimes of
    # Java, Go, JavaScript and CUDA reserve tens of gigabytes that they never touch.
    _lower_limit(resource.RLIMIT_DATA, limits["memory_bytes"])
    _lower_limit(resource.RLIMIT_FSIZE, limits["file_bytes"])
    _lower_limit(resource.RLIMIT_NOFILE, _OPEN_FILES)
    # Counted for the user, in a user namespace for the user in there.
    _lower_limit(resource.RLIMIT_NPROC, limits["processes"])


def _prefer_for_oom_kill() -> None:
    """Make the kernel kill the handler rather than the daemon when the machine runs out of memory."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as score:
        score.write("500")


def _lower_limit(kind: int, soft: int, hard: int | None = None) -> None:
    _, ceiling = resource.getrlimit(kind)
    hard_limit = soft if hard is None else hard
    if ceiling != resource.RLIM_INFINITY:
        hard_limit = min(hard_limit, ceiling)
    resource.setrlimit(kind, (min(soft, hard_limit), hard_limit))


def memory_limit_gb() -> float:
    """Memory in GiB that this process may have."""
    return resource.getrlimit(resource.RLIMIT_DATA)[0] / 2**30


def file_limit_gb() -> float:
    """Size in GiB that a file of this process may have."""
    return resource.getrlimit(resource.RLIMIT_FSIZE)[0] / 2**30


def peak_memory_mb() -> float:
    """Peak memory in MiB of this process or of a child that it waited for.

    On Linux ru_maxrss starts from the parent's memory at the fork, so VmHWM is read instead.
    """
    own_peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # There is no /proc where the system grants a task a root of its own, but no view of its processes.
    with contextlib.suppress(OSError), open("/proc/self/status", encoding="ascii", errors="replace") as status:
        own_peak = next((int(line.split()[1]) for line in status if line.startswith("VmHWM:")), own_peak)
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return max(own_peak, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) / unit
