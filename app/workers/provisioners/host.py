"""How busy the machine is that we run on: its processors and memory, or those of the control group that confines us.

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


_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """Percent of what there is. None where it could not be measured."""

    cpu: float | None
    memory: float | None


class Machine:
    """Measures since its last look; for one thread only."""

    def __init__(
        self, *, groups: Path = _GROUPS, own: Path = _OWN, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._levels = list(_levels(groups, own))
        self._clock = clock
        self._at, self._used = clock(), self._cpu_seconds()

    def read(self) -> Reading:
        """The processors since the last look, and the memory now."""
        now, used = self._clock(), self._cpu_seconds()
        elapsed = now - self._at
        shares = [
            100.0 * max(0.0, seconds - self._used[name][0]) / (elapsed * cores)
            for name, (seconds, cores) in used.items()
            if name in self._used and elapsed > 0
        ]
        self._at, self._used = now, used
        memories = [psutil.virtual_memory().percent, *_memory_percents(self._levels)]
        # Counters and clock are not read in the same instant, which would make a little more than all of it.
        return Reading(cpu=min(100.0, max(shares)) if shares else None, memory=min(100.0, max(memories)))

    def _cpu_seconds(self) -> dict[str, tuple[float, float]]:
        """Seconds of processor time used so far, and the cores to have: of the machine, and of each limited group."""
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
        used = _fields(level / "cpu.stat").get("usage_usec")
        if quota.isdigit() and period.isdigit() and used is not None and 0 < int(quota) / int(period) < machine_cores:
            yield str(level), (used / 1e6, int(quota) / int(period))


def _memory_percents(levels: list[Path]) -> Iterator[float]:
    total = psutil.virtual_memory().total
    for level in levels:
        most, used = _text(level / "memory.max"), _text(level / "memory.current")
        if most.isdigit() and used.isdigit() and 0 < int(most) < total:
            # Pages of files that nobody has touched lately make room as soon as somebody needs it.
            kept = int(used) - _fields(level / "memory.stat").get("inactive_file", 0)
            yield 100.0 * max(0, kept) / int(most)


def _levels(groups: Path, own: Path) -> Iterator[Path]:
    """Our own control group of version 2 and those above it, as far as they can be seen."""
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
