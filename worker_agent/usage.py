"""Processor time and memory of processes: the cost of a finished run, and samples for heartbeats."""

import contextlib
import os
import sys
import time
from collections.abc import Callable
from resource import struct_rusage

import psutil

from worker_agent.wire import Usage

_MAXRSS_PER_MB = 2**20 if sys.platform == "darwin" else 2**10


def measure_usage(rusage: struct_rusage, wall_seconds: float, peak_memory_mb: float | None) -> Usage:
    """Cost of a finished run; `rusage` covers the handler and the children that it waited for.

    Its peak memory starts from the daemon's at the fork, so the handler's own figure is preferred.
    """
    peak = rusage.ru_maxrss / _MAXRSS_PER_MB if peak_memory_mb is None else peak_memory_mb
    return Usage(
        wall_seconds=round(wall_seconds, 4),
        cpu_seconds=round(rusage.ru_utime + rusage.ru_stime, 4),
        max_memory_mb=round(peak, 1),
    )


class UsageSampler:
    """Processor and memory use of this process and of the running handler's family; for one thread only."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._daemon = psutil.Process(os.getpid())
        self._sampled_at = clock()
        self._cpu_seconds = _cpu_seconds([self._daemon])

    def sample(self, handler_pid: int | None) -> tuple[float, float]:
        """Percent of one core since the last sample, and MiB resident now."""
        family = [self._daemon, *_family(handler_pid)]
        now, cpu_seconds = self._clock(), _cpu_seconds(family)
        wall_elapsed, cpu_used = now - self._sampled_at, cpu_seconds - self._cpu_seconds
        self._sampled_at, self._cpu_seconds = now, cpu_seconds
        percent = 100.0 * max(0.0, cpu_used) / wall_elapsed if wall_elapsed > 0 else 0.0
        return round(percent, 1), round(_resident_mb(family), 1)


def _family(pid: int | None) -> list[psutil.Process]:
    if pid is None:
        return []
    with contextlib.suppress(psutil.Error, OSError):
        handler = psutil.Process(pid)
        return [handler, *handler.children(recursive=True)]
    return []


def _cpu_seconds(family: list[psutil.Process]) -> float:
    """Processor time so far, with that of waited-for children, so that a handler's does not vanish at its end."""
    total = 0.0
    for process in family:
        with contextlib.suppress(psutil.Error, OSError):
            times = process.cpu_times()
            total += times.user + times.system
            total += getattr(times, "children_user", 0.0) + getattr(times, "children_system", 0.0)
    return total


def _resident_mb(family: list[psutil.Process]) -> float:
    total = 0
    for process in family:
        with contextlib.suppress(psutil.Error, OSError):
            total += process.memory_info().rss
    return total / 2**20
