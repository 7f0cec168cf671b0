"""Confines a handler's process before foreign code runs in it, and measures its peak memory."""

from __future__ import annotations

import contextlib
import os
import resource
import sys

_PR_SET_PDEATHSIG = 1
_CPU_GRACE_SECONDS = 5


def confine(*, parent: int, memory_bytes: int, cpu_seconds: int) -> None:
    """Apply every limit to this process; its own children inherit the rlimits."""
    # Without its daemon nobody would enforce the handler's time limit, while its task is leased to another worker.
    _die_with_parent(parent)
    _prefer_for_oom_kill()
    _lower_limit(resource.RLIMIT_CORE, 0)
    # At the soft limit SIGXCPU tells the reason; the hard one ends handlers that ignore it.
    _lower_limit(resource.RLIMIT_CPU, cpu_seconds, cpu_seconds + _CPU_GRACE_SECONDS)
    # RLIMIT_DATA counts writable private memory. RLIMIT_AS would count address space too, of which the runtimes of
    # Java, Go, JavaScript and CUDA reserve tens of gigabytes that they never touch.
    _lower_limit(resource.RLIMIT_DATA, memory_bytes)


def _die_with_parent(parent: int) -> None:
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, 9, 0, 0, 0)
    # The daemon may have died between the fork and the call above, which then never fires.
    if os.getppid() != parent:
        os._exit(1)


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


def peak_memory_mb() -> float:
    """Peak memory in MiB of this process or of a child that it waited for.

    On Linux ru_maxrss starts from the parent's memory at the fork, so VmHWM is read instead.
    """
    own_peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if sys.platform == "linux":
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            own_peak = next((int(line.split()[1]) for line in status if line.startswith("VmHWM:")), own_peak)
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return max(own_peak, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) / unit
