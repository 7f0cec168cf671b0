"""Use of the processors and memory of this machine, or of the control group that confines this process.

Control groups of version 2 are read where they set a limit; the tightest of them and of the machine itself counts,
because that is where work will be held up first.
Source: Linux kernel, Documentation/admin-guide/cgroup-v2.rst (cpu.max, cpu.stat, memory.max, memory.stat).
"""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

_GROUPS = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """Use in percent of all there is; None where it could not be measured."""

    cpu: float | None
    memory: float | None


class Machine:
    """Meter of this machine; the processors are measured since the last reading. For one thread only."""

    def __init__(
        self, *, groups: Path = _GROUPS, own: Path = _OWN, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._levels = list(_levels(groups, own))
        self._clock = clock
        self._at, self._cpu_times = clock(), self._cpu_seconds()

    def read(self) -> Reading:
        """Use of the processors since the last reading, and of the memory now."""
        now, cpu_times = self._clock(), self._cpu_seconds()
        interval = now - self._at
        shares = [
            100.0 * max(0.0, seconds - self._cpu_times[name][0]) / (interval * cores)
            for name, (seconds, cores) in cpu_times.items()
            # A group that has appeared since the last reading has no interval yet.
            if name in self._cpu_times and interval > 0
        ]
        self._at, self._cpu_times = now, cpu_times
        memories = [psutil.virtual_memory().percent, *_memory_percents(self._levels)]
        # Counters and clock are not read in the same instant, which would make a little more than all of it.
        return Reading(cpu=min(100.0, max(shares)) if shares else None, memory=min(100.0, max(memories)))

    def _cpu_seconds(self) -> dict[str, tuple[float, float]]:
        """Processor seconds used so far and cores available: of the machine (as ""), and of each limited group."""
        cores = float(psutil.cpu_count() or 1)
        return {"": (_machine_seconds(), cores), **dict(_group_seconds(self._levels, cores))}


def _machine_seconds() -> float:
    times = psutil.cpu_times()
    # Time of guests is part of `user` already, and waiting for a disk keeps no processor busy.
    idle = sum(getattr(times, name, 0.0) for name in ("idle", "iowait", "guest", "guest_nice"))
    return float(sum(times) - idle)


def _group_seconds(levels: list[Path], machine_cores: float) -> Iterator[tuple[str, tuple[float, float]]]:
    for level in levels:
        quota, _, period = _text(level / "cpu.max").partition(" ")
        microseconds = _fields(level / "cpu.stat").get("usage_usec")
        if quota.isdigit() and period.isdigit() and microseconds is not None:
            cores = int(quota) / int(period)
            if 0 < cores < machine_cores:
                yield str(level), (microseconds / 1e6, cores)


def _memory_percents(levels: list[Path]) -> Iterator[float]:
    total = psutil.virtual_memory().total
    for level in levels:
        limit, current = _text(level / "memory.max"), _text(level / "memory.current")
        if limit.isdigit() and current.isdigit() and 0 < int(limit) < total:
            # Pages of files that nobody has touched lately make room as soon as somebody needs it.
            needed_bytes = int(current) - _fields(level / "memory.stat").get("inactive_file", 0)
            yield 100.0 * max(0, needed_bytes) / int(limit)


def _levels(groups: Path, own: Path) -> Iterator[Path]:
    """Our own control group of version 2 and those above it, as far as they are visible."""
    line = next((line for line in _text(own).splitlines() if line.startswith("0::/")), None)
    if line is None:
        return
    path = groups / line.removeprefix("0::/")
    while path != groups.parent and path.is_relative_to(groups):
        yield path
        path = path.parent


def _fields(file: Path) -> dict[str, int]:
    pairs = (line.split() for line in _text(file).splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def _text(file: Path) -> str:
    try:
        return file.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """Memory in GiB, cores, and the share of all cores in use since the last reading; None: not measured."""

    memory_gb: float
    memory_used_gb: float
    cpu_cores: float
    cpu_share: float | None


class Gauge:
    """Meter of the capacity of this machine; the processor is measured from one reading to the next."""

    def __init__(self, machine: Machine | None = None, groups: Path = _GROUPS, own: Path = _OWN) -> None:
        self._machine = machine or Machine()
        # In a container its own is the root, whatever the path says.
        self._levels = {*_levels(groups, own), groups}

    def read(self) -> Room:
        """Measure now; blocks for about a millisecond."""
        reading = self._machine.read()
        limits = [limit for level in self._levels for limit in _numbers(level / "memory.max")]
        memory = min([psutil.virtual_memory().total, *limits]) / 2**30
        return Room(
            memory_gb=memory,
            # What cannot be measured leaves no room: nothing is started on a guess.
            memory_used_gb=memory if reading.memory is None else memory * reading.memory / 100,
            cpu_cores=self._cores(),
            cpu_share=None if reading.cpu is None else reading.cpu / 100,
        )

    def _cores(self) -> float:
        cores = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
        quotas = [_numbers(level / "cpu.max") for level in self._levels]
        return min([cores, *(quota[0] / quota[1] for quota in quotas if len(quota) == 2)])


def _numbers(file: Path) -> list[int]:
    """The numbers in a file of a control group (version 2); none when there is no such file or no limit."""
    words = _text(file).split()
    return [int(word) for word in words] if all(word.isdecimal() for word in words) else []
