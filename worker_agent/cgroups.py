"""A control group (v2) for each task, where the group above this worker's own was delegated to it.

systemd does so for a unit with `Delegate=yes` and `DelegateSubgroup=`: the unit's own group is then free of processes,
so that groups below it can have limits.
"""

import contextlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_MOUNTS = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))
_MEMBERSHIP = Path("/proc/self/cgroup")
_DELEGATION_MARKS = ("user.delegate", "trusted.delegate")
_END_SECONDS = 2.0
_CPU_PERIOD = 100_000


def delegated_group(mounts: tuple[Path, ...] = _MOUNTS, membership: Path = _MEMBERSHIP) -> Path | None:
    """The group in which tasks may have groups of their own; None where none was delegated."""
    try:
        own = next(line[3:] for line in membership.read_text().splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        return None
    for mount in mounts:
        group = (mount / own.lstrip("/")).parent
        if group.is_relative_to(mount) and any(_mark(group, name) == b"1" for name in _DELEGATION_MARKS):
            # Refused for those that this system has not, or not here.
            for controller in ("memory", "pids", "cpu"):
                _set(group / "cgroup.subtree_control", f"+{controller}")
            return group
    return None


def limits_memory(group: Path) -> bool:
    """Whether groups in this one can have a limit of memory."""
    with contextlib.suppress(OSError):
        return "memory" in (group / "cgroup.subtree_control").read_text().split()
    return False


@contextmanager
def task_group(parent: Path, *, memory_bytes: int, processes: int, cpu_cores: float) -> Iterator[Path]:
    """Group for one task, with those limits that are possible here; all that is left in it ends with it."""
    group = parent / f"task-{os.getpid()}-{time.monotonic_ns()}"
    group.mkdir()
    try:
        _set(group / "memory.max", str(memory_bytes))
        _set(group / "memory.swap.max", "0")
        # One process that is missing would leave the others in a state that nobody thought of.
        _set(group / "memory.oom.group", "1")
        _set(group / "pids.max", str(processes))
        _set(group / "cpu.max", f"{max(1000, round(cpu_cores * _CPU_PERIOD))} {_CPU_PERIOD}")
        yield group
    finally:
        _set(group / "cgroup.kill", "1")
        _remove(group)


def has_run_out_of_memory(group: Path) -> bool:
    with contextlib.suppress(OSError):
        return any(
            name == "oom_kill" and count != "0"
            for name, count in (line.split() for line in (group / "memory.events").read_text().splitlines())
        )
    return False


def _mark(group: Path, name: str) -> bytes:
    with contextlib.suppress(OSError, AttributeError):
        return os.getxattr(group, name)
    return b""


def _set(file: Path, value: str) -> None:
    with contextlib.suppress(OSError), file.open("w") as stream:
        stream.write(value)


def _remove(group: Path) -> None:
    """Remove the group, which takes until its last process is gone."""
    deadline = time.monotonic() + _END_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            group.rmdir()
            return
        time.sleep(0.01)
